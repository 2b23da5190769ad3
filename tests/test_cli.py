"""The command line and the doctor, as a user meets them: in a process of their own, also on a broken machine."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata

import pytest

from mmkit import cli, doctor
from mmkit.data.fetch import mirror_root
from mmkit.data.folders import data_root
from mmkit.doctor import Row
from mmkit.repro import paths


@pytest.fixture
def here(monkeypatch, capsys):
    """Run the command line in this process: returns exit code, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


def test_help_names_the_commands(mmkit):
    done = mmkit("--help", check=0)
    for command in ("doctor", "run", "reproduce", "report", "lab", "data", "notebook"):
        assert f"  {command} " in done.stdout


def test_the_command_is_installed():
    assert metadata.entry_points(group="console_scripts", name="mmkit")["mmkit"].value == "mmkit.cli:main"


def test_every_command_explains_itself_without_heavy_imports():
    code = """
import sys
import typer
from mmkit.cli import app

def visit(command, words):
    for name, inner in getattr(command, "commands", {}).items():
        visit(inner, [*words, name])
    try:
        app([*words, "--help"])
    except SystemExit as end:
        assert end.code == 0, words

visit(typer.main.get_command(app), [])
print("heavy:", [name for name in ("torch", "pandas", "papermill", "jupyter_client") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") >= 14 and done.stdout.endswith("heavy: []\n")


ERRORS = {
    "notebook": (("run", "no_such_notebook"), "unknown notebook 'no_such_notebook'"),
    "profile": (("run", "00", "--profile", "smok"), "unknown profile 'smok': did you mean 'smoke'?"),
    "parameter": (("run", "00", "-p", "dta=scenes"), "00_start_here: unknown parameter 'dta': did you mean 'data'?"),
    "type": (("run", "00", "-p", "seed=many"), "parameter 'seed' is int (default 0), got 'many' of type str"),
    "column": (
        ("data", "add", "mine", "--images", ".", "--table", "t.csv", "--column", "caption"),
        "'caption' is not NAME=VALUE: write for example --column caption=report",
    ),
    "pair": (("run", "00", "-p", "seed"), "'seed' is not NAME=VALUE: write for example -p data=scenes"),
    "plan": (("reproduce", "head_to_had"), "unknown plan 'head_to_had': did you mean 'head_to_head'?"),
    "report": (("report", "no_runs_of_this"), "no_runs_of_this"),
    "data": (("data", "prepare", "scene"), "unknown data recipe 'scene': did you mean 'scenes'?"),
    "card": (("data", "card", "scene"), "unknown data set 'scene': did you mean 'scenes'?"),
    "file": (("notebook", "check", "gone.ipynb"), "no notebook 'gone.ipynb'"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_of_use_is_one_line_and_exit_code_2(here, kind):
    command, message = ERRORS[kind]
    code, output, errors = here(*command)
    assert code == 2 and errors.startswith("mmkit: ") and errors.count("\n") == 1 and message in errors
    assert not output


def test_an_error_of_use_shows_no_traceback(mmkit):
    done = mmkit("run", "no_such_notebook", check=2)
    assert done.stderr.startswith("mmkit: unknown notebook 'no_such_notebook'") and done.stderr.count("\n") == 1


def test_an_unknown_command_names_the_nearest(here):
    code, _, errors = here("docter")
    assert code == 2 and "Did you mean 'doctor'?" in errors


def test_no_workers_are_refused(here):
    code, _, errors = here("reproduce", "--workers", "0", "--dry-run")
    assert code == 2 and "Invalid value for '--workers'" in errors


def test_folders_of_the_environment_are_the_same_in_a_notebooks_kernel(here, monkeypatch, tmp_path):
    """A kernel works in notebooks/, where a relative path would be another folder."""
    (tmp_path / "mirror").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, given in {"DATA": "data", "MIRROR": "mirror", "RUNS": "~/runs"}.items():
        monkeypatch.setenv(f"MMKIT_{name}", given)
    here("data", "check")
    monkeypatch.chdir("/")
    assert (data_root(), mirror_root(), paths.runs()) == (tmp_path / "data", tmp_path / "mirror", tmp_path / "runs")


@pytest.mark.parametrize("place", ["runs", "out"])
def test_what_the_system_refuses_is_one_line_with_path_place_and_remedy(place, here, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / ("file" if place == "runs" else "runs")))
    code, _, errors = here("run", "00", *(["--out", tmp_path / "file" / "out.ipynb"] if place == "out" else []))
    assert (
        code == 2
        and errors.count("\n") == 1
        and re.match(r"mmkit: (NotADirectory|FileExists)Error: ", errors)
        and f": '{tmp_path / 'file'}" in errors
    )
    assert re.search(
        r"[(]files.py, line \d+[)]: correct the path, or .* point --out, MMKIT_RUNS or MMKIT_DATA at a folder you "
        r"can write",
        errors,
    )


def test_notebook_check_lists_breaches_and_fails(here, tmp_path):
    (tmp_path / "05_broken.ipynb").write_text(
        json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    code, output, _ = here("notebook", "check", tmp_path / "05_broken.ipynb")
    assert code == 1 and "05_broken.ipynb: there is no section `## Exercises`" in output


def test_lab_opens_in_the_folder_of_the_notebooks(here, monkeypatch):
    calls = []
    monkeypatch.setattr(cli.os, "chdir", lambda folder: calls.append(folder.name))
    monkeypatch.setattr(cli.os, "execv", lambda program, command: calls.append(command))
    done = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(cli.subprocess, "run", lambda command, cwd: calls.append([command, cwd.name]) or done)
    assert here("lab", "--no-browser", "--port=9")[0] == 3
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=9"]
    assert calls == ["notebooks", command, [command, "notebooks"]], "where it cannot become JupyterLab, it starts it"


@pytest.mark.notebooks
def test_a_run_that_fails_says_where_and_is_kept(mmkit, tmp_path):
    done = mmkit("run", "00", "--profile", "smoke", "-p", "data=scenez", check=2, MMKIT_RUNS=str(tmp_path))
    [kept] = (tmp_path / "interactive").glob("00_start_here-smoke-*.ipynb")
    message = done.stderr.splitlines()[-1]
    assert (
        message.startswith("mmkit: 00_start_here.ipynb did not finish: cell pictures raised MmkitError: unknown data")
        and "did you mean 'scenes'?" in message
    )
    assert message.endswith(f"what ran is in {kept}")


@pytest.mark.notebooks
def test_refresh_writes_outputs_in_place_and_leaves_a_failing_notebook_alone(mmkit, tmp_path):
    import nbformat

    question = nbformat.v4.new_markdown_cell("# Why?\n**Time and memory** 900 s and 9 GB on 2 cores.", id="question")
    cell = nbformat.v4.new_code_cell(
        "import os\nprint(6 * 7, os.listdir(os.environ['MMKIT_RUNS']))",
        id="answer",
        metadata={"execution": {}, "tags": ["setup"]},
    )
    written = tmp_path / "05_made.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[question, cell], metadata={"papermill": {}, "widgets": {}}), written)
    (tmp_path / "runs" / "head_to_head").mkdir(parents=True)
    mmkit("notebook", "refresh", written, check=0, MMKIT_RUNS=str(tmp_path / "runs"))
    fresh = nbformat.read(written, as_version=4)
    assert fresh.cells[1].outputs[0].text == "42 []\n", "a page shows published records, not what this machine ran"
    assert fresh.cells[1].execution_count == 1
    assert (
        set(fresh.metadata) == {"kernelspec", "language_info"}
        and fresh.cells[1].metadata == {"tags": ["setup"]}
        and fresh.cells[1].id == "answer"
    )
    assert (
        re.search(r"\*\*Time and memory\*\* \d+ s and 0.5 GB on", fresh.cells[0].source)
        and "900 s" not in fresh.cells[0].source
    )

    cell.source = "1 / 0"
    nbformat.write(nbformat.v4.new_notebook(cells=[question, cell]), written)
    before = written.read_bytes()
    done = mmkit("notebook", "refresh", written, check=2)
    assert "was left as it is: cell answer raised ZeroDivisionError" in done.stderr and written.read_bytes() == before


# --- doctor -----------------------------------------------------------------------------------------------------------


def rows(name, found=None):
    return [row for row in (found or doctor.diagnose()) if row.name == name]


@pytest.mark.slow
def test_doctor_passes_here_and_names_no_folder(mmkit, tmp_path):
    done = mmkit("doctor", check=0)
    for name in (
        "Python",
        "cores",
        "memory",
        "torch",
        "transformers",
        "timm",
        "device",
        "threads",
        "weights minilm",
        "data folder",
        "mirror",
        "kernel python3",
        "mmkit",
    ):
        assert any(line.split(maxsplit=1)[1].startswith(name) for line in done.stdout.splitlines() if line), (
            f"{name} is missing\n{done.stdout}"
        )
    for private in (os.environ["MMKIT_DATA"], os.path.expanduser("~"), sys.prefix):
        assert private not in done.stdout
    assert "checks pass" in done.stdout.splitlines()[-1]


def test_doctor_on_a_broken_machine(here, monkeypatch, tmp_path):
    """A data folder that cannot be (below a file: root may write anywhere else), and a mirror that is not there."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "gone"))
    code, output, _ = here("doctor", "--json")
    found = [Row(**row) for row in json.loads(output)]
    [folder], [mirror] = rows("data folder", found), rows("mirror", found)
    assert code == 1 and folder.state == mirror.state == "broken"
    assert "cannot be written" in folder.finding and folder.remedy == "point MMKIT_DATA at a folder you can write"
    assert mirror.finding == "$MMKIT_MIRROR is no folder"
    assert rows("Python", found)[0].state == "ok", "the other checks still run"
    assert "BROKEN  data folder" in here("doctor")[1] and here("doctor")[1].splitlines()[-1].startswith("2 of ")


