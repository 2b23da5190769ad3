"""`mmkit data ...`: the commands as plain functions that print."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmkit.data import local, prepared
from mmkit.data.folders import data_root, readable
from mmkit.data.recipe import find_recipe, recipe_names
from mmkit.errors import MmkitError, printable, unknown


def list_() -> None:
    """Every recipe and every prepared set, with what it takes on the disk."""
    table = Table("name", "title", "prepared", "splits", "content", box=None, header_style="bold")
    sets = prepared.prepared_sets()
    for name in recipe_names():
        if not any(card is not None and card.get("name") == name for card in sets.values()):
            recipe = find_recipe(name)
            table.add_row(name, recipe.title, "no" if recipe.files else "no, generated", "", "")
    for folder, card in sets.items():
        if card is None:
            table.add_row(_line(folder.name), "", "its card cannot be read", "", "")
            continue
        size = readable(sum(entry["size"] for entry in card["files"].values()))
        cells = (folder.name, card["title"], size, _splits(card), card["content"][:8])
        table.add_row(*map(_line, cells))
    Console(markup=False, emoji=False).print(table)  # a title is its owner's, brackets and all
    print(f"in {data_root()}")


def prepare(name: str, settings: list[str] | None = None, *, force: bool = False) -> None:
    """Make a set by its recipe. settings: knobs as `name=value` words."""
    recipe = find_recipe(name)
    folder, card = prepared.prepare(recipe, force=force, **recipe.parse(settings or []))
    _summary(folder.name, card)
    print(f"  in {folder}")


def add(name: str, *, card: dict[str, str] | None = None, dry_run: bool = False, **options) -> None:
    """Make a set of your own images and captions; see `mmkit.data.add`. card: title, licence, terms, citation."""
    local.require_card(card or {})  # before its fields stand among the options
    _summary(name, local.add(name, dry_run=dry_run, **options, **(card or {})))
    opening = f"open it with mmkit.load({name!r}), or pass -p data={name} to a notebook"
    print("  dry run: nothing was written" if dry_run else f"  in {data_root() / name}; {opening}")


def check(name: str | None = None, settings: list[str] | None = None) -> None:
    """Hold one prepared set, or all, against its card: hashes, content and rules. Raises MmkitError for the damaged."""
    folders = [_folder(name, settings or [])] if name else list(prepared.prepared_sets())
    failures = []
    for folder in folders:
        try:
            card = prepared.check(folder)
            print(f"{folder.name}: sound, content {card['content'][:12]}")
        except MmkitError as error:
            failures.append(str(error))
    if failures:
        raise MmkitError("\n".join(failures))
    if not folders:
        print(f"nothing is prepared in {data_root()}")


def card(name: str, settings: list[str] | None = None) -> None:
    """Print the card of a prepared set."""
    folder = _folder(name, settings or [])
    content = prepared.require_schema(folder, prepared.read_card(folder))
    _summary(folder.name, content)
    for field in ("title", "task", "licence", "terms", "citation", "content", "prepared"):
        print(f"  {field}: {_line(content[field]) or '-'}")
    made_by = content["recipe"]
    version = f"{made_by['name']} version {made_by['version']}, knobs {content['knobs']}" if made_by else ""
    print(f"  recipe: {_line(version) or 'none, added by hand'}")
    for modality, about in content.get("arrays", {}).items():
        options = [f"{key} {value}" for key, value in about.items() if key not in ("dtype", "shape", "sha256")]
        described = [" x ".join(map(str, about["shape"])), about["dtype"], *options]
        print(_line(f"  array {modality}: {', '.join(described)}"))
    for modality, columns in content.get("facts", {}).items():
        print(_line(f"  told by {modality} alone: {', '.join(columns)}"))
    for source in content["sources"]:
        digest = f", sha256 {source['sha256']}" if "sha256" in source else ""
        checked = "" if source.get("checked", True) else ", held against no published digest"
        print(f"  source: {_line(source['name'])} from {_line(source['from'])}{_line(digest)}{checked}")


def _summary(name: str, card: dict) -> None:
    content = f"; content {card['content'][:8]}" if "content" in card else ""
    print(_line(f"{name}: {_splits(card)}; {card['texts']:,} texts{content}"))
    for note in card.get("notes", []):
        print(f"  note: {_line(note)}")
    for left_out in card["reported"][:5]:
        print(f"  left out: {_line(left_out['name'])}: {_line(left_out['reason'])}")
    if len(card["reported"]) > 5:
        print(f"  left out: {len(card['reported']) - 5} more, all on the card")


def _splits(card: dict) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in card["splits"].items())


def _line(text: object) -> str:
    """A text of a card in one line; whoever wrote the card does not write to the terminal."""
    return printable(text, 500).replace("\n", "\\n")


def _folder(name: str, settings: list[str]) -> Path:
    """The folder of a prepared set by the name of the set (with knobs) or of the folder."""
    names = {folder.name: folder for folder in prepared.prepared_sets()}
    if name in recipe_names():
        recipe = find_recipe(name)
        wanted = recipe.folder(recipe.settings(recipe.parse(settings)))
        if wanted not in names:
            raise MmkitError(f"{wanted!r} is not prepared: mmkit data prepare {' '.join([name, *settings])}")
        return names[wanted]
    if name not in names:
        raise unknown("data set", name, {*names, *recipe_names()})
    return names[name]
