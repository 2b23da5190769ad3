"""Your own data: a folder of images and a table of captions become a prepared set like any other."""

import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mmkit.data.folders import data_root, file_hash, require_space
from mmkit.data.images import DICOM, FORMATS, DamagedImage, ScaledImage, is_dicom, read_image, require_size
from mmkit.data.prepared import about, making
from mmkit.data.progress import progress
from mmkit.data.recipe import recipe_names
from mmkit.data.rules import POOLS, require_letters, some, validate
from mmkit.data.splits import split_by_hash
from mmkit.data.table import SPLITS, label_column, read_table
from mmkit.data.writer import Writer
from mmkit.errors import MmkitError, unknown

UNREAD = (".avif", ".heic", ".heif", ".jp2", ".jxl")  # pictures too, which nobody wants to be passed over in silence
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
RESERVED = ("raw", "cache")
CARD = {
    "title": "",
    "licence": "not stated",
    "terms": "your own data: its terms are yours to know",
    "citation": "",
}


@dataclass
class Plan:
    """What would be prepared: paired images with captions, the pools, and what is left out."""

    items: pd.DataFrame  # id, path, split, group, label columns; one row an image, or a text alone (path "")
    texts: pd.DataFrame  # id, text, language
    reported: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
    identifiers: str = "refuse",
    dry_run: bool = False,
    force: bool = False,
    **card: str,
) -> dict:
    """Make a prepared set of your own images and captions; returns its card (a dry run: a part of the card to be).

    images: folder. table: CSV, TSV or JSONL with the columns image (path in the folder) and caption, and optionally
    label, label_*, group, split (train, val or dev, test, in any case), language; several rows of an image are several
    captions. size: images are squashed to size x size. columns: the table's own names, for example
    {"caption": "report"}. allow_unpaired: images without caption and captions without image become the splits
    pool_image and pool_text. identifiers: "refuse" DICOM files that name a patient, or "drop" all but their pixels.
    Without a column split, groups are split 80/10/10 by the hash of their name. dry_run: check all, write nothing.
    card: title, licence, terms and citation. Raises MmkitError for whatever would make a set that is not what its
    owner thinks.
    """
    require_size(size)
    _require_name(name, force or dry_run)
    said = require_card(card)
    folder, path = Path(images).expanduser(), Path(table).expanduser()
    if not folder.is_dir():
        raise MmkitError(f"{str(images)!r} is no folder: pass the folder with the images as images=")
    rows, unused = read_table(path, columns or {})
    plan = make_plan(rows, folder, allow_unpaired=allow_unpaired)
    plan.notes += [f"columns that are not used: {', '.join(unused)}"] if unused else []
    validate(*_tables(plan), images=len(plan.items))  # before the images, which may take long, and in a dry run as well
    pixels = _pixels(plan, folder, name, size=size, identifiers=identifiers)
    if dry_run:
        return _checked(name, plan, pixels)
    made = about(name, task="your own data", **said | {"title": said["title"] or name})
    made |= {"recipe": None, "knobs": {}, "size": size, "sources": _sources(path, folder)}
    return _write(name, plan, pixels, made, force=force)


def _sources(path: Path, folder: Path) -> list[dict[str, str]]:
    table = {"name": path.name, "from": str(path.absolute()), "sha256": file_hash(path)}
    return [table, {"name": folder.name, "from": str(folder.absolute())}]


def require_card(card: dict[str, str]) -> dict[str, str]:
    """What the card says, filled up. Raises MmkitError for a field that is not its owner's to say."""
    for field_name in card:
        if field_name not in CARD:
            raise unknown("field of the card", field_name, CARD)
    return CARD | {field_name: text for field_name, text in card.items() if text}


def _checked(name: str, plan: Plan, pixels: Iterator[np.ndarray]) -> dict:
    """What a card would say, after a look at every image."""
    for _ in pixels:
        pass
    splits = {split: int(count) for split, count in plan.items["split"].value_counts(sort=False).items()}
    return {"name": name, "splits": splits, "texts": len(plan.texts), "reported": plan.reported, "notes": plan.notes}


def _write(name: str, plan: Plan, pixels: Iterator[np.ndarray], card: dict, *, force: bool) -> dict:
    with making(name) as target:
        _require_name(name, force)  # again: another process may have been first
        require_space(target.parent, len(plan.items) * card["size"] ** 2 * 3, f"preparing {name!r}")
        writer = Writer(target)
        try:
            for image in pixels:
                writer.image(image)
            items, texts = _tables(plan)
            writer.items(items)
            writer.texts(texts)
            for line in plan.reported:
                writer.report(**line)
            return writer.finish(card | {"notes": plan.notes})
        finally:
            writer.discard()


