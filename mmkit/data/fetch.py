"""Source files of a recipe: from the mirror, or from their public address with resume, retries and checks."""

import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import requests

from mmkit.data.archive import unpack
from mmkit.data.folders import data_root, file_hash, named_folder, readable, require_space, sync, writing
from mmkit.data.progress import progress
from mmkit.data.recipe import File, Recipe
from mmkit.errors import MmkitError

CHUNK = 1 << 16  # bytes; at most so many are lost by a cut
RETRIES = 4  # attempts in a row without a new byte
TIMEOUT = (10, 60)  # seconds to connect, and between two bytes
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that may be different in a moment


class Unreachable(MmkitError):
    """A file that could not be had: no network, no such address, no mirror."""


class Sources:
    """The source files of a recipe while it is prepared: `sources[file name]` is a file, or the folder of an archive.

    provenance: for the card, where each came from and its sha256. missing: optional files that were not to be had.
    Archives are unpacked to a folder that is removed at the end; downloads are kept under `$MMKIT_DATA/raw`.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.raw = data_root() / "raw" / recipe.name
        self.provenance: list[dict] = []
        self.missing: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        self._unpacked: list[Path] = []
        self._announced = False

    def __enter__(self) -> "Sources":
        return self

    def __exit__(self, *error) -> None:
        for folder in self._unpacked:
            shutil.rmtree(folder, ignore_errors=True)

    def __getitem__(self, name: str) -> Path:
        return self._paths[name]

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def resolve(self) -> None:
        """Bring every file here. Raises MmkitError with the remedy for one that is missing or is not what it should be."""
        mirror = mirror_root()
        for file in self.recipe.files:
            try:
                if mirror and file.mirror and (mirror / file.mirror).exists():
                    path = mirror / file.mirror
                    digest, listed = verify_mirrored(mirror, path)
                    source = {
                        "from": f"$MMKIT_MIRROR/{file.mirror}",
                        "sha256": digest,
                        "checked": listed or (path.is_file() and bool(file.sha256 or file.md5)),
                    }
                    if path.is_file():
                        _verify(path, file, f"the mirror's {file.mirror}")
                else:
                    path = self._download(file)
                    source = {"from": file.url, "sha256": file_hash(path), "checked": bool(file.sha256 or file.md5)}
                self._paths[file.name] = self._unpack(path) if file.unpack and path.is_file() else path
                self.provenance.append({"name": file.name, **source})
            except Unreachable as error:
                if not file.optional:
                    raise
                self.missing[file.name] = f"optional, left out: {error}"

    def _download(self, file: File) -> Path:
        with writing(self.raw):
            self.raw.mkdir(parents=True, exist_ok=True)
        recipe = self.recipe
        if not self._announced and not (self.raw / file.name).exists():
            print(
                f"{recipe.title}\n  licence: {recipe.licence}\n  terms: {recipe.terms}\n  cite: {recipe.citation}",
                file=sys.stderr,
            )
            self._announced = True
        return download(file, self.raw)

    def _unpack(self, archive: Path) -> Path:
        with writing(self.raw):
            self.raw.mkdir(parents=True, exist_ok=True)
            for left in self.raw.glob(f".{archive.name}.unpacked-*"):  # by a killed process
                shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{archive.name}.unpacked-", dir=self.raw))
        self._unpacked.append(folder)
        unpack(archive, folder)
        return folder


def mirror_root() -> Path | None:
    """The read-only folder with raw files of many sets that `$MMKIT_MIRROR` names, if it is set."""
    mirror = named_folder("MMKIT_MIRROR")
    if mirror and not mirror.is_dir():
        raise MmkitError(
            f"MMKIT_MIRROR names {str(mirror)!r}, which is no folder: correct it, or unset it to download from the public address"
        )
    return mirror


def verify_mirrored(mirror: Path, path: Path) -> tuple[str, bool]:
    """Hold a file, or all files of a folder, against the mirror's SHA256SUMS; returns its sha256, or that of the folder's listing, and whether all were listed there."""
    listing = mirror / "SHA256SUMS"
    lines = (
        [line.split(maxsplit=1) for line in listing.read_text(encoding="utf-8").splitlines()]
        if listing.exists()
        else []
    )
    sums = {name.removeprefix("*").removeprefix("./"): digest for digest, name in filter(None, lines)}
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = {file.relative_to(mirror).as_posix(): file_hash(file) for file in files}
    inside = f"{path.relative_to(mirror).as_posix()}/"
    wrong = [name for name in sums if name.startswith(inside) and name not in found] + [
        name for name in found if sums.get(name, found[name]) != found[name]
    ]
    if wrong:
        raise MmkitError(
            f"{len(wrong)} files of the mirror {mirror} are missing or differ from its SHA256SUMS, first {wrong[0]}: copy them again, or unset MMKIT_MIRROR"
        )
    digest = (
        next(iter(found.values()))
        if path.is_file()
        else hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in found.items()).encode()).hexdigest()
    )
    return digest, found.keys() <= sums.keys()


def download(file: File, folder: Path, *, pause: float = 1.0) -> Path:
    """A file from its address, checked: kept as `folder/file.name`, and fetched only when it is not there.

    A cut transfer goes on where it stopped, also in the next process (`file.name.part`). pause: seconds before the
    first retry, doubled with each. Raises Unreachable when it cannot be had, MmkitError when it is not what it should be.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    if target.exists():
        _verify(target, file, f"the earlier download {target}", remedy="delete it and run again")
        return target
    with writing(folder):
        resumed = _size(part) > 0
        while True:
            _transfer(file, part, pause)
            try:
                _verify(part, file, f"what {file.url} sends")
                break
            except MmkitError:
                part.unlink()
                if not resumed:
                    raise
                resumed = False  # the first bytes were of an older or broken file: once more, from the start
        sync(part)
        os.replace(part, target)
        sync(folder)
    return target


