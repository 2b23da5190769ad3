"""A strategy chooser fitted to records: which arm to take, from the runs nearest to your case, with its evidence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmkit import stats
from mmkit.errors import MmkitError, unknown
from mmkit.repro import guards
from mmkit.repro.matching import aligned_terms
from mmkit.repro.records import Result

CONTROLS = ("shuffled_pairs", "blank_image", "blank_text", "image_only", "text_only")
ALWAYS = ("scratch", "frozen")  # what advice is measured against: one arm whatever the case
KNOBS: dict[str, Callable[[float, float], float]] = {
    "pairs": lambda a, b: abs(math.log2(a / b)),
    "both": lambda a, b: 4 * abs(a - b),
    "image_share": lambda a, b: 4 * abs(a - b),
}
"""How far two settings of a knob are apart: a doubling of the pairs counts as much as a quarter of a share.

A case is as far from another as their knobs in sum."""
FAR = 2.0  # two doublings of the pairs, or half of a share: beyond it the chooser says that it does not know
MARGIN = 0.02  # scores that differ by less are as good as equal
LEVEL = 0.05


@dataclass(frozen=True)
class Choice:
    """What the chooser says.

    answer: `ahead` (one arm is ahead of all others), `equivalent` (others are as good, and the cheapest of these is
    taken), `inconclusive` (others are not told apart from the best, or the runs are no evidence), `nobody learned it`
    or `abstains`. arm: the one to take, None with the last two. reason: why, in words. condition: the recorded case
    nearest to the one asked for, `distance` from it (0: exactly recorded).
    table: per arm, best mean first: arm, mean with its 95 % interval `mean_low`, `mean_high`, flops, flops_with_search
    (None where none is recorded), the paired `difference` to the best with its interval `low`, `high`, and `relation`:
    best, equivalent, behind or not told apart, by tests adjusted by Holm for the number of arms. All intervals are
    Student's (`stats.t_estimate`): a slider waits for them.
    """

    answer: str
    arm: str | None
    reason: str
    condition: dict
    distance: float
    table: list[dict]

    def __str__(self) -> str:
        what = ", ".join(f"{name}={value}" for name, value in self.condition.items())
        if not what:
            return f"{self.answer}; {self.reason}"
        near = "recorded" if self.distance == 0 else f"nearest recorded case, {self.distance:.1f} away"
        return f"{f'take {self.arm}' if self.arm else self.answer} ({near}: {what}); {self.reason}"


def cases(results: Sequence[Result], *, task: str) -> list[dict]:
    """The recorded settings of the knobs for a task, with their `data` where there are several data sets.

    Those in which two arms or more were run, since one arm alone leaves nothing to choose.
    """
    arms: dict[tuple, set[str]] = {}
    found = [result for result in _of(results, task) if result.row["arm"] not in CONTROLS]
    several = len({result.row["data"] for result in found}) > 1
    for result in found:
        setting = ({"data": result.row["data"]} if several else {}) | _knobs(result)
        arms.setdefault(tuple(setting.items()), set()).add(result.row["arm"])
    return [dict(setting) for setting in sorted(arms) if len(arms[setting]) > 1]


def choose(
    results: Sequence[Result],
    *,
    task: str = "answering",
    score: str = "accuracy",
    data: str = "",
    margin: float = MARGIN,
    choices: Sequence[str] = (),
    **case,
) -> Choice:
    """The arm to take for a case (`pairs=256, both=0.5, image_share=0.5`), by the records of the nearest recorded one.

    score: what to be good at; `ood_style/accuracy` asks for the best out of domain. data: whose records count, needed
    where a task has several. margin: a difference that does not matter. choices: conditions that are the strategy's own
    (`pretraining`), so that an arm with each value is an option; passes (`epochs`) always are.
    Raises MmkitError for an unknown knob, pairs that are not above 0, a task, knob or score without records, records of
    fewer than two arms or seeds, and several data sets without `data`.
    """
    for name in case:
        if name not in KNOBS:
            raise unknown("knob of the chooser", name, KNOBS)
    if not case.get("pairs", 1) > 0:
        raise MmkitError(f"pairs={case['pairs']}: the chooser measures pairs in doublings; give a number above 0")
    found = _of(results, task)
    sets = sorted({result.row["data"] for result in found})
    if not found:
        raise unknown("task with records", task, {result.row["task"] for result in results})
    if data and data not in sets:
        reason = f"no run of {task} on {data} is recorded, only on {', '.join(sets)}: run it there"
        return Choice("abstains", None, reason, {}, math.inf, [])
    if not data and len(sets) > 1:
        raise MmkitError(f"there are records of {task} on {', '.join(sets)}: say which with data=")
    found = [result for result in found if result.row["data"] == (data or sets[0])]
    recorded = cases(found, task=task)
    comparable = [there for there in recorded if case.keys() <= there.keys()]
    if not recorded:
        raise MmkitError(f"no recorded case of {task} has two arms: the chooser needs at least two arms to choose from")
    if not comparable:
        known = ", ".join(dict.fromkeys(name for there in recorded for name in there))
        raise MmkitError(f"no recorded case of {task} has all of {', '.join(case)}: leave out what is none of {known}")
    nearest = min(comparable, key=lambda there: _distance(case, there))
    arms = _by_arm([result for result in found if _knobs(result) == nearest], score, choices)
    table, barred = _compared(arms, score, margin)
    answer, arm, reason = _answer(table, arms, score, margin)
    if barred and arm:
        answer, reason = "inconclusive", f"{reason}; no verdict rests on these runs: {barred.partition(':')[0]}"
    if (away := _distance(case, nearest)) > FAR:
        answer, arm, reason = "abstains", None, f"its runs say little of a case further than {FAR:g} away: run this one"
    return Choice(answer, arm, reason, nearest, away, table)


def regrets(results: Sequence[Result], *, task: str = "answering", score: str = "accuracy", **options) -> list[dict]:
    """The chooser tested on itself: for each recorded case, what is chosen without it, and how far the mean of that arm
    lies from the best there; beside it the regret of taking the same arm always.

    A regret is nan where the chooser abstains, and where the arm was not run.
    """
    found, recorded = [], cases(results, task=task)
    if len(recorded) < 2:
        raise MmkitError(f"the chooser needs at least two recorded cases of {task} to be tested on itself")
    for case in recorded:
        rest = [r for r in results if not case.items() <= {"data": r.row["data"], **_knobs(r)}.items()]
        here = choose(results, task=task, score=score, **options, **case).table
        elsewhere = [there for there in cases(rest, task=task) if there.get("data") == case.get("data")]
        advice = choose(rest, task=task, score=score, **options, **case) if elsewhere else None
        chosen = advice.arm or advice.answer if advice else "abstains"
        line = {**case, "chosen": chosen, "regret": _regret(chosen, here)}
        found.append(line | {f"always {arm}": _regret(arm, here) for arm in ALWAYS})
    return found


def _regret(option: str, table: list[dict]) -> float:
    """How far an option's mean lies from the best; where it was not run, that of the best option of its arm, or nan."""
    behind = {row["arm"]: abs(row["difference"]) for row in table}
    alike = [value for name, value in behind.items() if name.partition(",")[0] == option.partition(",")[0]]
    return behind.get(option, min(alike, default=math.nan))


