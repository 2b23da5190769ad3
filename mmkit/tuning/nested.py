"""The learning rate as a part of the run: every arm looks for its own, by its own seed's validation.

A rate that is chosen once, at other seeds, makes equal arms differ "significantly" in 13 to 21 % of comparisons of ten
seeds; searched anew by every run, with the same grid for all, in 4 % (simulated, tests/test_tuning.py).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from mmkit.data import cached
from mmkit.errors import Diverged, MmkitError
from mmkit.models.identity import fingerprint
from mmkit.strategies import Budget, Encoders, Run, Strategy, fit
from mmkit.strategies.arms import arm
from mmkit.strategies.ensembles import Combination
from mmkit.strategies.fit import BATCH
from mmkit.training.code import sources

# Of small encoders. It doubles: where every answer needs both, a rate three times too high or too low learns nothing.
GRID = (2e-3, 4e-3, 8e-3, 1.6e-2)
REAL = (3e-4, 1e-3, 3e-3)  # of real ones
WIDENINGS = 5
FLAT = 0.02  # a validation score that rose by less in the last two fifths of the steps has flattened
ROOMS = ("core", "data", "models", "metrics", "training", "pretraining", "strategies", "tasks", "tuning")


def nested(
    strategy: Strategy | Combination | str,
    task,
    *,
    budget: Budget,
    seed: int,
    encoders: Encoders = Encoders(),
    grid: Sequence[float] | None = None,
    trunks: Sequence[float] = (),
    batch: int = BATCH,
    evaluate: tuple[str, ...] | None = None,
) -> Run:
    """The run of `fit` whose learning rate has the best validation score; the middle one of several equals.

    grid: rates to try, all of them; while the best lies on an edge, a rate beyond is tried, five times at most. trunks:
    multiples of the rate for encoders, tried afterwards at the best rate, where a stage trains them. Trials are kept in
    the cache: a run that was killed goes on where it was. A trial whose loss is not finite counts as the worst.

    `settings["tuning"]` says what was tried, `edge` whether the best still lies on the grid's edge (then there is no
    verdict), and `flops`, what the whole search cost; `cost` is the chosen run's alone. Raises MmkitError as `fit`
    does, for a grid that is not of rising rates above 0, and when every trial diverged."""
    strategy = arm(strategy) if isinstance(strategy, str) else strategy
    grid = tuple(grid or (REAL if encoders.real else GRID))
    if len(grid) < 2 or list(grid) != sorted(set(grid)) or grid[0] <= 0:
        raise MmkitError(f"a grid holds two or more rising rates above 0, got {list(grid)}: for example {list(GRID)}")
    options = {"seed": seed, "encoders": encoders, "batch": batch, "evaluate": evaluate}
    if isinstance(strategy, Combination):
        return _combined(strategy, task, budget, grid, trunks, options)
    search = Search(strategy, task, {"budget": budget, **options})
    best = search.best(grid)
    edge, widened = _edge(best, search.scores), 0
    while edge and widened < WIDENINGS:
        search.score(float(f"{best * (grid[-1] / grid[-2]) ** edge:.2g}"))
        best, widened = search.best(), widened + 1
        edge = _edge(best, search.scores)
    if edge:
        found = f"the best learning rate, {best:g}, lies on the grid's edge after {widened} widenings"
        print(f"{strategy.name}, seed {seed}: {found}; no verdict will rest on it")
    trunk = search.best_trunk(best, trunks)
    run = search.run(best, trunk)
    trials = {f"{rate:g}": score for rate, score in sorted(search.scores.items()) if math.isfinite(score)}
    about = {"nested": True, "grid": list(grid), "trials": trials, "lr": best, "edge": bool(edge)}
    about |= {"flops": search.flops, "trunk": trunk}
    settings = run.settings | {"lr_from": "nested", "tuning": about, "converged": converged(run)}
    return replace(run, settings=settings)


class Search:
    """Trials of one strategy with one seed; scores: rate -> validation score, -inf where the loss was not finite."""

    def __init__(self, strategy: Strategy, task, options: dict):
        self.strategy, self.task, self.options = strategy, task, options
        self.scores: dict[float, float] = {}
        self.flops = 0.0
        self._kept: tuple[tuple, Run] | None = None  # the best run so far, so that it need not be made again
        self._highest = -math.inf

    def score(self, lr: float, trunk: float = 1.0) -> float:
        """The validation score of one trial, from the cache where it was made before."""

        def compute() -> dict[str, torch.Tensor]:
            try:
                run = self._fit(lr, trunk)
            except Diverged:
                return {"score": torch.tensor(-math.inf), "flops": torch.tensor(0.0)}
            score = run.settings["validation"]
            if score > self._highest:
                self._kept, self._highest = ((lr, trunk), run), score
            return {
                key: torch.tensor(x, dtype=torch.float64) for key, x in (("score", score), ("flops", run.cost.flops))
            }

        found = cached(self._about(lr, trunk), compute)
        self.flops += float(found["flops"])
        self.scores |= {lr: float(found["score"])} if trunk == 1.0 else {}
        return float(found["score"])

    def best(self, grid: Sequence[float] = ()) -> float:
        """The rate with the best score, after trying those of a grid; of several equals the middle one."""
        for lr in grid:
            self.score(lr)
        highest = max(self.scores.values())
        if highest == -math.inf:
            raise MmkitError(f"{self.strategy.name}: the loss was not finite at any of {sorted(self.scores)}: lower")
        tied = sorted(lr for lr, score in self.scores.items() if score == highest)
        return tied[len(tied) // 2]

    def best_trunk(self, lr: float, trunks: Sequence[float]) -> float:
        """The multiple of the rate for encoders with the best score; 1 where nothing beats it."""
        if slowed(self.strategy, self.task, 0.5) == self.strategy:
            return 1.0  # it trains no encoder
        scores = {1.0: self.scores[lr]} | {trunk: self.score(lr, trunk) for trunk in trunks}
        return max(scores, key=scores.get)

    def run(self, lr: float, trunk: float) -> Run:
        """The run of a trial: as it was made just now, or made again."""
        return self._kept[1] if self._kept and self._kept[0] == (lr, trunk) else self._fit(lr, trunk)

    def _fit(self, lr: float, trunk: float) -> Run:
        return fit(slowed(self.strategy, self.task, trunk), self.task, lr=lr, **self.options)

    def _about(self, lr: float, trunk: float) -> dict:
        given = {key: value for key, value in self.options.items() if key != "evaluate"}  # no part of validation
        return {
            "what": "trial",
            "code": sources(*ROOMS),
            "strategy": fingerprint([self.strategy, type(self.task), given["encoders"].others]),
            "task": [self.task.name, self.task.settings(), self.task.limit],
            "data": self.task.dataset.content,
            "encoders": given["encoders"].settings(),
            "budget": repr(given["budget"]),
            "seed": given["seed"],
            "batch": given["batch"],
            "lr": lr,
            "trunk": trunk,
        }


def slowed(strategy: Strategy, task, trunk: float) -> Strategy:
    """The strategy with the rates of its encoders multiplied; a group that names no encoder stays as it is."""
    if trunk == 1.0:
        return strategy
    used, stages = strategy.modalities_of(task), []
    for stage in strategy.stages:
        groups = []
        for group in stage.groups:
            if group.match == "*":
                groups += [replace(group, match=f"{name}.*", lr=group.lr * trunk) for name in used]
            encoder = group.match.split(".")[0] in used
            groups.append(replace(group, lr=group.lr * trunk) if encoder else group)
        stages.append(replace(stage, groups=tuple(groups)))
    return replace(strategy, stages=tuple(stages))


def converged(run: Run) -> bool:
    """Whether the validation score had flattened in the last stage."""
    scores = [check["validation"] for check in run.history if check["where"] == run.history[-1]["where"]]
    before = scores[: -(2 * len(scores) // 5) or None]
    return max(scores) - max(before) <= FLAT


def _edge(best: float, scores: dict[float, float]) -> int:
    """-1, 1 or 0: whether a rate is the lowest, the highest or neither of those tried."""
    return int(best == max(scores)) - int(best == min(scores))


def _combined(combination: Combination, task, budget: Budget, grid, trunks, options: dict) -> Run:
    """An arm of several members, each of which looks for its own rate."""
    members = []

    def member(strategy: Strategy, task, *, lr, **given) -> Run:
        members.append(nested(strategy, task, grid=grid, trunks=trunks, **given))
        return members[-1]

    run = combination.fit(member, task, budget=budget, lr=None, **options)
    each = {one.arm: one.settings["tuning"] for one in members}
    about = {"nested": True, "grid": list(grid), "members": each, "edge": any(one["edge"] for one in each.values())}
    about["flops"] = sum(one["flops"] for one in each.values())
    settings = {"lr_from": "nested", "tuning": about, "converged": all(one.settings["converged"] for one in members)}
    return replace(run, settings=run.settings | settings)
