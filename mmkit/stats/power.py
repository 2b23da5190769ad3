"""What a comparison could find, and whether its verdict would come out again."""

from bisect import bisect_left

import numpy as np
from scipy import stats

from mmkit.stats.intervals import Estimate
from mmkit.stats.tests import FEWEST_SEEDS


def smallest_detectable(estimate: Estimate, *, power: float = 0.8) -> float:
    """The effect a two-sided 5 % test of this standard error finds with the given power."""
    return float((stats.t.ppf(0.975, estimate.df) + stats.t.ppf(power, estimate.df)) * estimate.error)


def seeds_needed(effects: np.ndarray, wanted: float, *, power: float = 0.8, most: int = 1000) -> int | None:
    """The fewest seeds, six at least, with which a paired two-sided 5 % t-test finds a mean of `wanted` that often.

    None: more than `most`. The seeds, two at least, are taken to spread like `effects`. More seeds do not make the test
    set larger: its own noise stays and is not counted here.
    """
    spread = float(np.std(effects, ddof=1))

    def found(number: int) -> bool:
        df = (1, number - 1)  # t squared is F
        return bool(stats.ncf.sf(stats.f.ppf(0.95, *df), *df, number * (wanted / spread) ** 2) >= power)

    number = FEWEST_SEEDS + (bisect_left(range(FEWEST_SEEDS, most + 1), True, key=found) if spread else 0)
    return number if number <= most else None


def replicates(estimate: Estimate, seeds: int, *, count: int = 2000, seed: int = 0) -> Estimate:
    """What as many other runs over `seeds` new seeds, and a new test set of the same size, would estimate.

    An estimate whose fields are (count,) arrays, drawn from the predictive distribution under a flat prior: first the
    spread of seeds and clusters (scaled inverse chi-squared) and the true effect about the estimate, then new effects,
    (count, seeds), about the true one. So an effect at a threshold comes out beyond it half of the time, and one whose
    p-value is just 0.05 comes out with such a p again in about half.
    """
    rng, number = np.random.default_rng(seed), len(estimate.effects)
    of_seeds = estimate.effects.var(ddof=1) / number
    of_clusters = max(estimate.error**2 - of_seeds, 0.0)
    known = estimate.error**4 / estimate.df - of_seeds**2 / (number - 1) if estimate.error else 0.0
    df = of_clusters**2 / known if of_clusters**2 > 1e-9 * estimate.error**4 and known > 0 else 1.0  # by Satterthwaite
    seeds_part = of_seeds * (number - 1) / rng.chisquare(number - 1, count)
    clusters_part = of_clusters * df / rng.chisquare(df, count)
    true = estimate.effect + np.sqrt(seeds_part + clusters_part) * rng.normal(size=count)
    there = true + np.sqrt(clusters_part) * rng.normal(size=count)
    effects = there[:, None] + np.sqrt(seeds_part * number)[:, None] * rng.normal(size=(count, seeds))
    parts = effects.var(axis=1, ddof=1) / seeds, clusters_part * rng.chisquare(df, count) / df
    variance, squares = sum(parts), parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / df
    dfs = np.divide(variance**2, squares, out=np.full(count, seeds - 1.0), where=squares > 0)
    effect, error, half, half90 = effects.mean(axis=1), np.sqrt(variance), *stats.t.ppf([[0.975], [0.95]], dfs)
    ends = effect - half * error, effect + half * error, effect - half90 * error, effect + half90 * error
    return Estimate(effect, *ends, error, dfs, effects)


def all_or_none(number: int, runs: int, more: int) -> float:
    """How likely all of `more` runs, or none, do what `number` of `runs` did: beta-binomial, from Jeffreys' prior."""
    first, second = number + 0.5, runs - number + 0.5
    steps = np.arange(more)
    return float(sum(np.prod((one + steps) / (runs + 1 + steps)) for one in (first, second)))
