"""Symmetric InfoNCE in tiles. Legend: N pairs in the batch, n of them on this process, D width of an embedding.

With s = scale * image @ text.T and r_i, c_j the logarithms of the sums of e^s over the *negatives* of a row, a column,
    loss = 1/2N sum_i softplus(r_i - s_ii) + softplus(c_i - s_ii).
The positive stays out of the sums, so that a batch that is told apart keeps its digits. One pass over tiles of s gives
r and c with one exponential a pair. The gradient computes each tile again: 8 N^2 D operations, the memory of one tile.
Logarithms are to base 2.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.core.backend import PAD, choose, dots, finite, first_derivatives, operator, pairs, scalar, wide
from mmkit.core.distributed import LN2, gathered, largest, logsumexp2, rank_and_size, scattered, summed

TILE = {"cpu": 1536, "cuda": 4096}  # large enough for matrix products, small enough for the last-level cache
# Shorter runs round less. Matrix libraries cut runs of 2 * DEPTH and more themselves.
DEPTH = 256  # terms of a dot product that are added in one go
SLAB = {"cpu": 512, "cuda": 4096}  # rows of a tile that go through all elementwise steps at once, in the near cache
LIFT = 64.0  # a tile's largest exponential is 2^64, so that its smallest may lie 2^190 below it in float32


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    backend: str = "auto",
    tile: int | None = None,
    group=None,
) -> Tensor:
    """Symmetric InfoNCE (CLIP, Radford et al. 2021, arXiv 2103.00020, figure 3).

    The mean of the two cross-entropies over the scores scale * image @ text.T; `reference.contrastive_loss` is it in
    three lines. image, text: (N, D) unit vectors; row i of one belongs to row i of the other. N x N numbers are never
    held. `tile` is the side of a tile of scores and changes time and memory only. With `group`, a torch.distributed
    group, the batch is that of all its processes, n pairs each. The loss is then the whole batch's, and the gradients
    are those that DistributedDataParallel averages to the whole batch's. Raises ValueError on shapes or types that do
    not match, and on the CPU for NaN or infinity. A GPU is not waited for: there the loss is NaN.
    """
    image, text = pairs("contrastive_loss", image, text)
    tile = tile or TILE.get(image.device.type, TILE["cuda"])
    scale = scalar(logit_scale, image, "logit_scale")
    return finite(_InfoNCE.apply(image, text, scale, choose(image, backend).name, tile, group)[0], "contrastive_loss")


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(image, text, scale, backend, tile, group):
        first, texts = rank_and_size(group)[0] * len(image), gathered(text, group)
        rows, columns, positive = torch.ops.mmkit.contrastive_sums(image, texts, scale, first, backend, tile)
        columns, positives = logsumexp2(columns, group), gathered(positive, group)
        losses = _softplus(rows - positive) + _softplus(columns[first : first + len(image)] - positive)
        loss = summed(losses.sum(), group) / (2 * len(positives))
        return torch.where(positives.isfinite().all(), loss, torch.nan).to(wide(image.dtype)), rows, columns, positives

    @staticmethod
    def setup_context(ctx, inputs, output):
        image, text, scale, ctx.backend, ctx.tile, ctx.group = inputs
        ctx.save_for_backward(image, text, scale, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx, grad, *_):
        return *first_derivatives(_InfoNCE.gradients(ctx, grad), ctx.saved_tensors[:3]), None, None, None

    @staticmethod
    @torch.no_grad()
    def gradients(ctx, grad):
        image, text, scale, rows, columns, positives = ctx.saved_tensors
        rank, processes = rank_and_size(ctx.group)
        local = slice(rank * len(image), (rank + 1) * len(image))
        row_miss, column_miss = _log_sigmoid(rows - positives[local]), _log_sigmoid(columns - positives)
        # The pair told apart worst sets the unit, so that small losses do not underflow.
        worst = largest(torch.maximum(row_miss.max(), column_miss.max()).clamp(min=-1000), ctx.group)
        # A batch of one has no negatives: -inf - -inf is NaN, and its weight is 0.
        row_weight = (row_miss - worst - rows).nan_to_num(nan=-torch.inf)
        column_weight = (column_miss - worst - columns).nan_to_num(nan=-torch.inf)
        d_image, d_texts = torch.ops.mmkit.contrastive_products(
            image, gathered(text, ctx.group), scale, row_weight, column_weight, local.start, ctx.backend, ctx.tile
        )
        pull = ((row_miss - worst).exp2() + (column_miss[local] - worst).exp2()).to(d_image.dtype)[:, None]
        d_image.addcmul_(pull, text.to(d_image.dtype), value=-1)
        d_texts[local].addcmul_(pull, image.to(d_image.dtype), value=-1)
        unit = grad.double() * worst.exp2() * (processes / (2 * len(positives)))
        d_scale = dots(image, d_image).sum() * unit
        step = (unit * scale.double()).to(d_image.dtype)
        d_text = scattered(d_texts, ctx.group)
        return d_image.mul_(step).to(image.dtype), d_text.mul_(step).to(text.dtype), d_scale.to(scale.dtype)


def _softplus(x: Tensor) -> Tensor:
    """Natural log(1 + 2^x)."""
    return torch.logaddexp(x * LN2, torch.zeros_like(x))


def _log_sigmoid(x: Tensor) -> Tensor:
    """log2 of the probability that a pair is missed, 1 / (1 + 2^-x)."""
    return F.logsigmoid(x * LN2) / LN2


@operator
def contrastive_sums(
    image: Tensor, texts: Tensor, scale: Tensor, first: int, backend: str, tile: int
) -> tuple[Tensor, Tensor, Tensor]:
    """log2-sum-exp2 of the negatives of each row (n,) and column (N,), and the positives' scores (n,), in float64.

    The positive of row i is column first + i.
    """
    if backend == "triton":
        from mmkit.core.kernels.contrastive import sums

        rows, columns = sums(image, texts, scale.double() / LN2, first)
    else:
        rows, columns = _torch_sums(image, texts, scale.double() / LN2, first, tile)
    return rows, columns, dots(image, texts[first : first + len(image)]) * scale.double() / LN2


@operator
def contrastive_products(
    image: Tensor,
    texts: Tensor,
    scale: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    first: int,
    backend: str,
    tile: int,
) -> tuple[Tensor, Tensor]:
    """G @ texts (n, D) and G.T @ image (N, D) for G = 2^s * (2^row_weight + 2^column_weight), in the wide type.

    G is 0 at the positives.
    """
    if backend == "triton":
        from mmkit.core.kernels.contrastive import products

        return products(image, texts, scale.double() / LN2, row_weight, column_weight, first)
    return _torch_products(image, texts, scale.double() / LN2, row_weight, column_weight, first, tile)


@contrastive_sums
def _(image, texts, scale, first, backend, tile):
    return tuple(image.new_empty(n, dtype=torch.float64) for n in (len(image), len(texts), len(image)))


@contrastive_products
def _(image, texts, scale, row_weight, column_weight, first, backend, tile):
    return torch.empty_like(image, dtype=wide(image.dtype)), torch.empty_like(texts, dtype=wide(image.dtype))


def tiles(image: Tensor, texts: Tensor, unit: Tensor, first: int, tile: int):
    """Scores unit * image @ texts.T tile by tile: (rows, columns, scores, image part, text part).

    The positives are at -inf. `scores` is one buffer, used again.
    """
    kind = wide(image.dtype)
    buffer = image.new_empty(min(tile, len(image)), min(tile, len(texts)) + PAD, dtype=kind)
    scaling = image.new_empty(min(tile, len(image)), image.shape[1], dtype=kind)
    for i in range(0, len(image), tile):
        a = image[i : i + tile].to(kind)
        scaled = torch.mul(a, unit.to(kind), out=scaling[: len(a)])
        for j in range(0, len(texts), tile):
            b = texts[j : j + tile].to(kind)
            scores = _negatives(scaled, b, first + i - j, buffer[: len(a), : len(b)])
            yield slice(i, i + len(a)), slice(j, j + len(b)), scores, a, b


def _negatives(scaled: Tensor, b: Tensor, diagonal: int, out: Tensor | None = None) -> Tensor:
    """scaled @ b.T with the positives, which lie on this diagonal, at -inf."""
    scores = b.new_empty(len(scaled), len(b)) if out is None else out
    depth = DEPTH if b.shape[1] < 2 * DEPTH else b.shape[1]
    for k in range(0, b.shape[1], depth):
        scores.addmm_(scaled[:, k : k + depth], b[:, k : k + depth].T, beta=float(k > 0))
    if -len(scaled) < diagonal < len(b):
        scores.diagonal(diagonal).fill_(-torch.inf)
    return scores


def _torch_sums(image: Tensor, texts: Tensor, unit: Tensor, first: int, tile: int) -> tuple[Tensor, Tensor]:
    slab = SLAB.get(image.device.type, SLAB["cuda"])
    rows, columns = (image.new_full((n,), -torch.inf, dtype=torch.float64) for n in (len(image), len(texts)))
    # The last tile's shift is tried first. 0 needs no subtraction, and serves where no negative's score passes 127.
    shift = 0.0
    for i, j, scores, a, b in tiles(image, texts, unit, first, tile):
        sums = _exponential_sums(scores, shift, slab)
        if not _all_within(sums):
            scores = _negatives(a * unit.to(a.dtype), b, first + i.start - j.start)
            shift = float(scores.amax().ceil()) - LIFT  # a whole number is subtracted without rounding
            sums = _exponential_sums(scores, shift, slab)
        if _all_within(sums):
            logs = [x.double().log2() + shift for x in sums]
        else:  # some row or column lies so far below the largest score that it needs a shift of its own
            scores = _negatives(a * unit.to(a.dtype), b, first + i.start - j.start)
            logs = [torch.logsumexp(scores.double() * LN2, dim) / LN2 for dim in (1, 0)]
        rows[i], columns[j] = torch.logaddexp2(rows[i], logs[0]), torch.logaddexp2(columns[j], logs[1])
    return rows, columns


def _exponential_sums(scores: Tensor, shift: float, slab: int) -> tuple[Tensor, Tensor]:
    """Sums of 2^(score - shift) of each row and column; `scores` is overwritten, part by part in the cache."""
    parts = [((part.sub_(shift) if shift else part).exp2_().sum(1), part.sum(0)) for part in scores.split(slab)]
    return torch.cat([row for row, _ in parts]), sum(column for _, column in parts)


def _all_within(sums: tuple[Tensor, Tensor]) -> bool:
    """Whether float32 held all that counts: nothing overflowed, and no sum is so small that its terms lost digits."""
    return all(float(x.amin()) >= 2.0**-76 and float(x.amax()) < torch.inf for x in sums)


def _torch_products(
    image: Tensor, texts: Tensor, unit: Tensor, row_weight: Tensor, column_weight: Tensor, first: int, tile: int
) -> tuple[Tensor, Tensor]:
    slab = SLAB.get(image.device.type, SLAB["cuda"])
    d_image, d_texts = (torch.empty_like(x, dtype=wide(x.dtype)) for x in (image, texts))
    weights = row_weight[:, None], column_weight
    shift, least = max(float(x.amax().ceil()) for x in weights), min(float(x.amin()) for x in weights)
    # s + weight <= 0. So where weights lie near together, s + shift fits float32, and one exponential a pair will do.
    lifted = shift - least <= 100
    u, v = ((x - shift).exp2().to(d_image.dtype) if lifted else x.to(d_image.dtype) for x in weights)
    for i, j, scores, a, b in tiles(image, texts, unit, first, tile):
        for part, row in zip(scores.split(slab), u[i].split(slab)):
            if lifted:
                part.add_(shift).exp2_().mul_(row + v[j])
            else:
                other = (part + v[j]).exp2_()
                part.add_(row).exp2_().add_(other)
        d_image[i].addmm_(scores, b, beta=float(j.start > 0))
        d_texts[j].addmm_(scores.T, a, beta=float(i.start > 0))
    return d_image, d_texts
