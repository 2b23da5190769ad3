"""Intervals and tests for paired comparisons over seeds and clusters.

Legend: S seeds, C clusters, B bootstrap draws. A *contrast* is a weighted sum of terms; one term is the mean score of
an arm under a condition. Seeds are paired across terms: every term has the same seeds, in the same order.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mmkit.metrics import Score

EXACT_SEEDS, FEWEST_SEEDS = 12, 6  # exact sign-flips up to 12; under 6 no sign-flip test can go below 0.05
CHUNK = 4_000_000


@dataclass(frozen=True)
class Term:
    """One term of a contrast.

    total, count: (S, C) sum and number of the items of each seed and cluster; count 0 where a seed has no such cluster.
    weight: its factor in the contrast. space: terms with the same space share their clusters, which are then drawn
    together; None: no clusters are drawn (a cost), C is 1.
    """

    total: np.ndarray
    count: np.ndarray
    weight: float
    space: Hashable | None

    @property
    def means(self) -> np.ndarray:
        """(S,) the mean over the items of each seed."""
        return self.total.sum(axis=1) / self.count.sum(axis=1)


@dataclass(frozen=True)
class Estimate:
    """A contrast with its uncertainty.

    effects: (S,) the contrast of each seed, whose mean is `effect`. low, high: the 95 % interval; low90, high90: the
    90 % one, which TOST uses. error: its standard error, with `df` degrees of freedom.
    """

    effect: float
    low: float
    high: float
    low90: float
    high90: float
    error: float
    df: float
    effects: np.ndarray
    clusters: int


def paired_bootstrap(terms: Sequence[Term], *, draws: int = 10_000, seed: int = 0) -> Estimate:
    """The contrast, with two-level (seeds x clusters) bootstrap intervals.

    Seeds and clusters are drawn with replacement, crossed (Owen 2007, the pigeonhole bootstrap). As it stands that is
    wrong twice: it counts the noise of single seed-cluster cells three times (too wide), and with few seeds it is too
    narrow. So the draws are scaled about the effect to the unbiased two-way variance (`two_way_variance`), and the
    percentiles are expanded to those of Student's t with its degrees of freedom (Hesterberg 2015, section 5.3); without
    cluster variance this is his interval, t with S - 1 degrees and the factor sqrt(S / (S - 1)).
    """
    effects = sum(term.weight * term.means for term in terms)
    effect = float(effects.mean())
    variance, df = two_way_variance(terms)
    drawn = crossed_draws(terms, draws=draws, seed=seed) - effect
    spread = drawn.std()
    drawn = effect + drawn * (np.sqrt(variance) / spread if spread > 0 else 0.0)
    tails = stats.norm.cdf(stats.t.ppf([0.025, 0.05], df))
    low, high, low90, high90 = np.quantile(drawn, [tails[0], 1 - tails[0], tails[1], 1 - tails[1]])
    clusters = sum({term.space: term.total.shape[1] for term in terms if term.space is not None}.values())
    interval, error = (float(low), float(high), float(low90), float(high90)), float(np.sqrt(variance))
    return Estimate(effect, *interval, error, float(df), effects, clusters)


def crossed_draws(terms: Sequence[Term], *, draws: int = 10_000, seed: int = 0) -> np.ndarray:
    """(B,) the contrast under crossed resampling of seeds (jointly for all terms) and of each space's clusters.

    Drawing is done with multinomial weights, so a draw is a matrix product. Clusters that seeds do not share (each seed
    has its own test set) are drawn within their seed.
    """
    rng = np.random.default_rng(seed)
    seeds = len(terms[0].total)
    per_seed = np.zeros((draws, seeds))
    for space in dict.fromkeys(term.space for term in terms):
        members = [term for term in terms if term.space == space]
        if space is None:
            per_seed += sum(term.weight * term.means for term in members)
            continue
        blocks = _blocks(np.sum([term.count for term in members], axis=0) > 0)
        step = max(1, CHUNK // len(blocks))
        for start in range(0, draws, step):
            rows = slice(start, min(start + step, draws))
            weights = _multinomial(rng, blocks, rows.stop - rows.start)
            for term in members:
                mean = (weights @ term.total.T) / np.maximum(_weighted_count(weights, term.count), 1e-9)
                per_seed[rows] += term.weight * mean
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    return (per_seed * drawn).sum(axis=1) / seeds


def two_way_variance(terms: Sequence[Term]) -> tuple[float, float]:
    """Unbiased variance of a contrast under crossed random seeds and clusters, and its degrees of freedom.

    Seeds + clusters - cells (Cameron, Gelbach & Miller 2011), with the cluster part never below zero; the degrees of
    freedom are Satterthwaite's. Terms enter by their linear influence, so clusters of unequal size are covered.
    """
    seeds = len(terms[0].total)
    effects = sum(term.weight * term.means for term in terms)
    parts = [(effects.var(ddof=1) / seeds if seeds > 1 else 0.0, max(seeds - 1, 1))]
    for space in {term.space for term in terms} - {None}:
        members = [term for term in terms if term.space == space]
        cells = np.zeros(members[0].total.shape)
        for term in members:
            of_mean = term.total - term.means[:, None] * term.count
            cells += term.weight * of_mean / term.count.sum(axis=1, keepdims=True)
        number = cells.shape[1]
        across = cells.mean(axis=0)
        of_clusters = (across**2).sum() * number / max(number - 1, 1)
        of_cells = ((cells - across) ** 2).sum() / seeds / max(seeds - 1, 1) * number / max(number - 1, 1)
        parts.append((max(of_clusters - of_cells, 0.0), max(number - 1, 1)))
    variance = sum(part for part, _ in parts)
    squares = sum(part**2 / df for part, df in parts)
    return variance, variance**2 / squares if squares > 0 else max(seeds - 1, 1)


def t_interval(terms: Sequence[Term]) -> tuple[float, float, float]:
    """A contrast with its 95 % interval, low and high, by Student's t.

    Variance and degrees of freedom are those that the bootstrap is scaled to, without its draws.
    """
    effect, (variance, df) = float(sum(term.weight * term.means for term in terms).mean()), two_way_variance(terms)
    half = float(stats.t.ppf(0.975, df) * np.sqrt(variance))
    return effect, effect - half, effect + half


def sign_flip(effects: np.ndarray, *, draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided p-value of the paired sign-flip (randomisation) test of mean 0, exact to 12 seeds, then simulated."""
    effects = np.asarray(effects, dtype=float)
    number = len(effects)
    exact = number <= EXACT_SEEDS
    if exact:
        signs = 1.0 - 2.0 * (np.arange(2**number)[:, None] >> np.arange(number) & 1)
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(draws, number))
    as_far = np.abs(signs @ effects) >= abs(effects.sum()) * (1 - 1e-12) - 1e-300
    return float(as_far.mean()) if exact else float((as_far.sum() + 1) / (draws + 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's (1979) step-down adjusted p-values of one family, in the given order."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    result = np.empty_like(p_values)
    result[order] = np.minimum(adjusted, 1.0)
    return result


def tost(estimate: Estimate, margin: float) -> bool:
    """Equivalence by two one-sided tests at 5 % (Schuirmann 1987): the 90 % interval lies inside +-margin."""
    return -margin < estimate.low90 and estimate.high90 < margin


def probability_of_improvement(effects: np.ndarray) -> float:
    """The share of seeds whose paired effect is positive; ties count half."""
    return float((np.asarray(effects) > 0).mean() + (np.asarray(effects) == 0).mean() / 2)


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


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores (cases, seeds): robust to one case, and less noisy than a median.

    Agarwal et al. (2021), Deep reinforcement learning at the edge of the statistical precipice.
    """
    return float(stats.trim_mean(np.ravel(scores), 0.25))


def performance_profile(scores: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """(L,) the share of all scores (cases, seeds) above each level."""
    return (np.ravel(scores) > np.asarray(levels, dtype=float)[:, None]).mean(axis=1)


def stratified_interval(
    scores: np.ndarray, statistic: Callable[[np.ndarray], float], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of scores (cases, seeds), the seeds drawn anew within each case."""
    picks = np.random.default_rng(seed).integers(0, scores.shape[1], size=(draws, *scores.shape))
    low, high = np.quantile([statistic(np.take_along_axis(scores, pick, axis=1)) for pick in picks], [0.025, 0.975])
    return float(low), float(high)


def _blocks(present: np.ndarray) -> np.ndarray:
    """(C,) the group each cluster is drawn in: clusters whose seeds overlap, directly or through others, share one."""
    seed, cluster = np.nonzero(present)
    size = sum(present.shape)
    graph = coo_array((np.ones(len(seed)), (seed, cluster + present.shape[0])), shape=(size, size))
    return connected_components(graph, directed=False)[1][present.shape[0] :]


def _multinomial(rng: np.random.Generator, blocks: np.ndarray, draws: int) -> np.ndarray:
    """(draws, C) how often each cluster is drawn, every block keeping its number of clusters."""
    weights = np.empty((draws, len(blocks)))
    for block in np.unique(blocks):
        places = np.flatnonzero(blocks == block)
        size = len(places)
        picks = rng.integers(0, size, size=(draws, size), dtype=np.int32)
        picks += np.arange(draws, dtype=np.int32)[:, None] * size
        weights[:, places] = np.bincount(picks.ravel(), minlength=draws * size).reshape(draws, size)
    return weights


def _weighted_count(weights: np.ndarray, count: np.ndarray) -> np.ndarray | float:
    """Items drawn, (draws, S), without a product when every cluster has the same number."""
    return float(count.sum(axis=1)[0]) if (count == count[0, 0]).all() else weights @ count.T


def score_interval(score: Score, minus: Score | None = None, *, draws: int = 2000) -> tuple[float, float, float]:
    """Value, low and high (95 %) of a score, or of the paired difference of two, over its clusters."""
    terms = []
    for part, weight in ((score, 1.0), (minus, -1.0)):
        if part is not None:
            cluster = np.unique(part.clusters, return_inverse=True)[1]
            total, count = np.bincount(cluster, part.items), np.bincount(cluster).astype(float)
            terms.append(Term(total[None], count[None], weight, "clusters"))
    found = paired_bootstrap(terms, draws=draws)
    return found.effect, found.low, found.high
