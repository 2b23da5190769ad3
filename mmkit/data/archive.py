"""Unpacking what came from elsewhere: nothing is written outside the folder, no links, no bombs."""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from mmkit.data.folders import readable, require_space, writing
from mmkit.errors import MmkitError

GROWTH, FLOOR = 100, 64 << 20  # an archive may unpack to this many times its size, or to FLOOR bytes
MEMBERS = 1_000_000
CHUNK = 1 << 20  # bytes
CLUTTER = {"__MACOSX", ".DS_Store"}


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file into an empty folder.

    Raises MmkitError for a member with an absolute path or `..`, a link, a device, a sparse file, an archive that
    unpacks to far more than its size, by what it declares or by what comes out, and one that is damaged. What was
    unpacked before that is left to the caller to remove.
    """
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                members = ((_why_not_tar(info), info.name, info.isreg(), info.size, info) for info in file)
                _write(archive, folder, members, file.extractfile)
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                infos = file.infolist()
                members = (
                    (_why_not_zip(info), info.filename, not info.is_dir(), info.file_size, info) for info in infos
                )
                _write(archive, folder, members, file.open)
        else:
            raise MmkitError(f"{archive} is neither a zip nor a tar archive: delete it and run again")
    except MmkitError:
        raise
    except Exception as error:  # a stranger's bytes make decoders fail in every way there is
        raise MmkitError(f"the archive {archive} is damaged ({error}): delete it and run again") from error


def _write(archive: Path, folder: Path, members: Iterable[tuple], read: Callable[..., BinaryIO]) -> None:
    """Write the members (reason against, name, is a file, bytes, handle); what must not be written is refused first.

    Bytes are counted twice: as declared, before anything is written, and as they come out.
    """
    chosen, total, limit = [], 0, max(FLOOR, GROWTH * archive.stat().st_size)
    plausible = f"unpacked is more than the {readable(limit)} that are plausible"
    for count, (reason, name, is_file, size, member) in enumerate(members):
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name:
            reason = "has a path outside the archive"
        elif size < 0:
            reason = "has a negative size"
        elif count >= MEMBERS:
            reason = f"is one of more than {MEMBERS:,}"
        if reason:
            remedy = "delete it and get it from its official address"
            raise MmkitError(f"the archive {archive} is refused, its member {name!r} {reason}: {remedy}")
        if is_file and not CLUTTER.intersection(path.parts):
            chosen.append((folder / path, member))
            total += size
    if total > limit:
        raise MmkitError(f"the archive {archive} is refused, {readable(total)} {plausible}")
    require_space(folder, total, f"unpacking {archive.name}")
    with writing(folder):
        left = limit
        for target, member in chosen:
            target.parent.mkdir(parents=True, exist_ok=True)
            with read(member) as source, open(target, "wb") as out:
                while chunk := source.read(CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        raise MmkitError(f"the archive {archive} is refused, what is {plausible}: its sizes are wrong")
                    out.write(chunk)


def _why_not_zip(info: zipfile.ZipInfo) -> str:
    return "is a link" if stat.S_ISLNK(info.external_attr >> 16) else "is encrypted" if info.flag_bits & 1 else ""


def _why_not_tar(info: tarfile.TarInfo) -> str:
    if info.isreg():
        return "is a sparse file" if info.issparse() else ""
    return "" if info.isdir() else "is a link" if info.issym() or info.islnk() else "is a device"
