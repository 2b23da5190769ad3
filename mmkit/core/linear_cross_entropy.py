"""Cross-entropy over a large vocabulary without the matrix of logits. Legend: T tokens, V words, D width.

A chunk of tokens at a time: its logits, its losses and, where the share of each token in the loss is known, its
gradients, before the next chunk takes its place. With r the logarithm of the sum of e^z over the *wrong* words, the
loss of a token is softplus(r - z_target): confident tokens keep their digits.
"""

import torch
from torch import Tensor

from mmkit.core.backend import PAD, autocast, choose, finite, first_derivatives, operator, total, wide
from mmkit.core.workers import one_thread, shared, slices

LOGITS = {"cpu": 6 * 2**20, "cuda": 2**26}  # numbers in a chunk of logits
WORDS = 2048  # on the CPU, words whose logits one thread takes at a time


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    backend: str = "auto",
    chunk: int | None = None,
) -> Tensor:
    """`F.cross_entropy(F.linear(hidden, weight, bias), target, ...)` without its (T, V) logits.

    hidden (T, D), weight (V, D), target (T,) int64, bias (V,). The loss is in float32 at least. Tokens whose target is
    `ignore_index` cost nothing and are never multiplied; the mean over no token is 0. `chunk`, the number of tokens at
    a time, changes time and memory only. Raises ValueError on shapes or types that do not match, on a target outside
    the vocabulary, and on the CPU for NaN or infinity.
    """
    hidden, weight = autocast(hidden, weight)
    _check(hidden, weight, target, bias, label_smoothing, reduction)
    valid = target != ignore_index
    sizes = valid.to(wide(hidden.dtype))
    if reduction == "mean":
        sizes = sizes / sizes.sum().clamp(min=1)
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    chunk = chunk or max(16, LOGITS.get(hidden.device.type, LOGITS["cuda"]) // len(weight))
    target = torch.where(valid, target, -1)
    how = label_smoothing, reduction == "none", wanted, choose(hidden, backend).name, chunk
    return finite(_CrossEntropy.apply(hidden, weight, bias, target, sizes, *how)[0], "linear_cross_entropy")


def _check(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, label_smoothing: float, reduction: str
) -> None:
    fits = hidden.ndim == weight.ndim == 2 and hidden.shape[1] == weight.shape[1] and target.shape == hidden.shape[:1]
    if not fits or not weight.numel():
        shapes = f"{tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(target.shape)}"
        raise ValueError(f"linear_cross_entropy needs hidden (T, D), weight (V, D) and target (T,), got {shapes}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_cross_entropy needs a bias of ({len(weight)},), got {tuple(bias.shape)}")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point() or target.dtype != torch.int64:
        asked = "hidden and weight of one floating-point type and int64 targets"
        got = f"{hidden.dtype}, {weight.dtype} and {target.dtype}"
        raise ValueError(f"linear_cross_entropy needs {asked}, got {got}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r} must be mean, sum or none")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1)")


class _CrossEntropy(torch.autograd.Function):
    """With a mean or a sum the share of each token is known beforehand, and one pass gives everything.

    With `reduction="none"` the backward pass goes over the chunks again.
    """

    @staticmethod
    def forward(hidden, weight, bias, target, sizes, smoothing, each, wanted, backend, chunk):
        losses, *gradients = torch.ops.mmkit.cross_entropy_pass(
            hidden, weight, bias, target, sizes, smoothing, wanted and not each, backend, chunk
        )
        return losses if each else total(losses * sizes), *gradients

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.smoothing, ctx.each, _, ctx.backend, ctx.chunk = inputs[5:]
        ctx.save_for_backward(*inputs[:4], *([] if ctx.each else output[1:]))
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx, grad, *_):
        hidden, weight, bias, target, *gradients = ctx.saved_tensors
        inputs = hidden, weight, bias
        with torch.no_grad():
            if ctx.each:
                again = *inputs, target, grad.contiguous(), ctx.smoothing, True, ctx.backend, ctx.chunk
                _, *gradients = torch.ops.mmkit.cross_entropy_pass(*again)
            else:
                gradients = [grad * x for x in gradients]
            gradients = [None if y is None else x.to(y.dtype) for x, y in zip(gradients, inputs)]
        return *first_derivatives(gradients, inputs), *[None] * 7


