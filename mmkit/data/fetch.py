"""Source files of a recipe: from the mirror, or from their public address with resume, retries and checks."""

import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError

from mmkit.data.archive import unpack
from mmkit.data.folders import data_root, file_hash, named_folder, readable, require_space, writing
from mmkit.data.progress import progress
from mmkit.data.recipe import File, Recipe
from mmkit.errors import MmkitError
from mmkit.files import sync

CHUNK = 1 << 16  # bytes
RETRIES = 4  # attempts in a row that brought less than CHUNK
SLOWEST, PATIENCE = 1000, 60  # bytes a second, and the seconds over which they are counted
TIMEOUT = (10, 60)  # seconds to connect, and between two bytes
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that may be different in a moment
ELSEWHERE = "nothing was used; run again later, or point MMKIT_MIRROR at a folder that has it"


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
        """Bring every file here. Raises MmkitError with the remedy for one that is missing or not what it should be."""
        mirror = mirror_root()
        for file in self.recipe.files:
            digested = bool(file.sha256 or file.md5)
            try:
                if mirror and file.mirror and (mirror / file.mirror).exists():
                    path, origin = mirror / file.mirror, f"$MMKIT_MIRROR/{file.mirror}"
                    digest, listed = verify_mirrored(mirror, path)
                    if path.is_file():
                        _verify(path, file, f"the mirror's {file.mirror}")
                    checked = listed or (path.is_file() and digested)
                else:
                    path, origin = self._download(file), file.url or file.page
                    digest, checked = file_hash(path), digested
                self._paths[file.name] = self._unpack(path) if file.unpack and path.is_file() else path
                self.provenance.append({"name": file.name, "from": origin, "sha256": digest, "checked": checked})
            except Unreachable as error:
                if not file.optional:
                    raise
                self.missing[file.name] = f"optional, left out: {error}"

    def _download(self, file: File) -> Path:
        with writing(self.raw):
            self.raw.mkdir(parents=True, exist_ok=True)
        recipe, here = self.recipe, self.raw / file.name
        if not self._announced and not here.exists():
            terms = f"licence: {recipe.licence}\n  terms: {recipe.terms}\n  cite: {recipe.citation}"
            print(f"{recipe.title}\n  {terms}", file=sys.stderr)
            self._announced = True
        if not file.url and not here.exists():
            reason = "its publisher states no digest, so nothing is fetched unseen"
            remedy = f"get it from {file.page} and put it at {here}, or point MMKIT_MIRROR at a folder that has it"
            raise Unreachable(f"{file.name} has to be brought by hand, {reason}: {remedy}")
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
        remedy = "correct it, or unset it to download from the public address"
        raise MmkitError(f"MMKIT_MIRROR names {str(mirror)!r}, which is no folder: {remedy}")
    return mirror


def verify_mirrored(mirror: Path, path: Path) -> tuple[str, bool]:
    """Hold a file, or all files of a folder, against the mirror's SHA256SUMS.

    Returns its sha256, or that of the folder's listing, and whether all were listed there. Raises MmkitError.
    """
    listing = mirror / "SHA256SUMS"
    text = listing.read_text(encoding="utf-8") if listing.exists() else ""
    lines = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    sums = {name.removeprefix("*").removeprefix("./"): digest for digest, name in lines}
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = {file.relative_to(mirror).as_posix(): file_hash(file) for file in files}
    inside = f"{path.relative_to(mirror).as_posix()}/"
    wrong = [name for name in sums if name.startswith(inside) and name not in found]
    wrong += [name for name in found if sums.get(name, found[name]) != found[name]]
    if wrong:
        problem = f"are missing or differ from its SHA256SUMS, first {wrong[0]}"
        raise MmkitError(f"{len(wrong)} files of the mirror {mirror} {problem}: copy them again, or unset MMKIT_MIRROR")
    all_listed = found.keys() <= sums.keys()
    if path.is_file():
        return next(iter(found.values())), all_listed
    found_listing = "".join(f"{digest}  {name}\n" for name, digest in found.items())
    return hashlib.sha256(found_listing.encode()).hexdigest(), all_listed


