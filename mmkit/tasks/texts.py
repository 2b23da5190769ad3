"""What a task can read of its texts: which are cut, equal, or of unknown words.

Such texts are no fault of the set, but they limit what a score can be. So they are counted, kept in a run's settings,
and warned of when they are many.
"""

import warnings
from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from tokenizers import Tokenizer
from torch import Tensor

from mmkit.data import Dataset
from mmkit.data.recipe import recipe_names
from mmkit.errors import MmkitError, printable
from mmkit.models.pretrained import HubText
from mmkit.models.text import UNKNOWN, WordTokenizer

WORDS = (
    "give the task a tokenizer of their language, task.words = WordTokenizer(texts, split=list) for one without spaces"
)
SAID = {
    "cut": "are cut at the tokenizer's length: shorten them, or their end is not read",
    "made_equal": "become equal to a different text by the cut: shorten them, or move what differs to the front",
    "shared": "are also another item's: reword them or merge the items, or only an item's own copy counts as right",
    "alike": f"differ from another in unknown words alone: {WORDS}",
    "unknown": "have no word that the texts to learn from have: reword them, or learn from more texts",
}
MANY = 0.01  # the share of the texts from which on there is a warning

_counts: WeakKeyDictionary[Dataset, dict] = WeakKeyDictionary()


def scored(dataset: Dataset) -> np.ndarray:
    """(N,) bool: the items that a task trains on or is scored on; neither the pools nor what is left out."""
    return dataset.items["split"].str.match("train|val|test|ood_").to_numpy()


def text_counts(
    dataset: Dataset,
    tokenizer: Callable[[list[str]], Tensor],
    *,
    role: str,
    language: str,
    length: int | None = None,
    told: tuple[str, ...] = tuple(SAID),
) -> dict[str, int]:
    """How many texts of the `scored` items are

    * `cut`: longer than what the tokenizer reads, so that their end is lost;
    * `made_equal`: different from another text, and equal to it as far as they are read;
    * `shared`: but for case and spaces the same as a text of another item;
    * `alike`: different from another text in words that the tokenizer does not know, and in nothing else;
    * `unknown`: without any token that the tokenizer knows.

    For a tokenizer of one's own that is a mere function there are only `made_equal` and `shared`. length: how many
    tokens the task reads, where they are fewer than the tokenizer gives. told: the counts that are warned of, once a
    data set and tokenizer, from 1 % of the texts on; not of the sets that the kit generates, whose texts are made from
    patterns. Raises MmkitError when all texts of a split are unknown, for then no score means anything."""
    made, key = _counts.setdefault(dataset, {}), (getattr(tokenizer, "__self__", tokenizer), role, language, length)
    if key not in made:
        table = _table(dataset, tokenizer, role, language, length)
        if "unknown" in table:
            _require_known(dataset, table, role, language)
        made[key] = {name: int(table[name].sum()) for name in SAID if name in table}
        counts = {name: made[key].get(name, 0) for name in told}
        many = [f"{n} {SAID[name]}" for name, n in counts.items() if n > 0 and n >= MANY * len(table)]
        generated = dataset.name in recipe_names() and not dataset.card["sources"]
        if many and not generated:
            texts = f"of the {len(table)} texts of role {role!r} in {language!r} of {dataset.name!r}"
            warnings.warn(f"{texts}, {'; '.join(many)}", stacklevel=4)
    return made[key]


def require_words(dataset: Dataset, split: Callable[[str], list[str]], *, role: str, language: str) -> None:
    """Raise MmkitError for a text of the `scored` items in which `split` finds no word: an emoji or punctuation
    alone."""
    rows = np.flatnonzero(scored(dataset))
    texts, owner = dataset.texts_of(rows, role=role, language=language)
    bare = [place for place, text in enumerate(texts) if not split(text)]
    if bare:
        first, item = printable(texts[bare[0]], 60), dataset.items["id"].iloc[rows[owner[bare[0]]]]
        problem = f"{len(bare)} texts of role {role!r} of {dataset.name!r} have no words, first {first!r} of {item!r}"
        raise MmkitError(f"{problem}: say it in words, or leave them out of the set")


def _table(dataset: Dataset, tokenizer, role: str, language: str, length: int | None) -> pd.DataFrame:
    """A row for each text of the scored items: the item, its split, and each count as true or false."""
    rows = np.flatnonzero(scored(dataset))
    texts, owner = dataset.texts_of(rows, role=role, language=language)
    words = getattr(tokenizer, "split", None) or str.split
    table = pd.DataFrame({"item": rows[owner], "text": ["".join(words(text)).lower() for text in texts]})
    table["split"] = dataset.items["split"].to_numpy()[table["item"]]
    whole, unknown, limit = _whole(tokenizer, texts)
    table["read"] = [tuple(ids) for ids in tokenizer(texts)[:, :length].tolist()]
    if whole is None:
        table["made_equal"] = _differ(table, "read", "text")
    else:
        limit, table["whole"] = min(limit, length or limit), [tuple(tokens) for tokens in whole]
        table["cut"] = [len(tokens) > limit for tokens in whole]
        table["made_equal"] = _differ(table, "read", "whole")
        table["alike"] = _differ(table, "whole", "text")
        table["unknown"] = [unknown.issuperset(tokens) for tokens in whole]
    table["shared"] = _differ(table, "text", "item")
    return table


def _differ(table: pd.DataFrame, same: str, other: str) -> pd.Series:
    """The rows that are the same in one column as a row that is another in the other column."""
    return table.groupby(same)[other].transform("nunique") > 1


def _whole(tokenizer, texts: list[str]) -> tuple[list[list[int]] | None, set[int], int]:
    """The tokens of each text without a cut (None for a tokenizer of another kind), the set of tokens that say nothing,
    and how many tokens the tokenizer reads."""
    if isinstance(tokenizer, WordTokenizer):
        whole = Tokenizer.from_str(tokenizer.saved())
        whole.no_truncation()
        whole.no_padding()
        texts = [" ".join(tokenizer.split(text)) for text in texts] if tokenizer.split else texts
        return [row.ids for row in whole.encode_batch(texts)], {UNKNOWN}, tokenizer.length
    owner = getattr(tokenizer, "__self__", None)
    if isinstance(owner, HubText):
        whole = owner.pieces(texts, verbose=False)["input_ids"]
        return whole, set(owner.pieces.all_special_ids), owner.length
    return None, set(), 0


def _require_known(dataset: Dataset, table: pd.DataFrame, role: str, language: str) -> None:
    for split, inside in table.groupby("split", sort=False):
        if inside["unknown"].all():
            item = dataset.items["id"].iloc[inside["item"].iloc[0]]
            texts = f"texts of role {role!r} in {language!r} of split {split!r} of {dataset.name!r}, first of {item!r}"
            raise MmkitError(f"all {len(inside)} {texts}, have no word that the tokenizer knows: {WORDS}")
