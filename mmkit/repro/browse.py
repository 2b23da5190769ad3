"""The runs on the disk: listed, shown, compared, and cleared of what no plan asks for any more."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mmkit.errors import MmkitError, unknown
from mmkit.repro import paths
from mmkit.repro.paths import is_done, read_json, read_manifest


def plans() -> Iterator[str]:
    """One line a plan: runs finished, failed and asked for. Then what is published, and the code that made it."""
    found = sorted(paths.runs().glob("*/plan.json"))
    if not found:
        yield f"no runs in {paths.runs()}: make some with 'mmkit reproduce PLAN'"
    for path in found:
        try:
            manifest = read_manifest(path.parent)
            states = [_state(path.parent, run["key"]) for run in manifest["runs"]]
            counts = f"{states.count('done')} of {len(states)} runs done, {states.count('failed')} failed"
            yield f"{path.parent.name}: {counts}; {manifest['plan']['profile']}, begun {manifest['started']}"
        except (KeyError, TypeError) as error:
            yield f"{path.parent.name}: {path} is damaged ({error}): run the plan again"
        except MmkitError as error:
            yield f"{path.parent.name}: {error}"


def published() -> Iterator[str]:
    """One line a set of published records: the code that made it, and whether it is the code that is here."""
    from mmkit.repro.batches import made_by, manifest  # not before: it imports the engine

    for path in sorted(paths.notebooks().glob("records/*/plan.json")):
        yield f"{path.parent.name}: {made_by(manifest(path.parent))}"


def runs(plan: str) -> Iterator[str]:
    """One line a run of a plan's last call, and what else is kept there. Raises: MmkitError without runs."""
    folder = _folder(plan)
    asked = read_manifest(folder)["runs"]
    for run in asked:
        state = _state(folder, run["key"])
        line = f"{state:<7} {run['key']}  "
        if state == "done":
            header = read_json(f"{folder}/{run['key']}/record.json")
            seconds = header.get("seconds", 0)
            line += f"{seconds if isinstance(seconds, int | float) else 0:6.0f} s  {header.get('finished', '?')}  "
        yield line + run["label"]
    others = _others(folder, {run["key"] for run in asked})
    if others:
        what = f"{len(others)} folders of other code, parameters or failures"
        yield f"{what}: 'mmkit runs clean {plan}' removes them"


def show(key: str) -> Iterator[str]:
    """One run: what it was, what it recorded, and how it failed if it did. Raises: MmkitError for an unclear key."""
    folder = _find(key)
    for name, value in _flat(_header(folder)).items():
        yield f"{name}: {value}"
    for row in _rows(folder):
        scores = ", ".join(f"{name} {value:.4g}" for name, value in row["scores"].items())
        yield f"{row['arm']}, {row['task']}, {json.dumps(row['condition'])}: {scores}"
    with suppress(OSError):
        yield from (folder / paths.LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
    yield f"the executed notebook: {folder / 'notebook.ipynb'}"


def diff(first: str, second: str) -> Iterator[str]:
    """What differs between two runs: parameters, versions, hardware, data, and scores by arm."""
    one, other = _facts(_find(first)), _facts(_find(second))
    for name in dict.fromkeys([*one, *other]):
        if one.get(name, "-") != other.get(name, "-"):
            yield f"{name}: {one.get(name, '-')} | {other.get(name, '-')}"


def tidy(plan: str, *, really: bool) -> Iterator[str]:
    """Remove what the plan's last call did not ask for, and its failures; only say it unless `really`.

    Raises: MmkitError while the plan is being run.
    """
    from mmkit.repro.runner import alone, clean  # the other commands do without its imports

    folder = _folder(plan)
    with alone(folder):
        clean(folder)
        asked = {run["key"] for run in read_manifest(folder)["runs"]}
        for other in _others(folder, asked):
            if really:
                shutil.rmtree(other)
            yield f"{'removed' if really else 'would remove'} {other}"
    if not really:
        yield "nothing was removed: add --yes to do it"


def _folder(plan: str) -> Path:
    folder = paths.batch(plan)
    if not (folder / "plan.json").exists():
        raise unknown("plan with runs", plan, (path.parent.name for path in paths.runs().glob("*/plan.json")))
    return folder


def _others(folder: Path, asked: set[str]) -> list[Path]:
    keys = [name for name in sorted(set(os.listdir(folder)) - asked) if re.fullmatch("[0-9a-f]{16}", name)]
    return [*(folder / key for key in keys), *folder.glob("failed/*")]


def _state(folder: Path, key: str) -> str:
    return "done" if is_done(folder, key) else "failed" if (folder / "failed" / key).exists() else "to do"


def _find(key: str) -> Path:
    found = {}
    for name in ("record.json", "failure.json") if key.isalnum() else ():
        for path in paths.runs().glob(f"**/{key}*/{name}"):
            found.setdefault(path.parent.name, path.parent)  # two plans may share a run
    if len(found) != 1:
        raise MmkitError(
            f"{len(found)} runs have a key that begins with {key!r}: 'mmkit runs list PLAN' prints the keys"
        )
    return next(iter(found.values()))


def _header(folder: Path) -> dict:
    if (folder / "record.json").exists():
        return read_json(folder / "record.json")
    return read_json(folder / "run.json") | read_json(folder / "failure.json")


def _rows(folder: Path) -> list[dict]:
    """What a run recorded, as far as it is whole."""
    rows, path = [], folder / "results.jsonl"
    with suppress(OSError, ValueError, RecursionError):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows += [row] if _is_row(row) else []
    return rows


def _is_row(row: object) -> bool:
    """Whether a line of `results.jsonl` is what `record` writes, as far as it is shown here."""
    kinds = {"arm": str, "task": str, "condition": dict, "scores": dict}
    whole = isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in kinds.items())
    return whole and all(isinstance(score, int | float) for score in row["scores"].values())


def _facts(folder: Path) -> dict:
    """Everything known of a run, flat: `parameters.seed` as well as each score of each arm."""
    facts = _flat(_header(folder))
    for row in _rows(folder):
        where = " ".join([row["arm"], row["task"], *(f"{name}={value}" for name, value in row["condition"].items())])
        facts |= {f"{where} {name}": value for name, value in row["scores"].items()}
    return facts


def _flat(mapping: dict, start: str = "") -> dict:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat = {}
    for name, value in mapping.items():
        flat |= _flat(value, f"{start}{name}.") if isinstance(value, dict) else {start + name: value}
    return flat
