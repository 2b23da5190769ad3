"""Files and folders written so that a crash, a kill or a full disk at any moment leaves the old or the new."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmkit.errors import MmkitError


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows has no handle for a folder
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever finds it finds all of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    sync(part)
    os.replace(part, path)
    sync(path.parent)


@contextmanager
def new_file(path: Path, *, numbered: bool = False) -> Iterator[Path]:
    """A file that was not there before, empty, to be filled; it is removed when nothing was written to it.

    numbered: where the name is taken, `NAME-2`, `NAME-3` and so on are.
    Raises MmkitError where the name is taken otherwise: nothing is written over.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    number, made = 1, path
    while True:
        try:
            made.open("x").close()
            break
        except FileExistsError:
            if not numbered:
                raise MmkitError(f"{path} is there already: give another name, or remove it") from None
            number += 1
            made = path.with_stem(f"{path.stem}-{number}")
    try:
        yield made
    finally:
        if made.exists() and made.stat().st_size == 0:
            made.unlink()


def replace_folder(new: Path, folder: Path) -> None:
    """Put a finished folder in the place of another one.

    After a kill at any moment one of the two is in place, or `restore_folder` brings the old one back.
    """
    old = _aside(folder)
    restore_folder(folder)
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    finally:
        restore_folder(folder)


def restore_folder(folder: Path) -> None:
    """Complete a replacement that was broken off: where the new folder is missing, the old one gets its name back."""
    old = _aside(folder)
    if old.is_dir() and folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.is_dir():
        os.rename(old, folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def sha256_of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of some files of a folder, by their path in it."""
    found = {}
    for path in sorted(files):
        with open(path, "rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def differences(before: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    """In words, what became of files between two calls of `sha256_of`."""
    for name in sorted(before.keys() | now.keys()):
        if name not in before:
            yield f"{name} was added"
        elif name not in now:
            yield f"{name} is gone"
        elif before[name] != now[name]:
            yield f"{name} was edited"
