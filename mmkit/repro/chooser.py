"""A strategy chooser fitted to records: which arm to take, from the runs nearest to your case."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmkit import stats
from mmkit.errors import MmkitError, unknown
from mmkit.repro.matching import aligned_terms
from mmkit.repro.records import Result

CONTROLS = ("shuffled_pairs", "blank_image", "blank_text", "image_only", "text_only")
KNOBS = {
    "pairs": lambda a, b: abs(math.log2(a / b)),
    "both": lambda a, b: 4 * abs(a - b),
    "image_share": lambda a, b: 4 * abs(a - b),
}
"""How far two settings of a knob are apart: a doubling of the pairs counts as much as a quarter of a share."""


@dataclass(frozen=True)
class Choice:
    """What the chooser says.

    arm: the cheapest of those not told apart from the best. condition: the recorded one nearest to the case, `distance`
    from it (0: exactly recorded). table: per arm, best first: arm, mean, flops, difference to the best with its 95 %
    interval (`stats.t_interval`: a slider waits for it), tied with the best or not.
    """

    arm: str
    condition: dict
    distance: float
    table: list[dict]

    def __str__(self) -> str:
        tied = [row["arm"] for row in self.table if row["tied"]]
        near = "recorded" if self.distance == 0 else f"nearest recorded case, {self.distance:.1f} away"
        what = ", ".join(f"{name}={value}" for name, value in self.condition.items())
        return f"take {self.arm} ({near}: {what}); not told apart from the best: {', '.join(tied)}"


def cases(results: Sequence[Result], *, task: str) -> list[dict]:
    """The recorded settings of the knobs for a task."""
    settings = {tuple(_knobs(result).items()) for result in results if result.row["task"] == task}
    return [dict(setting) for setting in sorted(settings)]


def choose(results: Sequence[Result], *, task: str = "answering", score: str = "accuracy", **case) -> Choice:
    """The arm to take for a case (`pairs=256, both=0.5, image_share=0.5`), by the records of the nearest recorded one.

    score: what to be good at; `ood_style/accuracy` asks for the best out of domain.
    Raises MmkitError for an unknown knob, pairs that are not above 0, a task, knob or score without records, or records
    of fewer than two arms or seeds.
    """
    for name in case:
        if name not in KNOBS:
            raise unknown("knob of the chooser", name, KNOBS)
    if not case.get("pairs", 1) > 0:
        raise MmkitError(f"pairs={case['pairs']}: the chooser measures pairs in doublings; give a number above 0")
    results = [r for r in results if r.row["condition"].get("compute", "own") == "own"]
    recorded = cases(results, task=task)
    if not recorded:
        raise unknown("task with records", task, {result.row["task"] for result in results})
    comparable = [there for there in recorded if case.keys() <= there.keys()]
    if not comparable:
        known = ", ".join(dict.fromkeys(name for there in recorded for name in there))
        raise MmkitError(f"no recorded case of {task} has all of {', '.join(case)}: leave out what is none of {known}")
    nearest = min(comparable, key=lambda there: _distance(case, there))
    arms = _by_arm([r for r in results if r.row["task"] == task and _knobs(r) == nearest], score)
    means = {}
    for arm, found in arms.items():
        means[arm] = sum(result.row["scores"][score] for result in found.values()) / len(found)
    first = next(iter(next(iter(arms.values())).values()))
    higher = first.row["metrics"][score]["higher_is_better"]
    order = sorted(means, key=means.get, reverse=higher)
    table = [_row(arm, order[0], arms, means, score) for arm in order]
    arm = min((row for row in table if row["tied"]), key=lambda row: row["flops"])["arm"]
    return Choice(arm, nearest, _distance(case, nearest), table)


def regrets(results: Sequence[Result], *, task: str = "answering", score: str = "accuracy") -> list[dict]:
    """The chooser tested on itself: for each recorded case, the arm chosen without it, and how far its mean lies from
    the best there."""
    found = []
    for case in cases(results, task=task):
        rest = [r for r in results if r.row["task"] == task and _knobs(r) != case]
        if not rest:
            raise MmkitError(f"the chooser needs at least two recorded cases of {task} to be tested on itself")
        here = {row["arm"]: abs(row["difference"]) for row in choose(results, task=task, score=score, **case).table}
        arm = choose(rest, task=task, score=score, **case).arm
        if arm in here:
            found.append({**case, "chosen": arm, "regret": here[arm]})
    return found


def _knobs(result: Result) -> dict:
    return {name: result.row["condition"][name] for name in KNOBS if name in result.row["condition"]}


def _distance(case: dict, there: dict) -> float:
    return sum(KNOBS[name](value, there[name]) for name, value in case.items())


def _by_arm(results: Sequence[Result], score: str) -> dict[str, dict[int, Result]]:
    arms: dict[str, dict[int, Result]] = {}
    for result in results:
        arm, seed = result.row["arm"], result.row["seed"]
        if arm in CONTROLS or score not in result.row["scores"]:
            continue
        other = arms.setdefault(arm, {}).setdefault(seed, result)
        if other is not result:
            apart = sorted(name for name, value in result.condition.items() if other.condition.get(name) != value)
            differ = f"they differ in {', '.join(apart) or 'nothing it knows of'}: give it the records of one of them"
            raise MmkitError(f"the chooser found two results of {arm!r}, seed {seed}, in one case; {differ}")
    seeds = sorted(set.intersection(*map(set, arms.values()))) if arms else []
    if len(arms) < 2 or len(seeds) < 2:
        wanted = f"records of at least two arms over two common seeds with the score {score!r}"
        raise MmkitError(f"the chooser needs {wanted}; there are {len(arms)} arms and {len(seeds)} seeds")
    return {arm: dict(zip(seeds, map(found.get, seeds), strict=True)) for arm, found in arms.items()}


def _row(arm: str, best: str, arms: dict, means: dict, score: str) -> dict:
    flops = sum(r.row["cost"]["flops"] for r in arms[arm].values()) / len(arms[arm])
    if arm == best:
        return {
            "arm": arm,
            "mean": means[arm],
            "flops": flops,
            "difference": 0.0,
            "low": 0.0,
            "high": 0.0,
            "tied": True,
        }
    terms = aligned_terms(
        [(1.0, score, None, list(arms[arm].values())), (-1.0, score, None, list(arms[best].values()))]
    )
    difference, low, high = stats.t_interval(terms)
    return {
        "arm": arm,
        "mean": means[arm],
        "flops": flops,
        "difference": difference,
        "low": low,
        "high": high,
        "tied": low <= 0 <= high,
    }
