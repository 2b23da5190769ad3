"""Downloads against a server on this machine: cut, wrong, missing, resumed, full disk; the mirror; archives with bad
members."""

import contextlib
import errno
import hashlib
import http.server
import io
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import namedtuple

import numpy as np
import pytest

from mmkit.data import File, Recipe, commands, fetch, load, prepared
from mmkit.data.archive import unpack
from mmkit.data.recipe import find_recipe, recipe_names
from mmkit.errors import MmkitError

BODY = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
SHA, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.body` as `server.script` says, one entry a request; the last entry stays.

    ok: whole, with ranges. cut: closes after a third of what was asked for. stall: sends a third and waits.
    ignore: whole, whatever range was asked for. endless, drip: without a length and an end, fast or a byte at a time.
    A number: that status.
    """

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range", "")
        act = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        server.log.append((act, asked))
        if isinstance(act, int):
            self.send_response(act)
            self.end_headers()
            return
        if act in ("endless", "drip"):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not server.release.wait(0.02 if act == "drip" else 0):
                    self.wfile.write(b"x" if act == "drip" else b"x" * 50_000)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-") or 0) if act != "ignore" else 0
        if start >= len(server.body):
            self.send_response(416)
            self.end_headers()
            return
        rest = server.body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest if act in ("ok", "ignore") else rest[: len(rest) // 3])
        if act == "stall":
            self.wfile.flush()
            server.release.wait(20)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.script, server.log, server.release = BODY, ["ok"], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/photos.bin"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def the_file(server, **changed):
    return File(**({"name": "photos.bin", "url": server.url, "size": len(BODY), "sha256": SHA} | changed))


def get(file, folder):
    return fetch.download(file, folder, pause=0.001)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------- the transfer


def test_a_file_is_fetched_once(server, tmp_path):
    assert get(the_file(server), tmp_path).read_bytes() == BODY
    assert get(the_file(server, sha256=None, md5=MD5), tmp_path).read_bytes() == BODY
    assert server.log == [("ok", "")] and left(tmp_path) == ["photos.bin"]


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path, capsys):
    server.script = ["cut", "cut", "ok"]
    assert get(the_file(server), tmp_path).read_bytes() == BODY
    assert server.log == [("cut", ""), ("cut", "bytes=1000000-"), ("ok", "bytes=1666666-")]
    assert "photos.bin: the connection was cut; trying again at 1.0 MB" in capsys.readouterr().err


def test_a_server_that_ignores_the_range_sends_all_again(server, tmp_path):
    server.script = ["cut", "ignore"]
    assert get(the_file(server), tmp_path).read_bytes() == BODY
    assert server.log == [("cut", ""), ("ignore", "bytes=1000000-")]


def test_passing_troubles_are_retried(server, tmp_path, capsys):
    server.script = [503, 429, "ok"]
    assert get(the_file(server), tmp_path).read_bytes() == BODY
    assert "the server answered 503 Service Unavailable; trying again at 0 bytes" in capsys.readouterr().err


def test_it_gives_up_after_attempts_without_a_new_byte_and_keeps_the_part(server, tmp_path):
    server.script = ["cut", 500]
    with pytest.raises(
        fetch.Unreachable,
        match="answered 500 .*check the network and run again, it goes on at 1.0 MB; or point MMKIT_MIRROR at a "
        "folder that has it",
    ):
        get(the_file(server), tmp_path)
    assert len(server.log) == 2 + fetch.RETRIES and left(tmp_path) == ["photos.bin.part"]
    server.script = ["ok"]
    assert get(the_file(server), tmp_path).read_bytes() == BODY and server.log[-1] == ("ok", "bytes=1000000-")


def test_404_is_said_at_once(server, tmp_path):
    server.script = [404]
    with pytest.raises(
        fetch.Unreachable,
        match=r"photos.bin could not be downloaded from http://127.0.0.1:.* \(the server answered 404 Not Found\): check the network and run again; or point",
    ):
        get(the_file(server), tmp_path)
    assert len(server.log) == 1 and left(tmp_path) == []


def test_no_server(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(fetch.Unreachable, match=r"photos.bin could not be downloaded .* \(no connection\)"):
        get(the_file(server), tmp_path)


def test_a_body_without_length_ends_at_the_limit(server, tmp_path):
    """A stranger's server that never stops sending fills no disk."""
    server.script, file = ["endless"], the_file(server, size=None, limit=1_000_000)
    with pytest.raises(
        MmkitError, match="is not photos.bin: it has 1[0-9]{6} bytes, the recipe expects at most 1000000"
    ):
        get(file, tmp_path)
    assert left(tmp_path) == []


def test_a_server_that_sends_a_byte_a_second_is_given_up(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "PATIENCE", 0.2)
    server.script = ["drip"]
    with pytest.raises(
        fetch.Unreachable, match=r"\(less than 1.0 kB a second\): check the network and run again, it goes"
    ):
        get(the_file(server), tmp_path)
    assert len(server.log) == 1 + fetch.RETRIES


def test_nothing_beyond_is_no_answer_to_a_first_request(server, tmp_path):
    server.script = [416]
    with pytest.raises(fetch.Unreachable, match="the server answered 416 Requested Range Not Satisfiable"):
        get(the_file(server), tmp_path)
    assert left(tmp_path) == []


def test_every_file_of_every_recipe_that_has_an_address_has_a_digest_and_a_size():
    for name in recipe_names():
        for file in find_recipe(name).files:
            digest = re.fullmatch("[0-9a-f]{64}", file.sha256 or "") or re.fullmatch("[0-9a-f]{32}", file.md5 or "")
            assert digest and (file.size or file.limit < 2_000_000_000) if file.url else file.page, (
                f"{name}: {file.name}"
            )


def test_a_file_without_a_published_digest_is_brought_by_hand(recipe, tmp_path, server):
    file = File("photos.zip", "", page="https://example.org/photos", unpack=True)
    by_hand = Recipe(**(vars(recipe) | {"files": (file,)}))
    message = (
        "photos.zip has to be brought by hand, .*: get it from https://example.org/photos and put it at .*photos.zip"
    )
    with pytest.raises(MmkitError, match=message):
        load(by_hand)
    (tmp_path / "data/raw/set/photos.zip").write_bytes(server.body)
    source = load(by_hand).card["sources"][0]
    assert source["from"] == "https://example.org/photos" and not source["checked"] and server.log == []


@pytest.mark.parametrize("digest", ["sha256", "md5"])
def test_wrong_hash(server, tmp_path, digest):
    with pytest.raises(
        MmkitError,
        match=f"what http.* sends is not photos.bin: its {digest} is {SHA if digest == 'sha256' else MD5}, the "
        f"recipe expects 000.*; nothing was used",
    ):
        get(the_file(server, **{"sha256": None, digest: "0" * 64}), tmp_path)
    assert left(tmp_path) == [] and len(server.log) == 1


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1])
def test_wrong_size(server, tmp_path, size):
    with pytest.raises(
        MmkitError,
        match=f"is not photos.bin: it has .* bytes, the recipe expects {size}; nothing was used; run again later, or"
        f" point MMKIT_MIRROR",
    ):
        get(the_file(server, size=size), tmp_path)
    assert left(tmp_path) == []


def test_a_login_page_is_not_the_file(server, tmp_path):
    server.body = b"<html>please sign in</html>"
    with pytest.raises(MmkitError, match="is not photos.bin: it has 27 bytes, the recipe expects 3000000"):
        get(the_file(server), tmp_path)


@pytest.mark.parametrize("part", [b"older" * 1000, BODY + b"more", BODY], ids=["other bytes", "too long", "whole"])
def test_a_part_left_from_before(server, tmp_path, part):
    (tmp_path / "photos.bin.part").write_bytes(part)
    assert get(the_file(server, size=None), tmp_path).read_bytes() == BODY
    assert left(tmp_path) == ["photos.bin"]


def test_an_earlier_download_that_changed_is_not_used(server, tmp_path):
    (tmp_path / "photos.bin").write_bytes(BODY[:-1] + b"?")
    with pytest.raises(
        MmkitError,
        match="the earlier download .*photos.bin is not photos.bin: its sha256 is .*; delete it and run again",
    ):
        get(the_file(server), tmp_path)
    assert server.log == []


def test_too_little_space_is_said_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("usage", "free")(2_000_000))
    with pytest.raises(
        MmkitError,
        match="downloading photos.bin needs 3.0 MB but .* has 2.0 MB free: free some space, or point MMKIT_DATA at "
        "another disk",
    ):
        get(the_file(server, size=None), tmp_path)
    assert left(tmp_path) == []


def test_a_disk_that_fills_up_keeps_the_part(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 2_100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(fetch, "open", Full, raising=False)
    with pytest.raises(
        MmkitError,
        match="the disk of .* is full: free some space, or point MMKIT_DATA at another disk; what was downloaded is"
        " kept",
    ):
        get(the_file(server), tmp_path)
    assert left(tmp_path) == ["photos.bin.part"]
    kept = (tmp_path / "photos.bin.part").stat().st_size
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert get(the_file(server), tmp_path).read_bytes() == BODY and server.log[-1][1] == f"bytes={kept}-"


def test_killed_in_the_middle_then_run_again(server, tmp_path):
    server.script = ["stall", "ok"]
    code = f"from pathlib import Path; from mmkit.data.fetch import File, download; download({the_file(server)!r}, Path({str(tmp_path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / "photos.bin.part"
    for _ in range(1000):
        if part.exists() and part.stat().st_size:
            break
        threading.Event().wait(0.02)
    process.kill()
    process.wait()
    size = part.stat().st_size
    assert 0 < size <= len(BODY) // 3 and left(tmp_path) == ["photos.bin.part"]
    assert get(the_file(server), tmp_path).read_bytes() == BODY
    assert server.log == [("stall", ""), ("ok", f"bytes={size}-")]


# ---------------------------------------------------------------------------------------------- recipes with files


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def fill(writer, sources):
    for path in sorted(sources["photos.zip"].rglob("*.txt")):
        writer.text(writer.item(path.name, split="pool_text"), path.read_text())
    if "more.txt" in sources:
        writer.text(writer.item("more", split="pool_text"), sources["more.txt"].read_text())


@pytest.fixture
def recipe(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MMKIT_MIRROR", raising=False)
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    server.body = zipped({"a.txt": "one", "sub/b.txt": "two", "__MACOSX/a.txt": "junk"})
    file = File(
        "photos.zip", server.url, sha256=hashlib.sha256(server.body).hexdigest(), mirror="set/texts", unpack=True
    )
    about = {
        "title": "The set",
        "task": "none",
        "licence": "CC BY 4.0",
        "terms": "be kind",
        "citation": "Somebody 2013",
        "version": 1,
    }
    return Recipe(name="set", prepare=fill, files=(file,), **about)


def test_a_downloaded_archive_becomes_a_set_and_the_terms_are_shown_once(recipe, server, tmp_path, capsys):
    ds = load(recipe)
    assert ds.texts["text"].tolist() == ["one", "two"]
    assert ds.card["sources"] == [
        {"name": "photos.zip", "from": server.url, "sha256": recipe.files[0].sha256, "checked": True}
    ]
    shown = capsys.readouterr().err
    assert shown.count("terms: be kind") == 1 and "licence: CC BY 4.0" in shown and "cite: Somebody 2013" in shown
    assert left(tmp_path / "data/raw/set") == ["photos.zip"]
    prepared.prepare(recipe, force=True)
    assert "terms" not in capsys.readouterr().err and len(server.log) == 1


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    texts = tmp_path / "mirror/set/texts"
    texts.mkdir(parents=True)
    for name, content in {"a.txt": "one", "b.txt": "two"}.items():
        (texts / name).write_text(content)
    sums = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./set/texts/{path.name}\n"
        for path in sorted(texts.iterdir())
    )
    (tmp_path / "mirror/SHA256SUMS").write_text(sums)
    return texts


def test_the_mirror_comes_before_the_network(recipe, server, mirror, monkeypatch, tmp_path, capsys):
    from_network = load(recipe).content
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "other"))
    server.log.clear()
    ds = load(recipe)
    assert (
        ds.content == from_network
        and server.log == []
        and ds.card["sources"][0]["from"] == "$MMKIT_MIRROR/set/texts"
        and ds.card["sources"][0]["checked"]
    )
    assert str(tmp_path) not in (ds.root / "card.json").read_text()
    assert left(tmp_path / "other") == [".set.lock", "set"]


def test_a_mirror_that_lists_nothing_is_not_called_checked(recipe, mirror, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror/SHA256SUMS").unlink()
    assert not load(recipe).card["sources"][0]["checked"]
    commands.card("set")
    assert "held against no published digest" in capsys.readouterr().out


def test_a_mirror_without_the_file_is_passed_over(recipe, server, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "empty"))
    assert load(recipe).card["sources"][0]["from"] == server.url


def test_a_mirror_that_is_not_what_it_lists(recipe, mirror, monkeypatch, tmp_path):
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    (mirror / "a.txt").write_text("onf")
    message = "1 files of the mirror .* are missing or differ from its SHA256SUMS, first set/texts/a.txt: copy them again, or unset MMKIT_MIRROR"
    with pytest.raises(MmkitError, match=message):
        load(recipe)
    (mirror / "a.txt").unlink()
    with pytest.raises(MmkitError, match=message):
        load(recipe)
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(MmkitError, match="MMKIT_MIRROR names '.*nowhere', which is no folder: correct it, or unset it"):
        load(recipe)


def test_an_optional_file_that_cannot_be_had_is_reported(recipe, server):
    optional = File("more.txt", server.url.replace("photos.bin", "more"), optional=True)
    server.script = ["ok", 404]
    ds = load(Recipe(**(vars(recipe) | {"files": (*recipe.files, optional)})))
    assert (
        len(ds) == 2
        and ds.card["reported"][0]["name"] == "more.txt"
        and "optional, left out: more.txt could not be downloaded" in ds.card["reported"][0]["reason"]
    )
    with pytest.raises(
        MmkitError,
        match="unknown text language of 'set' 'zh'.*; more.txt could not be had when it was prepared, 'mmkit data "
        "prepare set --force' tries again",
    ):
        ds.texts_of([0], language="zh")


# ---------------------------------------------------------------------------------------------- archives


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


def test_a_refused_archive_leaves_no_set_and_nothing_unpacked(recipe, server, tmp_path):
    server.body = zipped({"first.txt": "x", "../evil.txt": "x"})
    with pytest.raises(MmkitError, match="refused"):
        load(Recipe(**(vars(recipe) | {"files": (File("photos.zip", server.url, unpack=True),)})))
    assert left(tmp_path / "data") == [".set.lock", "raw"] and left(tmp_path / "data/raw/set") == ["photos.zip"]
