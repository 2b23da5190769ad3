"""A plan, run: what is done is kept, what is not is made, and a second runner of the same plan is refused."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

import mmkit
from mmkit.errors import MmkitError
from mmkit.repro import execute, paths, records
from mmkit.repro.claims import Claim, read_claims
from mmkit.repro.plan import Plan, Planned, code_hash, expand, read_plan


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


def run_plan(plan: Plan | str | Path, *, workers: int | None = None, dry_run: bool = False, say: Callable[[str], None] = print) -> Batch:
    """Make every run of a plan that is not there yet, `workers` at a time (default: one per core, one thread each).

    dry_run: only say what would be done. A failed run is reported, kept under `failed/` and tried again by the next call.
    Raises: MmkitError for a plan that cannot be read, a second runner of the same plan, or a folder that cannot be written.
    """
    plan = plan if isinstance(plan, Plan) else read_plan(plan)
    declared = read_claims(plan.claims) if plan.claims else []
    runs = expand(plan, prepare=not dry_run)
    folder = paths.runs() / plan.name
    if dry_run:
        for run in runs:
            say(f"{'done ' if is_done(folder, run.key) else 'to do'}  {run.key}  {run.label}")
        say(f"{len(runs)} runs, {sum(is_done(folder, run.key) for run in runs)} done")
        return load(folder) if (folder / "plan.json").exists() else Batch({}, [], [], [], [run.label for run in runs])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, plan.name):
            _clean(folder)
            _copy_code(folder / execute.CODE)
            _write_manifest(folder, plan, runs, declared)
            _make(folder, [run for run in runs if not is_done(folder, run.key)], len(runs), workers or _cores(), say)
    except OSError as error:
        raise MmkitError(
            f"cannot write in {folder} ({error.strerror}): free some space, or point MMKIT_RUNS at a folder you can write; finished runs are kept"
        ) from error
    return load(folder)


def _make(folder: Path, waiting: list[Planned], total: int, workers: int, say: Callable[[str], None]) -> None:
    """Run what is to do in processes of their own, watched by threads; one line each as they end."""
    if len(waiting) < total:
        say(f"{total - len(waiting)} of {total} runs are there already")
    stop, began, width = threading.Event(), time.monotonic(), len(str(total))

    def timed(run: Planned) -> tuple[dict | None, float]:
        start = time.monotonic()
        return execute.dispatch(run, folder, stop), time.monotonic() - start

    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = {pool.submit(timed, run): run for run in waiting}
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                failure, seconds = future.result()
                left = (time.monotonic() - began) / number * (len(waiting) - number)
                ended = f"FAILED in cell {failure.get('cell', '?')}: {failure['kind']}: {failure['message']}" if failure else "done"
                say(f"[{total - len(waiting) + number:>{width}}/{total}] {futures[future].label}: {ended} ({seconds:.0f} s, about {_minutes(left)} left)")
        except BaseException as error:  # Ctrl-C above all: nothing may go on running behind it
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                say("stopped: finished runs are kept, the same command goes on from here")
            raise


def is_done(folder: Path, key: str) -> bool:
    """A run is done when its record exists: nothing else counts."""
    return (folder / key / "record.json").is_file()


def load(folder: Path) -> Batch:
    """Read back what the plan's last call asked for: only its runs, never those of other code or parameters.

    folder: `runs/PLAN`, or published records. Raises: MmkitError when nothing is there, or for another record format.
    """
    folder = Path(folder)
    manifest = _read_json(folder / "plan.json", f"no runs in {folder}: make them first with 'mmkit reproduce {folder.name}'")
    if (folder / "results.jsonl").exists():
        return Batch(manifest, records.read(folder), manifest["headers"], manifest["failures"], manifest["missing"])
    results, headers, failures, missing = [], [], [], []
    for run in manifest["runs"]:
        failed = folder / "failed" / run["key"] / "failure.json"
        if is_done(folder, run["key"]):
            header = _read_json(folder / run["key"] / "record.json", "")
            records.check_schema(header, folder / run["key"] / "record.json")
            found = records.read(folder / run["key"]) if header["results"] else []
            if len(found) != header["results"]:
                raise MmkitError(
                    f"{folder / run['key']} holds {len(found)} of the {header['results']} results it recorded: remove that folder and run the plan again"
                )
            headers.append(header)
            results.extend(found)
        elif failed.exists():
            failures.append(_read_json(failed, ""))
        else:
            missing.append(run["label"])
    return Batch(manifest, results, headers, failures, missing)


def publish(batch: Batch, folder: Path) -> None:
    """Write a batch compactly to a folder that is committed: rows, items, and what is needed to say where they came from."""
    slim = [records.Result(r.row | {"versions": {}, "hardware": {k: v for k, v in r.row["hardware"].items() if k == "gpu"}}, r.items) for r in batch.results]
    extra = {"headers": batch.headers, "failures": batch.failures, "missing": batch.missing}
    shutil.rmtree(folder, ignore_errors=True)
    records.write(folder, slim)  # versions and hardware are in the headers
    (folder / "plan.json").write_text(json.dumps(batch.manifest | extra, indent=1), encoding="utf-8")


def _alone(folder: Path, name: str) -> FileLock:
    """The plan's lock, held while its runner lives and freed by the system when that dies."""
    lock, owner = FileLock(folder / ".lock"), folder / ".runner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = owner.read_text(encoding="utf-8") if owner.exists() else "unknown"
        raise MmkitError(
            f"plan {name!r} is being run already, by process {pid}: wait for it, or end it (kill {pid}) and start again; finished runs are kept"
        ) from None
    owner.write_text(str(os.getpid()), encoding="utf-8")
    return lock


def _clean(folder: Path) -> None:
    """Remove what a killed runner left; the lock says that it is dead, so its runs are ended too."""
    for left in folder.glob(".tmp-*"):
        execute.end_processes(left)
        shutil.rmtree(left)


def _copy_code(folder: Path) -> None:
    """The package as it is now, for the runs to use: editing goes on undisturbed, and every run is of the code of its key."""
    package = Path(mmkit.__file__).resolve().parent
    shutil.rmtree(folder, ignore_errors=True)
    for source in (package, package.parent / "data_recipes"):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _write_manifest(folder: Path, plan: Plan, runs: list[Planned], declared: list[Claim]) -> None:
    manifest = {
        "schema": records.SCHEMA,
        "plan": plan.model_dump(),
        "claims": [claim.model_dump() for claim in declared],
        "runs": [{"key": run.key, "label": run.label, "data_hash": run.data_hash, "parameters": run.parameters} for run in runs],
        "code_hash": code_hash(),
        "commit": commit(),
        "started": execute.now(),
    }
    part = folder / ".plan.json.part"
    part.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
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


def _read_json(path: Path, missing: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MmkitError(missing or f"{path} is gone: run the plan again") from None
    except ValueError as error:
        raise MmkitError(f"{path} is damaged ({error}): remove its folder and run the plan again") from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
