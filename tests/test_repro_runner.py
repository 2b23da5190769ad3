"""The runner: what is done stays done, what failed says where, and a killed machine changes nothing in the end."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from repro_stub import make_plan, quiet, rows, undisturbed, wait_for, write

from mmkit.errors import MmkitError
from mmkit.repro import execute, plan, runner

pytestmark = pytest.mark.slow


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A notebook that records two arms, or fails as it is told; returns (notebook, function that makes a plan)."""
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MMKIT_PROFILE", "lab")
    path = write(tmp_path / "20_stub.ipynb")
    return path, partial(make_plan, path)


def test_done_is_kept_and_changes_run_again(stub, tmp_path):
    path, make = stub
    said = []
    batch = runner.run_plan(make(seeds=2), workers=2, say=said.append)
    assert batch.complete and rows(batch) == undisturbed([0, 1])
    assert sum("done" in line for line in said) == 2
    folder = tmp_path / "runs" / "stub"
    first = {
        key.name: (key / "record.json").stat().st_mtime_ns for key in folder.iterdir() if (key / "record.json").exists()
    }
    assert {file.name for key in first for file in (folder / key).iterdir()} == {
        "notebook.ipynb",
        "record.json",
        "results.jsonl",
        "items",
        "run.json",
        "stderr.txt",
    }

    again = runner.run_plan(make(seeds=2), workers=2, say=quiet)
    assert rows(again) == rows(batch)
    assert all((folder / key / "record.json").stat().st_mtime_ns == stamp for key, stamp in first.items())

    changed = runner.run_plan(make(seeds=[0], parameters={"mode": "other"}), say=quiet)
    assert [r.condition["mode"] for r in changed.results] == ["other", "other"], "only the runs asked for last are read"

    notebook = nbformat.read(path, 4)
    notebook.cells[3].source += "\nprint('changed')"
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("prose is no code", id="prose-cell"))
    keys = {run.key for run in plan.expand(make(seeds=2))}
    nbformat.write(notebook, path)
    assert keys == set(first) and not keys & {run.key for run in plan.expand(make(seeds=2))}


def test_a_dry_run_only_says(stub, tmp_path):
    _, make = stub
    said = []
    batch = runner.run_plan(make(seeds=2), dry_run=True, say=said.append)
    assert (
        [line[:5] for line in said] == ["to do", "to do", "2 run"]
        and said[-1] == "2 runs, 0 done"
        and len(batch.missing) == 2
    )
    assert not (tmp_path / "runs").exists()
    folder = tmp_path / "runs" / "stub" / plan.expand(make(seeds=2))[0].key
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"notebook": "20_stub", "profile": "lab", "seconds": 240}))
    said.clear()
    runner.run_plan(make(seeds=5), workers=2, dry_run=True, say=said.append)
    assert (
        said[0].startswith("done ") and said[-1] == "5 runs, 1 done; about 8 min with 2 workers, by the runs on record"
    )


def test_a_folder_that_cannot_be_written_is_named(stub, tmp_path):
    _, make = stub
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(
        MmkitError,
        match="cannot write in .*runs.stub .*: free some space, or point MMKIT_RUNS at a folder you can write",
    ):
        runner.run_plan(make(seeds=2), say=quiet)


def test_failures_are_kept_with_their_cell(stub, tmp_path):
    _, make = stub
    entry = {
        "parameters": {"marker": str(tmp_path / "killed")},
        "grid": {"mode": ["error", "exit", "killed"]},
        "seeds": [3],
    }
    batch = runner.run_plan(make(**entry), workers=2, say=quiet)
    failed = {failure["label"].split("mode=")[1].split()[0]: failure for failure in batch.failures}
    assert set(failed) == {"error", "exit"} and not batch.missing
    assert (
        failed["error"]["kind"] == "cell error"
        and failed["error"]["cell"] == "act-cell"
        and "ZeroDivisionError" in failed["error"]["message"]
    )
    assert failed["error"]["attempts"] == 1, "an error of the notebook's own is not tried twice"
    assert failed["exit"]["cell"] == "act-cell" and "SystemExit" in failed["exit"]["message"]
    assert (tmp_path / "runs" / "stub" / "failed" / failed["error"]["key"] / "notebook.ipynb").exists()
    assert sorted({r.condition["mode"] for r in batch.results}) == ["killed"], "a killed kernel is tried once more"


def test_the_time_limit_ends_everything(stub, tmp_path, monkeypatch):
    _, make = stub
    monkeypatch.setattr(execute, "MACHINE_FAULTS", ())  # tried once, to spare the test the second wait
    batch = runner.run_plan(make(parameters={"mode": "sleep"}, timeout_s=4), say=quiet)
    assert batch.failures[0]["kind"] == "time limit" and "4 s" in batch.failures[0]["message"]
    assert not [
        p
        for p in psutil.process_iter()
        if "MMKIT_RUN_DIR" in environment_of(p) and str(tmp_path) in environment_of(p)["MMKIT_RUN_DIR"]
    ]


def environment_of(process):
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_kill_and_resume_equal_undisturbed(stub, tmp_path):
    _, make = stub
    whole = make(parameters={"work": 1.0}, seeds=2)
    file = tmp_path / "stub.yaml"
    file.write_text(yaml.safe_dump(whole.model_dump()), encoding="utf-8")
    folder = tmp_path / "runs" / "stub"
    command = [sys.executable, "-c", f"from mmkit.repro import run_plan; run_plan({str(file)!r}, workers=1)"]
    process = subprocess.Popen(command, cwd=Path(runner.__file__).parents[2], stdout=subprocess.DEVNULL)
    wait_for(lambda: any((key / "record.json").exists() for key in folder.glob("[0-9a-f]*")))
    with pytest.raises(
        MmkitError,
        match=rf"'stub' is being run already, by process {process.pid} on .*: wait for it, or end it .kill "
        rf"{process.pid}.",
    ):
        runner.run_plan(whole, say=quiet)
    wait_for(lambda: list(folder.glob(".tmp-*/notebook.ipynb")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {key.name for key in folder.glob("[0-9a-f]*") if (key / "record.json").exists()}
    wait_for(
        lambda: (
            not [p for p in psutil.process_iter() if environment_of(p).get("MMKIT_RUN_DIR", "").startswith(str(folder))]
        )
    )
    said = []
    resumed = runner.run_plan(whole, workers=2, say=said.append)
    assert (
        resumed.complete and f"{len(done)} of 2 runs are there already" in said[0] and not list(folder.glob(".tmp-*"))
    )
    assert rows(resumed) == undisturbed(range(2))
