"""Which code made something: a part of the keys of caches and checkpoints."""

import hashlib
from functools import cache
from pathlib import Path

from torch import nn

import mmkit
from mmkit.models.identity import is_installed


@cache
def sources(*rooms: str) -> str:
    """A hash of the code of some rooms; by default of those that decide what a cached encoding or encoder is."""
    root, found = Path(mmkit.__file__).parent, hashlib.sha256()
    for room in rooms or ("core", "models", "training", "pretraining"):
        for path in sorted((root / room).glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def installed(module: nn.Module) -> bool:
    """Whether the code of every part of a module is an installed package's, so that `sources` knows it; a class of a
    notebook may change any time."""
    return all(is_installed(type(part)) for part in module.modules())
