"""A cache of tensors keyed by what they were computed from: frozen features, checkpoints."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmkit.data.folders import data_root, replacing, writing
from mmkit.errors import MmkitError


def cached(key_parts: dict | list | str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors `compute` makes, from the cache when they were made before.

    key_parts: everything the result depends on, as JSON values: content hash of the data, weights' hash, settings.
    A damaged file is noticed by its hash and computed again; where nothing can be written, nothing is kept. Of two
    processes that want the same tensors one computes and the other waits.
    """
    key = hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()
    path = data_root() / "cache" / f"{key}.safetensors"
    if (kept := _read(path)) is not None:
        return kept
    with _alone(path) as writable:
        if (kept := _read(path, quiet=True)) is not None:
            return kept
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
        if writable:
            try:
                with writing(path.parent), replacing(path) as part:
                    save_file(tensors, part, metadata={"sha256": _digest(tensors)})
            except MmkitError as error:
                print(f"cache: not kept, {error}")
    return tensors


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Wait for whoever else makes `path`; False, and said, where nothing can be written."""
    try:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
    except MmkitError as error:
        print(f"cache: not kept, {error}")
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _read(path: Path, *, quiet: bool = False) -> dict[str, torch.Tensor] | None:
    """What the file holds, or None when there is none or it is damaged, which is said."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            if (file.metadata() or {}).get("sha256") == _digest(tensors):
                return tensors
        reason = "its hash differs"
    except (SafetensorError, OSError) as error:
        reason = str(error)
    if not quiet:
        print(f"cache: {path.name[:12]} is damaged ({reason}); computing it again")
    return None


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
