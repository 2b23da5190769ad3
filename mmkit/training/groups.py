"""Which parameters are trained, how fast, and with how much weight decay: by patterns of their names."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from mmkit.errors import MmkitError, unknown


@dataclass(frozen=True)
class Group:
    """Parameters whose names match a pattern (`*`, `head.*`, `*lora_*`). lr: a multiple of the run's learning rate.

    weight_decay: of matrices; biases, gains and scales (one dimension or none) are exempt."""

    match: str = "*"
    lr: float = 1.0
    weight_decay: float = 0.01


EVERYTHING = (Group(),)


def assign(model: nn.Module, groups: Sequence[Group]) -> dict[str, Group | None]:
    """The group of each parameter by name: the first that matches, None for a parameter that no group names, which is
    frozen.

    Raises MmkitError for a pattern that matches no parameter, with the nearest part's name."""
    names = [name for name, _ in model.named_parameters()]
    for group in groups:
        if not any(fnmatchcase(name, group.match) for name in names):
            parts = dict.fromkeys(part for name in names for part in _patterns(name))
            raise unknown("pattern of parameters", group.match, parts)
    found = {}
    for name in names:
        found[name] = next((group for group in groups if fnmatchcase(name, group.match)), None)
    return found


def _patterns(name: str) -> list[str]:
    """`text.body.norm.weight` -> `text.*`, `text.body.*`, `text.body.norm.*`."""
    parts = name.split(".")
    return [".".join(parts[:depth]) + ".*" for depth in range(1, len(parts))]


def parameter_groups(model: nn.Module, groups: Sequence[Group], lr: float) -> list[dict]:
    """The optimizer's groups; sets `requires_grad` of every parameter. Raises MmkitError when nothing is left to
    train."""
    assigned = assign(model, groups)
    members: dict[Group, list] = {}
    for name, parameter in model.named_parameters():
        group = assigned[name]
        parameter.requires_grad_(group is not None)
        if group is not None:
            members.setdefault(group, []).append(parameter)
    if not members:
        raise MmkitError("no parameter is trained: name at least one group, for example Group('head.*')")
    made = []
    for group, parameters in members.items():
        rate = lr * group.lr
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
        for chosen, decay in ((matrices, group.weight_decay), (vectors, 0.0)):
            if chosen:
                made.append({"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return made


def trains(model: nn.Module, groups: Sequence[Group], part: str) -> bool:
    """Whether some parameter of a part of the model (`image`, `head`) belongs to a group."""
    assigned = assign(model, groups)
    return any(group is not None for name, group in assigned.items() if name.startswith(f"{part}."))


def layerwise(patterns: Sequence[str], decay: float, *, weight_decay: float = 0.01) -> tuple[Group, ...]:
    """Groups from the top layer down: each learns `decay` times as fast as the one above it (ULMFiT, arXiv
    1801.06146)."""
    return tuple(Group(match, decay**depth, weight_decay) for depth, match in enumerate(patterns))
