"""Prepared sets on the disk: find, make, open and check them."""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmkit import __version__
from mmkit.data.fetch import Sources
from mmkit.data.folders import data_root, file_hash, writing
from mmkit.data.recipe import Knob, Recipe, find_recipe, recipe_names
from mmkit.data.rules import PAIRED, array_file, content_hash, validate
from mmkit.data.writer import HEADER, TABLES, Writer
from mmkit.errors import MmkitError, unknown

SCHEMAS = (1, 2)  # 2 has arrays beside the images, or other modalities that are required
YOUNG = 1.0  # seconds


def prepared_sets() -> dict[Path, dict | None]:
    """The folders of all prepared sets with their cards; None: a card that cannot be read or is of another schema."""
    restore()
    sets: dict[Path, dict | None] = {}
    for path in sorted(data_root().glob("[!.]*/card.json")):
        try:
            sets[path.parent] = require_schema(path.parent, read_card(path.parent))
        except MmkitError:
            sets[path.parent] = None
    return sets


def local_names() -> list[str]:
    """The names of the user's own sets, those added and not made by a recipe."""
    return [folder.name for folder, card in prepared_sets().items() if card is not None and card.get("recipe") is None]


def open_set(name: str | Recipe, **knobs: Knob) -> tuple[Path, dict]:
    """The folder and card of a set by its name, prepared when it is not yet."""
    if not isinstance(name, Recipe) and name not in recipe_names():
        return _open_local(str(name), knobs)
    recipe = name if isinstance(name, Recipe) else find_recipe(name)
    settings = recipe.settings(knobs)
    folder = data_root() / recipe.folder(settings)
    restore()
    stale = _stale(folder, recipe, settings)
    if stale is None:
        return folder, read_card(folder)
    return prepare(recipe, **knobs)


def prepare(recipe: Recipe, *, force: bool = False, **knobs: Knob) -> tuple[Path, dict]:
    """Make a set by its recipe, unless it is there; force: make it again.

    Of several processes one makes it, the others wait for it.
    """
    settings = recipe.settings(knobs)
    with making(recipe.name, folder=recipe.folder(settings)) as folder:
        stale = None if force else _stale(folder, recipe, settings)
        if not force and stale is None:
            return folder, read_card(folder)
        if folder.exists() and not force:
            print(f"{folder.name}: {stale}; preparing it again")
        return folder, _make(recipe, settings, folder)


@contextlib.contextmanager
def making(name: str, *, folder: str | None = None) -> Iterator[Path]:
    """Hold the lock of a set's name while its folder is made, after clearing what killed processes left behind."""
    root = data_root()
    lock = FileLock(root / f".{name}.lock")
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=2)
        except Timeout:
            print(f"{name}: another process is preparing it; waiting for it")
            lock.acquire()
    try:
        for mine in (name, f"{name}-{'[0-9a-f]' * 8}"):
            restore(mine, age=0)
            for left in root.glob(f".{mine}.tmp-*"):
                shutil.rmtree(left, ignore_errors=True)
        yield root / (folder or name)
    finally:
        lock.release()


def restore(pattern: str = "*", *, age: float = YOUNG) -> None:
    """Give their names back to the sets that a replacement had moved away and was killed before it took their place.

    age: seconds after which a replacement that goes on is not believed to be in that very moment.
    """
    for old in data_root().glob(f".{pattern}.tmp-*.old"):
        target = old.with_name(old.name[1:].rsplit(".tmp-", 1)[0])
        with contextlib.suppress(OSError):  # another process was first, or nothing can be written
            if not target.exists() and time.time() - old.lstat().st_ctime >= age:
                old.rename(target)


def _make(recipe: Recipe, settings: dict[str, Knob], folder: Path) -> dict:
    needed = tuple(file for file in recipe.files if file.only.items() <= settings.items())
    with Sources(replace(recipe, files=needed)) as sources:
        sources.resolve()
        writer = Writer(folder)
        try:
            for name, reason in sources.missing.items():
                writer.report(name, reason)
            recipe.prepare(writer, sources, **settings)
            card = about(recipe.name, recipe.title, recipe.task, recipe.licence, recipe.terms, recipe.citation)
            made_by = {"name": recipe.name, "version": recipe.version}
            return writer.finish(card | {"recipe": made_by, "knobs": settings, "sources": sources.provenance})
        finally:
            writer.discard()


