"""One planned run, in a process of its own: `dispatch` watches over it from outside, `main` is what runs inside.

A run happens in `.tmp-KEY-*/` and is renamed to `KEY/` when its `record.json`, written last, is on the disk. Every
process of a run carries the folder in `MMKIT_RUN_DIR`; that is how all of them are found when the run must end. A run
also ends itself when its runner dies, because its standard input, a pipe from the runner, closes then. The code it runs is
the copy that the runner made in `.code/`, so that the checkout can be edited while a plan runs.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from tempfile import mkdtemp

import psutil

from mmkit import notebooks
from mmkit.data.folders import sync
from mmkit.errors import MmkitError
from mmkit.repro import records
from mmkit.repro.paths import LOG, is_done
from mmkit.repro.plan import Planned, fingerprint
from mmkit.repro.warm import GONE, Child, Warm

CODE, RUNNER = ".code", ".runner"
MACHINE_FAULTS = ("kernel died", "process died", "time limit", "out of memory")
NO_MEMORY = ("MemoryError", "OutOfMemoryError")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")}

_warm: dict[Path, Warm] = {}  # of each batch, for its present runner
_one_at_a_time = threading.Lock()


class Stopped(MmkitError):
    """The batch is being stopped; what this run had begun is gone."""


def dispatch(run: Planned, batch: Path, token: str) -> tuple[dict | None, float]:
    """Make one run in a process of its own and put the result in place: `batch/KEY`, or `batch/failed/KEY`. Any executor can carry this call.

    token: what `batch/.runner` holds while the runner that asks for this goes on.
    Returns None when the run is done, else the failure (kind, message, cell, attempts); and the seconds it took. Tried twice when
    the fault looks like the machine's (a dead kernel or process, no memory, the time limit), never after an error of the
    notebook's own code. Raises: Stopped when the runner has stopped, or another has taken its place.
    """
    begun = time.monotonic()
    if not owned(batch, token):
        raise Stopped(f"the worker on {platform.node()} does not see {batch} as its runner does: put MMKIT_RUNS on a file system that all of them share")
    for attempt in (1, 2):
        if is_done(batch, run.key):  # an executor may ask twice
            return None, 0.0
        work = Path(mkdtemp(prefix=f".tmp-{run.key}-", dir=batch))
        work.chmod(0o755)
        (work / "run.json").write_text(run.model_dump_json(indent=1), encoding="utf-8")
        failure = _attempt(run, work, token)
        failed = batch / "failed" / run.key
        shutil.rmtree(failed, ignore_errors=True)
        if failure is None:
            _place(work, batch / run.key)
            break
        failure |= {"key": run.key, "label": run.label, "attempts": attempt, "time": now()}
        (work / "failure.json").write_text(json.dumps(failure, indent=1), encoding="utf-8")
        failed.parent.mkdir(exist_ok=True)
        os.rename(work, failed)
        if failure["kind"] not in MACHINE_FAULTS:
            break
    return failure, time.monotonic() - begun


def _place(work: Path, target: Path) -> None:
    """Give a finished run its name. Who comes second leaves what is there: it is the same run."""
    try:
        os.rename(work, target)
    except OSError:
        if not target.is_dir():
            raise
        if not is_done(target.parent, target.name):  # somebody took the record out of it
            shutil.rmtree(target)
            os.rename(work, target)
        shutil.rmtree(work, ignore_errors=True)
    sync(target.parent)


def owned(batch: Path, token: str) -> bool:
    """The runner that has this token goes on."""
    try:
        return (batch / RUNNER).read_text(encoding="utf-8") == token
    except FileNotFoundError:
        return False


def _start(run: Planned, work: Path, log: int, token: str) -> subprocess.Popen | Child:
    """A fork of the batch's warm process, or a new process where there is none."""
    batch = work.parent
    path = os.pathsep.join(filter(None, [str(batch / CODE), os.environ.get("PYTHONPATH")]))
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": path, "TQDM_DISABLE": "1"}
    own, child = {"MMKIT_RUN_DIR": str(work), "MMKIT_PROFILE": run.profile} | ({"MMKIT_TENSORBOARD": run.tensorboard} if run.tensorboard else {}), None
    if sys.platform == "linux":
        with _one_at_a_time:
            warm = _warm.get(batch)
            if warm is None or warm.token != token or (warm.served and warm.process.poll() is not None):
                warm = _warm[batch] = Warm(batch, batch / CODE, token, environment)
            child = warm.start(own, log)
    return child or subprocess.Popen(
        [sys.executable, "-m", "mmkit.repro.execute", str(work)],
        stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment | own, cwd=work, start_new_session=True,
    )  # fmt: skip


def let_go(batch: Path) -> None:
    """End the batch's warm process, if this process has one."""
    with _one_at_a_time:
        if warm := _warm.pop(batch, None):
            warm.close()


