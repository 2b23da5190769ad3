"""What is printed, made fit for where it is read."""

from typing import TextIO

from mmkit.errors import printable


def fit(stream: TextIO) -> TextIO:
    """A standard stream that shows every text: what its encoding lacks is written as an escape.

    On standard output nothing of what is printed can steer the terminal either; progress bars are drawn on the other.
    """
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    if getattr(stream, "name", None) == "<stdout>":
        write = stream.write
        stream.write = lambda text: write(printable(text) if isinstance(text, str) else text)
    return stream
