"""Your own data: a folder of images and a table of captions become a prepared set like any other."""

import csv
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mmkit.data.folders import data_root, file_hash, require_space
from mmkit.data.images import DICOM, DamagedImage, read_image, require_size
from mmkit.data.prepared import about, making
from mmkit.data.progress import progress
from mmkit.data.recipe import recipe_names
from mmkit.data.rules import POOLS, some, validate
from mmkit.data.splits import split_by_hash
from mmkit.data.writer import Writer
from mmkit.errors import MmkitError, unknown

SUFFIXES = {*DICOM, ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
OPTIONAL = ("group", "split", "language")
FIELD = re.compile(rf"image|caption|label(_.+)?|{'|'.join(OPTIONAL)}")
SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "test": "test",
    "dev": "val",
    "valid": "val",
    "validation": "val",
}  # in any case
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
RESERVED = ("raw", "cache")


@dataclass
class Plan:
    """What would be prepared: paired images with captions, the pools, and what is left out."""

    items: pd.DataFrame  # id, path, split, group, label columns; one row an image, or a text alone (path "")
    texts: pd.DataFrame  # id, text, language
    reported: list[dict[str, str]] = field(default_factory=list)

    def leave_out(self, ids: set[str], reason: str) -> None:
        """Take items out, with their texts, and note why."""
        self.reported += [{"name": name, "reason": reason} for name in sorted(ids)]
        self.items = self.items[~self.items["id"].isin(ids)]
        self.texts = self.texts[~self.texts["id"].isin(ids)]


def add(
    name: str,
    *,
    images: str | Path,
    table: str | Path,
    size: int = 160,
    columns: dict[str, str] | None = None,
    allow_unpaired: bool = False,
    dry_run: bool = False,
    force: bool = False,
    title: str = "",
    licence: str = "not stated",
    terms: str = "your own data: its terms are yours to know",
    citation: str = "",
) -> dict:
    """Make a prepared set of your own images and captions; returns its card (a dry run: the card it would have, in part).

    images: folder. table: CSV, TSV or JSONL with the columns image (path in the folder) and caption, and optionally
    label, label_*, group, split (train, val or dev, test, in any case), language; several rows of an image are several captions.
    size: images are squashed to size x size. columns: the table's own names, for example {"caption": "report"}.
    allow_unpaired: images without caption and captions without image become the splits pool_image and pool_text.
    Without a column split, groups are split 80/10/10 by the hash of their name. dry_run: check all, write nothing.
    Raises MmkitError for whatever would make a set that is not what its owner thinks.
    """
    require_size(size)
    _require_name(name, force or dry_run)
    folder, path = Path(images).expanduser(), Path(table).expanduser()
    if not folder.is_dir():
        raise MmkitError(f"{str(images)!r} is no folder: pass the folder with the images as images=")
    plan = make_plan(read_table(path, columns or {}), folder, allow_unpaired=allow_unpaired)
    validate(*_tables(plan), images=len(plan.items))  # before the images, which may take long, and in a dry run as well
    if dry_run:
        for _ in _pixels(plan, folder, size, name):
            pass
        splits = {split: int(count) for split, count in plan.items["split"].value_counts(sort=False).items()}
        return {"name": name, "splits": splits, "texts": len(plan.texts), "reported": plan.reported}
    card = about(name, title or name, "your own data", licence, terms, citation) | {
        "recipe": None,
        "knobs": {},
        "size": size,
    }
    card["sources"] = [
        {"name": path.name, "from": str(path.absolute()), "sha256": file_hash(path)},
        {"name": folder.name, "from": str(folder.absolute())},
    ]
    with making(name) as target:
        require_space(target.parent, len(plan.items) * size * size * 3, f"preparing {name!r}")
        writer = Writer(target)
        try:
            _fill(writer, plan, folder, size, name)
            return writer.finish(card)
        finally:
            writer.discard()


