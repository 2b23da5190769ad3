"""YAML files that people write: read without surprises. What cannot be what was meant is refused with its line."""

from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mmkit.errors import MmkitError, unknown

M = TypeVar("M", bound=BaseModel)
MOST_BYTES, DEEPEST = 2_000_000, 50


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml's is seven times as fast
    """Refuses a key that is written twice: YAML would let the last one win without a word."""

    def construct_mapping(self, node, deep=False):
        seen = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise MmkitError(f"the key {key.value!r} is there twice, in lines {seen[key.value]} and {line}")
                seen[key.value] = line
        return super().construct_mapping(node, deep=deep)


def read(path: Path) -> object:
    """The content of a YAML file.

    Raises: MmkitError when it cannot be read, holds a key twice, an alias (a few lines of them unfold to gigabytes),
    or is too large or too deep for what people write by hand.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise MmkitError("it is no file")
        text = Path(path).read_text(encoding="utf-8")
        if len(text) > MOST_BYTES:
            raise MmkitError(f"it has {len(text):,} characters, at most {MOST_BYTES:,} are read")
        _refuse_aliases(text)
        return yaml.load(text, _Loader)
    except (OSError, ValueError, yaml.YAMLError, MmkitError) as error:
        raise MmkitError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _refuse_aliases(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, _Loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise MmkitError(f"line {line} uses the alias *{event.anchor}: write out what it stands for")
        opens = isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        closes = isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
        depth += opens - closes
        if depth > DEEPEST:
            raise MmkitError(f"line {line} is more than {DEEPEST} levels deep")


def read_model(path: Path, model: type[M]) -> M:
    """A YAML file as a checked model. Raises: MmkitError naming the file, the key and what was expected there."""
    content = read(path)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        if first["type"] == "extra_forbidden":
            *outer, key = first["loc"]
            raise MmkitError(f"{path.name}: {unknown('key', key, _fields(model, outer))} (at {place})") from None
        got = str(first["input"])[:80]
        hint = (
            " (YAML reads it as a number: put it in quotes)" if first["type"] == "string_type" and got.isdigit() else ""
        )
        raise MmkitError(f"{path.name}: {place or 'the file'}: {first['msg']}, got {got!r}{hint}") from None


def _fields(model: type[BaseModel], loc: list[str | int]) -> list[str]:
    """The keys a model allows at a place inside it."""
    for step in loc:
        if step in model.model_fields:
            kind = model.model_fields[step].annotation
            model = next(
                (part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, BaseModel)),
                model,
            )
    return list(model.model_fields)
