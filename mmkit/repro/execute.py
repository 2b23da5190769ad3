"""One planned run, in a process of its own: `dispatch` watches over it from outside, `main` is what runs inside.

A run happens in `.tmp-KEY-PID/` and is renamed to `KEY/` when its `record.json`, written last, is on the disk. Every
process of a run carries the folder in `MMKIT_RUN_DIR`; that is how all of them are found when the run must end. A run
also ends itself when its runner dies, because its standard input, a pipe from the runner, closes then. The code it runs is
the copy that the runner made in `.code/`, so that the checkout can be edited while a plan runs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import psutil

from mmkit import notebooks
from mmkit.data.folders import sync
from mmkit.errors import MmkitError
from mmkit.repro import records
from mmkit.repro.plan import Planned, fingerprint

CODE = ".code"
MACHINE_FAULTS = ("kernel died", "process died", "time limit", "out of memory")
NO_MEMORY = ("MemoryError", "OutOfMemoryError")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")}


class Stopped(Exception):
    """The batch is being stopped; what this run had begun is gone."""


def dispatch(run: Planned, batch: Path, stop: threading.Event | None = None) -> dict | None:
    """Make one run in its own process and put the result in place: `batch/KEY`, or `batch/failed/KEY`.

    Returns None when it is done, else the failure: kind, message, cell, attempts. Tried twice when the fault looks like
    the machine's (a dead kernel or process, no memory, the time limit), never after an error of the notebook's own code.
    Raises: Stopped when `stop` is set meanwhile.
    """
    for attempt in (1, 2):
        work = batch / f".tmp-{run.key}-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        (work / "run.json").write_text(run.model_dump_json(indent=1), encoding="utf-8")
        failure = _attempt(run, work, stop)
        failed = batch / "failed" / run.key
        shutil.rmtree(failed, ignore_errors=True)
        if failure is None:
            shutil.rmtree(batch / run.key, ignore_errors=True)  # only a folder without a readable record can be there
            os.rename(work, batch / run.key)
            sync(batch)
            return None
        failure |= {"key": run.key, "label": run.label, "attempts": attempt, "time": now()}
        (work / "failure.json").write_text(json.dumps(failure, indent=1), encoding="utf-8")
        failed.parent.mkdir(exist_ok=True)
        os.rename(work, failed)
        if failure["kind"] not in MACHINE_FAULTS:
            break
    return failure


def _attempt(run: Planned, work: Path, stop: threading.Event | None) -> dict | None:
    """Start the process, wait for it within the time limit, and say what went wrong, None for nothing."""
    path = os.pathsep.join(filter(None, [str(work.parent / CODE), os.environ.get("PYTHONPATH")]))
    environment = os.environ | ONE_THREAD | {"MMKIT_RUN_DIR": str(work), "MMKIT_PROFILE": run.profile, "PYTHONPATH": path, "TQDM_DISABLE": "1"}
    with open(work / "stderr.txt", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mmkit.repro.execute", str(work)],
            stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd=work, start_new_session=True,
        )  # fmt: skip
        limit, stopped, late = time.monotonic() + run.timeout_s, False, False
        while process.poll() is None and not stopped and not late:
            time.sleep(0.05)
            stopped, late = stop is not None and stop.is_set(), time.monotonic() > limit
        if process.returncode != 0:
            end_processes(work)
        process.stdin.close()
        process.wait()
    if stopped:
        shutil.rmtree(work)
        raise Stopped
    if late:
        return {"kind": "time limit", "message": f"not done after {run.timeout_s:g} s"} | broken_cell(work / "notebook.ipynb")
    if process.returncode == 0:
        return None
    told = work / "failure.json"
    if told.exists():
        return json.loads(told.read_text(encoding="utf-8"))
    tail = (work / "stderr.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return {"kind": "process died", "message": " ".join([f"exit code {process.returncode}", *tail])} | broken_cell(work / "notebook.ipynb")


def end_processes(work: Path) -> None:
    """End every process of one run, wherever it moved: all of them carry the run's own folder in MMKIT_RUN_DIR."""
    for _ in range(100):
        found = [process for process in psutil.process_iter() if process.pid != os.getpid() and _belongs(process, work)]
        if not found:
            return
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)  # not psutil's wait: it would take the exit code from the Popen that needs it


def _belongs(process: psutil.Process, work: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("MMKIT_RUN_DIR") == str(work)
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


def main(work: Path) -> int:
    """Inside the run's process: execute the notebook, then write `record.json`, or `failure.json` and return 1."""
    threading.Thread(target=_end_with_the_runner, args=(work,), daemon=True).start()
    run = Planned.model_validate_json((work / "run.json").read_text(encoding="utf-8"))
    failure, started = None, time.monotonic()
    if fingerprint(Path(run.notebook), run.parameters, run.profile, run.data_hash) != run.key:
        failure = {"kind": "changed", "message": "the notebook or the package changed while the plan was being started; run it again"}
    else:
        try:
            notebooks.execute(run.notebook, work / "notebook.ipynb", run.parameters, profile=run.profile)
        except MmkitError as error:
            cell = broken_cell(work / "notebook.ipynb")
            name = cell.pop("error", None)
            kind = "out of memory" if name in NO_MEMORY else "cell error" if name else "kernel died"
            failure = {"kind": kind, "message": str(error).partition("; what ran is in")[0]} | cell
    if failure:
        (work / "failure.json").write_text(json.dumps(failure), encoding="utf-8")
        return 1
    _finish(run, work, time.monotonic() - started)
    return 0


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
