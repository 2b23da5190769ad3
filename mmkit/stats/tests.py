"""Tests of a mean paired difference, and what several of them in one family may say together."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from mmkit.stats.intervals import Estimate

EXACT_SEEDS, FEWEST_SEEDS = 12, 6  # exact sign-flips up to 12; under 6 no sign-flip test can go below 0.05


def sign_flip(effects: np.ndarray, *, draws: int = 100_000, seed: int = 0) -> float | np.ndarray:
    """Two-sided p-value of the paired sign-flip (randomisation) test of mean 0.

    effects: (S,), or (R, S) for R tests at once. Exact to 12 seeds, then simulated with so many draws.
    """
    effects = np.asarray(effects, dtype=float)
    number = effects.shape[-1]
    exact = number <= EXACT_SEEDS
    if exact:  # a pattern and its opposite are equally far out, so that one of the two is enough
        signs = 1.0 - 2.0 * (np.arange(2 ** (number - 1))[:, None] >> np.arange(number) & 1)
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(draws, number))
    seen = np.abs(effects.sum(axis=-1, keepdims=True)) - 1e-12 * np.abs(effects).sum(axis=-1, keepdims=True)
    as_far = np.abs(effects @ signs.T) >= seen
    p = as_far.mean(axis=-1) if exact else (as_far.sum(axis=-1) + 1) / (draws + 1)
    return p if p.ndim else float(p)


def two_way_p(estimate: Estimate, beyond: float = 0.0) -> float | np.ndarray:
    """Two-sided p-value of effect / error on Student's t, where the error holds seeds and clusters.

    beyond: tests that the effect is larger than that, in either direction, and not just other than 0.
    """
    return np.minimum(2 * _upper_tail(np.abs(estimate.effect) - beyond, estimate), 1.0)


def tost_p(estimate: Estimate, margin: float) -> float | np.ndarray:
    """p-value of equality within +-margin: the larger of two one-sided tests (Schuirmann 1987)."""
    return _upper_tail(margin - np.abs(estimate.effect), estimate)


def _upper_tail(excess: float | np.ndarray, estimate: Estimate) -> float | np.ndarray:
    """P(T > excess / error); without any error it is 0, 1/2 or 1, by the sign of the excess."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(excess, estimate.error)
    return stats.t.sf(np.where(np.isnan(ratio), 0.0, ratio), estimate.df)


def tost(estimate: Estimate, margin: float) -> bool | np.ndarray:
    """Equivalence by two one-sided tests at 5 % (Schuirmann 1987): the 90 % interval lies inside +-margin."""
    return (-margin < estimate.low90) & (estimate.high90 < margin)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's (1979) step-down adjusted p-values of one family, in the given order; (n,), or (n, R) for R families."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, axis=0, kind="stable")
    left = np.arange(len(p_values), 0, -1).reshape(-1, *[1] * (p_values.ndim - 1))
    adjusted = np.maximum.accumulate(np.take_along_axis(p_values, order, axis=0) * left, axis=0)
    result = np.empty_like(p_values)
    np.put_along_axis(result, order, np.minimum(adjusted, 1.0), axis=0)
    return result


def probability_of_improvement(effects: np.ndarray) -> float:
    """The share of seeds whose paired effect is positive; ties count half."""
    return float((np.asarray(effects) > 0).mean() + (np.asarray(effects) == 0).mean() / 2)