@operator
@one_thread()
def cross_entropy_pass(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    sizes: Tensor,
    smoothing: float,
    wanted: bool,
    backend: str,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of each token (T,), 0 where the target is -1, and the gradients of their sum weighted by `sizes`.

    Gradients in hidden (T, D), weight (V, D) and bias (V,), in the wide type; empty unless wanted.
    """
    kind = wide(hidden.dtype)
    tokens = (target >= 0).nonzero()[:, 0]
    if bool((target >= len(weight)).any() | (target < -1).any()):
        words = f"the {len(weight)} words of linear_cross_entropy"
        raise ValueError(f"a target lies outside {words} and is not ignore_index")
    losses = hidden.new_zeros(len(hidden), dtype=kind)
    shapes = (hidden.shape, weight.shape, weight.shape[:1]) if wanted else [(0,)] * 3
    d_hidden, d_weight, d_bias = (hidden.new_zeros(shape, dtype=kind) for shape in shapes)
    take, lift = _triton_chunk if backend == "triton" else _torch_chunk, None
    if backend == "triton" and weight.dtype == torch.float16:
        # Slopes of a mean would vanish in float16: they are held larger, by as much as the type allows.
        lift = 2.0**14 / sizes.abs().max().clamp(min=1e-30)
    sizes = (sizes if lift is None else sizes * lift).to(kind)
    gradients = (d_weight, d_bias) if wanted else None
    for rows in tokens.split(chunk):
        losses[rows], d_rows = take(hidden[rows], weight, bias, target[rows], sizes[rows], smoothing, gradients)
        if wanted:
            d_hidden[rows] = d_rows
    return losses, *(x if lift is None else x.div_(lift) for x in (d_hidden, d_weight, d_bias))


@cross_entropy_pass
def _(hidden, weight, bias, target, sizes, smoothing, wanted, backend, chunk):
    kind = wide(hidden.dtype)
    shapes = (hidden.shape, weight.shape, weight.shape[:1]) if wanted else [(0,)] * 3
    return hidden.new_empty(len(hidden), dtype=kind), *(hidden.new_empty(shape, dtype=kind) for shape in shapes)


def _triton_chunk(hidden, weight, bias, target, sizes, smoothing, gradients) -> tuple[Tensor, Tensor | None]:
    """As `_torch_chunk`, with the whole chunk of logits in one kernel."""
    from mmkit.core.kernels.cross_entropy import losses_and_slopes, product

    logits = product(hidden, weight.T)
    if bias is not None:
        logits += bias.to(logits.dtype)
    losses, slopes = losses_and_slopes(logits, target, sizes, smoothing, weight.dtype)
    if gradients is None:
        return losses, None
    gradients[0].add_(product(slopes.T, hidden))
    gradients[1].add_(slopes.sum(0, dtype=gradients[1].dtype))
    return losses, product(slopes, weight)


def _targets(target: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """The tokens whose target is in a block of words, and its place there."""
    here = ((target >= block.start) & (target < block.stop)).nonzero()[:, 0]
    return here, target[here] - block.start


def _torch_chunk(hidden, weight, bias, target, sizes, smoothing, gradients) -> tuple[Tensor, Tensor | None]:
    """Losses (T,) of a chunk and the gradient of their weighted sum in `hidden`; those in weight and bias are added.

    Threads share out blocks of words, first for the logits and then, when the sum over all words is known, for the
    gradients: each block's words belong to one thread at a time, and what blocks add to `hidden` is added in order.
    """
    kind, device, words = wide(hidden.dtype), hidden.device, len(weight)
    blocks = list(enumerate(slices(words, WORDS if device.type == "cpu" else words)))
    hidden, right = hidden.to(kind), sizes.new_empty(len(hidden))
    logits = right.new_empty(len(hidden), words + PAD)
    tops, totals, sums = right.new_empty(3, len(blocks), len(hidden))

    def score(number: int, block: slice) -> None:
        z = torch.mm(hidden, weight[block].to(kind).T, out=logits[:, block])
        if bias is not None:
            z += bias[block].to(kind)
        if smoothing:
            sums[number] = z.sum(1)
        here, at = _targets(target, block)
        right[here] = z[here, at]
        z[here, at] = -torch.inf
        tops[number] = z.amax(1).clamp(min=torch.finfo(kind).min)
        totals[number] = z.sub_(tops[number, :, None]).exp_().sum(1)

    shared(device, score, blocks)
    top = tops.amax(0)
    shares = (tops - top).exp()
    wrong = (totals * shares).sum(0)
    miss = wrong.log() + top - right
    chance = torch.sigmoid(miss)  # of any wrong word
    losses = torch.logaddexp(miss, torch.zeros_like(miss))
    if smoothing:
        losses += smoothing * (right - sums.sum(0) / words)
    if gradients is None:
        return losses, None
    shares *= sizes * chance / wrong.clamp(min=torch.finfo(kind).tiny)
    parts = right.new_empty(len(blocks), *hidden.shape)

    def multiply(number: int, block: slice) -> None:
        slopes = logits[:, block].mul_(shares[number, :, None])
        here, at = _targets(target, block)
        slopes[here, at] = (sizes * (smoothing - chance))[here]
        if smoothing:
            slopes.sub_((sizes * (smoothing / words))[:, None])
        gradients[0][block].addmm_(slopes.T, hidden)
        gradients[1][block].add_(slopes.sum(0))
        torch.mm(slopes, weight[block].to(kind), out=parts[number])

    shared(device, multiply, blocks)
    return losses, parts.sum(0)
