"""Writing a prepared set: images streamed to one array file, two tables, and a card, under a temporary name until all is on the disk."""

import datetime
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmkit.data.folders import file_hash, sync, writing
from mmkit.errors import MmkitError

SCHEMA = 1
POOLS = ("pool_image", "pool_text")
ITEM_COLUMNS = ("id", "image", "split", "group")
TEXT_COLUMNS = ("item", "text", "language", "role")
FILES = ("images.npy", "items.parquet", "texts.parquet")


class Writer:
    """Fills one prepared set; `finish` checks it and gives it its name.

    Images are (H, W, 3) uint8, all of one size. Items and texts go in one by one or as whole tables; an item's row
    and an image's row are the numbers that `item` and `image` return, counted from 0 in the order of adding.
    """

    def __init__(self, target: Path):
        self.target = target
        with writing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
            self._file = open(self.folder / FILES[0], "wb")
        self._shape: tuple[int, ...] | None = None
        self._count = {"images": 0, "items": 0}
        self._digest = hashlib.sha256()
        self._tables: dict[str, list] = {"items": [], "texts": []}
        self._rows: dict[str, list] = {"items": [], "texts": []}
        self.reported: list[dict[str, str]] = []

    def image(self, pixels: np.ndarray) -> int:
        """Add one image, (H, W, 3) uint8; returns its row."""
        return int(self.images(np.asarray(pixels)[None])[0])

    def images(self, pixels: np.ndarray) -> np.ndarray:
        """Add a batch of images, (B, H, W, 3) uint8; returns their rows, (B,) int64."""
        pixels = np.ascontiguousarray(pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise MmkitError(f"images must be uint8 of shape (N, H, W, 3), got {pixels.dtype} {pixels.shape}")
        with writing(self.target.parent):
            if self._shape is None:
                self._shape = pixels.shape[1:]
                self._file.write(_array_header((0, *self._shape)))
            if pixels.shape[1:] != self._shape:
                raise MmkitError(f"image {self._count['images']} has shape {pixels.shape[1:]}, the ones before it {self._shape}: resize them to one size")
            self._file.write(pixels.data)
        self._digest.update(pixels.data)
        first = self._count["images"]
        self._count["images"] += len(pixels)
        return np.arange(first, first + len(pixels))

    def item(self, id: str, *, split: str, image: int = -1, group: str | None = None, **labels: int | str) -> int:
        """Add one item; `group` is the cluster it belongs to (default: itself). Returns its row."""
        self._rows["items"].append({"id": id, "image": image, "split": split, "group": id if group is None else group, **labels})
        self._count["items"] += 1
        return self._count["items"] - 1

    def items(self, table: pd.DataFrame) -> np.ndarray:
        """Add a table of items with columns id and split, and optionally image, group and labels. Returns their rows."""
        self._flush("items")
        table = table.assign(**{name: default for name, default in (("image", -1), ("group", table["id"])) if name not in table})
        self._tables["items"].append(table)
        first = self._count["items"]
        self._count["items"] += len(table)
        return np.arange(first, first + len(table))

    def text(self, item: int, text: str, *, language: str = "en", role: str = "caption") -> None:
        """Add one text of the item in row `item`."""
        self._rows["texts"].append({"item": item, "text": text, "language": language, "role": role})

    def texts(self, table: pd.DataFrame) -> None:
        """Add a table of texts with columns item and text, and optionally language and role."""
        self._flush("texts")
        self._tables["texts"].append(table.assign(**{name: default for name, default in (("language", "en"), ("role", "caption")) if name not in table}))

    def report(self, name: str, reason: str) -> None:
        """Note on the card, by name, an input that was left out, and why."""
        self.reported.append({"name": str(name), "reason": reason})

    def finish(self, about: dict) -> dict:
        """Check the set, write tables and card, sync, and move it to its name; returns the card.

        about: what the card says of name, recipe, terms and sources. Raises MmkitError when the set breaks a rule.
        """
        if self._shape is None:
            self._shape = (1, 1, 3)
            self._file.write(_array_header((0, *self._shape)))
        items, texts = self._table("items", ITEM_COLUMNS), self._table("texts", TEXT_COLUMNS)
        validate(items, texts, images=self._count["images"])
        shape = (self._count["images"], *self._shape)
        with writing(self.target.parent):
            self._file.seek(0)
            self._file.write(_array_header(shape))
            self._file.close()
            items.to_parquet(self.folder / FILES[1], index=False)
            texts.to_parquet(self.folder / FILES[2], index=False)
            card = {
                "schema": SCHEMA,
                **about,
                "prepared": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "content": content_hash(self._digest.hexdigest(), shape, items, texts),
                "images": list(shape),
                "texts": len(texts),
                "splits": {str(name): int(count) for name, count in items["split"].value_counts(sort=False).items()},
                "reported": self.reported,
                "files": {name: {"size": (self.folder / name).stat().st_size, "sha256": file_hash(self.folder / name)} for name in FILES},
            }
            (self.folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            for name in (*FILES, "card.json"):
                sync(self.folder / name)
            sync(self.folder)
            self._take_name()
        return card

    def discard(self) -> None:
        """Remove what was written; does nothing after `finish`."""
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take_name(self) -> None:
        """Move the folder to its name. An older set there is moved aside first and removed after."""
        self.folder.chmod(0o755)
        old = self.folder.with_name(f"{self.folder.name}.old")
        if self.target.exists():
            self.target.rename(old)
        try:
            self.folder.rename(self.target)
        except OSError:
            if not (self.target / "card.json").exists():
                raise  # else another process was first, with the same set
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
            raise MmkitError(f"the {kind} of {self.target.name!r} lack the column {missing[0]!r}: expected {', '.join(columns)}")
        order = [*columns, *(name for name in table if name not in columns)] if kind == "items" else list(columns)
        return pd.DataFrame({name: _plain(table[name], name, whole=name in ("image", "item")) for name in order})

    def _left_out(self) -> str:
        return f": {len(self.reported)} inputs were left out, first {self.reported[0]['name']} ({self.reported[0]['reason']})" if self.reported else ""


def validate(items: pd.DataFrame, texts: pd.DataFrame, *, images: int) -> None:
    """The rules of a prepared set. Raises MmkitError naming the first offenders and the remedy."""

    def refuse(bad: pd.Series, problem: str, remedy: str) -> None:
        if bad.any():
            names = items["id"][bad].tolist()
            raise MmkitError(f"{len(names)} of {len(items)} items {problem} ({some(names)}): {remedy}")

    if not len(items):
        raise MmkitError("the set has no items: nothing usable was found in its source")
    refuse(items["id"].duplicated(), "repeat an id", "give every item its own id")
    beyond = (items["image"] < -1) | (items["image"] >= images)
    refuse(beyond, f"point beyond the {images} images", "use the rows that Writer.image returned, or -1 for no image")
    refuse(items["split"].str.strip() == "", "have no split", "name a split for each, for example train")
    refuse(items["group"].str.strip() == "", "have no group", "name a group for each, or leave the column out")
    strays = texts[(texts["item"] < 0) | (texts["item"] >= len(items))]
    if len(strays):
        raise MmkitError(f"{len(strays)} texts point beyond the {len(items)} items, first {strays['text'].iloc[0]!r}: use the rows that Writer.item returned")
    blank = pd.Series(False, index=items.index)
    blank[texts["item"][texts["text"].str.strip() == ""].unique()] = True
    refuse(blank, "have a blank text", "drop the text or write one")
    has_image, has_text = items["image"] >= 0, items.index.isin(texts["item"])
    needs_image, needs_text = items["split"] != "pool_text", items["split"] != "pool_image"
    refuse(needs_image & ~has_image, "have no image", "leave them out, or put text alone in the split pool_text")
    refuse(needs_text & ~has_text, "have no text", "leave them out, or put images alone in the split pool_image")
    refuse(~needs_image & has_image, "of the split pool_text have an image", "use another split, or no image")
    refuse(~needs_text & has_text, "of the split pool_image have a text", "use another split, or no text")
    side = items["split"].replace(dict.fromkeys(POOLS, "train"))  # what is learnt from without labels counts as train
    splits = side.groupby(items["group"], sort=False).nunique()
    if (splits > 1).any():
        group = splits.index[splits > 1][0]
        inside = ", ".join(items["split"][items["group"] == group].unique())
        remedy = "keep all items of a group in one split, or test scores leak"
        raise MmkitError(f"{int((splits > 1).sum())} groups are in more than one split, first {group!r} in {inside}: {remedy}")


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names, as a message shows them."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def content_hash(images_sha256: str, shape: Sequence[int], items: pd.DataFrame, texts: pd.DataFrame) -> str:
    """What identifies a set on every platform: sha256 over the images' bytes and canonical JSON lines of the tables.

    The tables' files are not used: their bytes differ between versions of the Parquet writer.
    """
    digest = hashlib.sha256(json.dumps({"images": images_sha256, "shape": [int(n) for n in shape]}).encode())
    for table in (items, texts):
        names = sorted(table)
        digest.update(json.dumps(names).encode() + b"\n")
        for row in zip(*(table[name].tolist() for name in names), strict=True):
            digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _plain(column: pd.Series, name: str, *, whole: bool) -> pd.Series:
    """A column as int64 or as text, the only two types a prepared table holds."""
    column = column.infer_objects()
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise MmkitError(f"column {name!r} misses {len(missing)} values, first in row {missing[0]}: write '' or -1 for an unknown label")
    label = name not in (*ITEM_COLUMNS, *TEXT_COLUMNS)
    if (whole or label) and (pd.api.types.is_bool_dtype(column) or pd.api.types.is_integer_dtype(column)):
        return column.astype("int64")
    values = column.tolist()
    if not whole and all(isinstance(value, str) for value in values):
        return column.astype(object)
    wrong = next(value for value in values if whole or not isinstance(value, str))
    expected = "whole numbers or texts" if label else "whole numbers" if whole else "texts"
    raise MmkitError(f"column {name!r} holds {wrong!r}, a {type(wrong).__name__}: expected {expected}")


def _array_header(shape: tuple[int, ...]) -> bytes:
    """The 128-byte header of a .npy file of uint8; a fixed length, so that it can be written again when the count is known."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {tuple(int(n) for n in shape)}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode("latin1") + b"\n"