def make_plan(table: pd.DataFrame, folder: Path, *, allow_unpaired: bool) -> Plan:
    """Pair the table's rows with the folder's files. Raises MmkitError for what does not fit."""
    files = _pictures(folder)
    alike = {unicodedata.normalize("NFC", name): name for name in files}  # a Mac writes an accent as its own letter
    rows, table = table.index, table.reset_index(drop=True)
    named = [_inside(name) for name in table["image"]]
    table["id"] = [name if name in files else alike.get(unicodedata.normalize("NFC", name), name) for name in named]
    _require_readable(folder, files, set(table["id"]) - {""})
    alone = table["id"] == ""
    table.loc[alone, "id"] = [f"text-{place + 2}" for place in table.index[alone]]
    one = _one_row_an_item(table)
    texts = table[table["caption"] != ""].rename(columns={"caption": "text"})
    bare = sorted((files | set(table["id"][~alone])) - set(texts["id"]))
    if alone.any() and not allow_unpaired:
        problem = f"{int(alone.sum())} captions name no image (row {rows[alone][0]} of the table)"
        raise MmkitError(f"{problem}: name one, or pass --allow-unpaired to keep them as pool_text")
    if bare and not allow_unpaired:
        remedy = f"add rows for them, move them out of {folder}, or pass --allow-unpaired to keep them as pool_image"
        raise MmkitError(f"{len(bare)} images have no caption ({some(bare)}): {remedy}")
    items = pd.concat([one, pd.DataFrame({"id": sorted(set(bare) - set(one["id"]))})], ignore_index=True).fillna("")
    languages = texts["language"].replace("", "en") if "language" in texts else "en"
    plan = Plan(items[items["id"].isin(set(texts["id"]) | set(bare))], texts[["id", "text"]].assign(language=languages))
    _assign_splits(plan, pool_image=set(bare), pool_text=set(table["id"][alone]))
    return plan


def _pictures(folder: Path) -> set[str]:
    """The paths of all pictures in the folder; hidden ones, as notebooks' checkpoints are, are passed over."""
    found = set()
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if re.search(r"(^|/)\.", name) or not file.is_file():
            continue
        if file.suffix.lower() in (*FORMATS, *DICOM, *UNREAD) or is_dicom(file):
            found.add(require_letters(name, f"the name of a file in {folder}"))
    return found


def _require_readable(folder: Path, files: set[str], named: set[str]) -> None:
    """Raises MmkitError for a named file that is not there, is of no kind that is read, or lies outside the folder."""
    absent = sorted(name for name in named if name not in files and not _is_file(folder / name))
    if absent:
        named_alike = [file for file in files if PurePosixPath(file).name == PurePosixPath(absent[0]).name]
        nearest = (named_alike or get_close_matches(absent[0], files, n=1) or [None])[0]
        hint = f", nearest file {nearest!r}" if nearest else ""
        problem = f"{len(absent)} images named in the table are not in {folder} ({some(absent)}{hint})"
        raise MmkitError(f"{problem}: correct their names or remove their rows")
    everything = sorted(files | named)
    strange = [name for name in everything if (folder / name).suffix.lower() not in FORMATS]
    strange = [name for name in strange if not is_dicom(folder / name)]
    if strange:
        problem = f"{len(strange)} images are of a kind that is not read here ({some(strange)})"
        raise MmkitError(f"{problem}: convert them to PNG or JPEG")
    home = folder.resolve()
    outside = [name for name in everything if not (folder / name).resolve().is_relative_to(home)]
    if outside:
        problem = f"{len(outside)} images are links that lead out of {folder} ({some(outside)})"
        raise MmkitError(f"{problem}: put the files themselves there, or remove the links")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the system allows is no file's
        return False


