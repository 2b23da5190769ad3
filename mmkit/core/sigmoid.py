"""The pairwise sigmoid loss in tiles. Legend: N pairs in the batch, n of them on this process, D width of an embedding.

There is no normaliser. So one pass over the tiles gives the loss and all gradients: 6 N^2 D operations, the memory of
one tile.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.core.backend import choose, dots, finite, first_derivatives, operator, pairs, scalar, total, wide
from mmkit.core.contrastive import buffer, negatives, side, slabs
from mmkit.core.distributed import gathered, rank_and_size, scattered, summed
from mmkit.core.workers import one_thread, shared, strips, tiles


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float = 0.0,
    *,
    backend: str = "auto",
    tile: int | None = None,
    group=None,
) -> Tensor:
    """SigLIP (Zhai et al. 2023, arXiv 2303.15343, algorithm 1): each of the N x N pairs is a question of yes or no.

    -1/N sum_ij log sigmoid(z_ij (scale image_i . text_j + bias)) with z = 1 for a pair and -1 otherwise. image, text:
    (N, D) unit vectors; row i of one belongs to row i of the other. `tile`, `group`, errors: as in `contrastive_loss`.
    """
    image, text = pairs("sigmoid_loss", image, text)
    scale, bias = scalar(logit_scale, image, "logit_scale"), scalar(logit_bias, image, "logit_bias")
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (image, text, scale, bias))
    tile = tile or side(len(image), image.device)
    loss = _Sigmoid.apply(image, text, scale, bias, wanted, choose(image, backend).name, tile, group)[0]
    return finite(loss, "sigmoid_loss")


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(image, text, scale, bias, wanted, backend, tile, group):
        rank, processes = rank_and_size(group)
        n, texts = len(image), gathered(text, group)
        loss, d_image, d_texts, d_scale, d_bias = torch.ops.mmkit.sigmoid_pass(
            image, texts, scale, bias, rank * n, wanted, backend, tile
        )
        d_text = scattered(d_texts, group) if wanted else d_texts
        step = (scale.double() / n).to(d_image.dtype)  # DistributedDataParallel divides by the number of processes
        gradients = d_image.mul_(step), d_text.mul_(step), d_scale / n, d_bias / n
        return (summed(loss, group) / (n * processes)).to(wide(image.dtype)), *gradients

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4], *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx, grad, *_):
        inputs, gradients = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        gradients = [(grad * x).to(y.dtype) for x, y in zip(gradients, inputs)]
        return *first_derivatives(gradients, inputs), *[None] * 4


@operator
@one_thread()
def sigmoid_pass(
    image: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, first: int, wanted: bool, backend: str, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sum of the losses; where wanted its gradients: G @ texts (n, D), G.T @ image (N, D), and in scale and bias.

    G is the gradient in the scores.
    """
    kind = wide(image.dtype)
    scale, bias = scale.double(), bias.double()
    if backend == "triton":
        from mmkit.core.kernels.sigmoid import products

        loss, slope, d_image, d_texts = products(image, texts, scale, bias, first, wanted)
    else:
        loss, slope, d_image, d_texts = _torch_products(image, texts, scale, bias, first, wanted, tile)
    local = texts[first : first + len(image)]
    positive = dots(image, local) * scale + bias
    loss = loss + torch.logaddexp(-positive, torch.zeros_like(positive)).sum()
    loss = torch.where(positive.isfinite().all(), loss, torch.nan)
    if not wanted:
        return loss, *(image.new_empty(0, dtype=kind) for _ in range(4))
    pull = torch.sigmoid(-positive)
    d_image.addcmul_(pull.to(kind)[:, None], local.to(kind), value=-1)
    d_texts[first : first + len(image)].addcmul_(pull.to(kind)[:, None], image.to(kind), value=-1)
    return loss, d_image, d_texts, dots(image, d_image).sum(), slope - pull.sum()


@sigmoid_pass
def _(image, texts, scale, bias, first, wanted, backend, tile):
    kind, number = wide(image.dtype), lambda: image.new_empty((), dtype=torch.float64)
    if not wanted:
        return number(), *(image.new_empty(0, dtype=kind) for _ in range(4))
    return number(), torch.empty_like(image, dtype=kind), torch.empty_like(texts, dtype=kind), number(), number()


def _torch_products(
    image: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, first: int, wanted: bool, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind, scale, bias, grid = wide(image.dtype), float(scale), float(bias), tiles(len(image), len(texts), tile)
    d_image, d_texts = (torch.zeros_like(x, dtype=kind) if wanted else x for x in (image, texts))
    sums = image.new_zeros(2, len(grid), dtype=torch.float64)  # of losses and of slopes, tile by tile

    def add(buffer: Tensor, number: int, i: slice, j: slice) -> None:
        a, b = image[i].to(kind), texts[j].to(kind)
        scores = negatives(a, b, scale, first + i.start - j.start, buffer[: len(a), : len(b)])
        for part in slabs(scores):
            sums[0, number] += F.softplus(part.add_(bias)).sum()
            if wanted:
                sums[1, number] += part.sigmoid_().sum()
        if wanted:
            d_image[i].addmm_(scores, b)
            d_texts[j].addmm_(scores.T, a)

    tasks = [(number, *tile) for number, tile in enumerate(grid)]
    room = partial(buffer, image, texts, tile)
    shared(image.device, add, tasks, adds_to=lambda task: strips(task[1:]), scratch=room)
    return *(total(x) for x in sums), d_image, d_texts
