"""The one exception a user meets: what was wrong, what was expected, the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class MmkitError(Exception):
    """An error of use. Its text says what was wrong and what to do; the command line prints it without a traceback."""


def unknown(kind: str, name: object, options: Iterable[str]) -> MmkitError:
    """The error for a name that does not exist, with the nearest one that does."""
    options = sorted(options)
    close = get_close_matches(str(name), options, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return MmkitError(f"unknown {kind} {name!r}: {hint}there are {', '.join(options) or 'none'}")