def _assign_splits(plan: Plan, *, pool_image: set[str], pool_text: set[str]) -> None:
    """Fill the columns group and split, and leave out of the pools what shares a group with val or test."""
    items = plan.items
    group = items["group"] if "group" in items else pd.Series("", index=items.index)
    path = items["id"].where(~items["id"].isin(pool_text), "")
    items = items.assign(group=group.where(group != "", items["id"]), path=path)
    paired = ~items["id"].isin(pool_image | pool_text)
    if "split" in items:
        blank = items["id"][paired & (items["split"] == "")].tolist()
        if blank:
            remedy = "fill the column, or remove it to split 80/10/10 by group"
            raise MmkitError(f"{len(blank)} images have no split ({some(blank)}): {remedy}")
        items["split"] = [SPLITS.get(name.lower(), name) for name in items["split"]]
        found = list(items["split"][paired].unique())
        if found and "train" not in found:
            splits = ", ".join(map(repr, found))
            problem = f"no image is in the split 'train', the splits are {splits}"
            raise MmkitError(f"{problem}: call the one to learn from 'train'")
        if apart := [name for name in found if name not in SPLITS.values() and not name.startswith(("ood_", "pool_"))]:
            plan.notes.append(f"splits that nothing is learnt from or scored on: {', '.join(apart)}")
    elif paired.any():
        items.loc[paired, "split"] = split_by_hash(items["group"][paired])
    items.loc[items["id"].isin(pool_image), "split"] = "pool_image"
    items.loc[items["id"].isin(pool_text), "split"] = "pool_text"
    labels = [name for name in items if name.startswith("label")]
    if signs := [name for name in labels if set(items[name].str.lstrip("+")) - {""} == {"1", "-1"}]:
        plan.notes.append(f"1 and -1, of which -1 is read as unknown; write 0 for no: {', '.join(signs)}")
    plan.items = items.assign(**{name: label_column(items[name]) for name in labels})
    held_out = set(items["group"][~items["split"].isin(("train", *POOLS))])
    leaking = set(items["id"][~paired & items["group"].isin(held_out)])
    plan.leave_out(leaking, "unpaired, and its group is in a split other than train")


def _tables(plan: Plan) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items and texts as a writer takes them, the images in the order of their items."""
    items = plan.items.reset_index(drop=True)
    drawn = items["path"] != ""
    texts = plan.texts.assign(item=plan.texts["id"].map(pd.Series(items.index, index=items["id"])).astype("int64"))
    return items.drop(columns="path").assign(image=np.where(drawn, drawn.cumsum() - 1, -1)), texts


def _pixels(plan: Plan, folder: Path, name: str, **options) -> Iterator[np.ndarray]:
    """The images, one after the other; when all are read, the damaged ones are out of the plan.

    options: of `read_image`. Raises MmkitError when a split has lost all its images.
    """
    files, damaged, scaled = plan.items[plan.items["path"] != ""], {}, []
    for id, path in progress(list(zip(files["id"], files["path"], strict=True)), label=name, unit="images"):
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", ScaledImage)
                pixels = read_image(folder / path, **options)
        except DamagedImage as damage:
            damaged[id] = f"damaged image: {damage}"
            continue
        scaled += [str(warning.message) for warning in said if warning.category is ScaledImage]
        yield pixels
    before = set(plan.items["split"])
    for id, reason in damaged.items():
        plan.leave_out({id}, reason)
    why = some([f"{line['name']} ({line['reason']})" for line in plan.reported])
    if not len(plan.items):
        raise MmkitError(f"{name!r} has no usable rows: {why}")
    if lost := before - set(plan.items["split"]) - set(POOLS):
        splits = ", ".join(map(repr, sorted(lost)))
        raise MmkitError(f"no image of the split {splits} can be read: {why}: mend them, or split the others anew")
    plan.notes += [f"{len(scaled)} images were brought to 8 bits: {some(scaled)}"] if scaled else []


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


def _inside(name: str) -> str:
    """A path of the table as a path inside the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        remedy = "write paths relative to the folder, without '..'"
        raise MmkitError(f"the table names an image outside the folder, {name!r}: {remedy}")
    return "" if not name else path.as_posix()


def _require_name(name: str, replace: bool) -> None:
    if not NAME.fullmatch(name):
        remedy = "use lower-case letters, digits, '-' and '_', for example my_photos"
        raise MmkitError(f"{name!r} is no name for a data set: {remedy}")
    taken = (*RESERVED, *recipe_names())
    if any(name == other or re.fullmatch(rf"{other}-[0-9a-f]{{8}}", name) for other in taken):
        raise MmkitError(f"{name!r} is the name of a recipe or reserved: choose another, for example my_{name}")
    if (data_root() / name).exists() and not replace:
        raise MmkitError(f"there is a data set {name!r} already: choose another name, or pass --force to replace it")
