"""Unpacking what came from elsewhere: nothing is written outside the folder, no links, no bombs."""

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from mmkit.data.folders import readable, require_space, writing
from mmkit.errors import MmkitError

GROWTH, FLOOR = 100, 64 << 20  # an archive may unpack to this many times its size, or to FLOOR bytes
CLUTTER = {"__MACOSX", ".DS_Store"}
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    ValueError,
    NotImplementedError,
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file into an empty folder.

    Raises MmkitError for a member with an absolute path or `..`, a link, a device, an archive that unpacks to far more
    than its size, and one that is damaged. What was unpacked before that is left to the caller to remove.
    """
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                _write(
                    archive,
                    folder,
                    ((_why_not_tar(info), info.name, info.isreg(), info.size, info) for info in file),
                    file.extractfile,
                )
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                members = (
                    (_why_not_zip(info), info.filename, not info.is_dir(), info.file_size, info)
                    for info in file.infolist()
                )
                _write(archive, folder, members, file.open)
        else:
            raise MmkitError(f"{archive} is neither a zip nor a tar archive: delete it and run again")
    except DAMAGE as error:
        raise MmkitError(f"the archive {archive} is damaged ({error}): delete it and run again") from error


def _write(archive: Path, folder: Path, members: Iterable[tuple], read: Callable[..., BinaryIO]) -> None:
    """Write the members (reason against, name, is a file, bytes, handle), having refused first what must not be written."""
    chosen, total, limit = [], 0, max(FLOOR, GROWTH * archive.stat().st_size)
    for reason, name, is_file, size, member in members:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
            reason = "has a path outside the archive"
        if reason:
            raise MmkitError(
                f"the archive {archive} is refused, its member {name!r} {reason}: delete it and get it from its official address"
            )
        if is_file and not CLUTTER.intersection(path.parts):
            chosen.append((folder / path, member))
            total += size
    if total > limit:
        raise MmkitError(
            f"the archive {archive} is refused, {readable(total)} unpacked is more than the {readable(limit)} that are plausible"
        )
    require_space(folder, total, f"unpacking {archive.name}")
    with writing(folder):
        for target, member in chosen:
            target.parent.mkdir(parents=True, exist_ok=True)
            with read(member) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out)


def _why_not_zip(info: zipfile.ZipInfo) -> str:
    return "is a link" if stat.S_ISLNK(info.external_attr >> 16) else "is encrypted" if info.flag_bits & 1 else ""


def _why_not_tar(info: tarfile.TarInfo) -> str:
    return "" if info.isreg() or info.isdir() else "is a link" if info.issym() or info.islnk() else "is a device"
