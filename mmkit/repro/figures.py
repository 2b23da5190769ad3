"""From results to the rows of tables and figures: arms under conditions, with intervals and costs."""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mmkit import stats
from mmkit.repro.claims import Verdict
from mmkit.repro.matching import aligned_terms
from mmkit.repro.records import Result

COSTS = {
    "flops": "FLOPs",
    "seconds": "seconds",
    "peak_bytes": "peak memory (GB)",
    "parameters_trained": "trained",
    "parameters_total": "parameters",
}


def own_score(result: Result) -> str:
    """The task's own score on the test split: the first by name of those without a split's name before it."""
    return min(result.row["scores"], key=lambda score: ("/" in score, score))


def across(results: Sequence[Result]) -> tuple[str, dict[str, np.ndarray]]:
    """The task's own score that most results have, and arm -> (conditions, seeds) of it.

    Arms are those that were run under all conditions. A condition with one arm compares nothing and is left out, and
    so are seeds that an arm lacks somewhere.
    """
    if not results:
        return "", {}
    own = Counter(map(own_score, results)).most_common(1)[0][0]
    lines = []
    for result in results:
        if own in result.row["scores"]:
            condition = json.dumps(result.condition, sort_keys=True)
            lines.append((result.row["arm"], condition, result.row["seed"], result.row["scores"][own]))
    frame = pd.DataFrame(lines, columns=["arm", "condition", "seed", "score"])
    frame = frame[frame.groupby("condition")["arm"].transform("nunique") > 1]
    table = frame.pivot_table(index="condition", columns=["arm", "seed"], values="score").dropna(axis=1)
    arms = table.columns.get_level_values("arm").unique()
    by_seed = table.columns.to_frame(index=False).groupby("seed")["arm"]
    seeds = [seed for seed, found in by_seed if len(found) == len(arms)]
    return own, {arm: table[arm][seeds].to_numpy() for arm in arms} if len(table) > 1 and seeds else {}


def arm_points(results: Sequence[Result], score: str, condition: dict | None) -> dict[str, dict]:
    """arm -> mean, low, high of a score (95 %, two-way t over seeds and clusters) and mean costs.

    condition: the full condition to look at; None: each arm under its own.
    """
    arms: dict[str, list[Result]] = {}
    for result in results:
        if condition in (None, result.condition) and score in result.row["scores"]:
            arms.setdefault(result.row["arm"], []).append(result)
    points = {}
    for arm, members in arms.items():
        members.sort(key=lambda result: result.row["seed"])
        mean, low, high = stats.t_interval(aligned_terms([(1.0, score, None, members)]))
        points[arm] = {"mean": mean, "low": low, "high": high, "seeds": len(members)}
        for name in COSTS:
            points[arm][name] = sum(result.row["cost"][name] for result in members) / len(members)
    return points


def conditions(results: Sequence[Result]) -> list[dict]:
    """The distinct full conditions, in the order they were recorded."""
    return list({json.dumps(result.condition, sort_keys=True): result.condition for result in results}.values())


def condition_text(condition: dict | None, among: Sequence[dict]) -> str:
    """A condition in words: the one thing that tells it from all the others if there is one, else what varies among
    them, or everything when nothing does."""
    if condition is None:
        return "each arm under its own condition"
    values = {name: set() for name in condition}
    for other in among:
        for name, found in values.items():
            found.add(str(other.get(name)))
    varies = [name for name in condition if values[name] - {str(condition[name])}]
    kinds = len(set(map(str, among)))
    telling = [name for name in varies if len(values[name]) == kinds > 1]
    parts = []
    for name in telling[:1] or varies or condition:
        value = condition[name]
        parts.append(f"{name.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}")
    return ", ".join(parts)


def panels(found: Sequence[Verdict], results: Sequence[Result], *, most: int = 4) -> list[tuple[str, dict | None]]:
    """(score, condition) of the panels of the cost-quality figure: those the claims speak of, in their order.

    Without claims: the task's own score, in one panel where no arm was run under two conditions.
    """
    terms = [term for verdict in found if verdict.estimate is not None for term in verdict.claim.terms]
    asked = [(term.score, term.condition) for term in terms if term.score]
    if not asked:
        asked = [(own_score(result), result.condition) for result in results]
        arms = {result.row["arm"] for result in results}
        if len({(result.row["arm"], str(result.condition)) for result in results}) == len(arms) > 1:
            return [(asked[0][0], None)]
    chosen: dict[str, tuple[str, dict]] = {}
    for score, wanted in asked:
        for condition in conditions(results):
            if all(condition.get(name) == value for name, value in wanted.items()):
                chosen.setdefault(json.dumps([score, condition], sort_keys=True), (score, condition))
    return [panel for panel in chosen.values() if len(arm_points(results, *panel)) > 1][:most]


def arm_frames(results: Sequence[Result]) -> list[tuple[str, pd.DataFrame]]:
    """Per condition its text and a table of all arms, every score with its interval and every cost."""
    frames, among = [], conditions(results)
    for condition in among:
        lines = {}
        here = [result.row["scores"] for result in results if result.condition == condition]
        scores = dict.fromkeys(name for names in here for name in names)
        for score in scores:
            for arm, point in arm_points(results, score, condition).items():
                costs = {COSTS[name]: _cost(name, point[name]) for name in COSTS}
                line = lines.setdefault(arm, {"seeds": point["seeds"]} | costs)
                line[score] = f"{point['mean']:.3f} [{point['low']:.3f}, {point['high']:.3f}]"
        frame = pd.DataFrame.from_dict(lines, orient="index").fillna("–")
        frames.append((condition_text(condition, among), frame[[*scores, "seeds", *COSTS.values()]]))
    return frames


def _cost(name: str, value: float) -> str:
    if name == "flops":
        return f"{value:.2e}"
    if name == "peak_bytes":
        return f"{value / 1e9:.2f}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
