"""Which code computes a loss, and what every loss asks of its inputs."""

import importlib.util
import logging
import os
from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")
# Rows a power of two apart share the cache's sets, which makes a product with the transpose a tenth slower.
PAD = 16  # numbers between the rows of a tile
HAS_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported: the import takes a second
LOG = logging.getLogger("mmkit.core")


class Choice(NamedTuple):
    """The backend taken, "torch" or "triton", and the reason."""

    name: str
    why: str


def choose(x: Tensor, backend: str = "auto") -> Choice:
    """The backend for tensors like `x`, which every function of the core asks for and logs (at debug, `mmkit.core`).

    Raises ValueError for an unknown name, or for "triton" where it cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown, choose one of {', '.join(BACKENDS)}")
    if backend == "torch":
        return Choice("torch", "asked for")
    obstacle = _obstacle(x)
    if backend == "triton" and obstacle:
        raise ValueError(f"backend='triton' cannot run: {obstacle}; pass backend='auto'")
    if backend == "auto" and not obstacle:
        if x.device.type != "cuda":
            obstacle = "the interpreter is for tests"
        elif x.dtype == torch.float32:
            obstacle = "float32 products belong to the vendor's library"
    reason = "asked for" if backend == "triton" else f"{x.dtype} on an NVIDIA GPU"
    choice = Choice("torch", obstacle) if obstacle else Choice("triton", reason)
    if not torch.compiler.is_compiling():
        LOG.debug("%s: %s", *choice)
    return choice


def _obstacle(x: Tensor) -> str:
    """Why the Triton kernels cannot take `x`; empty when they can."""
    if not HAS_TRITON:
        return "Triton is not installed"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the kernels have no {x.dtype}"
    if x.device.type != "cuda" or torch.version.hip:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return "" if interpreted else f"the inputs are on {x.device}, not on an NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(x.device)
    return "" if major >= 8 else f"the GPU has compute capability {major}.{minor}, the kernels need 8.0"


def pairs(name: str, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides (N, D) in the type they are multiplied in: autocast's where it is on.

    Raises ValueError, in the name of the loss, unless they are two float tensors of one shape, type and device.
    """
    if image.shape != text.shape or image.ndim != 2 or not image.numel():
        shapes = f"{tuple(image.shape)} and {tuple(text.shape)}"
        raise ValueError(f"{name} needs two non-empty (N, D) tensors of one shape, got {shapes}")
    image, text = autocast(image, text)
    if image.dtype != text.dtype or not image.is_floating_point() or image.device != text.device:
        kinds = f"{image.dtype} on {image.device} and {text.dtype} on {text.device}"
        raise ValueError(f"{name} needs two floating-point tensors of one type and device, got {kinds}")
    if image.device.type == "mps":  # it has no float64, in which a few sums are kept
        image, text = image.cpu(), text.cpu()
    return image.contiguous(), text.contiguous()


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast would hand them to a matrix product."""
    kind = tensors[0].device.type
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors) if torch.is_autocast_enabled(kind) else tensors


def operator(function):
    """Registers `function` as torch.ops.mmkit.NAME, which torch.compile takes as one step.

    Autocast is off inside. Not by `torch.library.custom_op`, whose first call imports the compiler.
    """
    name = f"mmkit::{function.__name__}"

    def run(x: Tensor, *arguments):
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *arguments)

    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, "default")(run)
    return lambda fake: torch.library.register_fake(name)(fake)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type sums are kept in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dots(x: Tensor, y: Tensor) -> Tensor:
    """The dot product of each row of x with the same row of y: (n,) in float64."""
    strip = 64 if x.device.type == "cpu" else 8192  # rows at a time, so that the float64 copies stay in the cache
    return torch.cat([(a.double() * b.double()).sum(1) for a, b in zip(x.split(strip), y.split(strip))])


def total(x: Tensor) -> Tensor:
    """The sum of (n,). In strips: PyTorch's own order of adding many numbers depends on the number of threads."""
    return torch.stack([part.sum() for part in x.split(2**14)]).sum()


def scalar(value: Tensor | float, like: Tensor, name: str) -> Tensor:
    """`value` as a tensor without dimensions beside `like`. Raises ValueError when it holds more than one number."""
    if not isinstance(value, Tensor):
        value = torch.tensor(value, dtype=torch.float64, device=like.device)
    if value.numel() != 1:
        raise ValueError(f"{name} is one number, got a tensor of shape {tuple(value.shape)}")
    return (value if value.is_floating_point() else value.double()).to(like.device).reshape(())


def finite(loss: Tensor, name: str) -> Tensor:
    """The loss. On the CPU raises ValueError when it is NaN or infinite.

    A GPU would have to be waited for, and compiled code cannot look, so there the loss is NaN.
    """
    if loss.device.type == "cpu" and not torch.compiler.is_compiling() and not loss.isfinite().all():
        raise ValueError(f"the scores of {name} are not finite: the embeddings or the scale hold NaN or infinity")
    return loss


class Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated again: Once.apply(gradient, what it was computed from...)."""

    @staticmethod
    def forward(gradient, *inputs):
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("the losses of mmkit.core have no second derivative; take it of mmkit.core.reference's")


def first_derivatives(gradients, inputs) -> tuple:
    """The gradients, None among them, guarded against a second derivative where one may be asked for."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return tuple(gradients)
    given = [x for x in inputs if x is not None]
    return tuple(x if x is None else Once.apply(x, *given) for x in gradients)
