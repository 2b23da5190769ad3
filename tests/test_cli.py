"""The command line and the doctor, as a user meets them: in a process of their own, also on a broken machine."""

import json
import os
import subprocess
import sys
import time
from importlib import metadata

import pytest

from mmkit import doctor
from mmkit.doctor import Row


def test_help_answers_at_once(mmkit):
    mmkit("--help", check=0)
    start = time.perf_counter()
    done = mmkit("--help", check=0)
    assert time.perf_counter() - start < 1
    for command in ("doctor", "run", "reproduce", "report", "lab", "data", "notebook"):
        assert f"  {command} " in done.stdout


def test_the_command_is_installed():
    assert metadata.entry_points(group="console_scripts", name="mmkit")["mmkit"].value == "mmkit.cli:main"


@pytest.mark.parametrize("command", [(), ("run",), ("data",), ("data", "prepare"), ("data", "add"), ("notebook",), ("notebook", "check"), ("reproduce",), ("report",)])
def test_every_command_explains_itself_without_torch(command):
    code = "import sys\nfrom mmkit.cli import app\ntry:\n    app()\nfinally:\n    print([name for name in ('torch', 'pandas', 'papermill') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
    assert "Usage:" in done.stdout and done.stdout.strip().endswith("[]")


ERRORS = {
    "notebook": (("run", "no_such_notebook"), "unknown notebook 'no_such_notebook'"),
    "profile": (("run", "00", "--profile", "smok"), "unknown profile 'smok': did you mean 'smoke'?"),
    "parameter": (("run", "00", "-p", "dta=scenes"), "00_start_here: unknown parameter 'dta': did you mean 'data'?"),
    "type": (("run", "00", "-p", "seed=many"), "parameter 'seed' is int (default 0), got 'many' of type str"),
    "pair": (("run", "00", "-p", "seed"), "'seed' is not NAME=VALUE: write for example -p data=scenes"),
    "plan": (("reproduce", "head_to_had"), "unknown plan 'head_to_had': did you mean 'head_to_head'?"),
    "report": (("report", "no_runs_of_this"), "no_runs_of_this"),
    "data": (("data", "prepare", "scene"), "unknown data recipe 'scene': did you mean 'scenes'?"),
    "card": (("data", "card", "scene"), "unknown data set 'scene': did you mean 'scenes'?"),
    "file": (("notebook", "check", "gone.ipynb"), "no notebook 'gone.ipynb'"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_of_use_is_one_line_and_exit_code_2(mmkit, kind):
    command, message = ERRORS[kind]
    done = mmkit(*command, check=2)
    assert done.stderr.startswith("mmkit: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_an_unknown_command_names_the_nearest(mmkit):
    assert "Did you mean 'doctor'?" in mmkit("docter", check=2).stderr


def test_notebook_check_lists_breaches_and_fails(mmkit, tmp_path):
    (tmp_path / "05_broken.ipynb").write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    done = mmkit("notebook", "check", tmp_path / "05_broken.ipynb", check=1)
    assert "05_broken.ipynb: there is no section `## Exercises`" in done.stdout


@pytest.mark.notebooks
def test_refresh_writes_outputs_in_place_and_leaves_a_failing_notebook_alone(mmkit, tmp_path):
    import nbformat

    question = nbformat.v4.new_markdown_cell("# Why?\n**Time and memory** 900 s and 9 GB on 2 cores.", id="question")
    cell = nbformat.v4.new_code_cell("print(6 * 7)", id="answer", metadata={"execution": {}, "tags": ["setup"]})
    written = tmp_path / "05_made.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[question, cell], metadata={"papermill": {}, "widgets": {}}), written)
    mmkit("notebook", "refresh", written, check=0)
    fresh = nbformat.read(written, as_version=4)
    assert fresh.cells[1].outputs[0].text == "42\n" and fresh.cells[1].execution_count == 1
    assert set(fresh.metadata) == {"kernelspec", "language_info"} and fresh.cells[1].metadata == {"tags": ["setup"]} and fresh.cells[1].id == "answer"
    assert "**Time and memory** 5 s and 0.5 GB on" in fresh.cells[0].source

    cell.source = "1 / 0"
    nbformat.write(nbformat.v4.new_notebook(cells=[question, cell]), written)
    before = written.read_bytes()
    done = mmkit("notebook", "refresh", written, check=2)
    assert "was left as it is: cell answer raised ZeroDivisionError" in done.stderr and written.read_bytes() == before


# --- doctor -------------------------------------------------------------------------------------------------------------


def rows(name, found=None):
    return [row for row in (found or doctor.diagnose()) if row.name == name]


def test_doctor_passes_here_quickly_and_names_no_folder(mmkit, tmp_path):
    start = time.perf_counter()
    done = mmkit("doctor", check=0)
    assert time.perf_counter() - start < 10
    for name in ("Python", "cores", "memory", "torch", "transformers", "timm", "device", "threads", "weights minilm", "data folder", "mirror", "kernel python3", "mmkit"):
        assert any(line.split(maxsplit=1)[1].startswith(name) for line in done.stdout.splitlines() if line), f"{name} is missing\n{done.stdout}"
    for private in (os.environ["MMKIT_DATA"], os.path.expanduser("~"), sys.prefix):
        assert private not in done.stdout
    assert "checks pass" in done.stdout.splitlines()[-1]


def test_doctor_on_a_broken_machine(mmkit, tmp_path):
    """A data folder that cannot be (below a file: root may write anywhere else), a mirror that is not, no kernel."""
    (tmp_path / "file").touch()
    environment = {"MMKIT_DATA": str(tmp_path / "file" / "data"), "MMKIT_MIRROR": str(tmp_path / "gone")}
    found = [Row(**row) for row in json.loads(mmkit("doctor", "--json", check=1, **environment).stdout)]
    [folder], [mirror] = rows("data folder", found), rows("mirror", found)
    assert folder.state == mirror.state == "broken"
    assert "cannot be written" in folder.finding and folder.remedy == "point MMKIT_DATA at a folder you can write"
    assert mirror.finding == "$MMKIT_MIRROR is no folder"
    assert rows("Python", found)[0].state == "ok", "the other checks still run"


def test_doctor_names_missing_and_old_packages(monkeypatch):
    version = metadata.version

    def broken(name):
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return "4.40.0" if name == "transformers" else version(name)

    monkeypatch.setattr(metadata, "version", broken)
    [packages] = [row for row in doctor._packages() if row.name == "packages"]
    assert packages.state == "broken" and packages.remedy.startswith("python -m pip install -e .")
    assert packages.finding == "transformers>=5 is needed, 4.40.0 is installed; timm>=1 is missing"


def test_doctor_survives_a_torch_that_does_not_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    [device] = list(doctor._torch())
    assert device.state == "broken" and device.finding.startswith("torch does not import") and "reinstall torch" in device.remedy


def test_doctor_refuses_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert next(doctor._machine()).state == "broken"


def test_doctor_sees_weights_that_are_missing(monkeypatch):
    import mmkit.models

    monkeypatch.setattr(sys.modules[mmkit.models.pretrained.__module__], "find_spec", lambda name: None)
    found = list(doctor._weights())
    assert found and all(row.state == "broken" and "pip install" in row.finding for row in found)


def test_doctor_sees_a_kernel_of_another_python(monkeypatch, tmp_path):
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["/usr/bin/other-python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    [kernel] = list(doctor._kernel())
    assert kernel.state == "broken" and kernel.finding == "runs another Python (other-python)" and "ipykernel install" in kernel.remedy


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def crash():
        raise ValueError("as it happens")

    monkeypatch.setattr(doctor, "_folders", crash)
    monkeypatch.setattr(doctor, "_torch", list)
    assert [row.finding for row in rows("crash")] == ["the check failed: ValueError: as it happens"]