def download(file: File, folder: Path, *, pause: float = 1.0) -> Path:
    """A file from its address, checked: kept as `folder/file.name`, and fetched only when it is not there.

    A cut transfer goes on where it stopped, also in the next process (`file.name.part`). pause: seconds before the
    first retry, doubled with each. Raises Unreachable when it cannot be had, MmkitError when it is another file.
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
    """Bring the bytes into `part`, going on after a cut; give up after RETRIES attempts in a row that bring little."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _request(file, part, before)
        except requests.RequestException as error:
            failures = 0 if _size(part) - before >= CHUNK else failures + 1
            answer, here = error.response, readable(_size(part))
            reached = answer is not None or _size(part)  # else there is no network, most likely
            if failures > (RETRIES if reached else 1) or (answer is not None and answer.status_code not in PASSING):
                goes_on = f", it goes on at {here}" if _size(part) else ""
                remedy = f"check the network and run again{goes_on}; or point MMKIT_MIRROR at a folder that has it"
                problem = f"could not be downloaded from {file.url} ({_reason(error)})"
                raise Unreachable(f"{file.name} {problem}: {remedy}") from error
            print(f"{file.name}: {_reason(error)}; trying again at {here}", file=sys.stderr)
            asked = answer.headers.get("Retry-After", "") if answer is not None else ""
            wait = pause * 2 ** max(0, failures - 1) * random.uniform(0.75, 1.25)
            time.sleep(min(60, int(asked)) if asked.isdigit() else wait)


def _request(file: File, part: Path, start: int) -> None:
    """One request for the bytes from `start` on, appended to `part`; a server that ignores the range sends them all."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "mmkit"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(file.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416 and start:
            return  # nothing beyond what is here: whole, or of another file, which the check finds out
        answer.raise_for_status()
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else file.size
        require_space(part.parent, (total or 0) - start, f"downloading {file.name}")
        bar = progress(label=file.name, unit="B", total=total, start=start)
        with open(part, "ab" if start else "wb") as out, bar:
            since, there = time.monotonic(), start
            for chunk in _arriving(answer):
                out.write(chunk)
                bar.update(len(chunk))
                if out.tell() > (file.limit if file.size is None else file.size):
                    return  # more than the file has: the check names it
                if (seconds := time.monotonic() - since) > PATIENCE:
                    if out.tell() - there < SLOWEST * seconds:
                        raise requests.Timeout(f"less than {readable(SLOWEST)} a second")
                    since, there = time.monotonic(), out.tell()
        if total is not None and _size(part) < total:
            raise requests.ConnectionError(f"the connection closed after {_size(part)} of {total} bytes")


def _arriving(answer: requests.Response) -> Iterator[bytes]:
    """The bytes as they come; `iter_content` would wait for a whole chunk, which takes for ever at a byte a second."""
    read = getattr(answer.raw, "read1", answer.raw.read)  # urllib3 1 has no read1
    try:
        while chunk := read(CHUNK):
            yield chunk
    except ReadTimeoutError as error:
        raise requests.Timeout("no answer in time") from error
    except HTTPError as error:
        raise requests.ConnectionError(error) from error


def _verify(path: Path, file: File, what: str, remedy: str = ELSEWHERE) -> None:
    """Hold a file against the recipe's size, or its limit where no size is published, and digest."""
    size = _size(path)
    if size != file.size if file.size is not None else size > file.limit:
        expected = file.size if file.size is not None else f"at most {file.limit}"
        raise MmkitError(f"{what} is not {file.name}: it has {size} bytes, the recipe expects {expected}; {remedy}")
    for algorithm, expected in (("sha256", file.sha256), ("md5", file.md5)):
        found = file_hash(path, algorithm) if expected else None
        if found != expected:
            problem = f"its {algorithm} is {found}, the recipe expects {expected}"
            raise MmkitError(f"{what} is not {file.name}: {problem}; {remedy}")


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    text = str(error)
    if isinstance(error, requests.Timeout):
        return text if text.startswith("less") else "no answer in time"
    cut = any(word in text for word in ("IncompleteRead", "closed", "reset"))
    return "the connection was cut" if cut else "no connection"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
