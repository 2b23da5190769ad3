"""How a run is made: here or by an executor, within limits; and what can be asked of the runs afterwards."""

import errno
import json
import os
import pty
import re
import resource
import subprocess
import sys
import termios
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import yaml
from repro_stub import make_plan, quiet, rows, undisturbed, write

from mmkit.errors import MmkitError
from mmkit.repro import batches, browse, execute, records, runner

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_a_run_over_its_memory_is_ended(place):
    stub = write(place / "20_stub.ipynb")
    batch = runner.run_plan(make_plan(stub, parameters={"mode": "hungry"}, memory_gb=0.6), say=quiet)
    (failure,) = batch.failures
    assert (
        failure["kind"] == "out of memory"
        and "the limit is 0.6 GB" in failure["message"]
        and failure["attempts"] == 2
        and failure["cell"] == "act-cell"
    )


def test_any_executor_makes_the_same_runs(place):
    stub = write(place / "20_stub.ipynb")
    with ProcessPoolExecutor(2) as pool:
        batch = runner.run_plan(make_plan(stub, seeds=3), executor=pool, say=quiet)
        assert rows(batch) == undisturbed(range(3)) and batch.complete
        os.kill(next(iter(pool._processes)), 9)
        with pytest.raises(
            MmkitError, match="the executor is gone .*: finished runs are kept, the same command goes on from here"
        ):
            runner.run_plan(make_plan(stub, seeds=5), executor=pool, say=quiet)
        with pytest.raises(MmkitError, match="set their number there"):
            runner.run_plan(make_plan(stub, seeds=5), executor=pool, workers=2, say=quiet)
    batch = runner.run_plan(make_plan(stub, seeds=5), workers=2, say=quiet)
    assert rows(batch) == undisturbed(range(5))


def test_a_worker_that_does_not_see_the_folder_says_so(place):
    stub = write(place / "20_stub.ipynb")

    class Elsewhere(ProcessPoolExecutor):
        def submit(self, call, run, folder, token):
            return super().submit(call, run, folder.parent / "other", token)

    with (
        Elsewhere(1) as pool,
        pytest.raises(
            MmkitError,
            match="does not see .*other as its runner does: put MMKIT_RUNS on a file system that all of them share",
        ),
    ):
        runner.run_plan(make_plan(stub, seeds=1), executor=pool, say=quiet)


