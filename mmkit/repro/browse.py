"""The runs on the disk: listed, shown, compared, and cleared of what no plan asks for any more."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmkit.errors import MmkitError, unknown
from mmkit.repro import paths
from mmkit.repro.paths import is_done, read_json


def plans() -> Iterator[str]:
    """One line a plan: runs finished, failed and asked for."""
    found = sorted(paths.runs().glob("*/plan.json"))
    if not found:
        yield f"no runs in {paths.runs()}: make some with 'mmkit reproduce PLAN'"
    for path in found:
        manifest = read_json(path)
        states = [_state(path.parent, run["key"]) for run in manifest["runs"]]
        yield f"{path.parent.name}: {states.count('done')} of {len(states)} runs done, {states.count('failed')} failed; {manifest['plan']['profile']}, begun {manifest['started']}"


def runs(plan: str) -> Iterator[str]:
    """One line a run of a plan's last call, and what else is kept there. Raises: MmkitError when the plan has no runs."""
    folder = _folder(plan)
    asked = read_json(folder / "plan.json")["runs"]
    for run in asked:
        state = _state(folder, run["key"])
        header = read_json(f"{folder}/{run['key']}/record.json") if state == "done" else {}
        yield f"{state:<7} {run['key']}  {header['seconds']:6.0f} s  {header['finished']}  {run['label']}" if header else f"{state:<7} {run['key']}  {run['label']}"
    others = _others(folder, {run["key"] for run in asked})
    if others:
        yield f"{len(others)} folders of other code, parameters or failures: 'mmkit runs clean {plan}' removes them"


def show(key: str) -> Iterator[str]:
    """One run: what it was, what it recorded, and how it failed if it did. Raises: MmkitError for a key that is unknown or the start of several."""
    folder = _find(key)
    for name, value in _flat(_header(folder)).items():
        yield f"{name}: {value}"
    for row in _rows(folder):
        yield f"{row['arm']}, {row['task']}, {json.dumps(row['condition'])}: " + ", ".join(f"{name} {value:.4g}" for name, value in row["scores"].items())
    yield from (folder / paths.LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-20:] if (folder / paths.LOG).exists() else []
    yield f"the executed notebook: {folder / 'notebook.ipynb'}"


def diff(first: str, second: str) -> Iterator[str]:
    """What differs between two runs: parameters, versions, hardware, data, and scores by arm."""
    flat = [_flat(_header(folder)) | {f"{_name(row)} {k}": v for row in _rows(folder) for k, v in row["scores"].items()} for folder in (_find(first), _find(second))]
    for name in dict.fromkeys([*flat[0], *flat[1]]):
        one, other = (found.get(name, "-") for found in flat)
        if one != other:
            yield f"{name}: {one} | {other}"


def tidy(plan: str, *, really: bool) -> Iterator[str]:
    """Remove what the plan's last call did not ask for, and its failures; only say it unless `really`. Raises: MmkitError while the plan is being run."""
    from mmkit.repro.runner import alone, clean  # the other commands do without its imports

    folder = _folder(plan)
    with alone(folder):
        clean(folder)
        asked = {run["key"] for run in read_json(folder / "plan.json")["runs"]}
        for other in _others(folder, asked):
            if really:
                shutil.rmtree(other)
            yield f"{'removed' if really else 'would remove'} {other}"
    if not really:
        yield "nothing was removed: add --yes to do it"


def _folder(plan: str) -> Path:
    folder = paths.runs() / plan
    if not (folder / "plan.json").exists():
        raise unknown("plan with runs", plan, (path.parent.name for path in paths.runs().glob("*/plan.json")))
    return folder


def _others(folder: Path, asked: set[str]) -> list[Path]:
    return [*(folder / name for name in sorted(set(os.listdir(folder)) - asked) if re.fullmatch("[0-9a-f]{16}", name)), *folder.glob("failed/*")]


def _state(folder: Path, key: str) -> str:
    return "done" if is_done(folder, key) else "failed" if (folder / "failed" / key).exists() else "to do"


def _find(key: str) -> Path:
    found = [path.parent for name in ("record.json", "failure.json") for path in paths.runs().glob(f"**/{key}*/{name}")] if key.isalnum() else []
    if (number := len({path.name for path in found})) != 1:  # two plans may share a run
        raise MmkitError(f"{number} runs have a key that begins with {key!r}: 'mmkit runs list PLAN' prints the keys")
    return found[0]


def _header(folder: Path) -> dict:
    return read_json(folder / "record.json") if (folder / "record.json").exists() else read_json(folder / "run.json") | read_json(folder / "failure.json")


def _rows(folder: Path) -> list[dict]:
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _name(row: dict) -> str:
    return " ".join([row["arm"], row["task"], *(f"{name}={value}" for name, value in row["condition"].items())])


def _flat(mapping: dict, start: str = "") -> dict:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    return {k: v for name, value in mapping.items() for k, v in (_flat(value, f"{start}{name}.") if isinstance(value, dict) else {start + name: value}).items()}
