"""Writing a prepared set: arrays streamed to files, two tables, a card; under a temporary name until all is there."""

import datetime
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmkit.data.folders import file_hash, writing
from mmkit.data.rules import ITEM_COLUMNS, PAIRED, TEXT_COLUMNS, array_file, content_hash, require_letters, validate
from mmkit.errors import MmkitError, printable, unknown
from mmkit.files import sync

TABLES = ("items.parquet", "texts.parquet")
HEADER = 128  # bytes before the entries of an array
ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]*")
NO_ARRAY_NAMES = {*ITEM_COLUMNS, *TEXT_COLUMNS, "images", "items", "texts"}


class Writer:
    """Fills one prepared set; `finish` checks it and gives it its name.

    Images are (H, W, 3) uint8, all of one size. The entries of any other array have one shape and one type of their
    own. Items and texts go in one by one or as whole tables. The row of an item, an image or an array's entry is the
    number that `item`, `image` or `array` returns, counted from 0 in the order of adding.
    """

    def __init__(self, target: Path):
        self.target = target
        with writing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        self._arrays: dict[str, _ArrayFile] = {}
        self._required: tuple[str, ...] | None = None
        self._count = 0  # items
        self._tables: dict[str, list] = {"items": [], "texts": []}
        self._rows: dict[str, list] = {"items": [], "texts": []}
        self._facts: dict[str, list[str]] = {}
        self.reported: list[dict[str, str]] = []

    def image(self, pixels: np.ndarray) -> int:
        """Add one image, (H, W, 3) uint8; returns its row."""
        return int(self.images(np.asarray(pixels)[None])[0])

    def images(self, pixels: np.ndarray) -> np.ndarray:
        """Add a batch of images, (B, H, W, 3) uint8; returns their rows, (B,) int64."""
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise MmkitError(f"images must be uint8 of shape (N, H, W, 3), got {pixels.dtype} {pixels.shape}")
        return self._add("image", pixels, {})

    def array(self, name: str, values: np.ndarray, **about: int | float | str) -> np.ndarray:
        """Add a batch of entries, (B, ...) numbers, to the array of a modality; returns their rows, (B,) int64.

        name: the modality, for example "audio". An item names its entry in the column of that name (-1: it has none).
        about: what a reader must know of the entries, for the card, for example sampling_rate=16000.
        """
        if name == "image":
            return self.images(values)
        if not ARRAY_NAME.fullmatch(name) or name in NO_ARRAY_NAMES:
            raise MmkitError(f"{name!r} is no name for an array: use lower-case letters, digits and '_', as in audio")
        values = np.asarray(values)
        if values.dtype.kind not in "biuf" or values.ndim < 2:
            raise MmkitError(f"array {name!r} must hold numbers of shape (N, ...), got {values.dtype} {values.shape}")
        strange = [key for key, value in about.items() if not isinstance(value, int | float | str)]
        if strange or {"dtype", "shape", "sha256"} & about.keys():
            raise MmkitError(f"array {name!r}: options are numbers or texts, without dtype, shape and sha256: {about}")
        return self._add(name, values.astype(values.dtype.newbyteorder("<"), copy=False), about)

    def require(self, *modalities: str) -> None:
        """Say which modalities every item outside the pools must have, where these are not image and text.

        None are required of a set with further arrays that does not say so: an item may miss any, but not all.
        """
        self._required = modalities

    def facts(self, **labels: Sequence[str]) -> None:
        """Say which labels can be read from one modality alone and, taken together, decide the answer.

        labels: by modality, the names of columns of the items, for example image=["label_heading"].
        """
        self._facts = {modality: list(columns) for modality, columns in labels.items()}

    def item(self, id: str, *, split: str, image: int = -1, group: str | None = None, **columns: int | str) -> int:
        """Add one item; returns its row.

        group: the cluster it belongs to (default: itself). columns: labels, and its row in each further array.
        """
        row = {"id": id, "image": image, "split": split, "group": id if group is None else group, **columns}
        require_letters(" ".join(value for value in row.values() if isinstance(value, str)), f"item {id!r}")
        self._rows["items"].append(row)
        self._count += 1
        return self._count - 1

    def items(self, table: pd.DataFrame) -> np.ndarray:
        """Add a table of items with columns id and split, and optionally image, further arrays, group and labels.

        Returns their rows, (B,) int64.
        """
        self._flush("items")
        defaults = (("image", -1), ("group", table.get("id")))
        self._tables["items"].append(table.assign(**{name: value for name, value in defaults if name not in table}))
        self._count += len(table)
        return np.arange(self._count - len(table), self._count)

    def text(self, item: int, text: str, *, language: str = "en", role: str = "caption") -> None:
        """Add one text of the item in row `item`."""
        require_letters(text, f"a text of item {item}")
        self._rows["texts"].append({"item": item, "text": text, "language": language, "role": role})

    def texts(self, table: pd.DataFrame) -> None:
        """Add a table of texts with columns item and text, and optionally language and role."""
        self._flush("texts")
        defaults = (("language", "en"), ("role", "caption"))
        self._tables["texts"].append(table.assign(**{name: value for name, value in defaults if name not in table}))

    def report(self, name: str, reason: str) -> None:
        """Note on the card, by name, an input that was left out, and why."""
        self.reported.append({"name": printable(name), "reason": printable(reason, 500)})

    def finish(self, about: dict) -> dict:
        """Check the set, write tables and card, sync, and move it to its name; returns the card.

        about: what the card says of name, recipe, terms and sources. Raises MmkitError when the set breaks a rule.
        """
        items, texts = self._table("items", ITEM_COLUMNS), self._table("texts", TEXT_COLUMNS)
        further, required = self._further(), self._requires()
        counts = {name: self._arrays[name].count for name in further}
        images = self._arrays["image"].count if "image" in self._arrays else 0
        validate(items, texts, images=images, arrays=counts, required=required, facts=self._facts)
        if not self._arrays:  # a set of texts alone has an empty array of images, which is in its hash
            self._arrays["image"] = _ArrayFile(self.folder / "images.npy", np.dtype(np.uint8), (1, 1, 3))
        with writing(self.target.parent):
            for array in self._arrays.values():
                array.close()
            for name, table in zip(TABLES, (items, texts)):
                table.to_parquet(self.folder / name, index=False)
            card = self._card(about, items, texts)
            text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
            (self.folder / "card.json").write_bytes(text.encode(errors="backslashreplace"))
            for name in (*card["files"], "card.json"):
                sync(self.folder / name)
            sync(self.folder)
            self._take_name()
        return card

    def discard(self) -> None:
        """Remove what was written; does nothing after `finish`."""
        for array in self._arrays.values():
            array.file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _add(self, name: str, values: np.ndarray, about: dict) -> np.ndarray:
        with writing(self.target.parent):
            if name not in self._arrays:
                path = self.folder / array_file(name)
                self._arrays[name] = _ArrayFile(path, values.dtype, values.shape[1:], about)
            array = self._arrays[name]
            if values.shape[1:] != array.shape:
                what, shapes = f"{name} {array.count}", f"{values.shape[1:]}, the ones before it {array.shape}"
                remedy = "resize them to one size" if name == "image" else "cut or pad them to one shape"
                raise MmkitError(f"{what} has shape {shapes}: {remedy}")
            if (values.dtype, about) != (array.dtype, array.about):
                before = f"{array.dtype} {array.about}"
                raise MmkitError(f"{name} {array.count} is {values.dtype} {about}, the ones before it {before}")
            return array.add(values)

    def _further(self) -> list[str]:
        """The modalities that have an array, images aside."""
        return [name for name in self._arrays if name != "image"]

    def _requires(self) -> tuple[str, ...]:
        there = {*PAIRED, *self._further()}
        for name in self._required or ():
            if name not in there:
                raise unknown("modality", name, there)
        return self._required if self._required is not None else () if self._further() else PAIRED

    def _card(self, about: dict, items: pd.DataFrame, texts: pd.DataFrame) -> dict:
        described = {name: array.described() for name, array in self._arrays.items()}
        shape = described["image"]["shape"] if "image" in described else [0, 1, 1, 3]
        # what a reader of schema 1 would misunderstand is said by the number
        wide = {"arrays": described, "required": list(self._requires())}
        plain = not self._further() and self._requires() == PAIRED
        paths = {name: self.folder / name for name in (*map(array_file, self._arrays), *TABLES)}
        return {
            "schema": 1 if plain else 2,
            **about,
            "prepared": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "content": content_hash(described, items, texts, self._facts),
            "images": shape,
            **({} if plain else wide),
            **({"facts": self._facts} if self._facts else {}),
            "texts": len(texts),
            "splits": {str(name): int(count) for name, count in items["split"].value_counts(sort=False).items()},
            "reported": self.reported,
            "files": {name: {"size": path.stat().st_size, "sha256": file_hash(path)} for name, path in paths.items()},
        }

    def _take_name(self) -> None:
        """Move the folder to its name. An older set there is moved aside first and removed after.

        After a kill in between, `prepared.restore` gives the older one its name back.
        """
        self.folder.chmod(0o755)
        old = self.folder.with_name(f"{self.folder.name}.old")
        if self.target.exists():
            self.target.rename(old)
        try:
            self.folder.rename(self.target)
        except BaseException as error:  # an interruption as well
            first = isinstance(error, OSError) and (self.target / "card.json").exists()
            if not first:  # else another process made the same set
                if old.exists() and not self.target.exists():
                    old.rename(self.target)
                raise
        sync(self.target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _flush(self, kind: str) -> None:
        if self._rows[kind]:
            self._tables[kind].append(pd.DataFrame(self._rows[kind]))
            self._rows[kind] = []

    def _table(self, kind: str, columns: Sequence[str]) -> pd.DataFrame:
        self._flush(kind)
        if not self._tables[kind]:
            if kind == "items":
                raise MmkitError(f"{self.target.name!r} would have no items{self._left_out()}")
            return pd.DataFrame({name: pd.Series(dtype="int64" if name == "item" else object) for name in columns})
        table = pd.concat(self._tables[kind], ignore_index=True)
        missing = [name for name in columns if name not in table]
        if missing:
            expected = ", ".join(columns)
            raise MmkitError(f"the {kind} of {self.target.name!r} lack the column {missing[0]!r}: expected {expected}")
        if kind == "texts":
            return pd.DataFrame({name: _plain(table[name], name, whole=name == "item") for name in columns})
        for name in self._further():  # an item that names no entry has none
            table[name] = table[name].fillna(-1) if name in table else -1
        order = [*columns, *(name for name in table if name not in columns)]
        rows = {"image", *self._further()}
        return pd.DataFrame({name: _plain(table[name], name, whole=name in rows) for name in order})

    def _left_out(self) -> str:
        if not self.reported:
            return ""
        first = f"{self.reported[0]['name']} ({self.reported[0]['reason']})"
        return f": {len(self.reported)} inputs were left out, first {first}"


class _ArrayFile:
    """One array, streamed to a .npy file; its header is written again when the number of entries is known."""

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...], about: dict | None = None):
        self.dtype, self.shape, self.about, self.count = dtype, shape, about or {}, 0
        self.digest = hashlib.sha256()
        self.file = open(path, "wb")
        self.file.write(self._header())

    def add(self, values: np.ndarray) -> np.ndarray:
        values = np.ascontiguousarray(values)
        self.file.write(values.data)
        self.digest.update(values.data)
        self.count += len(values)
        return np.arange(self.count - len(values), self.count)

    def close(self) -> None:
        self.file.seek(0)
        self.file.write(self._header())
        self.file.close()

    def described(self) -> dict:
        """What card and content hash say of the array."""
        shape = [self.count, *map(int, self.shape)]
        return {"sha256": self.digest.hexdigest(), "shape": shape, "dtype": self.dtype.str, **self.about}

    def _header(self) -> bytes:
        """HEADER bytes whatever the count, so that they can be written again in place."""
        shape = (self.count, *map(int, self.shape))
        text = f"{{'descr': {self.dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
        room = HEADER - 10  # after the magic string, the version and the room itself
        return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1).encode("latin1") + b"\n"


def _plain(column: pd.Series, name: str, *, whole: bool) -> pd.Series:
    """A column as int64 or as text, the only two types a prepared table holds."""
    column = column.infer_objects()
    missing = np.flatnonzero(column.isna())
    if len(missing):
        where = f"misses {len(missing)} values, first in row {missing[0]}"
        raise MmkitError(f"column {name!r} {where}: write '' or -1 for an unknown label")
    label = name not in (*ITEM_COLUMNS, *TEXT_COLUMNS)
    if (whole or label) and (pd.api.types.is_bool_dtype(column) or pd.api.types.is_integer_dtype(column)):
        return column.astype("int64")
    values = column.tolist()
    if whole:  # rows in an array become floats beside the gaps of other items
        strange = [value for value in values if not (isinstance(value, float) and value.is_integer())]
        if not strange:
            return column.astype("int64")
    else:
        strange = [value for value in values if not isinstance(value, str)]
        if not strange:
            return column.astype(object)
    wrong = strange[0]
    expected = "whole numbers" if whole else "whole numbers or texts" if label else "texts"
    raise MmkitError(f"column {name!r} holds {wrong!r}, a {type(wrong).__name__}: expected {expected}")
