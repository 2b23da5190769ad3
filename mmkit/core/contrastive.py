"""Symmetric InfoNCE in tiles. Legend: N pairs in the batch, n of them on this process, D width of an embedding.

With s = scale * image @ text.T and r_i, c_j the logarithms of the sums of e^s over the *negatives* of a row, a column,
    loss = 1/2N sum_i softplus(r_i - s_ii) + softplus(c_i - s_ii).
The positive stays out of the sums, so that a batch that is told apart keeps its digits. One pass over tiles of s gives
r and c with one exponential a pair. The gradient computes each tile again: 8 N^2 D operations, the memory of a tile a
thread. Where all exponentials fit the memory of a tile, they are kept: 6 N^2 D operations. Logarithms are to base 2.
"""

from collections import Counter
from functools import partial

import torch
from torch import Tensor

from mmkit.core.backend import PAD, choose, dots, finite, first_derivatives, operator, pairs, scalar, total, wide
from mmkit.core.distributed import LN2, gathered, largest, logsumexp2, rank_and_size, scattered, summed
from mmkit.core.workers import one_thread, shared, strips, tiles

# Shorter runs round less. Matrix libraries cut runs of 2 * DEPTH and more themselves.
DEPTH = 256  # terms of a dot product that are added in one go
SLAB = 2**18  # numbers of a tile that go through all elementwise steps at once, in the second-level cache
KEPT = 2**21  # numbers, of all tiles together, that are kept for the backward pass: no more than one tile took before
LIFT = 64  # the largest exponential of a tile is 2^64, so that its smallest may lie 2^190 below it in float32


def side(columns: int, device: torch.device) -> int:
    """Side of a tile: large enough for matrix products, small enough for the cache and for a fair share of tiles."""
    if device.type != "cpu":
        return 4096
    return 512 if columns <= 4096 else 1024


def _tile(image: Tensor) -> int:
    """As `side`, but small batches are one tile: done before another thread is awake, so parallel inside."""
    small = image.device.type == "cpu" and len(image) ** 2 <= KEPT
    return len(image) if small else side(len(image), image.device)


def contrastive_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor | float, *, backend="auto", tile: int | None = None, group=None
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
    scale, tile = scalar(logit_scale, image, "logit_scale"), tile or _tile(image)
    return finite(_InfoNCE.apply(image, text, scale, choose(image, backend).name, tile, group)[0], "contrastive_loss")


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(image, text, scale, backend, tile, group):
        first, texts = rank_and_size(group)[0] * len(image), gathered(text, group)
        rows, columns, positive, *kept = torch.ops.mmkit.contrastive_sums(image, texts, scale, first, backend, tile)
        columns, positives = logsumexp2(columns, group), gathered(positive, group)
        losses = _softplus(rows - positive) + _softplus(columns[first : first + len(image)] - positive)
        loss = summed(total(losses), group) / (2 * len(positives))
        loss = torch.where(positives.isfinite().all(), loss, torch.nan).to(wide(image.dtype))
        return loss, rows, columns, positives, *kept

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
        image, text, scale, rows, columns, positives, *kept = ctx.saved_tensors
        rank, processes = rank_and_size(ctx.group)
        local = slice(rank * len(image), (rank + 1) * len(image))
        row_miss, column_miss = _log_sigmoid(rows - positives[local]), _log_sigmoid(columns - positives)
        # The pair told apart worst sets the unit, so that small losses do not underflow.
        worst = largest(torch.maximum(row_miss.max(), column_miss.max()).clamp(min=-1000), ctx.group)
        # A batch of one has no negatives: -inf - -inf is NaN, and its weight is 0.
        row_weight = (row_miss - worst - rows).nan_to_num(nan=-torch.inf)
        column_weight = (column_miss - worst - columns).nan_to_num(nan=-torch.inf)
        pull = (row_miss - worst).exp2() + (column_miss[local] - worst).exp2()
        unit = grad.double() * worst.exp2() * (processes / (2 * len(positives)))
        d_image, d_texts, d_scores = torch.ops.mmkit.contrastive_products(
            image, gathered(text, ctx.group), scale, [row_weight, column_weight, pull], kept,
            unit * scale.double(), local.start, ctx.backend, ctx.tile,
        )  # fmt: skip
        d_text = scattered(d_texts, ctx.group)
        return d_image.to(image.dtype), d_text.to(text.dtype), (total(d_scores) * unit).to(scale.dtype)


def _softplus(x: Tensor) -> Tensor:
    """Natural log(1 + 2^x)."""
    return torch.logaddexp(x * LN2, torch.zeros_like(x))


def _log_sigmoid(x: Tensor) -> Tensor:
    """log2 of the probability that a pair is missed, 1 / (1 + 2^-x)."""
    return _softplus(-x) / -LN2  # F.logsigmoid is parallel however short x is