def _of(results: Sequence[Result], task: str) -> list[Result]:
    """The results of a task at each arm's own compute."""
    return [r for r in results if r.row["task"] == task and r.row["condition"].get("compute", "own") == "own"]


def _knobs(result: Result) -> dict:
    return {name: result.row["condition"][name] for name in KNOBS if name in result.row["condition"]}


def _distance(case: dict, there: dict) -> float:
    return sum(KNOBS[name](value, there[name]) for name, value in case.items())


def _by_arm(results: Sequence[Result], score: str, choices: Sequence[str]) -> dict[str, list[Result]]:
    """Option -> its results of the common seeds, in the order of these.

    An option is an arm, with those of its choices that its results differ in."""
    results = [r for r in results if r.row["arm"] not in CONTROLS and score in r.row["scores"]]
    arms: dict[str, dict[int, Result]] = {}
    for result in results:
        parts, seed = [result.row["arm"]], result.row["seed"]
        for name in (*choices, "epochs"):
            value = result.condition.get(name)
            if any(r.row["arm"] == parts[0] and r.condition.get(name) != value for r in results):
                parts.append(f"{name}={value}")
        arm = ", ".join(parts)
        other = arms.setdefault(arm, {}).setdefault(seed, result)
        if other is not result:
            apart = sorted(name for name, value in result.condition.items() if other.condition.get(name) != value)
            differ = f"they differ in {', '.join(apart) or 'nothing it knows of'}: give it the records of one of them"
            raise MmkitError(f"the chooser found two results of {arm!r}, seed {seed}, in one case; {differ}")
    seeds = sorted(set.intersection(*map(set, arms.values()))) if arms else []
    if len(arms) < 2 or len(seeds) < 2:
        wanted = f"records of at least two arms over two common seeds with the score {score!r}"
        raise MmkitError(f"the chooser needs {wanted}; there are {len(arms)} arms and {len(seeds)} seeds")
    return {arm: list(map(found.get, seeds)) for arm, found in arms.items()}


