"""Downloads against a server on this machine: cut, wrong, missing, resumed, full disk."""

import errno
import io
import subprocess
import sys
import threading
from collections import namedtuple

import pytest
from data_server import BODY, MD5, SHA, serving
from data_toy import left

from mmkit.data import File, fetch
from mmkit.errors import MmkitError


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


def the_file(server, **changed):
    return File(**({"name": "photos.bin", "url": server.url, "size": len(BODY), "sha256": SHA} | changed))


def get(file, folder):
    return fetch.download(file, folder, pause=0.001)


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
        match=r"photos.bin could not be downloaded from http://127.0.0.1:.* \(the server answered 404 Not Found\): "
        "check the network and run again; or point",
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
    imports = "from pathlib import Path; from mmkit.data.fetch import File, download"
    code = f"{imports}; download({the_file(server)!r}, Path({str(tmp_path)!r}))"
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
