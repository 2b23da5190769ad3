"""One recorded seed, separate streams: arms of one seed share their split, their order and their head's first
weights."""

import zlib

import torch
from torch import Tensor


def stream(seed: int, name: str) -> torch.Generator:
    """The generator of one named stream of a seed: different names give unrelated numbers, and no stream depends on
    another's use."""
    return torch.Generator().manual_seed((seed * 2_654_435_761 + zlib.crc32(name.encode())) % 2**63)


def seeded(seed: int, name: str, call, *args, **options):
    """`call(*args, **options)` with the global generators set to a stream, and put back afterwards: equal first
    weights, equal dropout."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(stream(seed, name).initial_seed())
        return call(*args, **options)


def choose(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the rows, without replacement. A larger count of one seed contains every smaller one."""
    return rows[torch.randperm(len(rows), generator=generator)[:count]]
