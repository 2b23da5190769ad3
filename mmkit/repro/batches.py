"""What a plan has come to: its manifest, `plan.json`, and the results of its runs, read back and published.

`plan.json` holds a digest of all it says, and each run's record holds those of its files. So an edit by hand is seen
when the results are read; whoever recomputes the digests too is beyond what a file can tell.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from mmkit.errors import MmkitError
from mmkit.files import replace_folder, restore_folder, write_whole
from mmkit.machine import commit
from mmkit.repro import execute, paths, records
from mmkit.repro.paths import is_done, read_json, read_manifest
from mmkit.repro.plan import Plan, Planned, code_hash, runs_asked


@dataclass(frozen=True)
class Batch:
    """The results of a plan's finished runs, and what is known of the others.

    manifest: the plan, its claims as declared then, its runs, commit and code hash. headers: the `record.json` of each
    finished run. failures: the `failure.json` of each failed one. missing: labels of the runs that were neither
    finished nor failed.
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


def load(folder: Path) -> Batch:
    """Read back what the plan's last call asked for: only its runs, never those of other code or parameters.

    folder: `runs/PLAN`, or published records.
    Raises: MmkitError when nothing is there, for another record format, and when something was edited.
    """
    folder = Path(folder)
    asked = manifest(folder)
    if (folder / "results.jsonl").exists():
        return _load_published(folder, asked)
    results, headers, failures, missing = [], [], [], []
    for run in asked["runs"]:
        failed = folder / "failed" / run["key"] / "failure.json"
        if is_done(folder, run["key"]):
            header, found = _load_run(folder / run["key"], run)
            headers.append(header)
            results.extend(found)
        elif failed.exists():
            failures.append(_failure(failed, run))
        else:
            missing.append(run["label"])
    return Batch(asked, results, headers, failures, missing)


def _load_run(folder: Path, run: dict) -> tuple[dict, list[records.Result]]:
    header = read_json(folder / "record.json")
    records.check_schema(header, folder / "record.json")
    path, again = folder / "record.json", records.remedy(folder)
    if header.get("key") != folder.name or header.get("parameters") != run.get("parameters"):
        raise MmkitError(f"{folder} holds the record of another run: {again}")
    if header.get("digest", records.digest(header)) != records.digest(header):  # older records hold none
        raise MmkitError(f"{path} was edited after the run: {again}")
    if "notebook.ipynb" not in header.get("sha256", ()):
        raise MmkitError(f"{path} is of no run, for it names no executed notebook: {again}")
    found = records.read(folder) if header["results"] else []
    records.check_digests(folder, header["sha256"])
    if len(found) != header["results"]:
        number = f"{len(found)} of the {header['results']} results it recorded"
        raise MmkitError(f"{folder} holds {number}: {again}")
    return header, found


def _failure(path: Path, run: dict) -> dict:
    """What is known of a failed run, also when the disk was full as it failed."""
    message = f"{path.parent} does not say how it failed: its disk may have been full"
    known = {"key": run["key"], "label": run["label"], "kind": "unknown", "message": message, "attempts": 1}
    with suppress(MmkitError):
        known |= read_json(path)
    return known


def _load_published(folder: Path, asked: dict) -> Batch:
    batch = Batch(asked, records.read(folder), asked["headers"], asked["failures"], asked["missing"])
    records.check_digests(folder, asked.get("sha256", {}))
    numbers = [header["results"] for header in batch.headers if "results" in header]
    if len(numbers) == len(batch.headers) and sum(numbers) != len(batch.results):
        number = f"{len(batch.results)} results, its runs recorded {sum(numbers)}"
        raise MmkitError(f"{folder} holds {number}: restore it from version control")
    keys = {run["key"] for run in asked["runs"]}
    strange = [header["key"] for header in batch.headers if keys and header.get("key") not in keys]
    if strange:
        raise MmkitError(f"{folder / 'plan.json'} holds a record without a run, {strange[0]}: {records.remedy(folder)}")
    known = len(batch.headers) + len(batch.failures) + len(batch.missing)
    if asked["runs"] and known != len(asked["runs"]):
        number = f"{known} of the {len(asked['runs'])} runs that it was made of"
        raise MmkitError(f"{folder / 'plan.json'} tells of {number}: restore it from version control")
    return batch


