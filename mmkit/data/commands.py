"""`mmkit data ...`: the commands as plain functions that print."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmkit.data import local, prepared
from mmkit.data.folders import data_root, readable
from mmkit.data.recipe import find_recipe, recipe_names
from mmkit.errors import MmkitError, unknown


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
            table.add_row(folder.name, "", "its card cannot be read", "", "")
            continue
        size = readable(sum(path.stat().st_size for path in folder.iterdir()))
        splits = ", ".join(f"{split} {count:,}" for split, count in card["splits"].items())
        table.add_row(folder.name, card["title"], size, splits, card["content"][:8])
    Console(markup=False, emoji=False).print(table)  # a title is its owner's, brackets and all
    print(f"in {data_root()}")


def prepare(name: str, settings: list[str] | None = None, *, force: bool = False) -> None:
    """Make a set by its recipe. settings: knobs as `name=value` words."""
    recipe = find_recipe(name)
    folder, card = prepared.prepare(recipe, force=force, **recipe.parse(settings or []))
    _summary(folder.name, card)
    print(f"  in {folder}")


def add(name: str, *, dry_run: bool = False, **options) -> None:
    """Make a set of your own images and captions; see `mmkit.data.add`."""
    card = local.add(name, dry_run=dry_run, **options)
    _summary(name, card)
    print(
        "  dry run: nothing was written"
        if dry_run
        else f"  in {data_root() / name}; open it with mmkit.load({name!r}), or pass -p data={name} to a notebook"
    )


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
    made_by = content["recipe"]
    for field in ("title", "task", "licence", "terms", "citation", "content", "prepared"):
        print(f"  {field}: {content[field] or '-'}")
    print(
        f"  recipe: {made_by['name']} version {made_by['version']}, knobs {content['knobs']}"
        if made_by
        else "  recipe: none, added by hand"
    )
    for modality, about in content.get("arrays", {}).items():
        options = [f"{key} {value}" for key, value in about.items() if key not in ("dtype", "shape", "sha256")]
        print(f"  array {modality}: {', '.join([' x '.join(map(str, about['shape'])), about['dtype'], *options])}")
    for source in content["sources"]:
        checked = "" if source.get("checked", True) else ", held against no published digest"
        print(
            f"  source: {source['name']} from {source['from']}{', sha256 ' + source['sha256'] if 'sha256' in source else ''}{checked}"
        )


def _summary(name: str, card: dict) -> None:
    splits = ", ".join(f"{split} {count:,}" for split, count in card["splits"].items())
    print(
        f"{name}: {splits}; {card['texts']:,} texts" + (f"; content {card['content'][:8]}" if "content" in card else "")
    )
    for left_out in card["reported"][:5]:
        print(f"  left out: {left_out['name']}: {left_out['reason']}")
    if len(card["reported"]) > 5:
        print(f"  left out: {len(card['reported']) - 5} more, all on the card")


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
