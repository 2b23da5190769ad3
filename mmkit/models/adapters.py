"""Adapters: a few new weights beside frozen ones. LoRA and AdaLoRA by peft, the bottleneck adapter in ten lines.

They go into linear layers by the last part of their names (`query`, `value`), so they work on this kit's blocks and
on the encoders of transformers alike. A strategy puts them in with `prepare`, trains `Group("*lora_*")`, and may
merge them when it has finished.
"""

from collections.abc import Sequence
from copy import deepcopy

from torch import Tensor, nn

from mmkit.errors import MmkitError, unknown


def linear_layers(module: nn.Module) -> list[str]:
    """The last parts of the names of a module's linear layers, each once."""
    found = [name.split(".")[-1] for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return list(dict.fromkeys(found))


def _require(module: nn.Module, targets: Sequence[str]) -> None:
    there = linear_layers(module)
    if any("lora_" in name or "adapter_" in name for name, _ in module.named_parameters()):
        raise MmkitError(
            f"{type(module).__name__} has adapters already: merge(model) them first, or add them once, to all targets"
        )
    if not there:
        raise MmkitError(
            f"{type(module).__name__} has no linear layer that an adapter could go into: name another part"
        )
    for target in targets:
        if target not in there:
            raise unknown("linear layer", target, there)


def add_lora(
    module: nn.Module, *, rank: int = 8, targets: Sequence[str] = ("query", "value"), alpha: int | None = None
) -> None:
    """LoRA (arXiv 2106.09685): W x + (alpha / rank) B A x beside each target; B starts at zero, so nothing changes yet.

    alpha: None takes 2 * rank. Raises MmkitError for a target that is not there, with the nearest layer's name."""
    from peft import LoraConfig, inject_adapter_in_model

    _require(module, targets)
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules=list(targets))
    inject_adapter_in_model(config, module)


def add_adalora(
    module: nn.Module, *, steps: int, rank: int = 8, start: int = 12, targets: Sequence[str] = ("query", "value")
) -> nn.Module:
    """AdaLoRA (arXiv 2303.10512): ranks fall from `start` to `rank` in the mean, where the layer's use says.

    Returns peft's tuner, which `mmkit.training.RankAllocation` asks after every step. steps: of the whole training."""
    from peft import AdaLoraConfig, AdaLoraModel

    _require(module, targets)
    config = AdaLoraConfig(
        init_r=start,
        target_r=rank,
        tinit=steps // 10,
        tfinal=steps // 3,
        deltaT=max(1, steps // 50),
        total_step=steps,
        target_modules=list(targets),
    )
    return AdaLoraModel(module, {"default": config}, "default")


class Bottleneck(nn.Module):
    """A linear layer followed by x + up(relu(down(x))) (arXiv 1902.00751); `up` starts at zero, so nothing changes
    yet."""

    def __init__(self, layer: nn.Linear, width: int):
        super().__init__()
        self.layer = layer
        self.adapter_down, self.adapter_up = nn.Linear(layer.out_features, width), nn.Linear(width, layer.out_features)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x + self.adapter_up(self.adapter_down(x).relu())


def add_bottlenecks(module: nn.Module, *, width: int = 16, targets: Sequence[str] = ("out",)) -> None:
    """Put a `Bottleneck` behind each target; train it with `Group("*adapter_*")`."""
    _require(module, targets)
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear) and name.split(".")[-1] in targets:
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.split(".")[-1], Bottleneck(part, width))


def merge(module: nn.Module) -> None:
    """Add LoRA's product to the weights it stands beside and take the adapters out: the same outputs, the old
    layers."""
    from peft.tuners.lora import LoraLayer

    for name, part in list(module.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge()
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.split(".")[-1], part.get_base_layer())


def merged(model: nn.Module) -> nn.Module:
    """The model with low-rank adapters added to the weights beside them. Raises MmkitError for other adapters."""
    if any("lora_" in name for name in model.state_dict()):
        model = deepcopy(model)
        merge(model)
    if any("adapter_" in name for name in model.state_dict()):
        raise MmkitError("bottleneck adapters cannot be merged into their layers: keep model.state_dict() yourself")
    return model