@operator
def contrastive_sums(
    image: Tensor, texts: Tensor, scale: Tensor, first: int, backend: str, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log2-sum-exp2 of the negatives of each row (n,) and column (N,), and the positives' scores (n,), in float64.

    The positive of row i is column first + i. For small batches also 2^(s - shift) of all pairs (n, N), 0 for
    positives, and the shift, NaN where they are not to be used.
    """
    unit = scale.double() / LN2
    if backend == "torch":
        return _torch_sums(image, texts, unit, first, tile)
    from mmkit.core.kernels.contrastive import sums

    positives = dots(image, texts[first : first + len(image)]) * unit
    return *sums(image, texts, unit, first), positives, *_unkept(image, texts, backend)


@operator
def contrastive_products(
    image: Tensor,
    texts: Tensor,
    scale: Tensor,
    weights: list[Tensor],
    kept: list[Tensor],
    step: Tensor,
    first: int,
    backend: str,
    tile: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """step * G @ texts (n, D), step * G.T @ image (N, D), and image_i . (G @ texts)_i (n,) in float64.

    weights: of rows (n,), of columns (N,) and pull (n,), where G = 2^s * (2^row_weight + 2^column_weight) for negatives
    and -pull for positives. kept: the last two results of `contrastive_sums`.
    """
    if backend == "torch":
        return _torch_products(image, texts, scale.double() / LN2, weights, kept, step, first, tile)
    from mmkit.core.kernels.contrastive import products

    d_image, d_texts = products(image, texts, scale.double() / LN2, *weights[:2], first)
    local, pull = texts[first : first + len(image)], weights[2].to(d_image.dtype)[:, None]
    d_image.addcmul_(pull, local.to(d_image.dtype), value=-1)
    d_texts[first : first + len(image)].addcmul_(pull, image.to(d_image.dtype), value=-1)
    d_scores, step = dots(image, d_image), step.to(d_image.dtype)
    return d_image.mul_(step), d_texts.mul_(step), d_scores


@contrastive_sums
def _(image, texts, scale, first, backend, tile):
    sums = (image.new_empty(n, dtype=torch.float64) for n in (len(image), len(texts), len(image)))
    return *sums, *_unkept(image, texts, backend)


@contrastive_products
def _(image, texts, scale, weights, kept, step, first, backend, tile):
    kind = wide(image.dtype)
    return torch.empty_like(image, dtype=kind), torch.empty_like(texts, dtype=kind), torch.empty_like(weights[2])


def _unkept(image: Tensor, texts: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Room for what is kept for the backward pass, none for large batches, and a shift that says it is not filled."""
    small = backend == "torch" and image.device.type == "cpu" and len(image) * len(texts) <= KEPT
    room = image.new_empty((len(image), len(texts)) if small else (0, 0), dtype=wide(image.dtype))
    return room, image.new_full((), torch.nan, dtype=torch.float64)


def positives(i: slice, j: slice, first: int) -> slice:
    """Those of the rows i whose positives, at column first + row, lie in the columns j."""
    start = max(i.start, j.start - first)
    return slice(start, max(start, min(i.stop, j.stop - first)))


def moved(rows: slice, first: int) -> slice:
    """The columns of these rows' positives."""
    return slice(rows.start + first, rows.stop + first)


def negatives(a: Tensor, b: Tensor, unit: float, diagonal: int, out: Tensor | None = None) -> Tensor:
    """unit * a @ b.T with the positives, which lie on this diagonal, at -inf."""
    out = b.new_empty(len(a), len(b)) if out is None else out
    depth = DEPTH if b.shape[1] < 2 * DEPTH else b.shape[1]
    for k in range(0, b.shape[1], depth):
        out.addmm_(a[:, k : k + depth], b[:, k : k + depth].T, beta=float(k > 0), alpha=unit)
    if -len(a) < diagonal < len(b):
        out.diagonal(diagonal).fill_(-torch.inf)
    return out


def buffer(image: Tensor, texts: Tensor, tile: int) -> tuple[Tensor]:
    """Room for the scores of one tile, as scratch of `shared`."""
    return (image.new_empty(min(tile, len(image)), min(tile, len(texts)) + PAD, dtype=wide(image.dtype)),)


def slabs(scores: Tensor) -> tuple[Tensor, ...]:
    """A tile in parts of some rows, which elementwise steps take one by one."""
    return scores.split(max(1, SLAB // scores.shape[1]) if scores.device.type == "cpu" else len(scores))


def _torch_sums(image: Tensor, texts: Tensor, unit: Tensor, first: int, tile: int) -> tuple[Tensor, ...]:
    kind, unit = wide(image.dtype), float(unit)
    rows, columns = (image.new_full((n,), -torch.inf, dtype=torch.float64) for n in (len(image), len(texts)))
    positive, (kept, kept_shift) = torch.empty_like(rows), _unkept(image, texts, "torch")
    with one_thread():
        bound = unit * float(_longest(image)) * float(_longest(texts))
    # Up to a bound that covers unit vectors at scale 100, one shift serves all tiles. A whole number does not round.
    shift = max(0.0, bound // 1 - 115) if bound < 160 else torch.nan
    outside = []

    def add(buffer: Tensor, i: slice, j: slice) -> None:
        a, b, diagonal = image[i].to(kind), texts[j].to(kind), first + i.start - j.start
        scores = negatives(a, b, unit, diagonal, kept[i, j] if kept.numel() else buffer[: len(a), : len(b)])
        lift = shift if shift == shift else float(scores.amax().ceil()) - LIFT
        sums = _exponential_sums(scores, lift)
        if all(_within(x) for x in sums):
            logs = [x.double().log2() + lift for x in sums]
        else:  # some row or column lies so far below the largest score that it needs a shift of its own
            outside.append((i, j))
            scores = negatives(a, b, unit, diagonal).double() * LN2
            logs = [torch.logsumexp(scores, dim) / LN2 for dim in (1, 0)]
        for all_sums, place, log in ((rows, i, logs[0]), (columns, j, logs[1])):
            all_sums[place] = torch.logaddexp2(all_sums[place], log)
        here = positives(i, j, first)
        positive[here] = dots(image[here], texts[moved(here, first)]) * unit

    grid = tiles(len(image), len(texts), tile)
    room = partial(buffer, image, texts, tile)
    shared(image.device, add, grid, adds_to=strips, scratch=room)
    return rows, columns, positive, kept, kept_shift if outside else kept_shift.fill_(shift)


def _longest(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, dtype=wide(x.dtype)).amax()


def _exponential_sums(scores: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """Sums of 2^(score - shift) of each row and column; `scores` is overwritten."""
    parts = [((part.sub_(shift) if shift else part).exp2_().sum(1), part.sum(0)) for part in slabs(scores)]
    return torch.cat([row for row, _ in parts]), sum(column for _, column in parts)


def _within(sums: Tensor) -> bool:
    """Whether float32 held all that counts: nothing overflowed, and no sum is so small that its terms lost digits."""
    least, most = torch.aminmax(sums)
    return float(least) >= 2.0**-76 and float(most) < torch.inf


def _weighted(scores: Tensor, row: Tensor, column: Tensor, shift: float | None) -> None:
    """2^(s + shift) * (row + column) in place of s; without a shift 2^(s + row) + 2^(s + column)."""
    for part, here in zip(slabs(scores), row.split(len(slabs(scores)[0]))):
        if shift is None:
            other = (part + column).exp2_()
            part.add_(here).exp2_().add_(other)
        else:
            part.add_(shift).exp2_().mul_(here + column)


def _torch_products(
    image: Tensor,
    texts: Tensor,
    unit: Tensor,
    weights: list[Tensor],
    kept: list[Tensor],
    step: Tensor,
    first: int,
    tile: int,
) -> tuple[Tensor, Tensor, Tensor]:
    (*weights, pull), (kept, kept_shift), unit, kind = weights, kept, float(unit), wide(image.dtype)
    d_image, d_texts = (torch.empty_like(x, dtype=kind) for x in (image, texts))
    d_scores, pull, step = torch.empty_like(pull), pull.to(kind), step.to(kind)
    least, most = min(float(x.amin()) for x in weights), max(float(x.amax()) for x in weights)
    # Kept exponentials serve where what they are multiplied by fits float32. NaN is False.
    again = not (kept.numel() and least + float(kept_shift) > -120 and most + float(kept_shift) < 120)
    # s + weight <= 0. So where weights lie near together, s + shift fits float32, and one exponential a pair will do.
    shift = float(torch.tensor(most).ceil()) if again else -float(kept_shift)
    lifted = not again or shift - least <= 100
    u, v = (((x - shift).exp2() if lifted else x).to(kind) for x in weights)
    grid, count = tiles(len(image), len(texts), tile), Counter()
    goal = Counter(key for tile in grid for key in strips(tile))

    def multiply(buffer: Tensor, i: slice, j: slice) -> None:
        a, b, diagonal = image[i].to(kind), texts[j].to(kind), first + i.start - j.start
        slopes = buffer[: len(a), : len(b)]
        if again:
            _weighted(negatives(a, b, unit, diagonal, slopes), u[i, None], v[j], shift if lifted else None)
        else:
            torch.add(u[i, None], v[j], out=slopes).mul_(kept[i, j])
        row, column = strips((i, j))
        d_image[i].addmm_(slopes, b, beta=float(count[row] > 0))
        d_texts[j].addmm_(slopes.T, a, beta=float(count[column] > 0))
        count.update((row, column))
        if count[row] == goal[row]:  # the positives come last, as their sums nearly cancel those of the negatives
            d_image[i].addcmul_(pull[i, None], texts[moved(i, first)].to(kind), value=-1)
            d_scores[i] = dots(a, d_image[i])
            d_image[i].mul_(step)
        if count[column] == goal[column]:
            here = positives(slice(0, len(image)), j, first)
            d_texts[moved(here, first)].addcmul_(pull[here, None], image[here].to(kind), value=-1)
            d_texts[j].mul_(step)

    room = partial(buffer, image, texts, tile)
    shared(image.device, multiply, grid, adds_to=strips, scratch=room)
    return d_image, d_texts, d_scores