def _compared(arms: dict[str, list[Result]], score: str, margin: float) -> tuple[list[dict], str]:
    """The table of `Choice`, and why no verdict may rest on it, if so."""
    alone = {arm: stats.t_estimate(aligned_terms([(1.0, score, None, found)])) for arm, found in arms.items()}
    higher = next(iter(arms.values()))[0].row["metrics"][score]["higher_is_better"]
    order = sorted(arms, key=lambda arm: alone[arm].effect, reverse=higher)
    asked = [(-1.0, score, None, arms[arm]) for arm in order]
    asked[0] = (1.0, *asked[0][1:])
    paired = []
    for arm in order:
        paired.append(stats.t_estimate(aligned_terms([(1.0, score, None, arms[arm]), (-1.0, *asked[0][1:])])))
    barred = guards.no_evidence(asked, alone[order[0]]) or guards.tuned_apart(asked)
    p = stats.holm([[stats.two_way_p(one), stats.tost_p(one, margin)] for one in paired[1:]])
    relations = ["best"]
    for different, equal in p:
        relations.append("equivalent" if equal <= LEVEL else "behind" if different <= LEVEL else "not told apart")
    table = []
    for arm, difference, relation in zip(order, paired, relations, strict=True):
        costs = [found.row["cost"]["flops"] for found in arms[arm]]
        searches = [(found.row["settings"].get("tuning") or {}).get("flops") for found in arms[arm]]
        row = {"arm": arm, "mean": alone[arm].effect, "mean_low": alone[arm].low, "mean_high": alone[arm].high}
        searched = None if None in searches else float(np.mean(searches))
        row |= {"flops": float(np.mean(costs)), "flops_with_search": searched}
        row |= {"difference": difference.effect, "low": difference.low, "high": difference.high}
        table.append(row | {"relation": relation})
    return table, barred


def _answer(table: list[dict], arms: dict, score: str, margin: float) -> tuple[str, str | None, str]:
    """Answer, arm and reason."""
    asked = [(1.0 if row["relation"] == "best" else -1.0, score, None, arms[row["arm"]]) for row in table]
    room, why, _ = guards.no_room(asked, margin)
    if room == "nothing learned to compare":
        return "nobody learned it", None, why
    best, full = table[0], all(row["flops_with_search"] for row in table)
    alike = [row for row in table if row["relation"] == "equivalent" or room]
    open_ = [row["arm"] for row in table if row["relation"] == "not told apart" and not room]
    taken = min([best, *alike], key=lambda row: (full and row["flops_with_search"], row["flops"]))
    cost = f"it costs {taken['flops']:.2g} FLOPs" + (
        f", {taken['flops_with_search']:.2g} with the search" if full else ""
    )
    parts = [
        f"the highest mean is {best['arm']}'s, {best['mean']:.3f}" if taken is not best else f"mean {best['mean']:.3f}"
    ]
    if alike:
        names = [row["arm"] for row in [best, *alike] if row is not taken]
        parts.append(f"equivalent within {margin:g}: {', '.join(names)}")
    if open_:
        parts.append(f"not told apart from the best: {', '.join(open_)}")
    if len(alike) + len(open_) == 0:
        parts.append("ahead of all others")
    return ("inconclusive" if open_ else "equivalent" if alike else "ahead"), taken["arm"], "; ".join([*parts, cost])
