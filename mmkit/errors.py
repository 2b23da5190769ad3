"""The one exception a user meets: what was wrong, what was expected, the remedy."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# What a terminal obeys instead of showing: control characters but tab and newline, marks that turn the direction of
# writing, and halves of surrogate pairs, which no output can encode.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST, LINES = 1000, 200  # characters of a line of a message, and its lines


class MmkitError(Exception):
    """An error of use. Its text says what was wrong and what to do; the command line prints it without a traceback."""

    def __str__(self) -> str:
        lines = super().__str__().split("\n")
        left_out = [f"[{len(lines) - LINES} more lines]"] if len(lines) > LINES else []
        return "\n".join([*(printable(line, LONGEST) for line in lines[:LINES]), *left_out])


class Diverged(MmkitError):
    """Training that left the finite numbers: most often the learning rate was too high."""


def printable(text: object, longest: int | None = None) -> str:
    """A text from elsewhere as it may be shown: what a terminal would obey is written out (\\x1b), what is long is cut.

    longest: characters that are kept, of which a third are the text's last, where the remedy stands.
    """
    text = str(text)
    if longest is not None and len(text) > longest:
        text = f"{text[: longest - longest // 3]} [...] {text[-(longest // 3) :]}"
    return UNPRINTABLE.sub(_written_out, text)


def _written_out(match: re.Match) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def unknown(kind: str, name: object, options: Iterable[str]) -> MmkitError:
    """The error for a name that does not exist, with the nearest one that does."""
    options = sorted(options)
    close = get_close_matches(str(name), options, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return MmkitError(f"unknown {kind} {name!r}: {hint}there are {', '.join(options) or 'none'}")
