"""Archives with bad members, bombs and damage; sound ones."""

import io
import re
import tarfile
import zipfile

import numpy as np
import pytest
from data_toy import left, zipped

from mmkit.data.archive import unpack
from mmkit.errors import MmkitError

BODY = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()


def tarred(*members, mode="w:gz"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content, changed in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changed.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zip_link():
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("first.txt", "x")
        archive.writestr(info, "/etc/passwd")
    return out.getvalue()


def zip_bomb(size=80 << 20):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(size))
    return out.getvalue()


REFUSED = {
    "zip with ..": (
        zipped({"first.txt": "x", "../evil.txt": "x"}),
        "member '../evil.txt' has a path outside the archive",
    ),
    "zip with .. inside": (
        zipped({"a/../../evil.txt": "x"}),
        "member 'a/../../evil.txt' has a path outside the archive",
    ),
    "zip with an absolute path": (zipped({"/evil.txt": "x"}), "member '/evil.txt' has a path outside the archive"),
    "zip with backslashes": (zipped({"..\\evil.txt": "x"}), "has a path outside the archive"),
    "zip with a drive": (zipped({"C:evil.txt": "x"}), "member 'C:evil.txt' has a path outside the archive"),
    "zip with a link": (zip_link(), "member 'link' is a link"),
    "tar with ..": (tarred(("../evil.txt", b"x", {})), "member '../evil.txt' has a path outside the archive"),
    "tar with a link": (
        tarred(("first.txt", b"x", {}), ("out", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"})),
        "member 'out' is a link",
    ),
    "tar with a hard link": (
        tarred(("out", b"", {"type": tarfile.LNKTYPE, "linkname": "../../x"})),
        "member 'out' is a link",
    ),
    "tar with a device": (tarred(("null", b"", {"type": tarfile.CHRTYPE})), "member 'null' is a device"),
    "bomb": (zip_bomb(), "is refused, 83.9 MB unpacked is more than the 67.1 MB that are plausible"),
    "cut zip": (zipped({"a.txt": "x" * 100})[:-30], "is neither a zip nor a tar archive: delete it and run again"),
    "cut tar": (tarred(("a.txt", BODY[:100_000], {}))[:50_000], "is damaged"),
    "zip with a wrong sum": (
        zipped({"a.txt": "sound text"}).replace(b"sound text", b"other text", 1),
        "is damaged (Bad CRC-32 for file 'a.txt'): delete it and run again",
    ),
    "zip with broken data": (zip_bomb(1 << 20).replace(b"\0" * 20, b"\xff" * 20), "is damaged"),
    "no archive": (b"<html>", "is neither a zip nor a tar archive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_archives_write_nothing_outside(case, tmp_path):
    content, message = REFUSED[case]
    archive, folder = tmp_path / "archive", tmp_path / "deep/out"
    archive.write_bytes(content)
    folder.mkdir(parents=True)
    with pytest.raises(MmkitError, match=re.escape(message)):
        unpack(archive, folder)
    assert left(tmp_path) == ["archive", "deep"] and left(tmp_path / "deep") == ["out"]
    if "damaged" not in message:
        assert left(folder) == []


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_sound_tar(mode, tmp_path):
    (tmp_path / "archive").write_bytes(tarred(("a/b.txt", b"text", {}), ("._a/.DS_Store", b"", {}), mode=mode))
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "archive", tmp_path / "out")
    assert (tmp_path / "out/a/b.txt").read_bytes() == b"text" and left(tmp_path / "out") == ["a"]
