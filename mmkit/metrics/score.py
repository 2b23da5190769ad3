"""A metric's value together with the per-item values that intervals need."""

from dataclasses import dataclass, field

import numpy as np

from mmkit.errors import MmkitError

AGGREGATES = {"mean": np.mean, "median": np.median}


@dataclass(frozen=True)
class Score:
    """One metric on one split.

    items: (n,) float64, one value per item (an image, a query, a patient's visit).
    clusters: (n,) int64, which items belong together (an image with all its captions, a patient);
        a cluster, never an item, is what an interval resamples.
    """

    items: np.ndarray
    clusters: np.ndarray
    aggregate: str = "mean"
    higher_is_better: bool = True
    value: float = field(init=False)

    def __post_init__(self):
        items, clusters = np.asarray(self.items, dtype=np.float64), np.asarray(self.clusters, dtype=np.int64)
        if items.ndim != 1 or items.shape != clusters.shape or not len(items):
            found = f"got {items.shape} and {clusters.shape}"
            raise MmkitError(f"a score needs matching, non-empty items and clusters, {found}")
        bad = np.flatnonzero(~np.isfinite(items))
        if len(bad):
            raise MmkitError(f"a score holds {len(bad)} values that are not finite, first at item {bad[0]}")
        object.__setattr__(self, "items", items)
        object.__setattr__(self, "clusters", clusters)
        object.__setattr__(self, "value", float(AGGREGATES[self.aggregate](items)))

    def interval(self, *, draws: int = 2_000, seed: int = 0) -> tuple[float, float]:
        """The 95 % interval over clusters, by the bootstrap: how far the value would move with other items of the kind.

        It says nothing of another training run."""
        rng = np.random.default_rng(seed)
        _, codes = np.unique(self.clusters, return_inverse=True)
        members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        values = []
        for _ in range(draws):
            drawn = rng.integers(len(members), size=len(members))
            chosen = np.concatenate([members[cluster] for cluster in drawn])
            values.append(AGGREGATES[self.aggregate](self.items[chosen]))
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)