def _attempt(run: Planned, work: Path, token: str) -> dict | None:
    """Start the process, wait for it within its limits, and say what went wrong, None for nothing."""
    with open(work / LOG, "wb") as log:
        process = _start(run, work, log.fileno(), token)
        limit, look, fault = time.monotonic() + run.timeout_s, 0.0, None
        while (ended := process.poll()) is None and not fault:
            time.sleep(0.02)
            if time.monotonic() > look:
                fault, look = _fault(run, work, process.pid, token, limit), time.monotonic() + 0.5
        done = (work / "record.json").exists()
        if not done and ended != GONE:
            end_processes(work)
        process.stdin.close()
        process.wait()
    if ended == GONE:
        return _attempt(run, work, token)
    if done:
        return None
    if fault == "stopped" or not owned(work.parent, token):  # what another runner ended is no failure
        shutil.rmtree(work, ignore_errors=True)
        raise Stopped("the runner has stopped")
    if fault:
        return fault | broken_cell(work / "notebook.ipynb")
    told = work / "failure.json"
    if told.exists():
        return json.loads(told.read_text(encoding="utf-8"))
    tail = (work / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return {"kind": "process died", "message": " ".join(["it ended before its record was written;", *tail])} | broken_cell(work / "notebook.ipynb")


def _fault(run: Planned, work: Path, pid: int | None, token: str, limit: float) -> dict | str | None:
    """Why a run that goes on has to end: its runner stopped, or it is over its limits."""
    if not owned(work.parent, token):
        return "stopped"
    if time.monotonic() > limit:
        return {"kind": "time limit", "message": f"not done after {run.timeout_s:g} s"}
    used = _memory(pid) / 1e9 if pid and run.memory_gb else 0
    return {"kind": "out of memory", "message": f"{used:.1f} GB in use, the limit is {run.memory_gb:g} GB"} if run.memory_gb and used > run.memory_gb else None


def _memory(pid: int) -> int:
    """Bytes a process and its children hold, what they share counted once."""
    total = 0
    with suppress(psutil.Error):  # gone meanwhile
        for process in [(own := psutil.Process(pid)), *own.children(recursive=True)]:
            info = process.memory_full_info()
            total += getattr(info, "pss", info.uss)
    return total


def end_processes(work: Path) -> None:
    """End every process of one run, wherever it moved: all of them carry the run's own folder in MMKIT_RUN_DIR."""
    for _ in range(100):
        found = [process for process in psutil.process_iter() if process.pid != os.getpid() and _belongs(process, work)]
        if not found:
            return
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)  # not psutil's wait: it would take the exit code from the Popen that needs it


def _belongs(process: psutil.Process, work: Path) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        named = process.environ().get("MMKIT_RUN_DIR")  # as it was when the program started: a fork of the warm process is known by its log
        return named == str(work) or (named == str(work.parent) and any(file.path == str(work / LOG) for file in process.open_files()))
    except (psutil.Error, OSError):  # another user's, or gone meanwhile
        return False


def broken_cell(notebook: Path) -> dict:
    """The cell an executed notebook stopped in: the one that raised, else the last one begun. Empty when unknown.

    Papermill's word for it is not taken: it stamps killed and never-run cells "completed".
    """
    try:
        cells = notebooks.code_cells(notebooks.read(notebook))
    except MmkitError:  # cut off in the middle of a write
        return {}
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return {"cell": cell["id"], "error": output["ename"], "message": f"{output['ename']}: {output['evalue']}"}
    begun = [cell for cell in cells if cell["metadata"].get("papermill", {}).get("start_time")]
    return {"cell": begun[-1]["id"]} if begun else {}


def main(work: Path, kernel_manager: type = notebooks.IpcKernelManager) -> int:
    """Inside the run's process: execute the notebook, then write `record.json`, or `failure.json` and return 1."""
    threading.Thread(target=_end_with_the_runner, args=(work,), daemon=True).start()
    run = Planned.model_validate_json((work / "run.json").read_text(encoding="utf-8"))
    started = time.monotonic()
    try:
        failure = _execute(run, work, kernel_manager)
        if failure is None:
            _finish(run, work, time.monotonic() - started)
    except OSError as error:
        failure = {"kind": "cannot write", "message": str(error)}
    if failure:
        (work / "failure.json").write_text(json.dumps(failure), encoding="utf-8")
    return bool(failure)


def _execute(run: Planned, work: Path, kernel_manager: type) -> dict | None:
    if fingerprint(Path(run.notebook), run.parameters, run.profile, run.data_hash) != run.key:
        return {"kind": "changed", "message": "the notebook or the package changed while the plan was being started; run it again"}
    try:
        notebooks.execute(run.notebook, work / "notebook.ipynb", run.parameters, profile=run.profile, kernel_manager=kernel_manager)
    except MmkitError as error:
        cell = broken_cell(work / "notebook.ipynb")
        name = cell.pop("error", None)
        kind = "out of memory" if name in NO_MEMORY else "cell error" if name else "kernel died"
        return {"kind": kind, "message": str(error).partition("; what ran is in")[0]} | cell


def _finish(run: Planned, work: Path, seconds: float) -> None:
    """Everything of the run onto the disk, the record last."""
    rows = work / "results.jsonl"
    header = run.model_dump() | {
        "schema": records.SCHEMA,
        "notebook": Path(run.notebook).stem,
        "results": len(rows.read_text(encoding="utf-8").splitlines()) if rows.exists() else 0,
        "seconds": round(seconds, 3),
        "versions": records.versions(),
        "hardware": records.hardware(),
        "finished": now(),
    }
    for path in [*work.rglob("*.parquet"), *work.glob("*.jsonl"), work / "notebook.ipynb"]:
        sync(path)
    part = work / "record.json.part"
    part.write_text(json.dumps(header, indent=1, allow_nan=False), encoding="utf-8")
    sync(part)
    os.rename(part, work / "record.json")
    sync(work)


def _end_with_the_runner(work: Path) -> None:
    while os.read(0, 1):
        continue
    end_processes(work)
    os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


def now() -> str:
    """The present time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
