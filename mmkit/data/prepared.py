"""Prepared sets on the disk: find, make, open and check them."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from mmkit import __version__
from mmkit.data.fetch import Sources
from mmkit.data.folders import data_root, file_hash, writing
from mmkit.data.recipe import Knob, Recipe, find_recipe, recipe_names
from mmkit.data.writer import FILES, SCHEMA, Writer, content_hash, validate
from mmkit.errors import MmkitError, unknown

CARD = set("name title task licence terms citation recipe knobs sources prepared content images texts splits reported files".split())


def prepared_sets() -> dict[Path, dict | None]:
    """The folders of all prepared sets, with their cards; None for a card that cannot be read or is of another schema."""
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
    stale = _stale(folder, recipe, settings)
    if stale is None:
        return folder, read_card(folder)
    return prepare(recipe, **knobs)


def prepare(recipe: Recipe, *, force: bool = False, **knobs: Knob) -> tuple[Path, dict]:
    """Make a set by its recipe, unless it is there; force: make it again. Of several processes one makes it, the others wait for it."""
    settings = recipe.settings(knobs)
    with making(recipe.name, folder=recipe.folder(settings)) as folder:
        stale = None if force else _stale(folder, recipe, settings)
        if not force and stale is None:
            return folder, read_card(folder)
        if folder.exists() and not force:
            print(f"{folder.name}: {stale}; preparing it again")
        return folder, _make(recipe, settings, folder)


@contextmanager
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
        for left in root.glob(f".{name}*.tmp-*"):
            if re.fullmatch(rf"\.{re.escape(name)}(-[0-9a-f]{{8}})?\.tmp-.*", left.name):
                shutil.rmtree(left, ignore_errors=True)
        yield root / (folder or name)
    finally:
        lock.release()


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
            return writer.finish(card | {"recipe": {"name": recipe.name, "version": recipe.version}, "knobs": settings, "sources": sources.provenance})
        finally:
            writer.discard()


def about(name: str, title: str, task: str, licence: str, terms: str, citation: str) -> dict:
    """The part of a card that says what the set is and who made it."""
    return {"name": name, "title": title, "task": task, "licence": licence, "terms": terms, "citation": citation, "mmkit": __version__}


def read_card(folder: Path) -> dict:
    """The card of a prepared set. Raises MmkitError when it cannot be read, or lacks what its schema has."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        if not isinstance(card, dict):
            raise ValueError("not a card")
        if card.get("schema") == SCHEMA and CARD - card.keys():
            raise ValueError(f"it lacks {', '.join(sorted(CARD - card.keys()))}")
    except (OSError, ValueError) as error:
        raise MmkitError(f"the card of the prepared set {folder} cannot be read ({error}): delete that folder and prepare or add the set again") from error
    return card


def require_schema(folder: Path, card: dict) -> dict:
    """The card, when it is of this mmkit's schema. Raises MmkitError."""
    if card.get("schema") != SCHEMA:
        raise MmkitError(f"the card of {folder} has schema {card.get('schema')}, this mmkit reads {SCHEMA}: delete that folder and prepare or add the set again")
    return card


def read_tables(folder: Path, card: dict) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    """Images (memory-mapped), items and texts of a prepared set, its files held against the card.

    The tables by their hash, the images by their size and shape. Raises MmkitError when one differs.
    """
    require_schema(folder, card)
    for name in FILES:
        path, expected = folder / name, card["files"][name]
        size = path.stat().st_size if path.exists() else None
        if size != expected["size"]:
            found = "is missing" if size is None else f"has {size} bytes where the card says {expected['size']}"
            raise MmkitError(f"the prepared set {folder} is damaged, {name} {found}: {_remedy(folder, card)}")
        if name != "images.npy" and file_hash(path) != expected["sha256"]:
            raise MmkitError(f"the prepared set {folder} is damaged, {name} differs from its hash on the card: {_remedy(folder, card)}")
    images = np.load(folder / "images.npy", mmap_mode="r" if card["images"][0] else None, allow_pickle=False)
    return images, pd.read_parquet(folder / "items.parquet"), pd.read_parquet(folder / "texts.parquet")


def check(folder: Path) -> dict:
    """Hold a prepared set against its card in full: every file's hash, the content hash and the rules. Returns the card."""
    card = read_card(folder)
    images, items, texts = read_tables(folder, card)
    if file_hash(folder / "images.npy") != card["files"]["images.npy"]["sha256"]:
        raise MmkitError(f"the prepared set {folder} is damaged, images.npy differs from its hash on the card: {_remedy(folder, card)}")
    validate(items, texts, images=len(images))
    content = content_hash(hashlib.sha256(images.data).hexdigest(), images.shape, items, texts)
    if content != card["content"]:
        raise MmkitError(f"the prepared set {folder} has content {content[:12]}, its card says {card['content'][:12]}: {_remedy(folder, card)}")
    return card


def _open_local(name: str, knobs: dict) -> tuple[Path, dict]:
    folder = data_root() / name
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
    if card.get("schema") != SCHEMA:
        return f"its card has schema {card.get('schema')}, this mmkit writes {SCHEMA}"
    made_by = card.get("recipe")
    if made_by is None:
        raise MmkitError(f"{folder} is a set of your own with the name of a recipe: give that folder another name")
    if made_by.get("version") != recipe.version:
        return f"made by version {made_by.get('version')} of its recipe, now {recipe.version}"
    return None if card.get("knobs") == settings else "made with other knobs"


def _remedy(folder: Path, card: dict) -> str:
    if card.get("recipe") is None:
        return f"add it again: mmkit data add {card['name']} --force ..."
    knobs = "".join(f" {name}={value}" for name, value in card["knobs"].items()) if folder.name != card["name"] else ""
    return f"make it again: mmkit data prepare {card['name']}{knobs} --force"