def read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """The table with the columns image, caption, and those of label, label_*, group, split, language that it has, as text."""
    if not path.is_file():
        raise MmkitError(f"there is no table {str(path)!r}: pass a CSV, TSV or JSONL file as table=")
    try:
        table = _read_jsonl(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _read_csv(path)
    except UnicodeDecodeError as error:
        raise MmkitError(f"{path.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except csv.Error as error:
        raise MmkitError(
            f"{path.name} cannot be read as a table ({error}): expected a header line and one row a caption"
        ) from error
    for field_name, column in columns.items():
        if not FIELD.fullmatch(field_name):
            raise unknown("table field", field_name, ("image", "caption", "label", "label_NAME", *OPTIONAL))
        if column not in table:
            raise unknown(f"column of {path.name}", column, table)
    table = table.rename(columns={column: field_name for field_name, column in columns.items()})
    for needed in ("image", "caption"):
        if needed not in table:
            hint = unknown(f"column of {path.name}", needed, table)
            raise MmkitError(f"{hint}; name the right one with {needed}=COLUMN")
    if not len(table):
        raise MmkitError(f"{path.name} has no rows: expected one row a caption")
    kept = [name for name in table if FIELD.fullmatch(name)]
    twice = next((name for name in kept if kept.count(name) > 1), None)
    if twice:
        raise MmkitError(
            f"{path.name} has {kept.count(twice)} columns for {twice!r}: give the others another name in its header, or leave out {twice}=COLUMN"
        )
    return table[kept].map(lambda value: str(value).strip())


def make_plan(table: pd.DataFrame, folder: Path, *, allow_unpaired: bool) -> Plan:
    """Pair the table's rows with the folder's files. Raises MmkitError for what does not fit."""
    files = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file()
    }
    files = {name for name in files if not re.search(r"(^|/)\.", name)}  # hidden, as notebooks' checkpoints are
    alike = {
        unicodedata.normalize("NFC", name): name for name in files
    }  # a Mac writes an accent as a letter of its own
    table = table.assign(
        id=[
            name if name in files else alike.get(unicodedata.normalize("NFC", name), name)
            for name in map(_inside, table["image"])
        ]
    )
    absent = sorted({name for name in table["id"] if name and name not in files and not (folder / name).is_file()})
    if absent:
        named_alike = [file for file in files if PurePosixPath(file).name == PurePosixPath(absent[0]).name]
        nearest = (named_alike or get_close_matches(absent[0], files, n=1) or [None])[0]
        hint = f", nearest file {nearest!r}" if nearest else ""
        raise MmkitError(
            f"{len(absent)} images named in the table are not in {folder} ({some(absent)}{hint}): correct their names or remove their rows"
        )
    alone = table["id"] == ""
    table.loc[alone, "id"] = [f"text-{row + 2}" for row in table.index[alone]]  # the row as a spreadsheet counts it
    one = _one_row_an_item(table)
    texts = table[table["caption"] != ""].rename(columns={"caption": "text"})
    bare = sorted((files | set(table["id"][~alone])) - set(texts["id"]))
    if alone.any() and not allow_unpaired:
        row = table.index[alone][0] + 2
        raise MmkitError(
            f"{int(alone.sum())} captions name no image (row {row} of the table): name one, or pass --allow-unpaired to keep them as pool_text"
        )
    if bare and not allow_unpaired:
        remedy = f"add rows for them, move them out of {folder}, or pass --allow-unpaired to keep them as pool_image"
        raise MmkitError(f"{len(bare)} images have no caption ({some(bare)}): {remedy}")
    items = pd.concat([one, pd.DataFrame({"id": sorted(set(bare) - set(one["id"]))})], ignore_index=True).fillna("")
    languages = texts["language"].replace("", "en") if "language" in texts else "en"
    plan = Plan(items[items["id"].isin(set(texts["id"]) | set(bare))], texts[["id", "text"]].assign(language=languages))
    _assign_splits(plan, pool_image=set(bare), pool_text=set(table["id"][alone]))
    return plan


def _assign_splits(plan: Plan, *, pool_image: set[str], pool_text: set[str]) -> None:
    """Fill the columns group and split, and leave out of the pools what shares a group with val or test."""
    items = plan.items
    group = items["group"] if "group" in items else pd.Series("", index=items.index)
    items = items.assign(
        group=group.where(group != "", items["id"]), path=items["id"].where(~items["id"].isin(pool_text), "")
    )
    paired = ~items["id"].isin(pool_image | pool_text)
    if "split" in items:
        blank = items["id"][paired & (items["split"] == "")].tolist()
        if blank:
            raise MmkitError(
                f"{len(blank)} images have no split ({some(blank)}): fill the column, or remove it to split 80/10/10 by group"
            )
        items["split"] = [SPLIT_NAMES.get(name.lower(), name) for name in items["split"]]
        if paired.any() and "train" not in (found := list(items["split"][paired].unique())):
            raise MmkitError(
                f"no image is in the split 'train', the splits are {', '.join(map(repr, found))}: call the one to learn from 'train'"
            )
    elif paired.any():
        items.loc[paired, "split"] = split_by_hash(items["group"][paired])
    items.loc[items["id"].isin(pool_image), "split"] = "pool_image"
    items.loc[items["id"].isin(pool_text), "split"] = "pool_text"
    plan.items = _label_types(items)
    held_out = set(items["group"][~items["split"].isin(("train", *POOLS))])
    leaking = set(items["id"][~paired & items["group"].isin(held_out)])
    plan.leave_out(leaking, "unpaired, and its group is in a split other than train")


def _fill(writer: Writer, plan: Plan, folder: Path, size: int, name: str) -> None:
    for pixels in _pixels(plan, folder, size, name):
        writer.image(pixels)
    items, texts = _tables(plan)
    writer.items(items)
    writer.texts(texts)
    for line in plan.reported:
        writer.report(**line)


def _tables(plan: Plan) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items and texts as a writer takes them, the images in the order of their items."""
    items = plan.items.reset_index(drop=True)
    drawn = items["path"] != ""
    texts = plan.texts.assign(item=plan.texts["id"].map(pd.Series(items.index, index=items["id"])).astype("int64"))
    return items.drop(columns="path").assign(image=np.where(drawn, drawn.cumsum() - 1, -1)), texts


def _pixels(plan: Plan, folder: Path, size: int, name: str) -> Iterator[np.ndarray]:
    """The images, one after the other; when all are read, the damaged ones are out of the plan."""
    files, damaged = plan.items[plan.items["path"] != ""], {}
    for id, path in progress(list(zip(files["id"], files["path"], strict=True)), label=name, unit="images"):
        try:
            yield read_image(folder / path, size=size)
        except DamagedImage as damage:
            damaged[id] = f"damaged image: {damage}"
    for id, reason in damaged.items():
        plan.leave_out({id}, reason)
    if not len(plan.items):
        why = some([f"{line['name']} ({line['reason']})" for line in plan.reported])
        raise MmkitError(f"{name!r} has no usable rows: {why}")


def _one_row_an_item(table: pd.DataFrame) -> pd.DataFrame:
    """One row an id. Raises MmkitError when its rows disagree in anything but the caption and its language."""
    facts = [name for name in table if name not in ("image", "caption", "language", "id")]
    for name in facts:
        kinds = table.groupby("id", sort=False)[name].nunique()
        if (kinds > 1).any():
            id = kinds.index[kinds > 1][0]
            values = ", ".join(repr(value) for value in table[name][table["id"] == id].unique())
            problem = f"{int((kinds > 1).sum())} images have rows that disagree in {name!r}, first {id!r} with {values}"
            raise MmkitError(f"{problem}: give all rows of an image the same {name}")
    return table.drop_duplicates("id")[["id", *facts]]


def _label_types(items: pd.DataFrame) -> pd.DataFrame:
    """Labels that count 0, 1, 2, ... become numbers, an empty cell -1; all others stay names, which get their numbers on loading."""
    for name in [name for name in items if name.startswith("label")]:
        values = set(items[name]) - {""}
        if values == {str(number) for number in range(len(values))} != set():
            items[name] = items[name].replace("", "-1").astype("int64")
    return items


def _read_csv(path: Path) -> pd.DataFrame:
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True)
        names, rows = next(reader, []), []
        for row in filter(None, reader):
            if len(row) != len(names):
                remedy = "put a caption that holds the separator in double quotes"
                raise MmkitError(
                    f"{path.name}, line {reader.line_num} has {len(row)} fields, the header {len(names)}: {remedy}"
                )
            rows.append(row)
    return pd.DataFrame(rows, columns=names, dtype=object)


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8-sig").split("\n"), 1
    ):  # a text may hold U+2028 and the like
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise MmkitError(
                    f"{path.name}, line {number} is not JSON ({error}): expected one object a line"
                ) from error
            if not isinstance(row, dict):
                raise MmkitError(
                    f'{path.name}, line {number} is a {type(row).__name__}: expected an object such as {{"image": "a.jpg", "caption": "..."}}'
                )
            captions = row.get("caption")
            rows += [row | {"caption": caption} for caption in captions] if isinstance(captions, list) else [row]
    return pd.DataFrame(rows, dtype=object).fillna("")  # object, or a column with gaps would turn 1 into 1.0


def _inside(name: str) -> str:
    """A path of the table as a path inside the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise MmkitError(
            f"the table names an image outside the folder, {name!r}: write paths relative to the folder, without '..'"
        )
    return "" if not name else path.as_posix()


def _require_name(name: str, replace: bool) -> None:
    if not NAME.fullmatch(name):
        raise MmkitError(
            f"{name!r} is no name for a data set: use lower-case letters, digits, '-' and '_', for example my_photos"
        )
    if name in RESERVED or any(
        name == taken or re.fullmatch(rf"{taken}-[0-9a-f]{{8}}", name) for taken in recipe_names()
    ):
        raise MmkitError(f"{name!r} is the name of a recipe or reserved: choose another, for example my_{name}")
    if (data_root() / name).exists() and not replace:
        raise MmkitError(f"there is a data set {name!r} already: choose another name, or pass --force to replace it")
