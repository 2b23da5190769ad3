"""A plan, run: what is done is kept, what is not is made, and a second runner of the same plan is refused."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

from filelock import FileLock, Timeout

import mmkit
from mmkit import processes
from mmkit.data.progress import progress
from mmkit.errors import MmkitError, printable
from mmkit.machine import cores
from mmkit.repro import execute, paths
from mmkit.repro.batches import Batch, check_owner, load, write_manifest
from mmkit.repro.paths import is_done, read_json
from mmkit.repro.plan import Plan, Planned, expand, plan_file, read_plan

LOOPBACK = "dask scheduler --host 127.0.0.1"  # who reaches a scheduler runs code there


def run_plan(
    plan: Plan | str | Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    executor: Executor | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> Batch:
    """Make every run of a plan that is not there yet, `workers` at a time on this machine (default: one per core).

    scheduler: address of a Dask scheduler that hands the runs to its workers instead. executor: any other
    `concurrent.futures` executor. dry_run: only say what would be done. A failed run is reported, kept under `failed/`
    and tried again by the next call.
    Raises: MmkitError for a plan that cannot be read, another plan of the same name, workers below 1, a second runner
    of the same plan, a folder that cannot be written, or an executor that is gone.
    """
    if workers is not None and workers < 1:
        raise MmkitError(f"workers={workers}: at least one run is made at a time; leave it out for one per core")
    file = None if isinstance(plan, Plan) else plan_file(plan)
    plan = read_plan(file) if file else plan
    from mmkit.repro.claims import read_claims  # not before: listing runs needs no scipy

    declared = [claim.model_dump() for claim in read_claims(plan.claims)] if plan.claims else []
    folder = paths.runs() / plan.name
    check_owner(folder, plan, file)
    runs = expand(plan, prepare=not dry_run)
    waiting = [run for run in runs if not is_done(folder, run.key)]
    if dry_run:
        for run in runs:
            say(f"{'done ' if is_done(folder, run.key) else 'to do'}  {run.key}  {printable(run.label)}")
        say(f"{len(runs)} runs, {len(runs) - len(waiting)} done{_estimate(folder, waiting, workers or cores())}")
        return Batch({}, [], [], [], [run.label for run in waiting])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder) as token, _pool(workers, scheduler, executor) as pool:
            clean(folder)
            _copy_code(folder / execute.CODE)
            write_manifest(folder, plan, runs, declared, file)
            _make(folder, waiting, len(runs), pool, token, say)
            clean(folder)  # of workers that died
    except OSError as error:
        remedy = "free some space, or point MMKIT_RUNS at a folder you can write; finished runs are kept"
        raise MmkitError(f"cannot write in {folder} ({error.strerror or error}): {remedy}") from error
    except (CancelledError, BrokenExecutor) as error:
        remedy = "finished runs are kept, the same command goes on from here"
        raise MmkitError(f"the executor is gone ({error or 'its scheduler does not answer'}): {remedy}") from error
    return load(folder)


@contextmanager
def _pool(workers: int | None, scheduler: str | None, executor: Executor | None) -> Iterator[Executor]:
    """Who makes the runs: processes here, each watched by a thread; a Dask cluster; or what the caller brings."""
    if sum(choice is not None for choice in (workers, scheduler, executor)) > 1:
        other = "with a scheduler or an executor of your own, set their number there"
        raise MmkitError(f"workers are processes of this machine: {other}")
    if executor or not scheduler:
        with nullcontext(executor) if executor else ThreadPoolExecutor(workers or cores()) as pool:
            yield pool
        return
    try:
        from distributed import Client

        client = Client(scheduler, timeout="10s", set_as_default=False)
    except ImportError as error:
        raise MmkitError("--scheduler needs Dask: pip install -e '.[dask]'") from error
    except (OSError, ValueError) as error:
        remedy = f"start one with '{LOOPBACK}', or give its address as it prints it"
        raise MmkitError(f"no Dask scheduler answers at {scheduler!r} ({error}): {remedy}") from error
    with client:
        yield client.get_executor(pure=False)


def _make(
    folder: Path, waiting: list[Planned], total: int, pool: Executor, token: str, say: Callable[[str], None]
) -> None:
    """Hand out what is to do; one line each as they end, and on a terminal a bar."""
    began, width, done = time.monotonic(), len(str(total)), total - len(waiting)
    with progress(label=folder.name, unit="run", total=total, start=done) as bar:
        tell = bar.write if say is print else say
        if done:
            tell(f"{done} of {total} runs are there already")
        futures = {pool.submit(execute.dispatch, run, folder, token): run for run in waiting}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                run = futures[future]
                failure, seconds = _outcome(future, run, folder)
                left = (time.monotonic() - began) / number * (len(waiting) - number)
                place, took = f"[{done + number:>{width}}/{total}]", f"{seconds:.0f} s, about {_minutes(left)} left"
                tell(printable(f"{place} {run.label}: {_ended(failure)} ({took})"))
                bar.update()
        except BaseException as error:  # Ctrl-C above all: nothing may go on running behind it
            (folder / execute.RUNNER).unlink(missing_ok=True)
            for future in futures:
                future.cancel()
            if isinstance(error, KeyboardInterrupt):
                tell("stopped: finished runs are kept, the same command goes on from here")
            raise


def _outcome(future: Future, run: Planned, folder: Path) -> tuple[dict | None, float]:
    """What `execute.dispatch` returned, or the failure of a run that took several workers down with it."""
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ != "KilledWorker":  # Dask's, which may not be installed
            raise
        failure = {"kind": "worker died", "message": str(error), "attempts": 2}
        work = Path(mkdtemp(prefix=f".tmp-{run.key}-", dir=folder))
        return execute.keep_failure(run, folder, failure, work), 0.0


def _ended(failure: dict | None) -> str:
    """How a run ended, in one line."""
    if not failure:
        return "done"
    first = printable((failure["message"].splitlines() or [""])[0], 300)
    return f"FAILED in cell {failure.get('cell', '?')}: {failure['kind']}: {first}"


def _estimate(folder: Path, runs: list[Planned], workers: int) -> str:
    """How long runs should take, from those of the same notebook and profile on record."""
    published, past = paths.notebooks() / "records" / folder.name / "plan.json", {}
    headers = read_json(published)["headers"] if published.exists() else []
    for header in [*headers, *map(read_json, folder.glob("*/record.json"))]:
        past.setdefault((header["notebook"], header["profile"]), []).append(header["seconds"])
    kinds = [(Path(run.notebook).stem, run.profile) for run in runs]
    known = [median(past[kind]) for kind in kinds if kind in past]
    if not known:
        return ""
    total = sum(known) / len(known) * len(runs) / workers
    return f"; about {_minutes(total)} with {workers} workers, by the runs on record"


@contextmanager
def alone(folder: Path) -> Iterator[str]:
    """The plan's lock, held while its runner lives and freed by the system when that dies; gives the runner's token."""
    owner = folder / execute.RUNNER
    try:
        with FileLock(folder / ".lock", timeout=0):
            token = f"{os.getpid()} on {socket.gethostname()}, since {execute.now()}"
            owner.write_text(token, encoding="utf-8")
            try:
                yield token
            finally:
                owner.unlink(missing_ok=True)
    except Timeout:
        holder = owner.read_text(encoding="utf-8") if owner.exists() else "unknown"
        remedy = f"wait for it, or end it (kill {holder.split()[0]}) and start again; finished runs are kept"
        raise MmkitError(f"plan {folder.name!r} is being run already, by process {holder}: {remedy}") from None


def clean(folder: Path) -> None:
    """Remove what a killed runner left; the lock says that it is dead, so its runs are ended too."""
    for left in folder.glob(".tmp-*"):
        processes.end(left)
        shutil.rmtree(left, ignore_errors=True)  # a worker that lost its runner may still be there


def _copy_code(folder: Path) -> None:
    """The package as it is now, for the runs to use: editing goes on undisturbed, and a run is of its key's code."""
    package = Path(mmkit.__file__).resolve().parent
    shutil.rmtree(folder, ignore_errors=True)
    for source in (package, package.parent / "data_recipes"):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
