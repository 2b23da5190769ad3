"""Contrastive objectives. Legend: N pairs in the batch, D width of an embedding."""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020, figure 3): the mean of the two cross-entropies over scale * image @ text.T.

    image, text: (N, D) unit vectors, row i of one belongs to row i of the other. Raises ValueError on shapes that do not match.
    """
    if image.shape != text.shape or image.ndim != 2 or not len(image):
        raise ValueError(f"contrastive_loss needs two non-empty (N, D) tensors of one shape, got {tuple(image.shape)} and {tuple(text.shape)}")
    logits = logit_scale * image @ text.T
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
