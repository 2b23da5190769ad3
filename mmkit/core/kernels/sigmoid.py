"""SigLIP: the losses of a block and their slopes in one pass. Legend in `common`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmkit.core.kernels.common import FP16_LIFT, accumulate, blocks, log1p, scores


@triton.jit
def sigmoid_kernel(a, b, unit, shift, out, loss, slope, n, N, first, lift, WANTED: tl.constexpr, D: tl.constexpr,
                   BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """out (n, N) = lift * sigmoid(x) where wanted.

    loss and slope hold each program's sums of softplus(x) and sigmoid(x) over its negatives.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    x = scores(a, b, tl.load(unit), rows, columns, n, N, first, D, BM, BN, BK) + tl.load(shift)
    small = tl.exp2(-1.4426950408889634 * tl.abs(x))
    tail = log1p(small)
    g = tl.where(x > 0, 1.0, small) / (1 + small)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(loss + program, tl.sum(tl.maximum(x, 0.0) + tail))
    if WANTED:
        tl.store(slope + program, tl.sum(g))
        inside = (rows[:, None] < n) & (columns[None, :] < N)
        place = out + rows.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(place, (lift * g).to(out.dtype.element_ty), mask=inside)


def products(
    image: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, first: int, wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the negatives of loss and slope in float64; where wanted G @ texts and G.T @ image in float32."""
    scale, bias, sizes = scale.float(), bias.float(), blocks(image)
    lift = FP16_LIFT if image.dtype == torch.float16 else 1.0
    loss, slope = (image.new_zeros((), dtype=torch.float64) for _ in range(2))

    def fill(block: Tensor, i: int, j: int, n: int, width: int) -> None:
        grid = triton.cdiv(n, sizes["BM"]), triton.cdiv(width, sizes["BN"])
        losses, slopes = (image.new_zeros(grid, dtype=torch.float32) for _ in range(2))
        given = image[i:], texts[j:], scale, bias, block, losses, slopes, n, width, first + i - j, lift, wanted
        sigmoid_kernel[grid](*given, image.shape[1], **sizes)
        loss.add_(losses.double().sum())
        slope.add_(slopes.double().sum())

    if not wanted:
        fill(image, 0, 0, len(image), len(texts))
        return loss, slope, image, texts
    d_image, d_texts = accumulate(image, texts, lambda block, i, j: fill(block, i, j, *block.shape))
    return loss, slope, d_image, d_texts
