"""Batches spread over the processes of a `torch.distributed` group. Each process holds equally many pairs.

n: rows of this process; N: rows of all processes.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

LN2 = 0.6931471805599453


def rank_and_size(group) -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) without a group."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def gathered(x: Tensor, group) -> Tensor:
    """(n, ...) of every process, in order of rank: (N, ...)."""
    if group is None:
        return x
    out = x.new_empty(dist.get_world_size(group) * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(out, x.contiguous(), group=group)
    return out


def summed(x: Tensor, group) -> Tensor:
    """The sum over processes, on each of them."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def largest(x: Tensor, group) -> Tensor:
    """The largest over processes, on each of them."""
    if group is not None:
        dist.all_reduce(x, op=dist.ReduceOp.MAX, group=group)
    return x


def scattered(x: Tensor, group) -> Tensor:
    """The sum over processes of (N, ...), of which each keeps its own n rows."""
    if group is None:
        return x
    out = x.new_empty(len(x) // dist.get_world_size(group), *x.shape[1:])
    dist.reduce_scatter_tensor(out, x, group=group)
    return out


def logsumexp2(x: Tensor, group) -> Tensor:
    """log2 of the sum over processes of 2^x, on each of them."""
    return x if group is None else torch.logsumexp(gathered(x[None], group) * LN2, 0) / LN2


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], group=None) -> None:
    """Replaces each `.grad` by its mean over processes, as DistributedDataParallel does.

    For steps taken under `no_sync`, such as those of `gradient_cache`.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)
