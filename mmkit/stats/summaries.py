"""Scores of many cases taken together (Agarwal et al. 2021)."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats


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
