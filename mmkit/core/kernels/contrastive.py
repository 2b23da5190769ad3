"""InfoNCE: sums over negatives in both directions in one pass, and the slopes of a block.

Legend in `common`; logarithms are to base 2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmkit.core.distributed import LN2
from mmkit.core.kernels.common import FP16_LIFT, accumulate, blocks, scores

BAND, GROUP = 4096, 16  # rows whose partial sums are held at a time; tiles that one program runs through


@triton.jit
def add_logs(x, y):
    """log2(2^x + 2^y)."""
    top = tl.maximum(tl.maximum(x, y), -1e30)
    return top + tl.log2(tl.exp2(x - top) + tl.exp2(y - top))


@triton.jit
def sums_kernel(a, b, unit, row_sums, column_sums, n, N, first, D: tl.constexpr,
                BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """row_sums (groups, n) and column_sums (row tiles, N) of 2^score, as logarithms.

    One exponential a pair, unless a row or a column lies 140 powers of 2 below the largest score of the tile.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    scale = tl.load(unit)
    row_total = tl.full((BM,), float("-inf"), tl.float32)
    for tile in range(GROUP):
        columns = (tl.program_id(1) * GROUP + tile) * BN + tl.arange(0, BN)
        s = scores(a, b, scale, rows, columns, n, N, first, D, BM, BN, BK)
        top = tl.ceil(tl.maximum(tl.max(s), -1e30)) - 64.0  # whole, so that it is subtracted without rounding
        e = tl.exp2(s - top)
        row, column = tl.sum(e, 1), tl.sum(e, 0)
        row_log, column_log = tl.log2(row) + top, tl.log2(column) + top
        least = tl.minimum(tl.min(tl.where(rows < n, row, 1.0)), tl.min(tl.where(columns < N, column, 1.0)))
        if least < 1.3e-23:
            s = scores(a, b, scale, rows, columns, n, N, first, D, BM, BN, BK)
            row_top, column_top = tl.maximum(tl.max(s, 1), -1e30), tl.maximum(tl.max(s, 0), -1e30)
            row_log = tl.log2(tl.sum(tl.exp2(s - row_top[:, None]), 1)) + row_top
            column_log = tl.log2(tl.sum(tl.exp2(s - column_top[None, :]), 0)) + column_top
        row_total = add_logs(row_total, row_log)
        tl.store(column_sums + tl.program_id(0).to(tl.int64) * N + columns, column_log, mask=columns < N)
    tl.store(row_sums + tl.program_id(1).to(tl.int64) * n + rows, row_total, mask=rows < n)


@triton.jit
def slopes_kernel(
    a, b, unit, u, v, out, n, N, first, lift, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """out (n, N) = lift * 2^s * (2^u + 2^v); both exponents are at most 0, so that nothing can overflow."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    s = scores(a, b, tl.load(unit), rows, columns, n, N, first, D, BM, BN, BK)
    row_weight = tl.load(u + rows, mask=rows < n, other=float("-inf"))
    column_weight = tl.load(v + columns, mask=columns < N, other=float("-inf"))
    g = lift * (tl.exp2(s + row_weight[:, None]) + tl.exp2(s + column_weight[None, :]))
    inside = (rows[:, None] < n) & (columns[None, :] < N)
    tl.store(out + rows.to(tl.int64)[:, None] * N + columns[None, :], g.to(out.dtype.element_ty), mask=inside)


def sums(image: Tensor, texts: Tensor, unit: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """log2-sum-exp2 of the negatives of each row (n,) and column (N,) in float64."""
    sizes, unit, count = blocks(image), unit.float(), len(texts)
    group = GROUP if image.device.type == "cuda" else 2
    rows = image.new_empty(len(image), dtype=torch.float64)
    columns = image.new_full((count,), -torch.inf, dtype=torch.float64)
    groups = triton.cdiv(count, sizes["BN"] * group)
    for i in range(0, len(image), BAND):
        a = image[i : i + BAND]
        row_tiles = triton.cdiv(len(a), sizes["BM"])
        row_parts = image.new_empty(groups, len(a), dtype=torch.float32)
        column_parts = image.new_empty(row_tiles, count, dtype=torch.float32)
        given = a, texts, unit, row_parts, column_parts, len(a), count, first + i, image.shape[1]
        sums_kernel[row_tiles, groups](*given, GROUP=group, **sizes)
        rows[i : i + BAND] = _log_sum(row_parts)
        columns = torch.logaddexp2(columns, _log_sum(column_parts))
    return rows, columns


def _log_sum(parts: Tensor) -> Tensor:
    """In strips, so that the float64 copy stays small."""
    return torch.cat([torch.logsumexp(part.double() * LN2, 0) / LN2 for part in parts.split(32768, 1)])


def products(
    image: Tensor, texts: Tensor, unit: Tensor, row_weight: Tensor, column_weight: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """G @ texts and G.T @ image for G = 2^s * (2^row_weight + 2^column_weight)."""
    unit, u, v = unit.float(), row_weight.float(), column_weight.float()
    sizes, lift = blocks(image), FP16_LIFT if image.dtype == torch.float16 else 1.0

    def fill(block: Tensor, i: int, j: int) -> None:
        n, width = block.shape
        grid = triton.cdiv(n, sizes["BM"]), triton.cdiv(width, sizes["BN"])
        given = image[i:], texts[j:], unit, u[i:], v[j:], block, n, width, first + i - j, lift, image.shape[1]
        slopes_kernel[grid](*given, **sizes)

    return accumulate(image, texts, fill)
