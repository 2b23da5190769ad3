"""Typed parameters of a notebook: one line each in the cell tagged `parameters`, `name: type = default  # help`."""

import ast
import io
import json
import math
import re
import tokenize
from contextlib import suppress
from dataclasses import dataclass

from mmkit.errors import MmkitError

TYPES = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `name: type = default  # help`. `type` is int, float, str, bool or list[...] of
    one of them, with ` | None` where the default may be left open."""

    name: str
    type: str
    default: object
    help: str

    def convert(self, value: object) -> object:
        """`value` as this parameter's type, JSON-typed.

        Text is read by the declared type, so `007` stays text where text is declared and `1e-3` is a number where a
        number is. Raises MmkitError.
        """
        base, optional = self.type.removesuffix(" | None"), self.type.endswith(" | None")
        if optional and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
            return None
        if not base.startswith("list["):
            return self._scalar(base, value)
        if isinstance(value, str):
            value = list_items(value)
        if not isinstance(value, list | tuple):
            raise self._wrong(value)
        return [self._scalar(base[5:-1], item) for item in value]

    def _scalar(self, kind: str, value: object) -> object:
        if isinstance(value, str) and kind != "str":
            value = self._from_text(kind, value)
        if kind == "float" and type(value) is int:
            value = float(value)
        if type(value) is not TYPES[kind] or (kind == "float" and not math.isfinite(value)):
            raise self._wrong(value)
        if kind == "str" and any("\ud800" <= character <= "\udfff" for character in value):
            raise MmkitError(f"parameter {self.name!r}: {value!r} holds half a character: write it in UTF-8")
        return value

    def _from_text(self, kind: str, text: str) -> object:
        try:
            if kind == "bool":
                return {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}[text.lower()]
            return TYPES[kind](text)
        except (ValueError, KeyError):
            raise self._wrong(text) from None

    def _wrong(self, value: object) -> MmkitError:
        return MmkitError(
            f"parameter {self.name!r} is {self.type} (default {self.default!r}), got {value!r} of type "
            f"{type(value).__name__}"
        )


def list_items(text: str) -> list[str]:
    """The items of a list written as text: `["a, b", "c"]` as in JSON or Python, or `a, b` between commas.

    One pair of brackets around the whole is the list's own, and so are parentheses around several items. Brackets and
    quotes inside an item are the item's, and so is a comma between them: `[Pp]neumonia` and `(a|b)` are one item,
    `x{1,2}, y` are two.
    """
    text = text.strip()
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = parse(text)
            if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
                return list(value)
    parts = _split(text[1:-1] if _is_bracketed(text) else text)
    quoted = ("''", '""')
    return [part[1:-1] if len(part) > 1 and part[0] + part[-1] in quoted else part for part in parts]


def _split(text: str) -> list[str]:
    """Cut at the commas that stand in no brackets and no quoted item."""
    parts, start, depth, quote, escaped = [], 0, 0, "", False
    for place, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not text[start:place].strip():  # an apostrophe inside a word quotes nothing
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _is_bracketed(text: str) -> bool:
    """The bracket that opens the text closes at its very end."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            whole, ends = place == len(text) - 1, text[0] + text[-1]
            return whole and (ends == "[]" or (ends == "()" and len(_split(text[1:-1])) > 1))
    return False


def parse_parameters(source: str) -> dict[str, Parameter]:
    """The declarations in the source of a parameters cell. Raises MmkitError."""
    try:
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        statements = ast.parse(source).body
    except (SyntaxError, tokenize.TokenError) as error:
        raise MmkitError(f"the parameters cell is not Python: {error}") from None
    found = {}
    for node in statements:
        line = ast.get_source_segment(source, node)
        try:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
                raise ValueError
            kind = ast.unparse(node.annotation).replace("None | ", "")
            if not re.fullmatch(r"(list\[(int|float|str|bool)\]|int|float|str|bool)( \| None)?", kind):
                raise ValueError
            help_text = comments.get(node.end_lineno, "") if node.lineno == node.end_lineno else ""
            parameter = Parameter(node.target.id, kind, ast.literal_eval(node.value), help_text)
        except ValueError:
            raise MmkitError(
                f"the parameters cell holds {line!r}: write `name: type = literal  # help` on one line"
            ) from None
        if not help_text:
            raise MmkitError(
                f"parameter {parameter.name!r} has no help: write `name: type = literal  # help` on one line"
            )
        if parameter.convert(parameter.default) != parameter.default or parameter.name in found:
            raise MmkitError(
                f"parameter {parameter.name!r}: declared twice, or its default {parameter.default!r} is no {kind}"
            )
        found[parameter.name] = parameter
    return found
