"""What a computation keeps, moves and takes: bytes that autograd saves, bytes that operators move, seconds."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """The memory that autograd keeps for the backward pass of what runs inside the block, in bytes: `sizes`, one a
    tensor, and `total`.

    Parameters and other leaves are left out, and a tensor that is kept twice counts once."""

    def __init__(self):
        self._pieces: dict[int, int] = {}
        super().__init__(self._pack, lambda x: x)

    def __enter__(self) -> "Saved":
        super().__enter__()
        return self

    def _pack(self, x: Tensor) -> Tensor:
        owner = x if x._base is None else x._base
        if not (owner.is_leaf and owner.requires_grad):
            self._pieces[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    @property
    def sizes(self) -> list[int]:
        return list(self._pieces.values())

    @property
    def total(self) -> int:
        return sum(self._pieces.values())


class _Traffic(TorchDispatchMode):
    def __init__(self, cached: int):
        super().__init__()
        self.cached, self.moved = cached, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        found = operator(*args, **(kwargs or {}))
        if not operator.is_view:
            for x in tree_leaves((args, kwargs, found)):
                if isinstance(x, Tensor) and x.untyped_storage().nbytes() > self.cached:
                    self.moved += x.numel() * x.element_size()
        return found


def moved_bytes(call: Callable[[], object], *, cached: int = 0) -> int:
    """Bytes that the operators of a call read and write. cached: an operand of so many bytes or fewer stays in the
    cache and costs nothing. With tensors on the device `meta` nothing is computed: shapes alone decide."""
    with _Traffic(cached) as traffic:
        call()
    return traffic.moved


def seconds(call: Callable[..., object], *inputs) -> float:
    """How long one call takes. On one thread the processor's time is read, which does not hear what else runs."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    call(*inputs)
    return clock() - started


def fastest(call: Callable[..., object], *inputs) -> float:
    """Seconds of the faster of two calls, after a first one that does not count."""
    return min([seconds(call, *inputs) for _ in range(3)][1:])


def ceilings(side: int) -> tuple[dict[str, float], float]:
    """What this machine reaches: operations a second of a product of (side, side), by kind of number, and bytes a
    second of a copy of a memory eight times as large."""
    square, large = torch.randn(side, side), torch.zeros(8 * side**2)
    peak = {"float32": 2 * side**3 / fastest(torch.mm, square, square)}
    peak["bfloat16"] = 2 * side**3 / fastest(torch.mm, square.bfloat16(), square.bfloat16())
    return peak, 2 * 4 * len(large) / fastest(torch.empty_like(large).copy_, large)
