"""Ranks by counting: a score lives in registers until it has been compared.

Legend in `common`: rows of `a` are queries, those of `b` the gallery.
"""

import triton
import triton.language as tl
from torch import Tensor, int32

from mmkit.core.kernels.common import blocks, scores

GROUP = 16  # tiles of the gallery that one program runs through


@triton.jit
def counts_kernel(a, b, low, high, owner, owners, most, least, n, N, D: tl.constexpr,
                  BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """most, least (groups, n): how many wrong rows of the gallery score at least low and at least high."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    bottom = tl.load(low + rows, mask=rows < n, other=float("inf"))
    top = tl.load(high + rows, mask=rows < n, other=float("inf"))
    own = tl.load(owner + rows, mask=rows < n, other=-1)
    many, few = tl.zeros((BM,), tl.int32), tl.zeros((BM,), tl.int32)
    for tile in range(GROUP):
        columns = (tl.program_id(1) * GROUP + tile) * BN + tl.arange(0, BN)
        s = scores(a, b, 1.0, rows, columns, n, N, N, D, BM, BN, BK)  # first = N: no column is left out as a row's own
        theirs = tl.load(owners + columns, mask=columns < N, other=-1)
        s = tl.where(own[:, None] == theirs[None, :], float("-inf"), s)
        many += tl.sum((s >= bottom[:, None]).to(tl.int32), 1)
        few += tl.sum((s >= top[:, None]).to(tl.int32), 1)
    place = tl.program_id(1).to(tl.int64) * n + rows
    tl.store(most + place, many, mask=rows < n)
    tl.store(least + place, few, mask=rows < n)


def counts(
    queries: Tensor, gallery: Tensor, low: Tensor, high: Tensor, owner: Tensor, owners: Tensor
) -> tuple[Tensor, Tensor]:
    """How many gallery rows of another owner than the query's score at least `low`, and at least `high`: (Q,) each."""
    sizes, group = blocks(queries), GROUP if queries.is_cuda else 2
    grid = triton.cdiv(len(queries), sizes["BM"]), triton.cdiv(len(gallery), sizes["BN"] * group)
    most, least = (queries.new_empty(grid[1], len(queries), dtype=int32) for _ in range(2))
    given = (x.contiguous() for x in (queries, gallery, low.float(), high.float(), owner.int(), owners.int()))
    counts_kernel[grid](*given, most, least, len(queries), len(gallery), queries.shape[1], GROUP=group, **sizes)
    return most.sum(0), least.sum(0)
