"""Every notebook keeps the contract, runs at smoke size with its own and with other parameters, and reproduces its committed outputs.

Papermill and nbval are blind in opposite places, so both run. Whatever is in `notebooks/` is taken; nothing is left out.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import NOTEBOOKS, ROOT
from mmkit import notebooks
from mmkit.teach import contract

PROFILES = notebooks.profiles(ROOT / "notebooks")
FROM_FILES = ("flickr8k", "openmoji")  # data sets that need the mirror here, where there is no network
OTHER = [
    pytest.param(path, values, id=f"{path.stem}-{number}")
    for path in NOTEBOOKS
    for number, values in enumerate(PROFILES.get(path.stem, {}).get("other", []))
    if values.get("data") not in FROM_FILES or os.environ.get("MMKIT_MIRROR")
]
NBVAL = [sys.executable, "-m", "pytest", "-q", "-p", "nbval_ipc", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-cell-timeout=120"]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def measured(command, log: Path, **environment):
    """Run a command; returns exit code, seconds of processor time (a busy machine does not lengthen them, and at one thread
    they are what the clock shows on a quiet one) and gigabytes, both of it and all its descendants."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    scale = 1 if sys.platform == "darwin" else 1024
    return process.returncode, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale / 1e9


def smoke(path, out, values):
    words = [word for name, value in values.items() for word in ("-p", f"{name}={value}")]
    log = out.with_suffix(".log")
    code, seconds, gigabytes = measured([sys.executable, "-m", "mmkit.cli", "run", str(path), "--profile", "smoke", "--out", str(out), *words], log)
    assert code == 0, log.read_text()
    executed = notebooks.read(out)
    assert notebooks.unfinished(executed) is None
    return executed, seconds, gigabytes


def standard_error(executed):
    return [(cell["id"], "".join(output["text"])) for cell in notebooks.code_cells(executed) for output in cell["outputs"] if output.get("name") == "stderr"]


def test_there_are_notebooks_and_each_has_a_profile():
    assert NOTEBOOKS and set(PROFILES) == {path.stem for path in NOTEBOOKS}


@each_notebook
def test_it_keeps_the_contract(path):
    assert contract.check(path) == []


@pytest.mark.notebooks
@each_notebook
def test_it_runs_at_smoke_size_within_its_limits(path, tmp_path):
    executed, seconds, gigabytes = smoke(path, tmp_path / path.name, {})
    assert standard_error(executed) == []
    limit = PROFILES[path.stem]["limits"]["smoke"]
    assert seconds <= limit["seconds"] and gigabytes <= limit["gigabytes"], f"{seconds:.0f} s, {gigabytes:.1f} GB"


@pytest.mark.notebooks
@pytest.mark.parametrize(("path", "values"), OTHER)
def test_it_runs_with_other_parameters(path, values, tmp_path):
    executed, _, _ = smoke(path, tmp_path / path.name, values)
    [injected] = [cell["source"] for cell in notebooks.code_cells(executed) if "injected-parameters" in notebooks.tags(cell)]
    assert all(f"{name} = " in injected for name in values)


@pytest.mark.notebooks
@each_notebook
def test_it_reproduces_its_committed_outputs_within_its_limits(path, tmp_path):
    """nbval at lab size: every cell runs, and those tagged `nbval-check-output` print what the page shows."""
    log = tmp_path / "nbval.log"
    code, seconds, gigabytes = measured([*NBVAL, str(path)], log)
    assert code == 0, log.read_text()
    assert f"{len(notebooks.code_cells(notebooks.read(path)))} passed" in log.read_text()
    limit = PROFILES[path.stem]["limits"]["lab"]
    assert seconds <= limit["seconds"] and gigabytes <= limit["gigabytes"], f"{seconds:.0f} s, {gigabytes:.1f} GB"


@pytest.mark.notebooks
@pytest.mark.parametrize(("shown", "code"), [("42", 0), ("41", 1)])
def test_nbval_does_compare_what_is_tagged(tmp_path, shown, code):
    """The guard of the guard above: the same command on a page that shows the right and the wrong number."""
    cell = nbformat.v4.new_code_cell("print(6 * 7)", id="answer", execution_count=1, metadata={"tags": ["nbval-check-output"]})
    cell.outputs = [nbformat.v4.new_output("stream", text=f"{shown}\n")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / "00_made.ipynb")
    found, _, _ = measured([*NBVAL, str(tmp_path / "00_made.ipynb")], tmp_path / "log")
    assert found == code, (tmp_path / "log").read_text()
