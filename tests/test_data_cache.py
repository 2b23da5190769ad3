"""The tensor cache: computed once, damage noticed, nothing kept where nothing can be written."""

import subprocess
import sys

import pytest
import torch

from mmkit.data import cached


pytestmark = pytest.mark.usefixtures("data_root")


def test_cached_tensors_are_computed_once(data_root, capsys):
    made = {
        "features": torch.randn(3, 4).half(),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
    }
    first = cached({"data": "abc", "size": 1}, lambda: made)
    again = cached({"size": 1, "data": "abc"}, lambda: pytest.fail("computed again"))
    for name, tensor in made.items():
        assert (
            torch.equal(again[name], tensor) and torch.equal(first[name], tensor) and again[name].dtype == tensor.dtype
        )
    other = cached({"data": "abc", "size": 2}, lambda: {"features": torch.zeros(1)})
    assert list(other) == ["features"] and len(list((data_root / "cache").glob("*.safetensors"))) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]), lambda whole: whole[:40], lambda whole: b""],
    ids=["a bit", "cut", "empty"],
)
def test_a_damaged_cache_file_is_noticed_and_made_again(damage, data_root, capsys):
    cached("key", lambda: {"x": torch.ones(5)})
    (path,) = (data_root / "cache").glob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(cached("key", lambda: {"x": torch.ones(5)})["x"], torch.ones(5))
    assert "is damaged" in capsys.readouterr().out
    cached("key", lambda: pytest.fail("the repaired file was not used"))


def test_without_a_place_to_write_nothing_is_kept(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "file"))
    assert cached("key", lambda: {"x": torch.ones(1)})["x"] == 1
    assert "cache: not kept, cannot write in" in capsys.readouterr().out


@pytest.mark.slow
def test_of_two_processes_one_computes_and_the_other_waits(data_root, tmp_path):
    script = """
import sys, time, torch
from mmkit.data import cached
def compute():
    with open(sys.argv[1], "a") as log:
        log.write("computed\\n")
    time.sleep(1)
    return {"x": torch.ones(3)}
assert cached("shared", compute)["x"].sum() == 3
"""
    both = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log")]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "computed\n"
