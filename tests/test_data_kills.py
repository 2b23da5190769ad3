"""Kills, second processes and replacements: whatever happens, a set is whole or not there, and nothing is lost."""

import subprocess
import sys
import time

import pytest
from data_toy import ABOUT, ALL, HEAD, adding, one

from mmkit.data import Writer, commands, load, prepared
from mmkit.errors import MmkitError


pytestmark = pytest.mark.usefixtures("data_root")


SLOW_RECIPE = """
import sys, time
import numpy as np
from mmkit.data import Recipe
from mmkit.data.prepared import prepare
def fill(writer, sources):
    for n in range(3):
        writer.text(writer.item(str(n), image=writer.image(np.zeros((2, 2, 3), np.uint8)), split="train"), "words")
        print("working", flush=True)
        time.sleep(float(sys.argv[1]))
about = dict(title="", task="", licence="", terms="", citation="", version=1)
print(prepare(Recipe(name="slow", prepare=fill, **about))[1]["prepared"], flush=True)
"""


def slow_process(pause):
    return subprocess.Popen([sys.executable, "-c", SLOW_RECIPE, str(pause)], stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_then_run_again(data_root):
    process = slow_process(60)
    assert process.stdout.readline() == "working\n"
    process.kill()
    process.communicate()
    left = sorted(path.name for path in data_root.iterdir())
    assert len(left) == 2 and left[1].startswith(".slow.tmp-")
    (data_root / ".slow-training.tmp-x").mkdir()  # of another set, whose name begins alike
    with pytest.raises(MmkitError, match="unknown data set 'slow'"):
        load("slow")
    assert len(slow_process(0).communicate()[0].splitlines()) == 4
    assert sorted(path.name for path in data_root.iterdir()) == [".slow-training.tmp-x", ".slow.lock", "slow"]
    assert prepared.check(data_root / "slow")["splits"] == {"train": 3}


def test_two_processes_at_once_make_it_once(data_root):
    outputs = sorted(
        (process.communicate()[0].splitlines() for process in [slow_process(0.2), slow_process(0.2)]), key=len
    )
    assert [len(lines) for lines in outputs] == [1, 4] and outputs[0][-1] == outputs[1][-1]
    assert prepared.check(data_root / "slow")["splits"] == {"train": 3}


def test_without_the_lock_the_loser_keeps_the_winners(data_root):
    writers = [Writer(data_root / "raced"), Writer(data_root / "raced")]
    for writer in writers:
        one(writer)
    cards = [writer.finish(ABOUT | {"name": "raced", "recipe": None, "knobs": {}, "sources": []}) for writer in writers]
    for writer in writers:
        writer.discard()
    assert cards[0]["content"] == cards[1]["content"] == prepared.check(data_root / "raced")["content"]
    assert [path.name for path in data_root.iterdir()] == ["raced"]


ADD = """
import sys, time
from mmkit.data import add, local
from mmkit.errors import MmkitError
slow = local._write
def wait(*arguments, **options):
    time.sleep(1)
    return slow(*arguments, **options)
local._write = wait
try:
    print("made", add("both", images=sys.argv[1], table=sys.argv[2], size=16)["content"])
except MmkitError as error:
    print("refused", error)
"""


def test_of_two_adds_at_once_one_is_refused(photos, data_root):
    (photos.parent / "captions.csv").write_text(HEAD + ALL)
    (photos.parent / "others.csv").write_text(HEAD + ALL.replace("photo", "picture"))
    tables = [photos.parent / name for name in ("captions.csv", "others.csv")]
    command = [sys.executable, "-c", ADD, str(photos)]
    both = [subprocess.Popen([*command, str(table)], stdout=subprocess.PIPE, text=True) for table in tables]
    said = sorted(process.communicate()[0].splitlines()[-1] for process in both)
    assert said[0].startswith("made") and said[1].startswith("refused there is a data set 'both' already")
    assert load("both").content in said[0]


KILL = """
import os, sys
from pathlib import Path
from mmkit.data import add
rename = Path.rename
def once(self, target):
    rename(self, target)
    if str(target).endswith(".old"):
        os._exit(9)
Path.rename = once
add("mine", images=sys.argv[1], table=sys.argv[2], size=16, force=True)
"""


@pytest.mark.parametrize("next_step", ["load", "list", "add"])
def test_a_replacement_killed_between_its_renames_loses_nothing(next_step, photos, data_root, capsys):
    content = adding(photos)["content"]
    (photos.parent / "others.csv").write_text(HEAD + ALL.replace("photo", "picture"))
    done = subprocess.run([sys.executable, "-c", KILL, str(photos), str(photos.parent / "others.csv")])
    assert done.returncode == 9 and not (data_root / "mine").exists()
    if next_step == "add":
        with pytest.raises(MmkitError, match="there is a data set 'mine' already"):
            adding(photos)
    else:
        time.sleep(prepared.YOUNG + 0.1)
    if next_step == "list":
        commands.list_()
        assert content[:8] in capsys.readouterr().out
    assert load("mine").content == content


def test_a_replacement_that_fails_puts_back_what_it_moved_away(photos, data_root, monkeypatch):
    content = adding(photos)["content"]
    rename = type(data_root).rename

    def interrupted(self, target):
        if ".tmp-" in self.name and not self.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(data_root), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adding(photos, HEAD + ALL.replace("photo", "picture"), force=True)
    monkeypatch.undo()
    monkeypatch.setenv("MMKIT_DATA", str(data_root))
    assert load("mine").content == content and prepared.check(data_root / "mine")


def test_a_data_folder_that_is_a_loop_is_named(tmp_path, monkeypatch, photos):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "loop"))
    with pytest.raises(MmkitError, match="cannot write in .*loop .*: point MMKIT_DATA at a folder you can write"):
        adding(photos)
