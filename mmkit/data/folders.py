"""Where data lives, and writing there so that a killed machine leaves either the old file or the new one."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from mmkit.errors import MmkitError
from mmkit.files import sync

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
NOT_THERE = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}
UNWRITABLE = NOT_THERE | {errno.EROFS, errno.EACCES, errno.EPERM}
MORE_SPACE = "free some space, or point MMKIT_DATA at another disk"


def named_folder(variable: str) -> Path | None:
    """The folder that an environment variable names, absolute, or None when it is not set.

    Raises MmkitError for a `~` without a home.
    """
    text = os.environ.get(variable)
    try:
        return Path(text).expanduser().absolute() if text else None
    except RuntimeError as error:
        problem = f"{variable} names {text!r}, and there is no such home folder"
        raise MmkitError(f"{problem}: write the folder in full") from error


def data_root() -> Path:
    """`$MMKIT_DATA`, or the user's cache folder."""
    try:
        if named := named_folder("MMKIT_DATA"):
            return named
        return platformdirs.user_cache_path("mmkit", appauthor=False).expanduser() / "data"
    except RuntimeError as error:
        remedy = "point MMKIT_DATA at a folder you can write"
        raise MmkitError(f"this user has no home folder to keep data in: {remedy}") from error


def readable(size: float) -> str:
    """A size in bytes as people write it: `617.4 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")


@contextmanager
def writing(folder: Path, remedy: str = "point MMKIT_DATA at a folder you can write") -> Iterator[None]:
    """Turn what the operating system says about an unwritable or full disk into an error that names the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            kept = "what was downloaded is kept and goes on from there"
            raise MmkitError(f"the disk of {folder} is full: {MORE_SPACE}; {kept}") from error
        if error.errno in UNWRITABLE:
            raise MmkitError(f"cannot write in {folder} ({error.strerror}): {remedy}") from error
        raise


def require_space(folder: Path, need: int, purpose: str) -> None:
    """Refuse before the work what would fill the disk in the middle of it."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise MmkitError(f"{purpose} needs {readable(need)} but {folder} has {readable(free)} free: {MORE_SPACE}")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` to write to; it takes the name, synced, only when the block ends well."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.tmp-", dir=target.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        sync(part)
        os.replace(part, target)
        sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """The hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