def _transfer(file: File, part: Path, pause: float) -> None:
    """Bring the bytes into `part`, going on after a cut; gives up after RETRIES attempts in a row without a new byte."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _request(file, part, before)
        except requests.RequestException as error:
            failures = 0 if _size(part) > before else failures + 1
            answer = error.response
            patience = (
                RETRIES if answer is not None or _size(part) else 1
            )  # nothing was ever reached: no network, most likely
            if failures > patience or (answer is not None and answer.status_code not in PASSING):
                raise Unreachable(
                    f"{file.name} could not be downloaded from {file.url} ({_reason(error)}): check the network and run again"
                    f"{f', it goes on at {readable(_size(part))}' if _size(part) else ''}; or point MMKIT_MIRROR at a folder that has it"
                ) from error
            print(f"{file.name}: {_reason(error)}; trying again at {readable(_size(part))}", file=sys.stderr)
            asked = answer.headers.get("Retry-After", "") if answer is not None else ""
            time.sleep(
                min(60, int(asked))
                if asked.isdigit()
                else pause * 2 ** max(0, failures - 1) * random.uniform(0.75, 1.25)
            )


def _request(file: File, part: Path, start: int) -> None:
    """One request for the bytes from `start` on, appended to `part`; a server that ignores the range sends all of them."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "mmkit"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(file.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if (
            answer.status_code == 416
        ):  # nothing beyond what is here: whole, or of another file, which the check finds out
            return
        answer.raise_for_status()
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else file.size
        require_space(part.parent, (total or 0) - start, f"downloading {file.name}")
        with (
            open(part, "ab" if start else "wb") as out,
            progress(label=file.name, unit="B", total=total, start=start) as bar,
        ):
            for chunk in answer.iter_content(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
                if file.size and out.tell() > file.size:
                    return  # more than the file has: the check names it
        if total is not None and _size(part) < total:
            raise requests.ConnectionError(f"the connection closed after {_size(part)} of {total} bytes")


def _verify(
    path: Path,
    file: File,
    what: str,
    remedy: str = "nothing was used; run again later, or point MMKIT_MIRROR at a folder that has it",
) -> None:
    """Hold a file against the recipe's size and digest."""
    if file.size is not None and _size(path) != file.size:
        raise MmkitError(
            f"{what} is not {file.name}: it has {_size(path)} bytes, the recipe expects {file.size}; {remedy}"
        )
    for algorithm, expected in (("sha256", file.sha256), ("md5", file.md5)):
        found = file_hash(path, algorithm) if expected else None
        if found != expected:
            raise MmkitError(
                f"{what} is not {file.name}: its {algorithm} is {found}, the recipe expects {expected}; {remedy}"
            )


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    text = str(error)
    return (
        "the connection was cut" if "IncompleteRead" in text or "closed" in text or "reset" in text else "no connection"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
