"""Losses and slopes of a chunk of logits: two reads and one write a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmkit.core.kernels.common import log1p, product

__all__ = ["losses_and_slopes", "product"]


@triton.jit
def rows_kernel(logits, slopes, target, sizes, losses, V, smoothing, BLOCK: tl.constexpr):
    """One row a program. The target stays out of the sum: total is that of e^(z - top) over the wrong words."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.load(target + row)
    right = tl.load(logits + row * V + at)
    top, total, plain = tl.full((), -1e30, tl.float32), tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        words = start + tl.arange(0, BLOCK)
        z = tl.load(logits + row * V + words, mask=words < V, other=float("-inf"))
        plain += tl.sum(tl.where(words < V, z, 0.0))
        z = tl.where(words == at, float("-inf"), z)
        higher = tl.maximum(top, tl.max(z))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher))
        top = higher
    miss = tl.log(total) + top - right
    small = tl.exp(-tl.abs(miss))
    tail = log1p(small)
    chance = tl.where(miss > 0, 1.0, small) / (1 + small)
    loss = tl.maximum(miss, 0.0) + tail
    if smoothing > 0:
        loss += smoothing * (right - plain / V)
    tl.store(losses + row, loss)
    size = tl.load(sizes + row)
    for start in range(0, V, BLOCK):
        words = start + tl.arange(0, BLOCK)
        z = tl.load(logits + row * V + words, mask=words < V, other=float("-inf"))
        g = tl.where(words == at, smoothing - chance, tl.exp(z - top) * (chance / tl.maximum(total, 1e-37)))
        g -= smoothing / V
        tl.store(slopes + row * V + words, (size * g).to(slopes.dtype.element_ty), mask=words < V)


def losses_and_slopes(
    logits: Tensor, target: Tensor, sizes: Tensor, smoothing: float, kind: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Losses (T,) in float32 and the gradient of their weighted sum in the logits (T, V), in type `kind`."""
    losses, slopes = logits.new_empty(len(logits)), torch.empty_like(logits, dtype=kind)
    block = 4096 if logits.device.type == "cuda" else 64
    rows_kernel[(len(logits),)](logits, slopes, target, sizes, losses, logits.shape[1], smoothing, block)
    return losses, slopes
