"""The views that data sets offer: arrays as they lie, texts as ids."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mmkit.data import Dataset
from mmkit.training.batch import View

GREY = 127  # what an empty image shows; it lies in the middle of the pixels' range

_ids: WeakKeyDictionary[Dataset, dict] = WeakKeyDictionary()


def array_view(dataset: Dataset, name: str, *, required: bool = True) -> View:
    """An array of the set, such as its images: an entry is a row of the array. An empty entry is grey (unsigned
    integers) or zero."""
    rows = torch.from_numpy(np.array(dataset.array_rows(name)))  # a copy: a column of a table cannot be written to
    start = torch.cat([torch.zeros(1, dtype=torch.int64), (rows >= 0).cumsum(0)])
    item = (rows >= 0).nonzero()[:, 0]

    def read(entries: Tensor) -> Tensor:
        return dataset.read(name, item[entries].numpy())

    return View(dataset, name, start, read, _empty_array, required=required)


def text_view(
    dataset: Dataset, tokenizer: Callable[[list[str]], Tensor], *, role: str, language: str, required: bool = True
) -> View:
    """The texts of one role and language as ids (B, L), cut to the longest of a batch. Token ids are cached per data
    set and tokenizer.

    An empty text is a single unknown word."""
    cached, key = _ids.setdefault(dataset, {}), (getattr(tokenizer, "__self__", tokenizer), role, language)
    if key not in cached:
        texts, owner = dataset.texts_of(np.arange(len(dataset)), role=role, language=language)
        start = torch.searchsorted(torch.from_numpy(owner), torch.arange(len(dataset) + 1))
        ids = tokenizer(texts)
        cached[key] = ids, ids.ne(0).sum(1), start
    ids, lengths, start = cached[key]

    def read(entries: Tensor) -> Tensor:
        return cut(ids[entries])

    name = f"text of role {role!r} in {language!r}"
    return View(dataset, name, start, read, _empty_ids, lengths, required)


def cut(ids: Tensor) -> Tensor:
    """(B, L) ids without the columns that are padding everywhere."""
    return ids[:, : max(1, int((ids != 0).sum(1).max()))]


def _empty_array(x: Tensor) -> Tensor:
    return torch.full_like(x, GREY) if x.dtype == torch.uint8 else torch.zeros_like(x)


def _empty_ids(ids: Tensor) -> Tensor:
    return torch.ones_like(ids[:, :1])
