"""One planned run, in a process of its own: `dispatch` watches over it from outside, `main` is what runs inside.

A run happens in `.tmp-KEY-*/` and is renamed to `KEY/` when its `record.json`, written last, is on the disk. A run ends
itself when its runner dies, because its standard input, a pipe from the runner, closes then. The code it runs is the
copy that the runner made in `.code/`, so that the checkout can be edited while a plan runs.
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

from mmkit import notebooks, processes
from mmkit.errors import MmkitError, printable
from mmkit.files import sync, write_whole
from mmkit.machine import hardware, versions
from mmkit.repro import records
from mmkit.repro.paths import LOG, is_done
from mmkit.repro.plan import Planned, fingerprint

CODE, RUNNER = ".code", ".runner"
MACHINE_FAULTS = ("kernel died", "process died", "time limit", "out of memory")
NO_MEMORY = ("MemoryError", "OutOfMemoryError")
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
LONGEST = 2000  # characters of an error's message that are kept


class Stopped(MmkitError):
    """The batch is being stopped; what this run had begun is gone."""


def dispatch(run: Planned, batch: Path, token: str) -> tuple[dict | None, float]:
    """Make one run in a process of its own and put the result in place: `batch/KEY`, or `batch/failed/KEY`.

    Any executor can carry this call. token: what `batch/.runner` holds while the runner that asks for this goes on.
    Returns None when the run is done, else the failure (kind, message, cell, attempts); and the seconds it took.
    Tried twice when the fault looks like the machine's (a dead kernel or process, no memory, the time limit), never
    after an error of the notebook's own code.
    Raises: Stopped when the runner has stopped, or another has taken its place.
    """
    begun = time.monotonic()
    if not owned(batch, token):
        where = f"the worker on {platform.node()} does not see {batch} as its runner does"
        raise Stopped(f"{where}: put MMKIT_RUNS on a file system that all of them share")
    for attempt in (1, 2):
        if is_done(batch, run.key):  # an executor may ask twice
            return None, 0.0
        work = Path(mkdtemp(prefix=f".tmp-{run.key}-", dir=batch))
        work.chmod(0o755)
        (work / "run.json").write_text(run.model_dump_json(indent=1), encoding="utf-8")
        failure = _attempt(run, work, token)
        if failure is None:
            shutil.rmtree(batch / "failed" / run.key, ignore_errors=True)
            _place(work, batch / run.key)
            break
        failure = keep_failure(run, batch, failure | {"attempts": attempt}, work)
        if failure["kind"] not in MACHINE_FAULTS:
            break
    return failure, time.monotonic() - begun


def keep_failure(run: Planned, batch: Path, failure: dict, work: Path) -> dict:
    """Complete a failure, write it down and move what there is of the run to `failed/`."""
    failure |= {"key": run.key, "label": run.label, "time": now(), "message": printable(failure["message"], LONGEST)}
    work.mkdir(exist_ok=True)  # a notebook may have removed it
    write_whole(work / "run.json", run.model_dump_json(indent=1))
    write_whole(work / "failure.json", json.dumps(failure, indent=1))
    failed = batch / "failed" / run.key
    shutil.rmtree(failed, ignore_errors=True)
    failed.parent.mkdir(exist_ok=True)
    os.rename(work, failed)
    return failure


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


def _start(run: Planned, work: Path, log: int) -> subprocess.Popen:
    path = os.pathsep.join(filter(None, [str(work.parent / CODE), os.environ.get("PYTHONPATH")]))
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": path, "TQDM_DISABLE": "1"}
    environment |= {"MMKIT_RUN_DIR": str(work), "MMKIT_PROFILE": run.profile}
    if run.tensorboard:
        environment["MMKIT_TENSORBOARD"] = run.tensorboard
    command = [sys.executable, "-m", "mmkit.repro.execute", str(work)]
    options = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "start_new_session": True}
    return subprocess.Popen(command, env=environment, cwd=work, **options)


def _attempt(run: Planned, work: Path, token: str) -> dict | None:
    """Start the process, wait for it within its limits, and say what went wrong, None for nothing."""
    with open(work / LOG, "wb") as log:
        process = _start(run, work, log.fileno())
        processes.enclose(work, process.pid)
        limit, look, fault, seen = time.monotonic() + run.timeout_s, 0.0, None, set()
        while process.poll() is None and not fault:
            time.sleep(0.02)
            if time.monotonic() > look:
                seen.update(processes.below(process.pid, work))
                fault, look = _fault(run, work, process.pid, token, limit), time.monotonic() + 0.5
        processes.end(work, process.pid if process.poll() is None else None, seen)
        process.stdin.close()
        process.wait()
    if _said(work / "record.json").get("key") == run.key:
        return None
    if fault == "stopped" or not owned(work.parent, token):  # what another runner ended is no failure
        shutil.rmtree(work, ignore_errors=True)
        raise Stopped("the runner has stopped")
    if fault:
        return fault | broken_cell(work / "notebook.ipynb")
    said = _said(work / "failure.json")
    if said.keys() >= {"kind", "message"}:
        return said
    tail = [] if work.is_dir() else ["its folder is gone: a cell removed it"]
    with suppress(OSError):
        tail = (work / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    message = " ".join(["it ended before its record was written;", *tail])
    kind = "process died" if work.is_dir() else "folder gone"
    return {"kind": kind, "message": message} | broken_cell(work / "notebook.ipynb")


def _said(path: Path) -> dict:
    """A file that the run's process left; empty when it is not there, or not whole."""
    with suppress(OSError, ValueError):
        said = json.loads(path.read_text(encoding="utf-8"))
        return said if isinstance(said, dict) else {}
    return {}


