"""Accuracy, item by item."""

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
