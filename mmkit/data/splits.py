"""Splits that are the same on every machine and that keep a group together."""

import hashlib
from collections.abc import Iterable

import numpy as np

from mmkit.errors import MmkitError


def split_by_hash(groups: Iterable[str], *, val: float = 0.1, test: float = 0.1) -> np.ndarray:
    """The split of each item, (N,) of train, val and test, decided by the hash of its group's name.

    The groups in the order of their sha256 are cut at the shares `val` and `test`; each gets one group at least.
    Raises MmkitError for fewer than three groups.
    """
    groups = list(groups)
    order = sorted(set(groups), key=_digest)
    if len(order) < 3:
        remedy = "give at least 3, or name the splits in a column 'split'"
        raise MmkitError(f"{len(order)} groups cannot be split into train, val and test: {remedy}")
    n_val, n_test = max(1, round(val * len(order))), max(1, round(test * len(order)))
    split = dict.fromkeys(order, "train") | dict.fromkeys(order[:n_val], "val")
    split |= dict.fromkeys(order[n_val : n_val + n_test], "test")
    return np.array([split[group] for group in groups], dtype=object)


def _digest(group: str) -> bytes:
    return hashlib.sha256(group.encode()).digest()