def _fault(run: Planned, work: Path, pid: int, token: str, limit: float) -> dict | str | None:
    """Why a run that goes on has to end: its runner stopped, or it is over its limits."""
    if not owned(work.parent, token):
        return "stopped"
    if time.monotonic() > limit:
        return {"kind": "time limit", "message": f"not done after {run.timeout_s:g} s"}
    used = processes.memory(pid, work) / 1e9 if run.memory_gb else 0
    if run.memory_gb and used > run.memory_gb:
        return {"kind": "out of memory", "message": f"{used:.1f} GB in use, the limit is {run.memory_gb:g} GB"}
    return None


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
                name = output["ename"]
                return {"cell": cell["id"], "error": name, "message": f"{name}: {output['evalue']}"}
    begun = [cell for cell in cells if cell["metadata"].get("papermill", {}).get("start_time")]
    return {"cell": begun[-1]["id"]} if begun else {}


def main(work: Path) -> int:
    """Inside the run's process: execute the notebook, then write `record.json`, or `failure.json` and return 1."""
    processes.adopt_orphans()
    threading.Thread(target=_end_with_the_runner, args=(work,), daemon=True).start()
    run = Planned.model_validate_json((work / "run.json").read_text(encoding="utf-8"))
    started = time.monotonic()
    try:
        failure = _execute(run, work)
        processes.end(work, os.getpid())  # what a notebook left running could change what is recorded
        for name in ("record.json", "failure.json"):  # these are not for a notebook to write
            (work / name).unlink(missing_ok=True)
        if failure is None:
            _finish(run, work, time.monotonic() - started)
    except OSError as error:
        failure = {"kind": "cannot write", "message": str(error)}
    if failure and work.is_dir():
        write_whole(work / "failure.json", json.dumps(failure))
    return bool(failure)


def _execute(run: Planned, work: Path) -> dict | None:
    if fingerprint(Path(run.notebook), run.parameters, run.profile, run.data_hash) != run.key:
        message = "the notebook or the package changed while the plan was being started; run it again"
        return {"kind": "changed", "message": message}
    try:
        notebooks.execute(run.notebook, work / "notebook.ipynb", run.parameters, profile=run.profile)
    except MmkitError as error:
        cell = broken_cell(work / "notebook.ipynb")
        name = cell.pop("error", None)
        kind = "out of memory" if name in NO_MEMORY else "cell error" if name else "kernel died"
        return {"kind": kind, "message": printable(str(error).partition("; what ran is in")[0], LONGEST)} | cell


def _finish(run: Planned, work: Path, seconds: float) -> None:
    """Everything of the run onto the disk, the record with the digests of the rest last."""
    results = work / "results.jsonl"
    header = run.model_dump() | {
        "schema": records.SCHEMA,
        "notebook": Path(run.notebook).stem,
        "results": results.read_bytes().count(b"\n") if results.exists() else 0,
        "seconds": round(seconds, 3),
        "versions": versions(),
        "hardware": hardware(),
        "finished": now(),
        "sha256": records.digests(work),
    }
    for path in [*work.rglob("*.parquet"), *work.glob("*.jsonl"), work / "notebook.ipynb"]:
        sync(path)
    write_whole(work / "record.json", json.dumps(records.sealed(header), indent=1))


def _end_with_the_runner(work: Path) -> None:
    while os.read(0, 1):
        continue
    processes.end(work, os.getpid())
    os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


def now() -> str:
    """The present time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
