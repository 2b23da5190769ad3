"""Learning rates, chosen for every arm with the same effort: the same grid, on validation, at a seed no result uses."""

import json
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("tuned.json")


@cache
def table() -> dict:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def learning_rate(task: str, arm: str) -> float:
    """The tuned rate of an arm on a task; a task or arm that was not tuned takes the grid's middle."""
    kept = table()
    return kept["lr"].get(task, {}).get(arm, kept["grid"][len(kept["grid"]) // 2])


def tune(task, *, budget, seed: int, arms: list[str], **options) -> dict:
    """Try every rate of the grid for every arm and return {arm: {lr: validation score}}."""
    from mmkit.strategies.fit import fit

    return {arm: {lr: fit(arm, task, budget=budget, seed=seed, lr=lr, evaluate=("val",), **options).settings["validation"] for lr in table()["grid"]} for arm in arms}
