"""The pairwise sigmoid loss in tiles. Legend: N pairs in the batch, n of them on this process, D width of an embedding.

There is no normaliser, so that one pass over the tiles gives the loss and all gradients: 6 N^2 D operations, memory of one tile.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkit.core.backend import choose, dots, finite, first_derivatives, operator, pairs, scalar, wide
from mmkit.core.contrastive import SLAB, TILE, tiles
from mmkit.core.distributed import gathered, place, scattered, summed


def sigmoid_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float = 0.0, *, backend: str = "auto", tile: int | None = None, group=None
) -> Tensor:
    """SigLIP (arXiv 2303.15343, algorithm 1): -1/N sum_ij log sigmoid(z_ij (scale image_i . text_j + bias)), z = 1 for a pair and -1 otherwise.

    image, text: (N, D) unit vectors, row i of one belongs to row i of the other. `tile` and `group` as in `contrastive_loss`, and so are the errors.
    """
    image, text = pairs("sigmoid_loss", image, text)
    scale, bias = scalar(logit_scale, image, "logit_scale"), scalar(logit_bias, image, "logit_bias")
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (image, text, scale, bias))
    tile = tile or TILE.get(image.device.type, TILE["cuda"])
    return finite(_Sigmoid.apply(image, text, scale, bias, wanted, choose(image, backend).name, tile, group)[0], "sigmoid_loss")


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(image, text, scale, bias, wanted, backend, tile, group):
        rank, processes = place(group)
        first, total = rank * len(image), processes * len(image)
        loss, d_image, d_texts, d_scale, d_bias = torch.ops.mmkit.sigmoid_pass(image, gathered(text, group), scale, bias, first, wanted, backend, tile)
        d_text = scattered(d_texts, group) if wanted else d_texts
        step = scale.double() * processes / total
        gradients = d_image.mul_(step.to(d_image.dtype)), d_text.mul_(step.to(d_text.dtype)), d_scale * processes / total, d_bias * processes / total
        return (summed(loss, group) / total).to(wide(image.dtype)), *gradients

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4], *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx, grad, *_):
        inputs, gradients = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        return *first_derivatives([(grad * x).to(y.dtype) for x, y in zip(gradients, inputs)], inputs), None, None, None, None


@operator
def sigmoid_pass(
    image: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, first: int, wanted: bool, backend: str, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The sum of the losses and, where wanted, its gradients in the scores times texts (n, D) and image (N, D), in the scale and in the bias."""
    kind = wide(image.dtype)
    scale, bias = scale.double(), bias.double()
    if backend == "triton":
        from mmkit.core.kernels.sigmoid import products

        loss, slope, d_image, d_texts = products(image, texts, scale, bias, first, wanted)
    else:
        loss, slope, d_image, d_texts = _torch_products(image, texts, scale, bias, first, wanted, tile)
    own = texts[first : first + len(image)]
    positive = dots(image, own) * scale + bias
    loss = torch.where(positive.isfinite().all(), loss + torch.logaddexp(-positive, torch.zeros_like(positive)).sum(), torch.nan)
    if not wanted:
        return loss, *(image.new_empty(0, dtype=kind) for _ in range(4))
    pull = torch.sigmoid(-positive)
    d_image.addcmul_(pull.to(kind)[:, None], own.to(kind), value=-1)
    d_texts[first : first + len(image)].addcmul_(pull.to(kind)[:, None], image.to(kind), value=-1)
    return loss, d_image, d_texts, dots(image, d_image).sum(), slope - pull.sum()


@sigmoid_pass
def _(image, texts, scale, bias, first, wanted, backend, tile):
    kind, number = wide(image.dtype), lambda: image.new_empty((), dtype=torch.float64)
    if not wanted:
        return number(), *(image.new_empty(0, dtype=kind) for _ in range(4))
    return number(), torch.empty_like(image, dtype=kind), torch.empty_like(texts, dtype=kind), number(), number()


def _torch_products(image: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, first: int, wanted: bool, tile: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_image, d_texts = (torch.zeros_like(x, dtype=wide(x.dtype)) if wanted else x for x in (image, texts))
    loss, slope = (image.new_zeros((), dtype=torch.float64) for _ in range(2))
    for i, j, scores, a, b in tiles(image, texts, scale, first, tile):
        for part in scores.split(SLAB.get(image.device.type, SLAB["cuda"])):
            part.add_(bias.to(part.dtype))
            loss += F.softplus(part).sum().double()
            if wanted:
                slope += part.sigmoid_().sum().double()
        if wanted:
            d_image[i].addmm_(scores, b)
            d_texts[j].addmm_(scores.T, a)
    return loss, slope, d_image, d_texts
