"""A plan, run: what is done is kept, what is not is made, and a second runner of the same plan is refused."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from filelock import FileLock, Timeout

import mmkit
from mmkit.data.progress import progress
from mmkit.errors import MmkitError
from mmkit.repro import execute, paths, records
from mmkit.repro.paths import is_done, read_json
from mmkit.repro.plan import Plan, Planned, code_hash, expand, read_plan
from mmkit.repro.warm import IMPORTS, imports


@dataclass(frozen=True)
class Batch:
    """What a plan has come to: the results of the finished runs, and what is known of the others.

    manifest: the plan, its claims as declared then, its runs, commit and code hash. headers: the `record.json` of each finished run. failures: the
    `failure.json` of each failed one. missing: labels of the runs that were neither finished nor failed.
    """

    manifest: dict
    results: list[records.Result]
    headers: list[dict]
    failures: list[dict]
    missing: list[str]

    @property
    def complete(self) -> bool:
        """Every run of the plan is finished."""
        return not self.failures and not self.missing


def run_plan(
    plan: Plan | str | Path, *, workers: int | None = None, scheduler: str | None = None, executor: Executor | None = None,
    dry_run: bool = False, say: Callable[[str], None] = print,
) -> Batch:  # fmt: skip
    """Make every run of a plan that is not there yet, `workers` at a time on this machine (default: one per core, one thread each).

    scheduler: address of a Dask scheduler that hands the runs to its workers instead. executor: any other `concurrent.futures` executor.
    dry_run: only say what would be done. A failed run is reported, kept under `failed/` and tried again by the next call.
    Raises: MmkitError for a plan that cannot be read, workers below 1, a second runner of the same plan, a folder that cannot be written, or an executor that is gone.
    """
    if workers is not None and workers < 1:
        raise MmkitError(f"workers={workers}: at least one run is made at a time; leave it out for one per core")
    plan = plan if isinstance(plan, Plan) else read_plan(plan)
    from mmkit.repro.claims import read_claims  # not before: listing runs needs no scipy

    declared = [claim.model_dump() for claim in read_claims(plan.claims)] if plan.claims else []
    runs = expand(plan, prepare=not dry_run)
    folder = paths.runs() / plan.name
    waiting = [run for run in runs if not is_done(folder, run.key)]
    if dry_run:
        for run in runs:
            say(f"{'done ' if is_done(folder, run.key) else 'to do'}  {run.key}  {run.label}")
        say(f"{len(runs)} runs, {len(runs) - len(waiting)} done{_estimate(folder, waiting, workers or _cores())}")
        return Batch({}, [], [], [], [run.label for run in waiting])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder) as token, _pool(workers, scheduler, executor) as pool:
            clean(folder)
            _copy_code(folder / execute.CODE, runs)
            _write_manifest(folder, plan, runs, declared)
            _make(folder, waiting, len(runs), pool, token, say)
            clean(folder)  # of workers that died
    except OSError as error:
        raise MmkitError(f"cannot write in {folder} ({error.strerror or error}): free some space, or point MMKIT_RUNS at a folder you can write; finished runs are kept") from error
    except (CancelledError, BrokenExecutor) as error:
        raise MmkitError(f"the executor is gone ({error or 'its scheduler does not answer'}): finished runs are kept, the same command goes on from here") from error
    return load(folder)


@contextmanager
def _pool(workers: int | None, scheduler: str | None, executor: Executor | None) -> Iterator[Executor]:
    """Who makes the runs: processes of this machine, each watched by a thread; a Dask cluster; or what the caller brings."""
    if sum(choice is not None for choice in (workers, scheduler, executor)) > 1:
        raise MmkitError("workers are processes of this machine: with a scheduler or an executor of your own, set their number there")
    if executor or not scheduler:
        with nullcontext(executor) if executor else ThreadPoolExecutor(workers or _cores()) as pool:
            yield pool
        return
    try:
        from distributed import Client

        client = Client(scheduler, timeout="10s", set_as_default=False)
    except ImportError as error:
        raise MmkitError("--scheduler needs Dask: pip install -e '.[dask]'") from error
    except (OSError, ValueError) as error:
        raise MmkitError(f"no Dask scheduler answers at {scheduler!r} ({error}): start one with 'dask scheduler', or give its address as it prints it") from error
    with client:
        yield client.get_executor(pure=False)


def _make(folder: Path, waiting: list[Planned], total: int, pool: Executor, token: str, say: Callable[[str], None]) -> None:
    """Hand out what is to do; one line each as they end, and on a terminal a bar."""
    began, width, done = time.monotonic(), len(str(total)), total - len(waiting)
    with progress(label=folder.name, unit="run", total=total, start=done) as bar:
        tell = bar.write if say is print else say
        if done:
            tell(f"{done} of {total} runs are there already")
        futures = {pool.submit(execute.dispatch, run, folder, token): run for run in waiting}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                failure, seconds = _outcome(future, futures[future], folder)
                left = (time.monotonic() - began) / number * (len(waiting) - number)
                ended = f"FAILED in cell {failure.get('cell', '?')}: {failure['kind']}: {failure['message']}" if failure else "done"
                tell(f"[{done + number:>{width}}/{total}] {futures[future].label}: {ended} ({seconds:.0f} s, about {_minutes(left)} left)")
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
        failure = {"kind": "worker died", "message": str(error), "key": run.key, "label": run.label, "attempts": 2, "time": execute.now()}
        failed = folder / "failed" / run.key
        failed.mkdir(parents=True, exist_ok=True)
        for name, text in (("run.json", run.model_dump_json(indent=1)), ("failure.json", json.dumps(failure, indent=1))):
            (failed / name).write_text(text, encoding="utf-8")
        return failure, 0.0


def _estimate(folder: Path, runs: list[Planned], workers: int) -> str:
    """How long runs should take, from those of the same notebook and profile on record."""
    published, past = paths.notebooks() / "records" / folder.name / "plan.json", {}
    headers = read_json(published)["headers"] if published.exists() else []
    for header in [*headers, *map(read_json, folder.glob("*/record.json"))]:
        past.setdefault((header["notebook"], header["profile"]), []).append(header["seconds"])
    known = [median(past[kind]) for run in runs if (kind := (Path(run.notebook).stem, run.profile)) in past]
    return f"; about {_minutes(sum(known) / len(known) * len(runs) / workers)} with {workers} workers, by the runs on record" if known else ""


def load(folder: Path) -> Batch:
    """Read back what the plan's last call asked for: only its runs, never those of other code or parameters.

    folder: `runs/PLAN`, or published records. Raises: MmkitError when nothing is there, or for another record format.
    """
    folder = Path(folder)
    asked = manifest(folder)
    if (folder / "results.jsonl").exists():
        return Batch(asked, records.read(folder), asked["headers"], asked["failures"], asked["missing"])
    results, headers, failures, missing = [], [], [], []
    for run in asked["runs"]:
        failed = folder / "failed" / run["key"] / "failure.json"
        if is_done(folder, run["key"]):
            header = read_json(folder / run["key"] / "record.json")
            records.check_schema(header, folder / run["key"] / "record.json")
            found = records.read(folder / run["key"]) if header["results"] else []
            if len(found) != header["results"]:
                raise MmkitError(f"{folder / run['key']} holds {len(found)} of the {header['results']} results it recorded: remove that folder and run the plan again")
            headers.append(header)
            results.extend(found)
        elif failed.exists():
            failures.append(read_json(failed))
        else:
            missing.append(run["label"])
    return Batch(asked, results, headers, failures, missing)


def manifest(folder: Path) -> dict:
    """What the plan's last call asked for. Raises: MmkitError when nothing is there."""
    return read_json(folder / "plan.json", f"no runs in {folder}: make them first with 'mmkit reproduce {folder.name}'")