def about(name: str, title: str, task: str, licence: str, terms: str, citation: str) -> dict:
    """The part of a card that says what the set is and who made it."""
    said = {"name": name, "title": title, "task": task, "licence": licence, "terms": terms, "citation": citation}
    return said | {"mmkit": __version__}


class _Made(BaseModel):
    name: str
    version: int


class _Source(BaseModel):
    name: str
    origin: str = Field(alias="from")


class _LeftOut(BaseModel):
    name: str
    reason: str


class _File(BaseModel):
    size: int
    sha256: str


class _Array(BaseModel, extra="allow"):
    shape: list[int]
    dtype: str


class Card(BaseModel, extra="allow"):
    """What a card must hold, so that nothing that reads one later meets a surprise."""

    model_config = ConfigDict(strict=True)

    name: str
    title: str
    task: str
    licence: str
    terms: str
    citation: str
    recipe: _Made | None
    knobs: dict[str, Knob]
    sources: list[_Source]
    prepared: str
    content: str
    images: list[int] = Field(min_length=4, max_length=4)
    texts: int
    splits: dict[str, int]
    reported: list[_LeftOut]
    files: dict[str, _File]
    arrays: dict[Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], _Array] = {}
    required: list[str] = []
    notes: list[str] = []
    facts: dict[str, list[str]] = {}


def read_card(folder: Path) -> dict:
    """The card of a prepared set. Raises MmkitError when it cannot be read, or lacks what its schema has."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        if not isinstance(card, dict):
            raise ValueError("not a card")
        if card.get("schema") in SCHEMAS:
            Card.model_validate(card)
            needed = (*_array_files(card).values(), *TABLES)
            if missing := [name for name in needed if name not in card["files"]]:
                raise ValueError(f"its files lack {', '.join(missing)}")
    except (OSError, ValueError, RecursionError) as error:
        remedy = "delete that folder and prepare or add the set again"
        raise MmkitError(f"the card of the prepared set {folder} cannot be read ({_why(error)}): {remedy}") from error
    return card


def _why(error: Exception) -> str:
    """The reason in one line: of a card that breaks its model, the first field that does."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"it lacks {field}" if first["type"] == "missing" else f"{field}: {first['msg']}"


def require_schema(folder: Path, card: dict) -> dict:
    """The card, when it is of a schema that this mmkit reads. Raises MmkitError."""
    if card.get("schema") not in SCHEMAS:
        found = f"schema {card.get('schema')}, this mmkit reads {' and '.join(map(str, SCHEMAS))}"
        raise MmkitError(f"the card of {folder} has {found}: delete that folder and prepare or add the set again")
    return card


