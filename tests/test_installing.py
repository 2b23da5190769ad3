"""Installing: one list of requirements, versions that were tested together, and what make does with them."""

import json
import os
import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA_NAMES = {"pytorch": "torch", "jupyter_client": "jupyter-client"}


def test_conda_and_pip_install_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    project = PYPROJECT["project"]
    assert environment["name"] == "mmkit" and environment["channels"][0] == "conda-forge"
    assert conda[:2] == [f"python{project['requires-python']}", "pip"] and pip["pip"][-1] == "-e ."
    renamed = [re.sub(r"^[\w-]+", lambda name: CONDA_NAMES.get(name[0], name[0]), entry) for entry in conda[2:]]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert sorted(renamed + pip["pip"][:-1]) == sorted(wanted)


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_the_pins_are_versions_alone_and_satisfy_what_is_required():
    pinned = {}
    for pin in pins():
        assert pin.url is None and re.fullmatch(r"==[\w.]+", str(pin.specifier)), (
            f"constraints.txt: {pin} is no plain version"
        )
        pinned[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    project = PYPROJECT["project"]
    for entry in project["dependencies"] + project["optional-dependencies"]["test"]:
        required = Requirement(entry)
        version = pinned.pop(canonicalize_name(required.name), None) or "0"
        assert required.specifier.contains(version), (
            f"constraints.txt has {required.name} {version}, pyproject.toml asks for {required}"
        )
    assert not {name for name in pinned if re.match("nvidia|cuda|triton|pip$|mmkit", name)}, (
        "other platforms lack these"
    )


def test_the_versions_that_sites_cap_are_not_above_their_caps():
    capped = {"torch": Version("2.14.1"), "torchvision": Version("0.29.1")}
    for pin in pins():
        assert pin.name not in capped or Version(str(pin.specifier)[2:]) <= capped[pin.name]


def test_the_lowest_versions_are_those_of_the_project():
    said = subprocess.run([ROOT / ".ci" / "lowest"], capture_output=True, text=True, check=True).stdout.splitlines()
    entries = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["test"]
    assert said == [entry.replace(">=", "==") for entry in entries if ">=" in entry]


# --- make -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile and a fake Python that only records how it was called."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    fake = tmp_path / "fake"
    fake.write_text(
        '#!/bin/sh\nif [ "$1" = -c ]; then [ -z "$FAKE_OLD" ]; exit; fi\n'
        'if [ "$1" = --version ]; then echo Python 3.x; exit; fi\necho "$@" >> calls\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/mmkit"; fi\n'
        'if [ -n "$FAKE_BROKEN" ] && [ "$2" = pip ]; then exit 1; fi\n'
    )
    fake.chmod(0o755)

    def make(*arguments, **environment):
        command = ["make", "--no-print-directory", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment}
        )
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        (tmp_path / "calls").unlink(missing_ok=True)
        return done, calls

    return make


def test_a_second_make_does_not_install_again(clone):
    done, calls = clone("quick", "PYTHON=./fake")
    assert done.returncode == 0, done.stderr
    assert [call.split()[1] for call in calls] == ["venv", "pip", "pytest"]
    assert [call.split()[1] for call in clone("quick", "PYTHON=./fake")[1]] == ["pytest"]
    assert [call.split()[1] for call in clone("-j8", "quick", "test", "PYTHON=./fake")[1]] == ["pytest", "pytest"]


def test_make_installs_the_pins_and_can_do_without(clone):
    pinned, newest = (
        clone("quick", "PYTHON=./fake", f"VENV=.venv{n}", *more)[1][1] for n, more in enumerate(([], ["CONSTRAINTS="]))
    )
    assert (
        pinned.split()[1:]
        == "pip install --quiet --disable-pip-version-check -c constraints.txt --editable .[test]".split()
    )
    assert newest.split()[1:] == "pip install --quiet --disable-pip-version-check --editable .[test]".split()


def test_an_installation_that_broke_off_is_done_again(clone):
    assert clone("quick", "PYTHON=./fake", FAKE_BROKEN="1")[0].returncode != 0
    done, calls = clone("quick", "PYTHON=./fake")
    assert done.returncode == 0 and [call.split()[1] for call in calls] == ["venv", "pip", "pytest"]


def test_reproduce_checks_the_machine_and_runs_the_plan(clone):
    _, calls = clone("reproduce", "PYTHON=./fake", "PLAN=other")
    assert calls[2:] == ["doctor", "reproduce other"]


def test_an_old_python_is_refused_in_words(clone):
    done, calls = clone("test", "PYTHON=./fake", FAKE_OLD="1")
    assert done.returncode != 0 and not calls
    assert "mmkit needs Python 3.11 or newer; found: Python 3.x. Install one, or name it: make PYTHON=" in done.stderr


def test_continuous_integration_runs_make_test_on_what_is_promised():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text()
    assert script.read_text().splitlines()[-1] == "make test"
    workflow = yaml.load((ROOT / ".github" / "workflows" / "test.yml").read_text(), yaml.BaseLoader)
    jobs = workflow["jobs"]
    assert workflow["on"]["schedule"][0]["cron"].split()[-1].isdigit(), "weekly"
    matrix = jobs["test"]["strategy"]["matrix"]
    assert f">={matrix['python'][0]}" == PYPROJECT["project"]["requires-python"]
    assert matrix == {
        "os": ["ubuntu-latest", "macos-latest"],
        "python": ["3.11", "3.12", "3.13", "3.14"],
        "versions": ["pins"],
        "include": matrix["include"],
    }
    assert {case["versions"] for case in matrix["include"]} == {"lowest", "newest"}
    steps = " ".join(step.get("run", "") for step in jobs["test"]["steps"])
    chosen = json.loads(re.search(r"make test CONSTRAINTS=\$\{\{ fromJSON\('(.+?)'\)\[matrix.versions\]", steps)[1])
    assert chosen == {"pins": "constraints.txt", "lowest": "build/lowest.txt", "newest": ""}
    assert ".ci/lowest > build/lowest.txt" in steps
