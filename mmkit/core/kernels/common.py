"""What the pairwise kernels share.

Legend: n rows of `a` (images), N rows of `b` (texts), D width; the positive of row i is column first + i.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 4096, 32768  # of the block of slopes that is held at a time: 256 MB in bfloat16
FP16_LIFT = 2.0**14  # float16 slopes are stored this much larger, away from its smallest numbers


@triton.jit
def scores(
    a, b, unit, rows, columns, n, N, first, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """unit * a[rows] @ b[columns].T in float32; the positives and what lies outside at -inf."""
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(0, D, BK):
        depth = k + tl.arange(0, BK)
        inside_a = (rows[:, None] < n) & (depth[None, :] < D)
        inside_b = (columns[None, :] < N) & (depth[:, None] < D)
        x = tl.load(a + rows.to(tl.int64)[:, None] * D + depth[None, :], mask=inside_a, other=0.0)
        y = tl.load(b + columns.to(tl.int64)[None, :] * D + depth[:, None], mask=inside_b, other=0.0)
        total = tl.dot(x, y, total, input_precision="ieee")
    out = (rows[:, None] + first == columns[None, :]) | (rows[:, None] >= n) | (columns[None, :] >= N)
    return tl.where(out, float("-inf"), total * unit)


@triton.jit
def log1p(x):
    """log(1 + x) with the digits that 1 + x loses (Kahan)."""
    y = 1 + x
    return tl.log(y) - ((y - 1) - x) / y


def blocks(x: Tensor) -> dict:
    """Sizes of a tile: those of the GPU, or small ones for the interpreter."""
    if x.device.type != "cuda":
        return {"BM": 16, "BN": 16, "BK": 16}
    wide = x.dtype == torch.float32
    return {"BM": 128, "BN": 64 if wide else 128, "BK": 32 if wide else 64, "num_warps": 8, "num_stages": 3}


def product(x: Tensor, y: Tensor) -> Tensor:
    """x @ y summed and returned in float32."""
    if x.device.type == "cuda" and x.dtype != torch.float32:
        return torch.mm(x, y, out_dtype=torch.float32)
    return torch.mm(x.float(), y.float())


def accumulate(image: Tensor, texts: Tensor, fill: Callable[[Tensor, int, int], None]) -> tuple[Tensor, Tensor]:
    """G @ texts and G.T @ image in float32, where fill(block, i, j) writes G[i : i + rows, j : j + columns].

    One block at a time and without atomics, so that the same bits come out each time.
    """
    d_image, d_texts = (torch.zeros_like(x, dtype=torch.float32) for x in (image, texts))
    space = image.new_empty(min(ROWS, len(image)) * min(COLUMNS, len(texts)))
    for i in range(0, len(image), ROWS):
        a = image[i : i + ROWS]
        for j in range(0, len(texts), COLUMNS):
            b = texts[j : j + COLUMNS]
            block = space[: len(a) * len(b)].view(len(a), len(b))
            fill(block, i, j)
            d_image[i : i + ROWS] += product(block, b)
            d_texts[j : j + COLUMNS] += product(block.T, a)
    if image.dtype == torch.float16:
        d_image /= FP16_LIFT
        d_texts /= FP16_LIFT
    return d_image, d_texts