def test_a_run_that_takes_its_workers_down_is_a_failure(place):
    class KilledWorker(Exception):
        """As Dask names it."""

    class Deadly(ThreadPoolExecutor):
        def submit(self, _call, *_arguments):
            return super().submit(self.die)

        def die(self):
            raise KilledWorker("3 workers died")

    batch = runner.run_plan(make_plan(write(place / "20_stub.ipynb"), seeds=1), executor=Deadly(1), say=quiet)
    (failure,) = batch.failures
    assert (
        failure["kind"] == "worker died"
        and "parameters.seed: 0" in list(browse.show(failure["key"]))
        and "kind: worker died" in list(browse.show(failure["key"]))
    )


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_loses_nothing(place, monkeypatch):
    stub = write(place / "20_stub.ipynb")
    runner.run_plan(make_plan(stub, seeds=1), say=quiet)
    folder = place / "runs" / "stub"
    before = {path: path.read_bytes() for path in folder.glob("[0-9a-f]*/*.json*")}

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((execute, "mkdtemp"), (runner.shutil, "copytree"), (execute.os, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(
                MmkitError,
                match=r"cannot write in .*stub .No space left on device.: free some space, or point "
                r"MMKIT_RUNS.*finished runs are kept",
            ):
                runner.run_plan(make_plan(stub, seeds=2), say=quiet)
        assert before == {path: path.read_bytes() for path in folder.glob("[0-9a-f]*/*.json*")}
    assert rows(runner.run_plan(make_plan(stub, seeds=2), say=quiet)) == undisturbed([0, 1]) and not list(
        folder.glob(".tmp-*")
    )


def test_a_run_that_cannot_write_its_files_leaves_none_half_written(place):
    """The system refuses every file over 1 kB, as a full disk does."""
    stub = write(place / "20_stub.ipynb")
    script = (
        "import resource; from repro_stub import *; from mmkit.repro import runner, execute;"
        f"from pathlib import Path; p = make_plan(Path({str(stub)!r}), seeds=1); copy = runner._copy_code;"
        "runner._copy_code = lambda *a: (copy(*a), resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1)));"
        "b = runner.run_plan(p, say=print); print(b.failures)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=os.path.dirname(__file__))
    folder = place / "runs" / "stub"
    assert "FAILED in cell ?: cannot write: [Errno 27] File too large" in done.stdout, done
    assert not list(folder.glob("[0-9a-f]*/record.json")) and resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000
    assert rows(runner.run_plan(make_plan(stub, seeds=1), say=quiet)) == undisturbed([0]) and not list(
        folder.glob(".tmp-*")
    )


# --- afterwards -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of runs: two done, one failed, one of an older plan."""
    base = tmp_path_factory.mktemp("kept")
    patch = pytest.MonkeyPatch()
    patch.setenv("MMKIT_RUNS", str(base / "runs"))
    stub = write(base / "20_stub.ipynb")
    runner.run_plan(make_plan(stub, seeds=[7]), say=quiet)
    whole = make_plan(stub, grid={"mode": ["fine", "error"]}, seeds=2)
    batch = runner.run_plan(whole, workers=2, say=quiet)
    file = base / "stub.yaml"
    file.write_text(yaml.safe_dump(whole.model_dump()), encoding="utf-8")
    yield SimpleNamespace(batch=batch, file=file, folder=base / "runs" / "stub")
    patch.undo()


def test_runs_are_listed_shown_and_compared(kept, mmkit):
    runs = {header["parameters"]["seed"]: header["key"] for header in kept.batch.headers}
    assert mmkit("runs", "list", check=0).stdout.startswith("stub: 2 of 4 runs done, 2 failed; lab, begun 20")
    listed = mmkit("runs", "list", "stub", check=0).stdout.splitlines()
    assert [line.split()[0] for line in listed] == [
        "done",
        "done",
        "failed",
        "failed",
        "3",
    ] and "mmkit runs clean stub" in listed[-1]
    shown = list(browse.show(runs[1][:10]))
    assert "parameters.seed: 1" in shown and any(
        line.startswith('a, stub, {"mode": "fine", "pairs": 64}: accuracy 0.') for line in shown
    )
    compared = list(browse.diff(runs[0], runs[1]))
    assert "parameters.seed: 0 | 1" in compared and any(
        line.startswith("a stub mode=fine pairs=64 accuracy: 0.") for line in compared
    )
    assert not any(line.startswith("versions") for line in compared)
    failed = kept.batch.failures[0]["key"]
    assert any("ZeroDivisionError" in line for line in browse.show(failed))
    for call, message in (
        (lambda: list(browse.show("zz")), "0 runs have a key"),
        (lambda: list(browse.runs("stubb")), "unknown plan with runs 'stubb': did you mean 'stub'"),
    ):
        with pytest.raises(MmkitError, match=message):
            call()


def test_a_run_that_two_plans_share_is_shown(place):
    for plan_name, key in (("one", "ab12"), ("two", "ab12"), ("two", "ab99")):
        (place / "runs" / plan_name / key).mkdir(parents=True)
        (place / "runs" / plan_name / key / "record.json").write_text(json.dumps({"of": plan_name}))
    for key in ("ab12", "ab1"):
        assert next(browse.show(key)) in ("of: one", "of: two")
    with pytest.raises(MmkitError, match="2 runs have a key that begins with 'ab'"):
        next(browse.show("ab"))


def test_no_runs_at_all_are_said(place):
    assert list(browse.plans()) == [f"no runs in {place.resolve() / 'runs'}: make some with 'mmkit reproduce PLAN'"]


def test_ten_thousand_runs_are_listed_without_the_engines_imports(place, mmkit):
    folder = place / "runs" / "many"
    keys = [f"{number:016x}" for number in range(10_000)]
    header = {
        "seconds": 10.4,
        "finished": "2026-01-01T00:00:00+00:00",
        "versions": records.versions(),
        "hardware": records.hardware(),
    }
    for key in keys:
        (folder / key).mkdir(parents=True)
        (folder / key / "record.json").write_text(json.dumps(header | {"key": key}, indent=1))
    (folder / "plan.json").write_text(
        json.dumps({"runs": [{"key": key, "label": f"run {key}"} for key in [*keys, "f" * 16]]})
    )
    done = mmkit("runs", "list", "many", check=0)
    lines = done.stdout.splitlines()
    assert (
        len(lines) == 10_001
        and lines[2] == "done    0000000000000002      10 s  2026-01-01T00:00:00+00:00  run 0000000000000002"
        and lines[-1].startswith("to do ")
    )
    # what is needed to make and judge runs is not imported, which keeps the listing short (the clock is in
    # benchmarks/engine.py)
    script = (
        "import sys; from mmkit.repro import browse; list(browse.runs('many'));"
        "print([name for name in ('numpy', 'jupyter_client', 'pydantic', 'psutil') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_progress_is_lines_in_a_log_and_a_bar_on_a_terminal(kept):
    keys = [header["key"] for header in kept.batch.headers]
    (kept.folder / keys[0] / "record.json").unlink()
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    os.set_blocking(leader, False)
    script = f"from mmkit.repro import run_plan; run_plan({str(kept.file)!r}, workers=1)"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=follower)
    terminal = os.read(leader, 1 << 16)
    os.close(follower), os.close(leader)
    lines = done.stdout.decode().splitlines()
    assert (
        "1 of 4 runs are there already" in lines
        and sum("done (" in line for line in lines) == 1
        and sum("FAILED in cell act-cell" in line for line in lines) == 2
    )
    assert re.search(rb"stub: +\d+%.*\d/4 .*(s/ run|run/s)", terminal) and "\r" not in done.stdout.decode()


def test_only_what_no_plan_asks_for_is_removed(kept):
    asked = {run["key"] for run in json.loads((kept.folder / "plan.json").read_text())["runs"]}
    before = keys_in(kept.folder)
    said = list(browse.tidy("stub", really=False))
    assert before == keys_in(kept.folder) and said[-1] == "nothing was removed: add --yes to do it" and len(said) == 4
    with runner.alone(kept.folder), pytest.raises(MmkitError, match="is being run already"):
        list(browse.tidy("stub", really=True))
    assert len(list(browse.tidy("stub", really=True))) == 3
    assert keys_in(kept.folder) == before & asked and not list(kept.folder.glob("failed/*"))
    assert rows(batches.load(kept.folder)) == undisturbed([0, 1]) and records.read(
        kept.folder / sorted(before & asked)[0]
    )


def keys_in(folder):
    return {path.parent.name for path in folder.glob("*/run.json")}
