"""A cache of tensors keyed by what they were computed from: frozen features, checkpoints."""

import hashlib
import json
from collections.abc import Callable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmkit.data.folders import data_root, replacing, writing
from mmkit.errors import MmkitError


def cached(key_parts: dict | list | str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors `compute` makes, from the cache when they were made before.

    key_parts: everything the result depends on, as JSON values: content hash of the data, weights' hash, settings.
    A damaged file is noticed by its hash and computed again; where nothing can be written, nothing is kept.
    """
    key = hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()
    path = data_root() / "cache" / f"{key}.safetensors"
    if path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
                if (file.metadata() or {}).get("sha256") == _digest(tensors):
                    return tensors
            reason = "its hash differs"
        except (SafetensorError, OSError) as error:
            reason = str(error)
        print(f"cache: {path.name[:12]} is damaged ({reason}); computing it again")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
    try:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                save_file(tensors, part, metadata={"sha256": _digest(tensors)})
    except MmkitError as error:
        print(f"cache: not kept, {error}")
    return tensors


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
