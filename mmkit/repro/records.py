"""A run leaves its notebook as data: one JSON row of what was done and what came of it, and every per-item value."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmkit.errors import MmkitError, unknown
from mmkit.files import differences, sha256_of
from mmkit.machine import hardware, versions
from mmkit.notebooks import PROFILES

if TYPE_CHECKING:  # a run's outer process has no need of torch, pandas and arrow, whose import costs seconds
    import pandas as pd
    import pyarrow as pa

    from mmkit.metrics.score import Score

SCHEMA = "mmkit.record/1"
RESERVED = ("arm", "task", "data", "seed", "score", "value")
LEVELS = ("chance", "alone", "oracle")  # of guessing, of a model that never joins the modalities, of knowing everything
_kept: list["Result"] = []


@dataclass(frozen=True)
class Result:
    """One recorded run: its row, and its per-item values as a long table (score, cluster, value)."""

    row: dict
    items: "pa.Table"

    @property
    def condition(self) -> dict:
        """What a claim's term may match on: the recorded condition, with `data` and `task`."""
        return {**self.row["condition"], "data": self.row["data"], "task": self.row["task"]}

    @cached_property
    def _scores(self) -> tuple[list[str], np.ndarray]:
        """The names of scores, and of each item the place of its own among them."""
        column = self.items["score"].unify_dictionaries().combine_chunks()
        return column.dictionary.to_pylist(), column.indices.to_numpy()

    def items_of(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Per-item values and clusters of one metric, (n,) each. Raises: MmkitError for one that was not recorded."""
        if name not in self.row["scores"]:
            raise unknown("score", name, self.row["scores"])
        names, code = self._scores
        mine = code == names.index(name)
        return self.items["value"].to_numpy()[mine], self.items["cluster"].to_numpy()[mine]

    def score(self, name: str) -> "Score":
        """One metric as it was recorded. Raises: MmkitError for one that was not, with the nearest one that was."""
        from mmkit.metrics.score import Score

        values, clusters = self.items_of(name)
        info = self.row["metrics"][name]
        return Score(values, clusters, aggregate=info["aggregate"], higher_is_better=info["higher_is_better"])


def profile() -> str:
    """The size of the present run: `$MMKIT_PROFILE`, by default `lab`."""
    name = os.environ.get("MMKIT_PROFILE", "lab")
    if name not in PROFILES:
        raise unknown("profile (MMKIT_PROFILE)", name, PROFILES)
    return name


def record(run, *, levels: dict[str, dict[str, float]] | None = None, **condition) -> dict:
    """Keep a run as data and return its row.

    run: an `mmkit.strategies.Run`. levels: of a score by name, what `LEVELS` reach: a verdict asks whether there was
        anything to learn (`{"accuracy": {"chance": 0.25, "alone": 0.44, "oracle": 1.0}}`; each may be left out).
    condition: what this run was made under and a claim may ask for (`share=0.5`,
        `imbalance=4`); the budget's `pairs` is always part of it.
    In a batch the row is appended to `results.jsonl` in the run's folder and the items go beside it. Interactively both
    stay in memory, see `recorded()`, until a cell that is run again records the same scores of the same arm, seed and
    condition.
    Raises: MmkitError for a score or cost that is not finite, a condition that cannot be written as JSON, one named
    like a field of the record, or one that contradicts the run's budget; for a level of no score or of another name.
    """
    where = f"arm {run.arm!r}, seed {run.seed}"
    _check_condition(condition, asdict(run.budget), where)
    scores = {name: score.value for name, score in run.scores.items()}
    bad = [name for name, value in scores.items() if not math.isfinite(value)]
    if bad:
        raise MmkitError(f"{where}: score {bad[0]!r} is {scores[bad[0]]}")
    if not scores:
        raise MmkitError(f"{where}: no scores to record; evaluate the run first")
    for name, known in (levels or {}).items():
        if name not in scores:
            raise unknown("score with levels", name, scores)
        for level in known.keys() - LEVELS:
            raise unknown("level of a score", level, LEVELS)
    row = _row(run, scores, condition) | ({"levels": levels} if levels else {})
    try:
        line = json.dumps(row, default=_plain, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        wanted = "settings, condition and cost must be finite numbers, strings, lists or mappings"
        raise MmkitError(f"{where}: the record cannot be written ({error}); {wanted}") from error
    result = Result(json.loads(line), items_table(run.scores))
    folder = os.environ.get("MMKIT_RUN_DIR")
    if folder:
        _append(Path(folder), line, result.items)
    else:
        _kept[:] = [*(kept for kept in _kept if _identity(kept) != _identity(result)), result]
    return result.row


def _check_condition(condition: dict, budget: dict, where: str) -> None:
    clash = sorted(set(condition) & set(RESERVED))
    if clash:
        remedy = "the record has a field of that name; name it after what you vary"
        raise MmkitError(f"a condition cannot be named {clash[0]!r}, {remedy}")
    for name in condition.keys() & budget.keys():
        if condition[name] != budget[name]:
            both = f"the condition says {name}={condition[name]!r}, the run's budget {budget[name]!r}"
            raise MmkitError(f"{where}: {both}; give the budget's, or another name")


def _row(run, scores: dict[str, float], condition: dict) -> dict:
    return {
        "schema": SCHEMA,
        "arm": run.arm,
        "task": run.task,
        "data": run.data,
        "data_hash": run.data_hash,
        "seed": run.seed,
        "condition": {"pairs": run.budget.pairs, **condition},
        "budget": asdict(run.budget),
        "settings": run.settings,
        "scores": scores,
        "metrics": {name: _describe(score) for name, score in run.scores.items()},
        "cost": run.cost.as_dict(),
        "profile": profile(),
        "versions": versions(),
        "hardware": hardware(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _identity(result: Result) -> tuple:
    """What a result is of; a second one of the same takes its place when a cell is run again."""
    return result.row["arm"], result.row["seed"], result.condition, result.row["scores"].keys()


def recorded() -> list[Result]:
    """What this process recorded: kept in memory interactively, read back from the run's folder in a batch."""
    folder = os.environ.get("MMKIT_RUN_DIR")
    return read(Path(folder)) if folder and (Path(folder) / "results.jsonl").exists() else list(_kept)


def items_table(scores: dict[str, "Score"]) -> "pa.Table":
    """Scores as one long table: score (dictionary), cluster (int64), value (float64)."""
    import pyarrow as pa

    codes = np.repeat(np.arange(len(scores), dtype=np.int32), [len(s.items) for s in scores.values()])
    names = pa.DictionaryArray.from_arrays(codes, list(scores))
    clusters = np.concatenate([score.clusters for score in scores.values()])
    return pa.table({"score": names, "cluster": clusters, "value": np.concatenate([s.items for s in scores.values()])})


def read(folder: Path) -> list[Result]:
    """Every result of one folder: of a run (`items/NNNN.parquet`) or of published records (one `items.parquet`).

    Raises: MmkitError for another record format, for a row or its items that cannot be read, and for a score that is
    not what its items give.
    """
    folder = Path(folder)
    path = folder / "results.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            check_schema(row, path)
        parts = _items(folder, len(rows))
        if not all(map(len, parts)):
            raise ValueError("a result without items")
        results = list(map(Result, rows, parts))
        for number, result in enumerate(results, start=1):
            _check_scores(result, f"line {number}")
        return results
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise MmkitError(f"the records in {folder} are damaged ({reason}): {remedy(folder)}") from error


def _items(folder: Path, number: int) -> "list[pa.Table]":
    from pyarrow.parquet import (
        ParquetFile,
    )  # read_table, and pandas above it, take several times as long for small files

    if not (folder / "items.parquet").exists():
        return [ParquetFile(folder / "items" / f"{place:04d}.parquet").read() for place in range(number)]
    items = ParquetFile(folder / "items.parquet").read()
    starts = np.searchsorted(items["result"].to_numpy(), np.arange(number + 1))
    if starts[-1] != len(items):
        raise ValueError("items of a result that is not there")
    return [items.slice(start, end - start) for start, end in pairwise(starts)]


def _check_scores(result: Result, where: str) -> None:
    """Raises ValueError when a score is not the mean, or median, of its items."""
    for name, score in result.row["scores"].items():
        values, _ = result.items_of(name)
        about = result.row["metrics"][name]
        value = np.median(values) if about["aggregate"] == "median" else np.mean(values)
        if len(values) != about["items"] or not math.isclose(value, score, rel_tol=1e-9, abs_tol=1e-12):
            items = f"its {len(values)} items give {value:.6g}"
            raise ValueError(f"{where}: {name} is {score:.6g}, {items}: it was edited")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the results, items and executed notebook in a folder, by their path in it."""
    return sha256_of(
        folder, [*folder.glob("results.jsonl"), *folder.glob("notebook.ipynb"), *folder.rglob("*.parquet")]
    )


def digest(said: dict) -> str:
    """SHA-256 of all that a `record.json` or `plan.json` says besides its `digest`."""
    rest = {name: value for name, value in said.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(said: dict) -> dict:
    """With its digest, as it is read back from JSON."""
    said = json.loads(json.dumps(said, allow_nan=False))
    return said | {"digest": digest(said)}


def check_digests(folder: Path, recorded: dict[str, str]) -> None:
    """Raises: MmkitError naming the files that are not as they were recorded, are gone, or came later."""
    told = ", ".join(differences(recorded, digests(folder)))
    if told:
        raise MmkitError(f"in {folder} {told} after the record was written: {remedy(folder)}")


def remedy(folder: Path) -> str:
    """What to do about a folder whose files were changed."""
    published = folder.parent.name == "records"
    return "restore it from version control" if published else "remove that folder and run the plan again"


def check_schema(row: dict, path: Path) -> None:
    """Raises: MmkitError when a row was written in another record format than this version reads."""
    found = row.get("schema") if isinstance(row, dict) else None
    if found != SCHEMA:
        held = f"{path} holds records of the format {found!r}, this version reads {SCHEMA!r}"
        raise MmkitError(f"{held}: move the folder away and run the plan again")


def write(folder: Path, results: Sequence[Result]) -> None:
    """Write results compactly, as `results.jsonl` and one `items.parquet` (for records that are published)."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(result.row, sort_keys=True, allow_nan=False) for result in results]
    parts = []
    for number, result in enumerate(results):
        of = pa.repeat(pa.scalar(number, pa.int32()), len(result.items))
        part = result.items.select(["score", "cluster", "value"]).append_column("result", of)
        parts.append(part.set_column(0, "score", part["score"].cast(pa.string())))
    items = pa.concat_tables(parts).combine_chunks()
    write_table(
        items.set_column(0, "score", items["score"].dictionary_encode()), folder / "items.parquet", compression="zstd"
    )
    (folder / "results.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def table(results: Iterable[Result]) -> "pd.DataFrame":
    """One line a result and score: arm, task, data, seed, the conditions, score, value, and the cost."""
    import pandas as pd

    costs = ("flops", "seconds", "peak_bytes", "parameters_trained", "parameters_total")
    lines = []
    for result in results:
        cost = {name: result.row["cost"][name] for name in costs}
        about = {"arm": result.row["arm"], "seed": result.row["seed"], **result.condition}
        lines += [about | {"score": name, "value": value} | cost for name, value in result.row["scores"].items()]
    return pd.DataFrame(lines)


def _describe(score: "Score") -> dict:
    return {
        "aggregate": score.aggregate,
        "higher_is_better": score.higher_is_better,
        "items": len(score.items),
        "clusters": len(np.unique(score.clusters)),
    }


def _plain(value):
    """JSON for numpy numbers and arrays, and paths."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")


def _append(folder: Path, line: str, items: "pa.Table") -> None:
    """Items first, then the row that makes them count."""
    from pyarrow.parquet import write_table

    path = folder / "results.jsonl"
    number = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    (folder / "items").mkdir(exist_ok=True)
    write_table(items, folder / "items" / f"{number:04d}.parquet", compression="zstd")
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