def publish(batch: Batch, folder: Path) -> None:
    """Write a batch compactly to a folder that is committed: rows, items, and what is needed to say where they came from; it is made beside and renamed when it is whole.

    Raises: MmkitError when no run has a result."""
    if not batch.results:
        raise MmkitError(f"nothing to publish: no run of {batch.manifest['plan']['name']!r} has a result; what was published stays")
    slim = [records.Result(r.row | {"versions": {}, "hardware": {k: v for k, v in r.row["hardware"].items() if k == "gpu"}}, r.items) for r in batch.results]
    extra = {"headers": batch.headers, "failures": batch.failures, "missing": batch.missing}
    part = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    records.write(part, slim)  # versions and hardware are in the headers
    (part / "plan.json").write_text(json.dumps(batch.manifest | extra, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


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
                execute.let_go(folder)
    except Timeout:
        holder = owner.read_text(encoding="utf-8") if owner.exists() else "unknown"
        raise MmkitError(f"plan {folder.name!r} is being run already, by process {holder}: wait for it, or end it (kill {holder.split()[0]}) and start again; finished runs are kept") from None


def clean(folder: Path) -> None:
    """Remove what a killed runner left; the lock says that it is dead, so its runs are ended too."""
    for left in folder.glob(".tmp-*"):
        execute.end_processes(left)
        shutil.rmtree(left, ignore_errors=True)  # a worker that lost its runner may still be there


def _copy_code(folder: Path, runs: list[Planned]) -> None:
    """The package as it is now, for the runs to use: editing goes on undisturbed, and every run is of the code of its key."""
    package = Path(mmkit.__file__).resolve().parent
    shutil.rmtree(folder, ignore_errors=True)
    for source in (package, package.parent / "data_recipes"):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (folder / IMPORTS).write_text(json.dumps(imports(dict.fromkeys(run.notebook for run in runs))), encoding="utf-8")


def _write_manifest(folder: Path, plan: Plan, runs: list[Planned], declared: list[dict]) -> None:
    now, old = execute.now(), {}
    with suppress(MmkitError):  # none yet, or damaged
        old = manifest(folder)
    asked = {
        "schema": records.SCHEMA,
        "plan": plan.model_dump(),
        "claims": declared,
        "runs": [{"key": run.key, "label": run.label, "data_hash": run.data_hash, "parameters": run.parameters} for run in runs],
        "code_hash": code_hash(),
        "commit": commit(),
        "started": min([now, *(read_json(folder / run.key / "record.json")["finished"] for run in runs if is_done(folder, run.key))]),
        "declared": old.get("declared", old.get("started")) if old.get("claims") == declared else now,  # a run that is done may be older than what is claimed of it
    }
    part = folder / ".plan.json.part"
    part.write_text(json.dumps(asked, indent=1), encoding="utf-8")
    execute.sync(part)
    os.replace(part, folder / "plan.json")


def commit() -> str:
    """The checkout's git commit, with `+` when files differ from it; `unknown` without git."""
    try:
        ask = [
            subprocess.run(["git", *words], cwd=paths.root(), capture_output=True, text=True, timeout=10)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return ask[0].stdout.strip() + ("+" if ask[1].stdout.strip() else "") if ask[0].returncode == 0 else "unknown"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
