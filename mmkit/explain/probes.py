"""Linear probes: what a frozen encoder's features tell about a label (Alain and Bengio 2016, arXiv 1610.01644)."""

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression


def standardised(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features (N, S) by split, each column scaled by its mean and spread over the split `train`."""
    mean, spread = features["train"].mean(0), features["train"].std(0) + 1e-6
    return {split: (x - mean) / spread for split, x in features.items()}


def some_of_each(labels: np.ndarray, share: float, seed: Sequence[int], *, least: int = 4) -> np.ndarray:
    """Positions of a share of the labels (N,), drawn class by class, at least `least` of each."""
    rng, chosen = np.random.default_rng(seed), []
    for label in np.unique(labels):
        of = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(of)[: max(least, round(share * len(of)))])
    return np.concatenate(chosen)


def probe(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """A logistic regression on standardised features (N, S), strongly regularised: there are few labels."""
    return LogisticRegression(C=0.01, max_iter=500).fit(x, y)
