"""What a run cost, phase by phase: FLOPs, seconds, peak memory, parameters trained."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import mmkit.core  # noqa: F401  its operators, whose FLOPs are told to the counter below


@dataclass
class Phase:
    """One stage of training (pretraining of an encoder, fusion, everything). What came from the cache keeps the cost of
    the run that made it."""

    flops: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    parameters_trained: int = 0
    flops_a_step: float = 0.0

    def add_step(self, trained: Sequence[Tensor], flops: float | None) -> None:
        """One more step that trained these parameters. flops: as counted on it; None takes those of the step that was
        counted last."""
        if flops is not None:
            self.flops_a_step = flops
            self.parameters_trained = max(self.parameters_trained, sum(p.numel() for p in trained))
        self.flops += self.flops_a_step
        self.steps += 1

    def as_dict(self) -> dict:
        """For a record."""
        return {name: getattr(self, name) for name in ("flops", "seconds", "steps", "parameters_trained")}


@dataclass
class Cost:
    """The sum over phases. FLOPs are counted on the first step of each phase and whenever other parameters are trained,
    and summed over the steps that ran (a multiply-add is two FLOPs); seconds are wall time of training, evaluation
    left out; bytes are peak resident memory. parameters_total counts the model that comes out; a phase may train
    more, such as the decoder that pretraining throws away."""

    phases: dict[str, Phase] = field(default_factory=dict)
    peak_bytes: int = 0
    parameters_total: int = 0

    @property
    def flops(self) -> float:
        return sum(phase.flops for phase in self.phases.values())

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases.values())

    @property
    def parameters_trained(self) -> int:
        """The most parameters any one phase trains."""
        return max((phase.parameters_trained for phase in self.phases.values()), default=0)

    def as_dict(self) -> dict:
        return {
            "flops": self.flops,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "parameters_trained": self.parameters_trained,
            "parameters_total": self.parameters_total,
            "phases": {name: phase.as_dict() for name, phase in self.phases.items()},
        }


def _register(operator, formula: Callable[..., int]) -> None:
    """Tell PyTorch's counter, which does not see into the core's operators; formulas take the shapes of the operator's
    tensors."""
    register_flop_formula(operator)(lambda *shapes, **_: formula(*shapes))


_register(torch.ops.mmkit.contrastive_sums, lambda image, texts, *_: 2 * image[0] * texts[0] * texts[1])
_register(
    torch.ops.mmkit.contrastive_products, lambda image, texts, *_: 6 * image[0] * texts[0] * texts[1]
)  # the scores again, and two products
_register(
    torch.ops.mmkit.sigmoid_pass,
    lambda image, texts, scale, bias, first, wanted, *_: (6 if wanted else 2) * image[0] * texts[0] * texts[1],
)
_register(
    torch.ops.mmkit.cross_entropy_pass,
    lambda hidden, weight, bias, target, sizes, smoothing, wanted, *_: (
        (6 if wanted else 2) * hidden[0] * weight[0] * weight[1]
    ),
)


def _attention(query, key, value, *_, **__) -> int:
    """Q K^T, and the weights times V."""
    batch, heads, tokens, dim = query
    return 2 * batch * heads * tokens * key[2] * (dim + value[3])


def _attention_backward(grad, query, key, value, *_, **__) -> int:
    """Two products for each of the forward pass; that some kernels make the scores again is not counted."""
    return 2 * _attention(query, key, value)


# Which kernel computes attention depends on the device, the mask and the torch release, and not every release counts
# every kernel. These formulas count the same for all of them, and the same as for plain matrix products.
KERNELS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
ATTENTION = {}
for _kernel in KERNELS:
    ATTENTION[getattr(torch.ops.aten, f"_scaled_dot_product_{_kernel}")] = _attention
    ATTENTION[getattr(torch.ops.aten, f"_scaled_dot_product_{_kernel}_backward")] = _attention_backward


def flop_counter() -> FlopCounterMode:
    """A context that counts the FLOPs of what runs in it, a multiply-add being two, whatever the torch release."""
    return FlopCounterMode(display=False, custom_mapping=ATTENTION)


def flops_of(call: Callable[[], object]) -> float:
    """The FLOPs of a call."""
    with flop_counter() as counter:
        call()
    return float(counter.get_total_flops())


def forget_peak() -> None:
    """From here on `peak_bytes` counts anew, where the system can do that (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most resident memory of this process since `forget_peak`; where the system does not say, what it holds
    now."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)
