"""How the table of learning rates is made: every arm with the same effort."""

from collections.abc import Sequence
from statistics import mean

from mmkit.strategies.fit import fit
from mmkit.strategies.tuned import table


def tune(task, *, budget, seeds: Sequence[int], arms: Sequence[str], real: bool = False, **options) -> dict:
    """Try every rate of the grid for every arm: {arm: {lr: validation score, the mean over the seeds}}."""
    found = {}
    for arm in arms:
        found[arm] = {}
        for lr in table()["grid"]["real" if real else "small"]:
            runs = [fit(arm, task, budget=budget, seed=seed, lr=lr, evaluate=("val",), **options) for seed in seeds]
            found[arm][lr] = mean(run.settings["validation"] for run in runs)
    return found
