"""What a module, a function or a strategy is, as JSON values: for the keys of caches and checkpoints."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType

import torch
from torch import Tensor, nn

PLAIN = str | int | float | bool | None


def is_installed(kind: type | FunctionType) -> bool:
    """Whether a class or function is Python's or an installed package's; one of a notebook may change any time."""
    root = kind.__module__.partition(".")[0]
    path = "" if root == "__main__" else getattr(sys.modules.get(root), "__file__", None) or ""
    return root == "mmkit" or root in sys.stdlib_module_names or "site-packages" in path


def structure(module: nn.Module) -> list:
    """The parts of a module by name, class and settings, weights left out."""
    found = []
    for name, part in module.named_modules():
        plain = {key: value for key, value in vars(part).items() if isinstance(value, PLAIN | tuple)}
        plain.pop("training")
        found.append([name, f"{type(part).__module__}.{type(part).__qualname__}", repr(sorted(plain.items()))])
    return found


def digest(module: nn.Module) -> str:
    """A hash of a module's weights."""
    return hash_of(*(value for _, value in sorted(module.state_dict().items())))


def hash_of(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def fingerprint(value: object) -> str:
    """A hash of what a value is: numbers and texts, a function's code and what it holds, a module's weights. An object
    of another kind goes by its class."""
    return hashlib.sha256(json.dumps(_described(value, ())).encode()).hexdigest()


def _described(value: object, within: tuple) -> object:
    if isinstance(value, PLAIN):
        return repr(value)
    if any(value is outer for outer in within):
        return "itself"
    within = (*within, value)
    if isinstance(value, Tensor):
        return hash_of(value)
    if isinstance(value, nn.Module):
        return [structure(value), digest(value)]
    if isinstance(value, Mapping):
        return [[repr(key), _described(each, within)] for key, each in value.items()]
    if isinstance(value, tuple | list):
        return [_described(each, within) for each in value]
    if isinstance(value, partial):
        return _described([value.func, value.args, value.keywords], within)
    if isinstance(value, CodeType):
        return _described([value.co_code.hex(), value.co_names, value.co_consts], within)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    if isinstance(value, FunctionType) and not is_installed(value):
        return _described([value.__code__, value.__defaults__, value.__kwdefaults__, _held(value)], within)
    if isinstance(value, type) and not is_installed(value):
        members = {k: v for k, v in vars(value).items() if isinstance(v, PLAIN | FunctionType | tuple)}
        return [value.__qualname__, _described([*value.__bases__, members], within)]
    name = getattr(value, "__qualname__", None)
    if name is not None:  # of an installed package, whose code has a hash of its own; or built in
        return [name, _described(type(getattr(value, "__self__", None)), within)]
    if is_dataclass(value) and type(value).__dataclass_params__.frozen:  # a strategy, not a run with its seconds
        return _described([type(value).__name__, *(getattr(value, field.name) for field in fields(value))], within)
    return _described(type(value), within)


def _held(function: FunctionType) -> dict:
    """What a function's code reaches outside itself: its closure, and the globals of its notebook."""
    closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held = {name: cell.cell_contents for name, cell in closure}
    named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return held | {name: value for name, value in named.items() if isinstance(value, PLAIN | FunctionType | type)}
