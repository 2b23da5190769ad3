"""Objectives: (model, batch) -> scalar loss; and functions that make one objective of another.

Legend: B batch, K classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.errors import MmkitError, unknown
from mmkit.training.batch import Batch

Objective = Callable[[nn.Module, Batch], Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of logits (B, K) against target (B,); a weighted mean where the batch has weights.

    Raises MmkitError for a target of another shape."""
    return labelled(model(batch.inputs), batch)


def labelled(logits: Tensor, batch: Batch) -> Tensor:
    """The same of logits that are there already."""
    target = batch.target
    if not isinstance(target, Tensor) or target.shape != logits.shape[:1]:
        given = tuple(target.shape) if isinstance(target, Tensor) else target and f"one a task ({', '.join(target)})"
        raise MmkitError(
            f"cross-entropy of logits {tuple(logits.shape)} needs targets ({len(logits)},), got {given}: check the "
            "loader's target"
        )
    return weighted(logits, target, batch.weight)


def weighted(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The mean cross-entropy, weighted by item where weights (B,) are given; 0 where all of them are 0."""
    if weight is None:
        return F.cross_entropy(logits, target)
    losses = F.cross_entropy(logits, target, reduction="none")
    return (weight * losses).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def require_equal_weights(batch: Batch, loss: str) -> None:
    """Raise MmkitError where a loss would leave the items' weights unread."""
    if batch.weight is not None:
        raise MmkitError(f"{loss} does not weigh items: leave the loader's weight out, or write an objective that does")


def distilled(objective: Objective, teacher: nn.Module, *, alpha: float = 0.5, temperature: float = 2.0) -> Objective:
    """(1 - alpha) times the objective plus alpha times T^2 KL(teacher || student) at temperature T (arXiv 1503.02531).

    The student runs once: the objective's own pass of the batch is what the teacher is compared with. The teacher
    stays as it is. Raises MmkitError when its classes are not the student's."""
    teacher = teacher.eval().requires_grad_(False)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        passes = []

        def keep(module: nn.Module, given: tuple, logits: Tensor) -> None:
            if given and given[0] is batch.inputs:  # and not inputs that the objective has changed
                passes.append(logits)

        with model.register_forward_hook(keep):
            own = objective(model, batch)
        student = passes[0] if passes else model(batch.inputs)
        with torch.no_grad():
            wanted = teacher(batch.inputs)
        if wanted.shape != student.shape:
            raise MmkitError(
                f"the teacher gives {tuple(wanted.shape)} and the student {tuple(student.shape)}: take a teacher of "
                "the same classes"
            )
        wanted, student = F.log_softmax(wanted / temperature, 1), F.log_softmax(student / temperature, 1)
        match = F.kl_div(student, wanted, reduction="batchmean", log_target=True) * temperature**2
        return (1 - alpha) * own + alpha * match

    return loss


def adversarial(
    objective: Objective, *, modality: str, size: float, low: float = 0.0, high: float = 255.0
) -> Objective:
    """The mean of the loss on the input and on the input moved by `size` along the sign of its gradient (FGSM, arXiv
    1412.6572).

    size, low, high: in the units of the raw input. Raises MmkitError for a modality the batch does not have or that
    is already encoded."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if modality not in batch.inputs:
            raise unknown("modality to attack", modality, batch.inputs)
        if not isinstance(batch.inputs[modality], Tensor):
            raise MmkitError(
                f"{modality!r} comes encoded from a frozen encoder: an attack needs its raw input, so train the "
                "encoder, too"
            )
        leaf = batch.inputs[modality].float().requires_grad_()
        x = leaf.clone()  # the FLOP counter cannot follow a gradient to a leaf that a module takes
        clean = objective(model, batch.with_input(modality, x))
        (slope,) = torch.autograd.grad(clean, leaf, retain_graph=True)
        moved = (leaf + size * slope.sign()).clamp(low, high).detach()
        return (clean + objective(model, batch.with_input(modality, moved))) / 2

    return loss


def mutual(models: nn.ModuleDict, batch: Batch) -> Tensor:
    """Each of several models learns from the labels and from the others' present opinion (arXiv 1706.00384).

    The sum over models of cross-entropy plus the mean of KL(other || self); the other is a constant in it."""
    count = len(models) if isinstance(models, nn.ModuleDict) else 1
    if count < 2:
        raise MmkitError(
            f"mutual learning needs two models or more, got {count}: give an nn.ModuleDict of them to train"
        )
    require_equal_weights(batch, "mutual learning")
    opinions = {name: F.log_softmax(model(batch.inputs), 1) for name, model in models.items()}
    total = 0.0
    for name, opinion in opinions.items():
        total = total + F.nll_loss(opinion, batch.target)
        for other in (other for other in opinions if other != name):
            divergence = F.kl_div(opinion, opinions[other].detach(), reduction="batchmean", log_target=True)
            total = total + divergence / (len(opinions) - 1)
    return total


def multi_task(weights: Mapping[str, float]) -> Objective:
    """The weighted sum of a cross-entropy for each task; model and target give one tensor a task, by name. A target of
    -1 is unknown."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.inputs)
        if not isinstance(logits, Mapping) or not isinstance(batch.target, Mapping):
            raise MmkitError("multi_task needs a model and a target that give one tensor a task, as a dict by name")
        require_equal_weights(batch, "multi_task")
        total = 0.0
        for name, weight in weights.items():
            if name not in logits or name not in batch.target:
                raise unknown("task", name, logits.keys() & batch.target.keys())
            target = batch.target[name]
            known = (target >= 0).sum().clamp(min=1)  # a batch may know none of a task's targets
            total = total + weight * F.cross_entropy(logits[name], target, ignore_index=-1, reduction="sum") / known
        return total

    return loss