def read_tables(folder: Path, card: dict) -> tuple[dict[str, np.ndarray], pd.DataFrame, pd.DataFrame]:
    """Arrays by modality (memory-mapped), items and texts of a prepared set, its files held against the card.

    Every file's size and the tables' hashes are compared each time. All bytes are read and compared with the content
    hash once; that they were sound is remembered until a file's size, inode or time of change is another. So what is
    loaded is what `content` names, unless the disk itself altered it: `check` reads all bytes whatever is remembered.
    Raises MmkitError when something differs.
    """
    require_schema(folder, card)
    for name, entry in card["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != entry["size"]:
            found = "is missing" if size is None else f"has {size} bytes where the card says {entry['size']}"
            raise _damaged(folder, card, f"{name} {found}")
        if name in TABLES and file_hash(path) != entry["sha256"]:
            raise _damaged(folder, card, f"{name} differs from its hash on the card")
    arrays = _open_arrays(folder, card)
    items, texts = (pd.read_parquet(folder / name) for name in TABLES)
    mark = _mark(folder, card)
    if not mark.exists():
        _require_content(folder, card, arrays, items, texts)
        _remember(mark, folder, card)
    return arrays, items, texts


def _open_arrays(folder: Path, card: dict) -> dict[str, np.ndarray]:
    arrays = {}
    for modality, name in _array_files(card).items():
        if modality == "image" and not card["images"][0]:
            continue  # a set of texts alone
        try:
            mode = "r" if card["files"][name]["size"] > HEADER else None  # what is empty cannot be mapped
            arrays[modality] = np.load(folder / name, mmap_mode=mode, allow_pickle=False)
        except Exception as error:  # a broken header fails in numpy's and in Python's own parsers
            raise _damaged(folder, card, f"{name} is no array ({error})") from error
    return arrays


def check(folder: Path) -> dict:
    """Hold a prepared set against its card in full: every file's hash, the content hash and the rules.

    Returns the card. Raises MmkitError.
    """
    card = read_card(folder)
    arrays, items, texts = read_tables(folder, card)
    _require_content(folder, card, arrays, items, texts)
    counts = {name: len(array) for name, array in arrays.items() if name != "image"}
    images = len(arrays.get("image", ()))
    required, facts = card.get("required", PAIRED), card.get("facts", {})
    validate(items, texts, images=images, arrays=counts, required=required, facts=facts)
    return card


def _require_content(folder: Path, card: dict, arrays: dict, items: pd.DataFrame, texts: pd.DataFrame) -> None:
    """Raises MmkitError when the bytes of an array are not those of the card, or all together not its content."""
    described = {}
    for modality, array in arrays.items():
        name = array_file(modality)
        if file_hash(folder / name) != card["files"][name]["sha256"]:
            raise _damaged(folder, card, f"{name} differs from its hash on the card")
        shape = {"sha256": hashlib.sha256(array.data).hexdigest(), "shape": list(array.shape), "dtype": array.dtype.str}
        described[modality] = card.get("arrays", {}).get(modality, {}) | shape
    content = content_hash(described, items, texts, card.get("facts"))
    if content != card["content"]:
        found = f"has content {content[:12]}, its card says {card['content'][:12]}"
        raise MmkitError(f"the prepared set {folder} {found}: {_remedy(folder, card)}")


def _mark(folder: Path, card: dict) -> Path:
    """The empty file whose presence says that the files of a set, as they are now, hold the card's content."""
    stats = {name: (folder / name).stat() for name in card["files"]}
    seen = {name: [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats.items()}
    key = json.dumps([card["content"], card.get("arrays"), card.get("facts"), seen], sort_keys=True)
    return data_root() / "cache" / "sound" / hashlib.sha256(key.encode()).hexdigest()


def _remember(mark: Path, folder: Path, card: dict) -> None:
    """Leave the mark, unless a file is so young that a change within the same tick of the clock would be missed."""
    stats = [(folder / name).stat() for name in card["files"]]
    if time.time() - max(max(stat.st_mtime, stat.st_ctime) for stat in stats) < YOUNG or mark != _mark(folder, card):
        return
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        return  # nothing can be written, and the bytes are read again next time


def _open_local(name: str, knobs: dict) -> tuple[Path, dict]:
    folder = data_root() / name
    restore()
    if name.startswith(".") or Path(name).name != name or not (folder / "card.json").exists():
        raise unknown("data set", name, {*recipe_names(), *local_names()})
    if knobs:
        raise MmkitError(f"{name!r} is a set of your own and has no knobs, got {', '.join(knobs)}")
    return folder, read_card(folder)


def _stale(folder: Path, recipe: Recipe, settings: dict[str, Knob]) -> str | None:
    """Why a prepared set cannot be used, or None when it can."""
    if not (folder / "card.json").exists():
        return "not prepared"
    card = read_card(folder)
    if card.get("schema") not in SCHEMAS:
        return f"its card has schema {card.get('schema')}, which this mmkit does not read"
    made_by = card.get("recipe")
    if made_by is None:
        raise MmkitError(f"{folder} is a set of your own with the name of a recipe: give that folder another name")
    if made_by.get("version") != recipe.version:
        return f"made by version {made_by.get('version')} of its recipe, now {recipe.version}"
    return None if card.get("knobs") == settings else "made with other knobs"


def _array_files(card: dict) -> dict[str, str]:
    """Modality -> file of a set's arrays. A card of schema 1 has the images alone and does not list them."""
    return {name: array_file(name) for name in card.get("arrays") or ("image",)}


def _damaged(folder: Path, card: dict, how: str) -> MmkitError:
    return MmkitError(f"the prepared set {folder} is damaged, {how}: {_remedy(folder, card)}")


def _remedy(folder: Path, card: dict) -> str:
    if card.get("recipe") is None:
        return f"add it again: mmkit data add {card['name']} --force ..."
    knobs = "".join(f" {name}={value}" for name, value in card["knobs"].items()) if folder.name != card["name"] else ""
    return f"make it again: mmkit data prepare {card['name']}{knobs} --force"
