"""Learning rates to start from, where a run is an illustration: the best of a small grid at one to three seeds.

A comparison does not rest on them: there every arm searches its own rate in every run (`mmkit.tuning.nested`)."""

import json
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("tuned.json")


@cache
def table() -> dict:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def learning_rate(task: str, arm: str, *, real: bool = False) -> float:
    """The tuned rate of an arm on a task, with small or real encoders; what was not tuned takes its grid's middle."""
    grid = table()["grid"]["real" if real else "small"]
    return _tuned(task, real).get(arm, grid[(len(grid) - 1) // 2])


def rate_from(task: str, arm: str, given: float | None, *, real: bool = False) -> str:
    """For a record: whether an arm's rate was given, searched for on this task, or is its grid's middle."""
    return "given" if given is not None else "tuned" if arm in _tuned(task, real) else "middle of the grid"


def _tuned(task: str, real: bool) -> dict[str, float]:
    return table()["lr"].get(f"{task}, real encoders" if real else task, {})
