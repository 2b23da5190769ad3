"""Intervals of paired comparisons over seeds and clusters.

Legend: S seeds, C clusters, B bootstrap draws. A *contrast* is a weighted sum of terms; one term is the mean score of
an arm under a condition. Seeds are paired across terms: every term has the same seeds, in the same order.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:  # a table of records has no need of torch
    from mmkit.metrics import Score

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
    90 % one, which TOST uses. error: its standard error, with `df` degrees of freedom. clusters: how many there are;
    effective: `effective_clusters` of the split with the fewest, infinite where none are drawn.
    Of many contrasts at once every field is an array, (R,), and effects is (R, S).
    """

    effect: float
    low: float
    high: float
    low90: float
    high90: float
    error: float
    df: float
    effects: np.ndarray
    clusters: int = 0
    effective: float = np.inf


def paired_bootstrap(terms: Sequence[Term], *, draws: int = 10_000, seed: int = 0) -> Estimate:
    """The contrast, with two-level (seeds x clusters) bootstrap intervals.

    Seeds and clusters are drawn with replacement, crossed (Owen 2007, the pigeonhole bootstrap). As it stands that is
    wrong twice: it counts the noise of single seed-cluster cells three times (too wide), and with few seeds it is too
    narrow. So the draws are scaled about the effect to the unbiased two-way variance (`two_way_variance`), and the
    percentiles are expanded to those of Student's t with its degrees of freedom (Hesterberg 2015, section 5.3); without
    cluster variance this is his interval, t with S - 1 degrees and the factor sqrt(S / (S - 1)).
    """
    found = t_estimate(terms)
    drawn = crossed_draws(terms, draws=draws, seed=seed) - found.effect
    spread = drawn.std()
    drawn = found.effect + drawn * (found.error / spread if spread > 0 else 0.0)
    tails = stats.norm.cdf(stats.t.ppf([0.025, 0.05], found.df))
    low, high, low90, high90 = np.quantile(drawn, [tails[0], 1 - tails[0], tails[1], 1 - tails[1]])
    return replace(found, low=float(low), high=float(high), low90=float(low90), high90=float(high90))


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


def t_estimate(terms: Sequence[Term]) -> Estimate:
    """A contrast with intervals by Student's t.

    Variance and degrees of freedom are those that the bootstrap is scaled to, without its draws.
    """
    effects, (variance, df) = sum(term.weight * term.means for term in terms), two_way_variance(terms)
    effect, error, (half, half90) = effects.mean(), np.sqrt(variance), stats.t.ppf([0.975, 0.95], df)
    ends = effect - half * error, effect + half * error, effect - half90 * error, effect + half90 * error
    counts: dict[Hashable, np.ndarray] = {}
    for term in terms:
        if term.space is not None:
            counts[term.space] = counts.get(term.space, 0) + term.count.sum(axis=0)
    effective = min(map(effective_clusters, counts.values()), default=np.inf)
    clusters = sum(map(len, counts.values()))
    return Estimate(float(effect), *map(float, ends), float(error), float(df), effects, clusters, effective)


def t_interval(terms: Sequence[Term]) -> tuple[float, float, float]:
    """A contrast with its 95 % interval, low and high, by Student's t."""
    found = t_estimate(terms)
    return found.effect, found.low, found.high


def effective_clusters(counts: np.ndarray) -> float:
    """1 / the sum of squared shares of the items: C for (C,) equal clusters, 1 where one holds nearly all."""
    shares = counts / counts.sum()
    return float(1 / (shares**2).sum())


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


def score_interval(score: "Score", minus: "Score | None" = None, *, draws: int = 2000) -> tuple[float, float, float]:
    """Value, low and high (95 %) of a score, or of the paired difference of two, over its clusters."""
    terms = []
    for part, weight in ((score, 1.0), (minus, -1.0)):
        if part is not None:
            cluster = np.unique(part.clusters, return_inverse=True)[1]
            total, count = np.bincount(cluster, part.items), np.bincount(cluster).astype(float)
            terms.append(Term(total[None], count[None], weight, "clusters"))
    found = paired_bootstrap(terms, draws=draws)
    return found.effect, found.low, found.high
