"""What a prepared set must be: its columns, the rules it keeps, and the hash that identifies it."""

import hashlib
import json
from collections.abc import Sequence

import pandas as pd

from mmkit.errors import MmkitError, printable, unknown

PAIRED = ("image", "text")  # the modalities of a set that names no other array
ITEM_COLUMNS = ("id", "image", "split", "group")
TEXT_COLUMNS = ("item", "text", "language", "role")
POOLS = ("pool_image", "pool_text")


def array_file(modality: str) -> str:
    """The name of the file that holds the array of a modality."""
    return "images.npy" if modality == "image" else f"{modality}.npy"


def validate(
    items: pd.DataFrame,
    texts: pd.DataFrame,
    *,
    images: int,
    arrays: dict[str, int] | None = None,
    required: Sequence[str] = PAIRED,
    facts: dict[str, list[str]] | None = None,
) -> None:
    """Check the rules of a prepared set.

    images: the number of images. arrays: the number of entries of every other array, by modality. required: the
    modalities that each item outside the pools must have; no item may be without any. An item of the split
    `pool_NAME` has the modality NAME and no other. facts: by modality, the columns of labels that it tells.
    Raises MmkitError naming the first offenders and the remedy.
    """

    def refuse(bad: pd.Series, problem: str, remedy: str) -> None:
        if bad.any():
            names = items["id"][bad].tolist()
            raise MmkitError(f"{len(names)} of {len(items)} items {problem} ({some(names)}): {remedy}")

    if not len(items):
        raise MmkitError("the set has no items: nothing usable was found in its source")
    refuse(items["id"].duplicated(), "repeat an id", "give every item its own id")
    for name, count in {"image": images, **(arrays or {})}.items():
        beyond = (items[name] < -1) | (items[name] >= count)
        entries, method = ("images", "image") if name == "image" else (f"entries of {name!r}", "array")
        remedy = f"use the rows that Writer.{method} returned, or -1 for no {name}"
        refuse(beyond, f"point beyond the {count} {entries}", remedy)
    refuse(items["split"].str.strip() == "", "have no split", "name a split for each, for example train")
    refuse(items["group"].str.strip() == "", "have no group", "name a group for each, or leave the column out")
    strays = texts[(texts["item"] < 0) | (texts["item"] >= len(items))]
    if len(strays):
        first = strays["text"].iloc[0]
        remedy = "use the rows that Writer.item returned"
        raise MmkitError(f"{len(strays)} texts point beyond the {len(items)} items, first {first!r}: {remedy}")
    blank = pd.Series(False, index=items.index)
    blank[texts["item"][~texts["text"].map(_seen)].unique()] = True
    refuse(blank, "have a blank text", "drop the text or write one")
    has = {name: items[name] >= 0 for name in ("image", *(arrays or {}))} | {"text": items.index.isin(texts["item"])}
    _require_modalities(items["split"], has, required, refuse)
    _require_facts(facts or {}, items, has)
    _require_whole_groups(items, pools=[f"pool_{name}" for name in has])


def require_letters(text: str, where: str) -> str:
    """The text. Raises MmkitError for half of a surrogate pair, as broken JSON and names in other encodings hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise MmkitError(f"{where} holds half a letter ({around!r}): write it in UTF-8") from error
    return text


def _require_modalities(split: pd.Series, has: dict[str, pd.Series], required: Sequence[str], refuse) -> None:
    """Every item has what its split asks for. has: for each modality, which items have it, (N,) bool."""
    pooled = split.isin([f"pool_{name}" for name in has])
    for name, there in has.items():
        others = [other for other in has if other != name]
        alone = " or ".join(f"pool_{other} for {_a(other)} alone" for other in others)
        needs = (~pooled & (name in required)) | (split == f"pool_{name}")
        refuse(needs & ~there, f"have no {name}", f"leave them out, or use the split {alone}")
        for other in others:
            problem = f"of the split pool_{other} have {_a(name)}"
            refuse((split == f"pool_{other}") & there, problem, f"use another split, or no {name}")
    nothing = ~pd.concat([pd.Series(there, index=split.index) for there in has.values()], axis=1).any(axis=1)
    refuse(nothing, f"have none of {', '.join(has)}", "leave them out")


def _require_facts(facts: dict[str, list[str]], items: pd.DataFrame, has: dict[str, pd.Series]) -> None:
    """Every fact names a modality of the set and a column of labels. has: as in `_require_modalities`."""
    labels = [name for name in items if name not in (*ITEM_COLUMNS, *has)]
    for modality, columns in facts.items():
        if modality not in has:
            raise unknown("modality", modality, has)
        for column in columns:
            if column not in labels:
                raise unknown(f"label that {modality} tells", column, labels)


def _require_whole_groups(items: pd.DataFrame, pools: list[str]) -> None:
    side = items["split"].replace(dict.fromkeys(pools, "train"))  # what is learnt from without labels counts as train
    splits = side.groupby(items["group"], sort=False).nunique()
    if (splits > 1).any():
        group = splits.index[splits > 1][0]
        inside = ", ".join(items["split"][items["group"] == group].unique())
        remedy = "keep all items of a group in one split, or test scores leak"
        count = int((splits > 1).sum())
        raise MmkitError(f"{count} groups are in more than one split, first {group!r} in {inside}: {remedy}")


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few names, as a message shows them; a name can be a caption in the wrong column."""
    return ", ".join(printable(name, 120) for name in names[:count]) + (", ..." if len(names) > count else "")


def content_hash(
    arrays: dict[str, dict], items: pd.DataFrame, texts: pd.DataFrame, facts: dict[str, list[str]] | None = None
) -> str:
    """What identifies a set on every platform: sha256 over the arrays' bytes and canonical JSON lines of the tables.

    arrays: by modality, the sha256 of the entries' bytes and the shape; of others than images also dtype and options.
    facts: by modality, the labels that it tells alone.
    The tables' files are not used: their bytes differ between versions of the Parquet writer.
    """
    image = arrays.get("image", {"sha256": hashlib.sha256().hexdigest(), "shape": (0, 1, 1, 3)})
    head: dict = {"images": image["sha256"], "shape": [int(n) for n in image["shape"]]}
    if others := {name: about for name, about in arrays.items() if name != "image"}:
        head["arrays"] = others  # absent from sets of images and texts, whose hashes are in published records
    if facts:
        head["facts"] = facts
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for table in (items, texts):
        names = sorted(table)
        digest.update(json.dumps(names).encode() + b"\n")
        for row in zip(*(table[name].tolist() for name in names), strict=True):
            digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _seen(text: str) -> bool:
    """Whether a reader sees anything of a text: marks without width and control characters are nothing."""
    return any(letter.isprintable() and not letter.isspace() for letter in text)


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
