"""Accuracy, discrimination and calibration, item by item.

Legend: N items, m of them positive and n negative; K classes. score: (N,), the larger the more positive.
target: (N,) 0 or 1. clusters: (N,) ids of what belongs together, such as a patient.

An AUROC is not a mean over items, but an interval resamples items. So each item here is the AUROC plus N times the
item's influence, which is the derivative of the AUROC by the item's weight (the infinitesimal jackknife, Efron 1982).
The mean of these items is the AUROC itself. The mean's variance is DeLong's (1988), by clusters Obuchowski's (1997).
Average precision is treated alike. Such items may lie outside 0 to 1.
"""

import numpy as np
import torch
from torch import Tensor

from mmkit.errors import MmkitError
from mmkit.metrics.score import Score

ROUNDING = 1e-9  # of shares that are compared with a wanted one
NAN = "look for NaN in the inputs or weights"


def accuracy(logits: Tensor, target: Tensor, clusters) -> Score:
    """Share of items whose largest logit is the target's. logits: (N, K). target: (N,) class numbers.

    An item whose largest logit is shared by several classes is wrong, so that a constant model earns nothing by ties.
    Raises MmkitError when a logit is not finite.
    """
    finite = torch.isfinite(logits).all(1)
    if not finite.all():
        raise MmkitError(f"logits are not finite, first at item {int(finite.logical_not().nonzero()[0])}: {NAN}")
    best = logits.amax(1, keepdim=True)
    right = (logits.gather(1, target[:, None]) == best).squeeze(1) & ((logits == best).sum(1) == 1)
    return Score(right.double().numpy(), clusters)


def auroc(score, target, clusters) -> Score:
    """Area under the ROC curve: how often a positive is above a negative, ties counting half (Mann & Whitney 1947).

    Raises MmkitError for items of one class only, or for a score that is not finite.
    """
    score, positive = _checked(score, target)
    # Of each item the share of the other class that it is on the right side of: DeLong's placement values.
    above = np.empty(len(score))
    for one, sign in ((positive, 1), (~positive, -1)):
        mine, others = sign * score[one], np.sort(sign * score[~one])
        above[one] = (np.searchsorted(others, mine) + np.searchsorted(others, mine, side="right")) / 2 / len(others)
    value = above[positive].mean()
    of_its_class = np.where(positive, positive.sum(), (~positive).sum())
    return Score(value + (above - value) * len(score) / of_its_class, clusters)


def average_precision(score, target, clusters) -> Score:
    """Mean over positives of the precision at their own score: the step-wise area under the precision-recall curve.

    Raises as `auroc`.
    """
    score, positive = _checked(score, target)
    ordered = np.sort(score[positive])
    # (m,): how many positives, and how many negatives, are at or above each positive's score.
    true = len(ordered) - np.searchsorted(ordered, ordered)
    false = (~positive).sum() - np.searchsorted(np.sort(score[~positive]), ordered)
    precision = true / (true + false)
    below = np.searchsorted(ordered, score, side="right")  # (N,): how many positives an item is at or above
    gain, loss = (np.concatenate([[0.0], np.cumsum(part / (true + false) ** 2)])[below] for part in (false, true))
    influence = np.where(positive, gain, -loss)
    influence[positive] += precision[np.searchsorted(ordered, score[positive])] - precision.mean()
    return Score(precision.mean() + influence * len(score) / len(ordered), clusters)


def brier(probability, target, clusters) -> Score:
    """Squared error of the probability of the positive class (Brier 1950); smaller is better.

    Raises MmkitError for a probability outside 0 to 1.
    """
    probability, positive = _probabilities(probability, target)
    return Score((probability - positive) ** 2, clusters, higher_is_better=False)


def calibration_error(probability, target, clusters, *, bins: int = 10) -> Score:
    """Expected calibration error: |mean probability - share of positives| of equally wide bins, weighted by items.

    An item is probability - target, with the sign of its bin; their mean is the error. It is biased upwards when a bin
    has few items (Kumar et al., arXiv 1909.10155). Raises as `brier`.
    """
    probability, positive = _probabilities(probability, target)
    place, gap = np.minimum((probability * bins).astype(int), bins - 1), probability - positive
    sign = np.sign(np.bincount(place, gap, minlength=bins))
    return Score(sign[place] * gap, clusters, higher_is_better=False)


def threshold(score, target, *, specificity: float | None = None, sensitivity: float | None = None) -> float:
    """The threshold that reaches one of the two on these items and is best in the other.

    `score >= threshold` is called positive; inf calls nothing positive. Choose it on validation data, keep it on test
    data. Raises as `auroc`, and unless exactly one of the two is given.
    """
    score, positive = _checked(score, target)
    if (specificity is None) == (sensitivity is None):
        raise MmkitError("a threshold needs specificity= or sensitivity=, one of them")
    candidates, one = np.append(np.unique(score), np.inf), positive if specificity is None else ~positive
    below = np.searchsorted(np.sort(score[one]), candidates) / one.sum()
    if specificity is None:
        return float(candidates[below <= 1 - sensitivity + ROUNDING][-1])
    return float(candidates[below >= specificity - ROUNDING][0])


def at_threshold(score, target, clusters, *, threshold: float) -> dict[str, Score]:
    """`sensitivity`, whose items are the positives, and `specificity`, whose items are the negatives.

    `score >= threshold` is called positive. Raises as `auroc`.
    """
    score, positive = _checked(score, target)
    called, clusters = score >= threshold, np.asarray(clusters)
    sensitivity = Score(called[positive], clusters[positive])
    return {"sensitivity": sensitivity, "specificity": Score(~called[~positive], clusters[~positive])}


def _checked(score, target) -> tuple[np.ndarray, np.ndarray]:
    score, target = np.asarray(score, dtype=np.float64), np.asarray(target)
    if not np.isfinite(score).all():
        raise MmkitError(f"scores are not finite, first at item {np.flatnonzero(~np.isfinite(score))[0]}: {NAN}")
    positive = target == 1
    if positive.all() or not positive.any():
        found = f"{positive.sum()} of {len(target)} items are positive: ranking metrics need both classes"
        raise MmkitError(f"{found}; take a larger split or another label")
    return score, positive


def _probabilities(probability, target) -> tuple[np.ndarray, np.ndarray]:
    probability = np.asarray(probability, dtype=np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise MmkitError("probabilities must lie between 0 and 1: pass a softmax or sigmoid of the logits")
    return probability, np.asarray(target).astype(np.float64)
