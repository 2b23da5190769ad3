"""`Dataset`: the arrays, texts, labels, groups and splits of a prepared set.

Shapes: N items, B rows asked for, M entries of an array, H and W the image's height and width, in pixels. A *row* is a
position in `items`.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mmkit.data.prepared import open_set, read_tables
from mmkit.data.recipe import Knob, Recipe
from mmkit.data.rules import ITEM_COLUMNS
from mmkit.errors import MmkitError, unknown


class Dataset:
    """A prepared set, opened. Arrays stay on the disk, memory-mapped, until `read` or `pixels` asks for some entries.

    arrays: by modality, (M, ...); images (M, H, W, 3) uint8 under "image". Their options, for example the sampling
    rate, are in card["arrays"]. items: table of id, split, group, labels, and for each array the row in it (-1: none).
    texts: table of item (a row of items), text, language and role. content: the hash that identifies the set
    everywhere.
    """

    def __init__(self, root: Path, card: dict):
        self.arrays, self.items, self.texts = read_tables(root, card)
        self.root, self.card = root, card
        self.name: str = card["name"]
        self.content: str = card["content"]
        self._memo: dict = {}

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        parts = [f"{len(self.images):,} images {self.images.shape[1]}x{self.images.shape[2]}"]
        for name, array in self.arrays.items():
            if name != "image":
                parts.append(f"{len(array):,} {name} {'x'.join(map(str, array.shape[1:]))} {array.dtype}")
        parts.append(f"{len(self.texts):,} texts")
        return f"Dataset({self.root.name!r}: {', '.join(parts)}; {sizes}; content {self.content[:8]})"

    @property
    def images(self) -> np.ndarray:
        """The images, (M, H, W, 3) uint8; (0, 1, 1, 3) of a set without."""
        return self.arrays.get("image", np.zeros((0, 1, 1, 3), np.uint8))

    @property
    def facts(self) -> dict[str, tuple[str, ...]]:
        """By modality, the labels that it tells alone and that together decide the answer; {} of a set without."""
        return {modality: tuple(columns) for modality, columns in self.card.get("facts", {}).items()}

    @property
    def splits(self) -> dict[str, int]:
        """The number of items of each split."""
        counts = self.items["split"].value_counts()
        return {name: int(counts.get(name, 0)) for name in dict.fromkeys([*self.card["splits"], *counts.index])}

    @property
    def label_columns(self) -> list[str]:
        """The columns of `items` that are labels."""
        return [name for name in self.items if name not in (*ITEM_COLUMNS, *self.arrays)]

    def rows(self, split: str) -> np.ndarray:
        """The rows of a split, (B,) int64. Raises MmkitError for a split that does not exist or is empty."""
        rows = np.flatnonzero((self.items["split"] == split).to_numpy())
        if not len(rows) and split not in self.splits:
            raise unknown(f"split of {self.name!r}", split, self.splits)
        if not len(rows):
            raise MmkitError(f"split {split!r} of {self.name!r} is empty: there are {self.splits}")
        return rows

    def array_rows(self, name: str) -> np.ndarray:
        """The row of each item in the array of a modality, (N,) int64; -1 for an item without it.

        Raises MmkitError for a modality that has no array.
        """
        if name not in self.arrays:
            raise unknown(f"array of {self.name!r}", name, self.arrays)
        return self.items[name].to_numpy()

    def read(self, name: str, rows) -> torch.Tensor:
        """The entries of some items in the array of a modality, as they lie, (B, ...); images as `pixels` gives them.

        Raises MmkitError for a modality that has no array, and for an item without an entry.
        """
        entries = self.array_rows(name)[self._valid(rows)]
        if (entries < 0).any():
            first = self.items.iloc[np.asarray(rows)[entries < 0][0]]
            remedy = f"take rows where array_rows({name!r}) is not -1"
            if first["split"].startswith("pool_"):
                remedy = f"leave the rows of {first['split']} out"
            raise MmkitError(f"item {first['id']!r} of {self.name!r} has no {name}: {remedy}")
        values = torch.from_numpy(self.arrays[name][entries])
        return values.permute(0, 3, 1, 2) if name == "image" else values

    def pixels(self, rows) -> torch.Tensor:
        """The images of some rows, (B, 3, H, W) uint8, channels-last in memory. Raises MmkitError as `read` does."""
        return self.read("image", rows)

    def texts_of(self, rows, *, role: str = "caption", language: str = "en") -> tuple[list[str], np.ndarray]:
        """All texts of some rows, and their owners: (T,) int64 positions in `rows`, ascending."""
        rows = self._valid(rows)
        texts, start = self._texts_by_item(role, language)
        count = start[rows + 1] - start[rows]
        owner = np.repeat(np.arange(len(rows)), count)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        return texts[start[rows][owner] + within].tolist(), owner

    def labels(self, rows, column: str) -> torch.Tensor:
        """Labels of some rows, (B,) int64; whole numbers as they are, texts by their place in `classes`; -1 unknown."""
        return torch.from_numpy(self._codes(column)[0][self._valid(rows)])

    def classes(self, column: str) -> list[str] | list[int]:
        """The names of a label's classes, in the order of its numbers."""
        return self._codes(column)[1]

    def clusters(self, rows) -> np.ndarray:
        """Which rows belong together (a photo, a patient), (B,) int64 codes of `group`; what an interval resamples."""
        return self._group_codes[self._valid(rows)]

    @cached_property
    def _group_codes(self) -> np.ndarray:
        return pd.factorize(self.items["group"])[0].astype(np.int64)

    def _texts_by_item(self, role: str, language: str) -> tuple[np.ndarray, np.ndarray]:
        """Texts of one kind in the order of their items, and where each item's begin, (N + 1,)."""
        if (role, language) not in self._memo:
            for column, value in (("role", role), ("language", language)):
                if value not in self.texts[column].unique():
                    raise self._no_such_text(column, value)
            kind = self.texts[(self.texts["role"] == role) & (self.texts["language"] == language)]
            kind = kind.sort_values("item", kind="stable")
            start = np.searchsorted(kind["item"].to_numpy(), np.arange(len(self) + 1))
            self._memo[role, language] = kind["text"].to_numpy(dtype=object), start
        return self._memo[role, language]

    def _no_such_text(self, column: str, value: str) -> MmkitError:
        error = unknown(f"text {column} of {self.name!r}", value, self.texts[column].unique())
        left = [entry["name"] for entry in self.card["reported"] if entry["reason"].startswith("optional")]
        if not left:
            return error
        again = f"'mmkit data prepare {self.name} --force' tries again"
        return MmkitError(f"{error}; {', '.join(left)} could not be had when it was prepared, {again}")

    def _codes(self, column: str) -> tuple[np.ndarray, list]:
        if column not in self.label_columns:
            raise unknown(f"label of {self.name!r}", column, self.label_columns)
        if column not in self._memo:
            values = self.items[column]
            if pd.api.types.is_integer_dtype(values):
                self._memo[column] = values.to_numpy(), list(range(int(values.max()) + 1))
            else:
                classes = sorted(set(values) - {""})
                codes = values.map({name: code for code, name in enumerate(classes)}).fillna(-1)
                self._memo[column] = codes.to_numpy(dtype=np.int64), classes
        return self._memo[column]

    def _valid(self, rows) -> np.ndarray:
        rows = np.asarray(rows)
        if rows.ndim != 1 or (len(rows) and not np.issubdtype(rows.dtype, np.integer)):
            found = f"{rows.dtype} of shape {rows.shape}"
            raise MmkitError(
                f"rows must be a list of whole numbers, got {found}: for example the result of rows('train')"
            )
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise MmkitError(f"rows {rows.min()} to {rows.max()} reach beyond the {len(self)} items of {self.name!r}")
        return rows.astype(np.int64)


def load(name: str | Recipe, **knobs: Knob) -> Dataset:
    """A data set by its name: a recipe's, prepared on first use, or one of your own, added before.

    knobs: what the recipe lets you vary. Raises MmkitError for an unknown name or knob, or a knob of the wrong type.
    """
    return Dataset(*open_set(name, **knobs))
