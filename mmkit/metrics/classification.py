"""Accuracy, discrimination and calibration, item by item.

Legend: N items, m of them positive and n negative, score (N,) the larger the more positive, target (N,) 0 or 1, clusters (N,) ids (patients).

An AUROC is no mean of items, yet intervals resample items. So its items are its value plus N times each item's influence, the derivative
by that item's weight (the infinitesimal jackknife, Efron 1982): their mean is the AUROC itself, the variance of that mean is DeLong's (1988),
and by clusters Obuchowski's (1997). Average precision is treated alike. Such items may lie outside 0 to 1.
"""

import numpy as np
import torch
from torch import Tensor

from mmkit.errors import MmkitError
from mmkit.metrics.score import Score


def accuracy(logits: Tensor, target: Tensor, clusters) -> Score:
    """Share of items whose largest logit is the target's. logits (N, K), target (N,), clusters (N,) ids.

    Raises MmkitError when a logit is not finite. An item whose largest logit is shared by several classes counts as wrong: a constant model earns nothing by ties.
    """
    if not torch.isfinite(logits).all():
        raise MmkitError(f"logits are not finite, first at item {int((~torch.isfinite(logits)).any(1).nonzero()[0])}: look for NaN in the inputs or weights")
    best = logits.amax(1, keepdim=True)
    right = (logits.gather(1, target[:, None]) == best).squeeze(1) & ((logits == best).sum(1) == 1)
    return Score(right.double().numpy(), clusters)


def auroc(score, target, clusters) -> Score:
    """Area under the ROC curve: how often a positive is above a negative, ties counting half (Mann & Whitney 1947).

    Raises MmkitError without a positive and a negative, or for a score that is not finite."""
    score, positive = _checked(score, target)
    above = np.empty(len(score))  # the share of the other class that each item is on the right side of: DeLong's placement values
    for one, sign in ((positive, 1), (~positive, -1)):
        mine, others = sign * score[one], np.sort(sign * score[~one])
        above[one] = (np.searchsorted(others, mine) + np.searchsorted(others, mine, side="right")) / 2 / len(others)
    value = above[positive].mean()
    return Score(value + (above - value) * len(score) / np.where(positive, positive.sum(), (~positive).sum()), clusters)


def average_precision(score, target, clusters) -> Score:
    """Mean over positives of the precision at their own score: the step-wise area under the precision-recall curve. Raises as `auroc`."""
    score, positive = _checked(score, target)
    ordered = np.sort(score[positive])
    true = len(ordered) - np.searchsorted(ordered, ordered)  # (m,) positives and negatives at or above each positive's score
    false = (~positive).sum() - np.searchsorted(np.sort(score[~positive]), ordered)
    precision = true / (true + false)
    below = np.searchsorted(ordered, score, side="right")  # (N,) how many positives have an item at or above them
    gain, loss = (np.concatenate([[0.0], np.cumsum(part / (true + false) ** 2)])[below] for part in (false, true))
    influence = np.where(positive, gain, -loss)
    influence[positive] += precision[np.searchsorted(ordered, score[positive])] - precision.mean()
    return Score(precision.mean() + influence * len(score) / len(ordered), clusters)


def brier(probability, target, clusters) -> Score:
    """Squared error of the probability of the positive class (Brier 1950); smaller is better. Raises MmkitError outside 0 to 1."""
    probability, positive = _probabilities(probability, target)
    return Score((probability - positive) ** 2, clusters, higher_is_better=False)


def calibration_error(probability, target, clusters, *, bins: int = 10) -> Score:
    """Expected calibration error over bins of equal width: |mean probability - share of positives|, weighted by the bin's items. Raises as `brier`.

    Items are probability - target with the bin's sign; their mean is the error, which few items a bin bias upwards (arXiv 1909.10155)."""
    probability, positive = _probabilities(probability, target)
    place, gap = np.minimum((probability * bins).astype(int), bins - 1), probability - positive
    sign = np.sign(np.bincount(place, gap, minlength=bins))
    return Score(sign[place] * gap, clusters, higher_is_better=False)


def threshold(score, target, *, specificity: float | None = None, sensitivity: float | None = None) -> float:
    """The threshold (`score >= threshold` is called positive) that reaches one of the two on these items and is best in the other.
    Take it on validation data and hold it on the test data; inf calls nothing positive. Raises as `auroc`, and unless exactly one is given."""
    score, positive = _checked(score, target)
    if (specificity is None) == (sensitivity is None):
        raise MmkitError("a threshold needs specificity= or sensitivity=, one of them")
    candidates, one = np.append(np.unique(score), np.inf), positive if specificity is None else ~positive
    below = np.searchsorted(np.sort(score[one]), candidates) / one.sum()
    return float(candidates[below <= 1 - sensitivity + 1e-9][-1] if specificity is None else candidates[below >= specificity - 1e-9][0])


def at_threshold(score, target, clusters, *, threshold: float) -> dict[str, Score]:
    """Sensitivity, whose items are the positives, and specificity, whose items are the negatives, of calling `score >= threshold` positive. Raises as `auroc`."""
    score, positive = _checked(score, target)
    called, clusters = score >= threshold, np.asarray(clusters)
    return {"sensitivity": Score(called[positive], clusters[positive]), "specificity": Score(~called[~positive], clusters[~positive])}


def _checked(score, target) -> tuple[np.ndarray, np.ndarray]:
    score, target = np.asarray(score, dtype=np.float64), np.asarray(target)
    if not np.isfinite(score).all():
        raise MmkitError(f"scores are not finite, first at item {np.flatnonzero(~np.isfinite(score))[0]}: look for NaN in the inputs or weights")
    positive = target == 1
    if positive.all() or not positive.any():
        raise MmkitError(f"{positive.sum()} of {len(target)} items are positive: ranking metrics need both classes; take a larger split or another label")
    return score, positive


def _probabilities(probability, target) -> tuple[np.ndarray, np.ndarray]:
    probability = np.asarray(probability, dtype=np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise MmkitError("probabilities must lie between 0 and 1: pass a softmax or sigmoid of the logits")
    return probability, np.asarray(target).astype(np.float64)