def manifest(folder: Path) -> dict:
    """What the plan's last call asked for. Raises: MmkitError when nothing is there, or it was edited since."""
    restore_folder(folder)
    none = f"no runs in {folder}: make them first with 'mmkit reproduce {folder.name}'"
    found = read_manifest(folder, none)
    kinds = {"plan": dict, "claims": list, "code_hash": str, "commit": str, "started": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    if wrong or not found["plan"].keys() >= {"name", "title", "profile"}:
        raise MmkitError(f"{folder / 'plan.json'} is damaged ({(wrong or ['plan'])[0]}): run the plan again")
    path, again = folder / "plan.json", f"'mmkit reproduce {folder.name}' writes it anew"
    again += "; a published one is restored from version control"
    if found.get("digest") != records.digest(found):
        raise MmkitError(f"{path} was edited after the plan was run: {again}")
    number, wanted = len(found["runs"]), runs_asked(found["plan"])
    if wanted and number != wanted:
        lists = f"{path} lists {number} runs, its plan asks for {wanted}"
        raise MmkitError(f"{lists}: a seed or condition was dropped or added; {again}")
    return found


def write_manifest(folder: Path, plan: Plan, runs: list[Planned], declared: list[dict], file: Path | None) -> None:
    """Say what this call of a plan asks for. declared: its claims. file: where the plan is written down, or None."""
    now, old = execute.now(), {}
    with suppress(MmkitError):  # none yet, damaged, or edited
        old = manifest(folder)
    finished = [read_json(folder / run.key / "record.json")["finished"] for run in runs if is_done(folder, run.key)]
    # A run that is done may be older than what is claimed of it.
    since = old.get("declared", old.get("started")) if old.get("claims") == declared else now
    asked = {
        "schema": records.SCHEMA,
        "plan": plan.model_dump(),
        "file": _origin(file) if file else old.get("file"),
        "claims": declared,
        "runs": [
            {"key": run.key, "label": run.label, "data_hash": run.data_hash, "parameters": run.parameters}
            for run in runs
        ],
        "code_hash": code_hash(),
        "commit": commit(paths.root()),
        "started": min([now, *finished]),
        "declared": since,
    }
    write_whole(folder / "plan.json", json.dumps(records.sealed(asked), indent=1))


def check_owner(folder: Path, plan: Plan, file: Path | None) -> None:
    """A folder of runs belongs to the plan that made it. Raises: MmkitError when another plan of this name comes.

    file: where the plan is written down; None for a plan made in Python, which nobody can tell from another.
    """
    if not file:
        return
    old = {}
    with suppress(MmkitError):  # none yet, or damaged
        old = read_json(folder / "plan.json")
    owner, comes = old.get("file"), _origin(file)
    moved = owner and not os.path.exists(owner) and old.get("plan") == plan.model_dump()
    if owner and owner != comes and not moved:
        remedy = "give your plan another name, or move that folder away"
        raise MmkitError(f"{folder} holds the runs of another plan of this name, {owner}: {remedy}")
    if comes == str(file) and (paths.notebooks() / "plans" / f"{plan.name}.yaml").is_file():
        taken = f"{file} says 'name: {plan.name}', which is the name of a plan of this kit"
        raise MmkitError(f"{taken}: give your plan another name")


def _origin(file: Path) -> str:
    """Where a plan is from: a plan of the kit is the same in every clone."""
    kits = file.parent == Path(os.path.realpath(paths.notebooks() / "plans"))
    return f"notebooks/plans/{file.name}" if kits else str(file)


def publish(batch: Batch, folder: Path) -> None:
    """Write a batch compactly to a folder that is committed: rows, items, and where they came from.

    It is made beside and takes the place of what was published when it is whole.
    Raises: MmkitError when no run has a result.
    """
    if not batch.results:
        name = batch.manifest["plan"]["name"]
        raise MmkitError(f"nothing to publish: no run of {name!r} has a result; what was published stays")
    restore_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
    try:
        part.chmod(0o755)
        records.write(part, list(map(_slim, batch.results)))
        told = batch.manifest | {"headers": batch.headers, "failures": batch.failures, "missing": batch.missing}
        told.pop("file", None)  # a path of this machine
        told["sha256"] = records.digests(part)
        (part / "plan.json").write_text(json.dumps(records.sealed(told), indent=1), encoding="utf-8")
        replace_folder(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _slim(result: records.Result) -> records.Result:
    """Without versions and hardware, which the headers have."""
    gpu = {name: value for name, value in result.row["hardware"].items() if name == "gpu"}
    return records.Result(result.row | {"versions": {}, "hardware": gpu}, result.items)


def made_by(asked: dict) -> str:
    """Which code made the runs of a manifest, and whether it is the code that is here."""
    commit_ = asked["commit"][:12] + (" with uncommitted changes" if asked["commit"].endswith("+") else "")
    age = "the code that is here" if asked["code_hash"] == code_hash() else "not the code that is here now"
    return f"commit {commit_}, code {asked['code_hash'][:12]} ({age})"
