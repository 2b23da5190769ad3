"""One recorded seed, separate streams: arms of one seed share their split, their order and their head's first weights."""

import zlib

import torch
from torch import Tensor, nn


def stream(seed: int, name: str) -> torch.Generator:
    """The generator of one named stream of a seed. Streams differ in every bit of their state, and never depend on each other's use."""
    return torch.Generator().manual_seed((seed * 2_654_435_761 + zlib.crc32(name.encode())) % 2**63)


def seeded(seed: int, name: str, build, *args, **options) -> nn.Module:
    """`build(*args, **options)` with the global generator set to a stream, and put back afterwards: equal first weights in every arm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, name).initial_seed())
        return build(*args, **options)


def choose(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the rows, without replacement. A larger count of one seed contains every smaller one."""
    return rows[torch.randperm(len(rows), generator=generator)[:count]]
