"""Accuracy, item by item."""

from torch import Tensor

from mmkit.metrics.score import Score


def accuracy(logits: Tensor, target: Tensor, clusters) -> Score:
    """Share of items whose largest logit is the target's. logits (N, K), target (N,), clusters (N,) ids.

    An item whose largest logit is shared by several classes counts as wrong: a constant model earns nothing by ties.
    """
    best = logits.amax(1, keepdim=True)
    right = (logits.gather(1, target[:, None]) == best).squeeze(1) & ((logits == best).sum(1) == 1)
    return Score(right.double().numpy(), clusters)