def test_doctor_where_the_home_is_the_root_or_nothing(monkeypatch, tmp_path):
    """As for a service: `/` as a home is no name of a user, and none at all is a finding."""
    for name in doctor.__dict__.keys() & {"_machine", "_packages", "_torch", "_weights", "_kernel", "_source"}:
        monkeypatch.setattr(doctor, name, list)
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    assert doctor._private("a/b of /c") == "a/b of /c" and all(row.state != "broken" for row in doctor.diagnose())

    def nobody(uid):
        raise KeyError(uid)

    for name in ("MMKIT_DATA", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert [row.finding for row in rows("folders")] == [
        "this user has no home folder to keep data in: point MMKIT_DATA at a folder you can write"
    ]


def test_doctor_finds_a_mirror_below_the_home(monkeypatch, tmp_path):
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MMKIT_MIRROR", "~/mirror")
    [mirror] = [row for row in doctor._folders() if row.name == "mirror"]
    assert mirror.state == "ok" and mirror.finding == "$MMKIT_MIRROR, 0 entries, without SHA256SUMS"


def test_doctor_names_missing_and_old_packages(monkeypatch):
    version = metadata.version

    def broken(name):
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return "4.40.0" if name == "transformers" else version(name)

    monkeypatch.setattr(metadata, "version", broken)
    [packages] = [row for row in doctor._packages() if row.name == "packages"]
    assert packages.state == "broken" and packages.remedy.startswith("python -m pip install -e .")
    assert packages.finding == "transformers>=5 is needed, 4.40.0 is installed; timm>=1.0.9 is missing"


def test_doctor_survives_a_torch_that_does_not_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    [device] = list(doctor._torch())
    assert (
        device.state == "broken"
        and device.finding.startswith("torch does not import")
        and "reinstall torch" in device.remedy
    )


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
    (spec / "kernel.json").write_text(
        json.dumps(
            {
                "argv": ["/usr/bin/other-python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "x",
                "language": "python",
            }
        )
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    [kernel] = list(doctor._kernel())
    assert (
        kernel.state == "broken"
        and kernel.finding == "runs another Python (other-python)"
        and "ipykernel install" in kernel.remedy
    )


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def crash():
        raise ValueError("as it happens")

    monkeypatch.setattr(doctor, "_folders", crash)
    monkeypatch.setattr(doctor, "_torch", list)
    assert [row.finding for row in rows("crash")] == ["the check failed: ValueError: as it happens"]
