"""A recipe says where a data set comes from, under which terms, and how it becomes a prepared set.

Every module of `data_recipes/` exposes one as `RECIPE`. A generated set has no files; its `prepare` draws it.
"""

import hashlib
import importlib
import json
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real

from mmkit.errors import MmkitError, unknown

Knob = int | float | str | bool
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class File:
    """One source file of a recipe.

    name: file name under which a download is kept, and the key under which `prepare` finds it.
    url: public address; "" where no digest is published: such a file is brought by hand from page, or by the mirror.
    size: bytes, where they are published; limit: the most it can have where they are not.
    sha256, md5: the published digest, checked before use.
    mirror: path inside `$MMKIT_MIRROR` of the same file, or of a folder with what the archive holds.
    unpack: an archive (zip or tar); `prepare` gets the folder it was unpacked to.
    optional: the set can be prepared without it; that it was not to be had is then reported on the card.
    only: knobs for whose values alone it is needed.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    mirror: str | None = None
    unpack: bool = False
    optional: bool = False
    only: dict[str, Knob] = field(default_factory=dict)
    limit: int = 2_000_000_000
    page: str = ""


@dataclass(frozen=True)
class Recipe:
    """How one data set is made. `prepare(writer, sources, **knobs)` fills the writer; `sources[file name]` is a path.

    version: raise it whenever `prepare` would write something else; sets prepared by an older one are made again.
    knobs: name -> default (int, float, str or bool); what a user may vary. Other values get a folder of their own.
    """

    name: str
    title: str
    task: str
    licence: str
    terms: str
    citation: str
    version: int
    prepare: Callable[..., None]
    files: tuple[File, ...] = ()
    knobs: dict[str, Knob] = field(default_factory=dict)

    def settings(self, knobs: dict[str, Knob]) -> dict[str, Knob]:
        """All knobs with their values, the given ones checked. Raises MmkitError for an unknown one or a wrong type."""
        for name in knobs:
            if name not in self.knobs:
                raise unknown(f"knob of {self.name!r}", name, self.knobs)
        return {name: self._typed(name, knobs.get(name, default)) for name, default in self.knobs.items()}

    def parse(self, words: list[str]) -> dict[str, Knob]:
        """Knobs from the `name=value` words of a command line."""
        knobs = {}
        for word in words:
            name, equals, text = word.partition("=")
            name = name.lstrip("-").replace("-", "_")
            if not equals:
                example = f"{next(iter(self.knobs), 'size')}=64"
                raise MmkitError(f"cannot read {word!r}: write a knob as name=value, for example {example}")
            if name not in self.knobs:
                raise unknown(f"knob of {self.name!r}", name, self.knobs)
            knobs[name] = _from_text(text, type(self.knobs[name]))
        return knobs

    def folder(self, settings: dict[str, Knob]) -> str:
        """The prepared set's folder: the name, with eight hex digits of the knobs that differ from their defaults."""
        changed = {name: value for name, value in settings.items() if value != self.knobs[name]}
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.name}-{digest}" if changed else self.name

    def _typed(self, name: str, value: Knob) -> Knob:
        kind = type(self.knobs[name])
        if kind is float and isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
        if kind in (str, bool) and isinstance(value, kind):
            return value
        expected = f"{kind.__name__}, for example {self.knobs[name]!r}"
        problem = f"{name}={value!r} is not {TYPE_NAMES[kind]}"
        raise MmkitError(f"{problem}: knob {name!r} of {self.name!r} expects {expected}")


def _from_text(text: str, kind: type) -> Knob:
    """A command line's word as a value of `kind`; what cannot be read stays text, for the type check to refuse."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


@cache
def recipe_names() -> tuple[str, ...]:
    """The names of the recipes in `data_recipes/`."""
    import data_recipes

    names = (module.name for module in pkgutil.iter_modules(data_recipes.__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises MmkitError, with the nearest name, when there is none."""
    if name not in recipe_names():
        raise unknown("data recipe", name, recipe_names())
    return importlib.import_module(f"data_recipes.{name}").RECIPE
