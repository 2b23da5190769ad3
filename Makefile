# Two commands on a fresh clone with Python 3.11+ and nothing else: `make reproduce` and `make test`.
PLAN ?= head_to_head
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The versions that were tested together; `make CONSTRAINTS= ...` installs the newest releases instead.
CONSTRAINTS ?= constraints.txt
# The first of these that runs and is new enough; name another with `make PYTHON=/path/to/python ...`.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help reproduce test quick lab clean
.DEFAULT_GOAL := help
# The targets share one environment and two cores, and the tests measure time: one after the other, also under `make -j`.
.NOTPARALLEL:

help:
	@echo "make reproduce   make the environment, run the plan ($(PLAN)), write the report and say where it is"
	@echo "make test        make the environment and run every test and every notebook"
	@echo "make quick       unit tests only, under two minutes"
	@echo "make lab         open JupyterLab on the notebooks"
	@echo "make clean       remove the environment and caches; runs/ and prepared data stay"

reproduce: $(STAMP)
	$(BIN)/mmkit doctor
	$(BIN)/mmkit reproduce $(PLAN)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not notebooks and not slow"

lab: $(STAMP)
	$(BIN)/mmkit lab

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an installation that broke off is done again, a finished one is not.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@python="$(PYTHON)"; \
	for candidate in $(CANDIDATES); do \
	  if [ -z "$$python" ] && $$candidate -c "$(NEW_ENOUGH)" 2>/dev/null; then python=$$candidate; fi; \
	done; \
	if [ -z "$$python" ] || ! $$python -c "$(NEW_ENOUGH)"; then \
	  echo "mmkit needs Python 3.11 or newer; found: $$($${python:-python3} --version 2>&1). Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$($$python --version), then installing (minutes; several GB, most of it PyTorch)"; \
	$$python -m venv $(VENV) || { echo "could not make $(VENV): on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) --editable '.[test]'
	@touch $@
