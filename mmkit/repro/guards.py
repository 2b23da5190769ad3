"""What keeps a claim from a verdict on its effect: too little evidence, arms tuned apart, collapsed runs, no room.

Each guard returns why, or an empty string; `Asked` is what `matching.match` found for a claim's terms.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import fisher_exact

from mmkit import stats
from mmkit.repro.matching import Asked, aligned_terms
from mmkit.repro.records import Result

FEWEST_CLUSTERS = 10  # 7.6, where two clusters of 40 hold half of the items: the 95 % interval covers 82 % (simulated)
FLOORS = {"chance": "chance", "alone": "a model that never joins the modalities"}
OUTCOMES = {"nothing learned to compare": FLOORS, "nothing left to tell apart": {"oracle": "an oracle"}}


def no_evidence(asked: Sequence[Asked], estimate: stats.Estimate) -> str:
    """A smoke run, few seeds, or few or lopsided clusters."""
    seeds, effective = len(estimate.effects), min([estimate.effective, *_of_medians(asked)])
    if any(result.row["profile"] == "smoke" for *_, results in asked for result in results):
        return "a smoke run"
    if seeds < stats.FEWEST_SEEDS:
        return f"{seeds} seeds, at least {stats.FEWEST_SEEDS} are needed"
    if effective < FEWEST_CLUSTERS:
        return f"its items come from {effective:.1f} effective clusters, at least {FEWEST_CLUSTERS} are needed"
    return ""


def _of_medians(asked: Sequence[Asked]) -> Iterator[float]:
    """Effective clusters of the scores that an estimate takes as one number a seed."""
    for _, score, _, results in asked:
        if score and any(result.row["metrics"][score]["aggregate"] != "mean" for result in results):
            clusters = np.concatenate([result.items_of(score)[1] for result in results])
            yield stats.effective_clusters(np.unique(clusters, return_counts=True)[1])


def tuned_apart(asked: Sequence[Asked]) -> str:
    """Whether a score's run did not choose its rate as rule 5 of the evidence asks, all from one grid."""
    lacking, edges, grids = {}, {}, {}
    for _, score, _, results in asked:
        for result in results if score else ():
            arm, tuning = result.row["arm"], result.row["settings"].get("tuning") or {}
            if not tuning.get("nested"):
                lacking[arm] = lacking.get(arm, 0) + 1
            elif tuning.get("edge"):
                edges[arm] = edges.get(arm, 0) + 1
            else:
                grids.setdefault(json.dumps(tuning.get("grid")), set()).add(arm)
    for found, what in ((lacking, "no rate chosen by its own validation"), (edges, "a rate on the edge of its grid")):
        if found:
            return f"{what}: {', '.join(f'{arm} in {_runs(number)}' for arm, number in found.items())}"
    if len(grids) > 1:
        told = (f"{', '.join(sorted(arms))} from {grid}" for grid, arms in grids.items())
        return f"rates chosen from different grids: {'; '.join(told)}"
    return ""


def _runs(number: int) -> str:
    return f"{number} run{'s' if number > 1 else ''}"


def unconverged(asked: Sequence[Asked]) -> str:
    """`at 20 passes, where scratch had not converged`, or nothing."""
    rows = [result.row for _, score, _, results in asked if score for result in results]
    rows = [row for row in rows if row["settings"].get("converged") is False]
    passes = sorted({str(row["budget"].get("epochs", "?")) for row in rows})
    arms = dict.fromkeys(row["arm"] for row in rows)
    return f"at {' and '.join(passes)} passes, where {', '.join(arms)} had not converged" if rows else ""


def collapsed(results: Sequence[Result], score: str) -> np.ndarray:
    """(n,) which runs of an arm fell to chance where others of it learned; none where no chance level is recorded.

    Fallen: within two standard errors of chance, by the run's items. Learned: the best run is eight or more above, so
    that runs that all hover about chance are no collapse.
    """
    levels = [result.row.get("levels", {}).get(score, {}).get("chance") for result in results]
    about = results[0].row["metrics"][score]
    if None in levels or about["aggregate"] != "mean":
        return np.zeros(len(results), dtype=bool)
    gains, errors = np.zeros((2, len(results)))
    for place, (result, level) in enumerate(zip(results, levels, strict=True)):
        values, clusters = result.items_of(score)
        gains[place] = (values.mean() - level) * (1 if about["higher_is_better"] else -1)
        within = np.bincount(np.unique(clusters, return_inverse=True)[1], values - values.mean())
        errors[place] = np.sqrt((within**2).sum()) / len(values)
    return (gains <= 2 * errors) & (gains.max() > 8 * errors.max())


def unstable(asked: Sequence[Asked], seeds: int) -> tuple[str, float]:
    """Why the runs of an arm fall into two kinds, with the shares of the collapsed, and how likely that comes again."""
    counts: dict[str, tuple[int, int]] = {}
    sides, again = np.zeros((2, 2)), 1.0
    for weight, score, _, results in asked:
        if score:
            number, runs = int(collapsed(results, score).sum()), len(results)
            arm = results[0].row["arm"]
            counts[arm] = max(counts.get(arm, (0, 0)), (number, runs))
            sides[int(weight > 0)] += number, runs - number
            again *= stats.all_or_none(number, runs, seeds) if 0 < number < runs else 1.0
    if not any(0 < number < runs for number, runs in counts.values()):
        return "", np.nan
    told = ", ".join(f"{arm} in {number} of {runs} runs" for arm, (number, runs) in counts.items())
    p = fisher_exact(sides).pvalue
    apart = "differ" if p <= 0.05 else "are not told apart"
    compared = f"; the shares {apart} (Fisher's exact p = {p:.3f})" if sides.sum(axis=1).all() else ""
    return f"collapsed to chance: {told}{compared}", 1 - again


def no_room(asked: Sequence[Asked], smallest: float, *, draws: int = 2000) -> tuple[str, str, float]:
    """Verdict, reason and how likely it comes again, where every score lies within noise of the same floor or ceiling.

    Within noise: no further away than the smallest effect that matters, or than half of the score's own 95 % interval.
    No guard where a level is not recorded, or all terms are on one side.
    """
    found, nothing = [], ("", "", np.nan)
    if {weight > 0 for weight, *_ in asked} != {True, False} or not all(score for _, score, *_ in asked):
        return nothing
    for _, score, cost, results in asked:
        known = [result.row.get("levels", {}).get(score, {}) for result in results]
        found.append((results[0].row["arm"], stats.t_estimate(aligned_terms([(1.0, score, cost, results)])), known))
    rng = np.random.default_rng(0)
    for verdict, kinds in OUTCOMES.items():
        for kind, name in kinds.items():
            told, again = [], np.ones(draws, dtype=bool)
            for arm, estimate, known in found:
                levels = [levels[kind] for levels in known if kind in levels]
                if len(levels) < len(known):
                    break
                noise, level = max(smallest, (estimate.high - estimate.low) / 2), float(np.mean(levels))
                if abs(estimate.effect - level) > noise:
                    break
                told.append(f"{arm} {estimate.effect:.3f} beside {level:.3f}")
                drawn = estimate.effect + np.sqrt(2) * estimate.error * rng.standard_t(estimate.df, draws)
                again &= np.abs(drawn - level) <= noise
            else:
                return verdict, f"every score is within noise of {name}: {', '.join(told)}", float(again.mean())
    return nothing
