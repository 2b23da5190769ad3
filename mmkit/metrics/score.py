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
