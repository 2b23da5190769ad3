"""What a loss pulls on: gradients as vectors, held against formulas and watched along a training."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.training import Batch, Objective, State


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """The numbers of some tensors as one vector, without their graph."""
    return torch.cat([x.detach().flatten() for x in tensors])


def pull(loss: Tensor, *modules: nn.Module) -> Tensor:
    """The gradient of a loss with respect to all parameters of some modules, as one vector."""
    return flat(torch.autograd.grad(loss, [p for module in modules for p in module.parameters()]))


def same_gradient(library: Callable[[Tensor], Tensor], x: Tensor, by_hand: Tensor, *, tolerance: float = 1e-12) -> str:
    """Whether a gradient derived by hand is that of autograd through a library's function at x, in words.

    tolerance: of the largest difference, as a share of the largest entry."""
    auto = torch.func.grad(library)(x)
    equal = bool((by_hand - auto).abs().max() < tolerance * auto.abs().max())
    pulled = f"{int((auto != 0).sum())} of {auto.numel()}"
    return f"by hand = library: {equal}   pulled: {pulled} entries"


def shares(loss: Callable[[Tensor], Tensor], s: Tensor) -> Tensor:
    """How a contrastive loss shares out its push among wrong partners: (N, N), each row adds up to 1, or is 0 where
    nothing is pushed.

    s: (N, N) similarities, partners on the diagonal."""
    push = torch.func.grad(loss)(s).fill_diagonal_(0)
    return push / push.sum(1, keepdim=True).clamp(min=1e-30)


def felt(q: Tensor) -> float:
    """How many wrong partners an item effectively feels: exp of the entropy of its shares, the mean over rows that are
    pushed at all."""
    return torch.special.entr(q).sum(1)[q.sum(1) > 0].exp().mean().item()


class Watch:
    """A hook of the loop: `seen[step]` is `look(model)` before that step, for the steps `at`."""

    def __init__(self, look: Callable[[nn.Module], object], at: Iterable[int]):
        self.look, self.at, self.seen = look, frozenset(at), {}

    def before_step(self, state: State) -> None:
        if state.step in self.at:
            self.seen[state.step] = self.look(state.model)


def own_loss(modality: str, *, head: str | None = None) -> Objective:
    """The cross-entropy of one modality by its own head, or by another's: `model.own_heads` of `strategies.balance`."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        summary = getattr(model, modality)(batch.inputs[modality]).summary
        return F.cross_entropy(model.own_heads[head or modality](summary), batch.target)

    return objective


def added(*objectives: Objective) -> Objective:
    """The sum of some objectives."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return sum(each(model, batch) for each in objectives)

    return objective
