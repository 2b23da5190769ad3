"""Recipe -> prepared set -> Dataset, the tensor cache, and what goes wrong on the way."""

import errno
import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from mmkit.data import Dataset, Recipe, Writer, commands, load, prepared, split_by_hash
from mmkit.errors import MmkitError

GOLDEN = "76cc5f30ccbaf0dafd5c0c678b70c1d5f625c88247732d5cf9deb035ad91bd62"
ABOUT = {"name": "toy", "title": "A toy", "task": "none", "licence": "CC0", "terms": "none", "citation": "nobody"}
LABELS = {"label_shape": [0, 1, 2], "label_colour": ["red", "", "blue"]}


@pytest.fixture(autouse=True)
def data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MMKIT_MIRROR", raising=False)
    return tmp_path / "data"


def fill_by_table(writer, sources, *, count, noise):
    pixels = np.arange(count * 4 * 5 * 3, dtype=np.uint32).reshape(count, 4, 5, 3).astype(np.uint8)
    names = [f"item-{n}" for n in range(count)]
    table = pd.DataFrame({"id": names, "image": writer.images(pixels), "split": (["train"] * (count - 1)) + ["test"]})
    rows = writer.items(table.assign(**{name: (values * count)[:count] for name, values in LABELS.items()}))
    writer.texts(
        pd.DataFrame({"item": np.repeat(rows, 2), "text": [f"caption {k} of {name}" for name in names for k in (0, 1)]})
    )
    writer.texts(pd.DataFrame({"item": rows, "text": "¿qué?", "language": "es", "role": "question"}))


def fill_one_by_one(writer, sources, *, count, noise):
    pixels = np.arange(count * 4 * 5 * 3, dtype=np.uint32).reshape(count, 4, 5, 3).astype(np.uint8)
    for n in range(count):
        labels = {name: values[n % 3] for name, values in LABELS.items()}
        item = writer.item(
            f"item-{n}", image=writer.image(pixels[n]), split="train" if n < count - 1 else "test", **labels
        )
        for k in (0, 1):
            writer.text(item, f"caption {k} of item-{n}")
    for n in range(count):
        writer.text(n, "¿qué?", language="es", role="question")


def recipe(prepare=fill_by_table, **changed):
    return Recipe(**(ABOUT | {"version": 1, "prepare": prepare, "knobs": {"count": 7, "noise": 0.5}} | changed))


# ---------------------------------------------------------------------------------------------- what is prepared


def test_a_prepared_set_gives_back_what_was_written(data_root):
    ds = load(recipe())
    assert (ds.name, len(ds), ds.splits, ds.root) == ("toy", 7, {"train": 6, "test": 1}, data_root / "toy")
    assert isinstance(ds.images, np.memmap) and ds.images.shape == (7, 4, 5, 3)
    assert ds.rows("test").tolist() == [6] and ds.rows("train").dtype == np.int64
    pixels = ds.pixels([6, 0])
    assert pixels.shape == (2, 3, 4, 5) and pixels.dtype == torch.uint8 and pixels[1, 2, 0, 1] == 5
    assert ds.texts_of([2, 0, 2]) == (
        [
            "caption 0 of item-2",
            "caption 1 of item-2",
            "caption 0 of item-0",
            "caption 1 of item-0",
            "caption 0 of item-2",
            "caption 1 of item-2",
        ],
        pytest.approx(np.array([0, 0, 1, 1, 2, 2])),
    )
    assert ds.texts_of(torch.tensor([3]), role="question", language="es")[0] == ["¿qué?"]
    assert ds.labels([0, 1, 2, 3], "label_shape").tolist() == [0, 1, 2, 0] and ds.classes("label_shape") == [0, 1, 2]
    assert ds.labels([0, 1, 2, 3], "label_colour").tolist() == [1, -1, 0, 1] and ds.classes("label_colour") == [
        "blue",
        "red",
    ]
    assert len(set(ds.clusters(ds.rows("train")).tolist())) == 6
    assert repr(ds) == f"Dataset('toy': 7 images 4x5, 21 texts; train 6, test 1; content {ds.content[:8]})"
    assert not [path.name for path in data_root.iterdir() if "tmp" in path.name]


def test_content_is_the_same_however_it_was_added_and_wherever():
    by_table, one_by_one = load(recipe()), load(recipe(fill_one_by_one, name="other"))
    assert by_table.content == one_by_one.content == GOLDEN  # a change here changes the name of every published set
    assert load(recipe(), count=8).content != by_table.content


def test_content_depends_on_every_part():
    def changed(pixel=0, split="test", text="a", label=1, language="en"):
        def prepare(writer, sources):
            item = writer.item("a", image=writer.image(np.full((2, 2, 3), pixel, np.uint8)), split=split, label_x=label)
            writer.text(item, text, language=language)

        return load(recipe(prepare, name="one", knobs={}, version=int(time.monotonic_ns()))).content

    contents = [
        changed(),
        changed(pixel=1),
        changed(split="train"),
        changed(text="b"),
        changed(label=2),
        changed(language="de"),
    ]
    assert len(set(contents)) == len(contents)


def test_card_says_what_is_in_the_set():
    card = load(recipe(), noise=1).card
    assert (
        card["schema"] == 1
        and card["knobs"] == {"count": 7, "noise": 1.0}
        and card["recipe"] == {"name": "toy", "version": 1}
    )
    assert (card["licence"], card["splits"], card["images"], card["texts"]) == (
        "CC0",
        {"train": 6, "test": 1},
        [7, 4, 5, 3],
        21,
    )
    assert (
        set(card["files"]) == {"images.npy", "items.parquet", "texts.parquet"}
        and len(card["files"]["images.npy"]["sha256"]) == 64
    )


def test_pools_hold_images_or_texts_alone():
    def prepare(writer, sources):
        pixels = np.zeros((2, 2, 3), np.uint8)
        writer.text(writer.item("pair", image=writer.image(pixels), split="train"), "both")
        writer.item("image", image=writer.image(pixels), split="pool_image")
        writer.text(writer.item("text", split="pool_text"), "alone")

    ds = load(recipe(prepare, knobs={}))
    assert ds.splits == {"train": 1, "pool_image": 1, "pool_text": 1}
    assert ds.texts_of([2, 1, 0])[1].tolist() == [0, 2]
    with pytest.raises(MmkitError, match="item 'text' of 'toy' has no image: leave the rows of pool_text out"):
        ds.pixels([0, 2])


def test_a_set_of_texts_alone_can_be_opened():
    ds = load(recipe(lambda writer, sources: writer.text(writer.item("t", split="pool_text"), "alone"), knobs={}))
    assert len(ds.images) == 0 and ds.texts_of([0])[0] == ["alone"] and prepared.check(ds.root)


def test_split_by_hash_keeps_groups_together_and_is_the_same_everywhere():
    groups = [f"g{n % 40}" for n in range(100)]
    split = split_by_hash(groups)
    assert {
        name: len({g for g, s in zip(groups, split, strict=True) if s == name}) for name in ("train", "val", "test")
    } == {"train": 32, "val": 4, "test": 4}
    assert split_by_hash(["a", "b", "c", "d"]).tolist() == ["train", "train", "test", "val"]
    with pytest.raises(MmkitError, match="2 groups cannot be split into train, val and test: give at least 3"):
        split_by_hash(["a", "b", "a"])


# ---------------------------------------------------------------------------------------------- what is refused

PIXELS = np.zeros((2, 2, 3), np.uint8)


def one(writer, id="a", split="train", text="words", image=True, **more):
    item = writer.item(id, image=writer.image(PIXELS) if image else -1, split=split, **more)
    if text is not None:
        writer.text(item, text)


REFUSED = {
    "repeat an id (a): give every item its own id": lambda w: (one(w), one(w)),
    "have no text (a): leave them out, or use the split pool_image for an image alone": lambda w: one(w, text=None),
    "have no image (a): leave them out, or use the split pool_text for a text alone": lambda w: one(w, image=False),
    "of the split pool_text have an image (a)": lambda w: one(w, split="pool_text"),
    "of the split pool_image have a text (a)": lambda w: one(w, split="pool_image"),
    "have a blank text (a): drop the text or write one": lambda w: one(w, text=" "),
    "have no group (a): name a group for each, or leave the column out": lambda w: one(w, group=""),
    "have no split (a): name a split for each, for example train": lambda w: one(w, split=""),
    "1 of 1 items point beyond the 0 images (a)": lambda w: w.item("a", image=3, split="train"),
    "1 texts point beyond the 1 items, first 'lost'": lambda w: (one(w), w.text(5, "lost")),
    "1 groups are in more than one split, first 'p1' in train, test: keep all items of a group in one split": lambda w: (
        one(w, group="p1"),
        one(w, "b", "test", group="p1"),
    ),
    "1 groups are in more than one split, first 'p1' in pool_image, test": lambda w: (
        one(w, split="pool_image", text=None, group="p1"),
        one(w, "b", "test", group="p1"),
    ),
    "image 1 has shape (3, 2, 3), the ones before it (2, 2, 3): resize them to one size": lambda w: (
        w.image(PIXELS),
        w.image(np.zeros((3, 2, 3), np.uint8)),
    ),
    "images must be uint8 of shape (N, H, W, 3), got float64 (1, 2, 2, 3)": lambda w: w.image(np.zeros((2, 2, 3))),
    "column 'label_x' holds 0.5, a float: expected whole numbers or texts": lambda w: one(w, label_x=0.5),
    "column 'label_x' misses 1 values, first in row 1: write '' or -1 for an unknown label": lambda w: (
        one(w, label_x=1),
        one(w, "b"),
    ),
    "column 'id' holds 3, a int: expected texts": lambda w: one(w, 3, group="g"),
    "the items of 'toy' lack the column 'split'": lambda w: w.items(pd.DataFrame({"id": ["a"]})),
    "'toy' would have no items: 1 inputs were left out, first x.jpg (not an image)": lambda w: w.report(
        "x.jpg", "not an image"
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_set_that_breaks_a_rule_is_refused_and_leaves_nothing(message, data_root):
    with pytest.raises(MmkitError) as error:
        load(recipe(lambda writer, sources: REFUSED[message](writer), knobs={}))
    assert message in str(error.value)
    assert [path.name for path in data_root.iterdir()] == [".toy.lock"]


BAD_KNOBS = {
    "unknown knob of 'toy' 'nois': did you mean 'noise'? there are count, noise": {"nois": 1},
    "count='9' is not a whole number: knob 'count' of 'toy' expects int, for example 7": {"count": "9"},
    "count=2.5 is not a whole number": {"count": 2.5},
    "count=True is not a whole number": {"count": True},
    "noise='much' is not a number": {"noise": "much"},
    "noise=nan is not a number": {"noise": float("nan")},
}


@pytest.mark.parametrize("message", BAD_KNOBS)
def test_bad_knobs(message):
    with pytest.raises(MmkitError) as error:
        load(recipe(), **BAD_KNOBS[message])
    assert message in str(error.value)


def test_knobs_of_the_command_line():
    toy = recipe(knobs={"count": 7, "noise": 0.5, "style": "plain", "shuffled_pairs": False})
    assert toy.parse(["--count=9", "noise=1e-2", "style=", "shuffled-pairs=true"]) == {
        "count": 9,
        "noise": 0.01,
        "style": "",
        "shuffled_pairs": True,
    }
    with pytest.raises(MmkitError, match="count='9.5' is not a whole number"):
        toy.settings(toy.parse(["count=9.5"]))
    with pytest.raises(MmkitError, match="cannot read 'count': write a knob as name=value"):
        toy.parse(["count"])
    with pytest.raises(MmkitError, match="did you mean 'count'"):
        toy.parse(["cont=1"])


def test_other_knobs_get_a_folder_of_their_own(data_root):
    assert load(recipe(), count=9).root.name == load(recipe(), noise=0.5, count=9).root.name == "toy-33f9c887"
    assert load(recipe(), count=7).root.name == "toy"


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(
        MmkitError,
        match="unknown data set 'flickr8': did you mean 'flickr8k'[?] there are .*flickr8k, .*openmoji, .*scenes",
    ):
        load("flickr8")
    with pytest.raises(MmkitError, match="unknown data set '../x'"):
        load("../x")
    with pytest.raises(MmkitError, match="unknown data set '3'"):
        load(3)


def test_wrong_questions_to_a_data_set():
    ds = load(recipe())
    for message, ask in {
        "unknown split of 'toy' 'tain': did you mean 'train'?": lambda: ds.rows("tain"),
        "unknown label of 'toy' 'label_color': did you mean 'label_colour'?": lambda: ds.labels([0], "label_color"),
        "unknown text role of 'toy' 'captions': did you mean 'caption'?": lambda: ds.texts_of([0], role="captions"),
        "unknown text language of 'toy' 'zh': there are en, es": lambda: ds.texts_of([0], language="zh"),
        "rows 0 to 7 reach beyond the 7 items of 'toy'": lambda: ds.pixels([0, 7]),
        "rows must be a list of whole numbers, got float64 of shape (1,)": lambda: ds.clusters([0.5]),
    }.items():
        with pytest.raises(MmkitError) as error:
            ask()
        assert message in str(error.value)


def test_an_empty_split_is_an_error():
    ds = load(recipe())
    ds.card["splits"]["val"] = 0
    with pytest.raises(MmkitError, match="split 'val' of 'toy' is empty: there are {'train': 6, 'test': 1, 'val': 0}"):
        ds.rows("val")


# ---------------------------------------------------------------------------------------------- damage, age, accidents


def load_again(root):
    return load(recipe())


def test_damage_is_found_and_the_remedy_named(data_root):
    root = load(recipe()).root
    sound = {path.name: path.read_bytes() for path in root.iterdir()}

    def broken(name, content):
        for other, whole in sound.items():
            (root / other).write_bytes(whole)
        (root / name).write_bytes(content)

    broken("images.npy", sound["images.npy"][:-1])
    with pytest.raises(
        MmkitError,
        match="damaged, images.npy has 547 bytes where the card says 548: make it again: mmkit data prepare toy "
        "--force",
    ):
        load(recipe())
    broken("texts.parquet", sound["texts.parquet"][:9] + b"?" + sound["texts.parquet"][10:])
    with pytest.raises(MmkitError, match="texts.parquet differs from its hash on the card"):
        load(recipe())
    broken("images.npy", sound["images.npy"][:-1] + b"?")
    with pytest.raises(MmkitError, match="images.npy differs from its hash on the card: make it again"):
        load(recipe())
    with pytest.raises(MmkitError, match="images.npy differs from its hash on the card: make it again"):
        prepared.check(root)
    broken("card.json", b"{")
    with pytest.raises(
        MmkitError,
        match="card of the prepared set .*toy cannot be read .*: delete that folder and prepare or add the set again",
    ):
        load(recipe())
    card = json.loads(sound["card.json"])
    broken("card.json", json.dumps(card | {"content": "0" * 64}).encode())
    for reading in (prepared.check, load_again):
        with pytest.raises(MmkitError, match="has content .*, its card says 000000000000"):
            reading(root)
    prepared.prepare(recipe(), force=True)
    assert prepared.check(root)["content"] == card["content"]
    (root / "items.parquet").unlink()
    with pytest.raises(MmkitError, match="items.parquet is missing"):
        load(recipe())


def test_remedy_of_a_set_with_knobs_names_them(data_root):
    root = load(recipe(), count=3).root
    (root / "images.npy").write_bytes(b"")
    with pytest.raises(MmkitError, match="mmkit data prepare toy count=3 noise=0.5 --force"):
        load(recipe(), count=3)


def test_a_set_of_an_older_recipe_is_made_again(capsys):
    load(recipe())
    assert load(recipe(version=2)).card["recipe"]["version"] == 2
    assert "toy: made by version 1 of its recipe, now 2; preparing it again" in capsys.readouterr().out


def test_a_set_of_ones_own_is_never_replaced_by_a_recipe_of_its_name(data_root):
    root = load(recipe()).root
    card = json.loads((root / "card.json").read_text())
    (root / "card.json").write_text(json.dumps(card | {"recipe": None}))
    with pytest.raises(
        MmkitError, match="toy is a set of your own with the name of a recipe: give that folder another name"
    ):
        load(recipe())


def test_a_card_of_an_older_mmkit_is_made_again_or_refused(capsys):
    root = load(recipe()).root
    card = json.loads((root / "card.json").read_text())
    (root / "card.json").write_text(json.dumps(card | {"schema": 0}))
    with pytest.raises(MmkitError, match="has schema 0, this mmkit reads 1 and 2"):
        Dataset(root, card | {"schema": 0})
    assert load(recipe()).card["schema"] == 1
    assert "its card has schema 0, which this mmkit does not read; preparing it again" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"schema": 0}, {"content": None}, {"splits": None}, {"name": None}])
def test_one_bad_card_hides_no_other_set(change, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    load(recipe())
    root = load(recipe(), count=3).root
    card = json.loads((root / "card.json").read_text()) | {"recipe": None} | change
    (root / "card.json").write_text(
        json.dumps({name: value for name, value in card.items() if value is not None or name == "recipe"})
    )
    reason = (
        "has schema 0, this mmkit reads 1 and 2"
        if "schema" in change
        else f"cannot be read [(]it lacks {[*change][0]}[)]"
    )
    commands.list_()
    listed = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("toy")]
    assert len(listed) == 2 and "train 6" in listed[0] and "its card cannot be read" in listed[1]
    for opening in (load, commands.card, commands.check):
        with pytest.raises(MmkitError, match=f"{reason}: delete that folder and prepare or add the set again"):
            opening(root.name)


def test_a_title_with_brackets_is_listed_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    load(recipe(title="CT [/arterial] :smile: [b]"))
    commands.list_()
    assert "CT [/arterial] :smile: [b]" in capsys.readouterr().out


def test_without_a_home_the_data_folder_must_be_named(monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    for name in ("MMKIT_DATA", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(MmkitError, match="no home folder to keep data in: point MMKIT_DATA at a folder you can write"):
        load(recipe())
    monkeypatch.setenv("MMKIT_DATA", "~/sets")
    with pytest.raises(
        MmkitError, match="MMKIT_DATA names '~/sets', and there is no such home folder: write the folder in full"
    ):
        load(recipe())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_unwritable_data_folder(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / place))
    with pytest.raises(MmkitError, match="cannot write in .*file.*: point MMKIT_DATA at a folder you can write"):
        load(recipe())


def test_a_full_disk_is_named_and_leaves_nothing(data_root, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    def prepare(writer, sources):
        writer.image(PIXELS)
        writer._arrays["image"].file.close()
        writer._arrays["image"].file = Full()
        writer.image(PIXELS)

    with pytest.raises(
        MmkitError, match="the disk of .*data is full: free some space, or point MMKIT_DATA at another disk"
    ):
        load(recipe(prepare, knobs={}))
    assert [path.name for path in data_root.iterdir()] == [".toy.lock"]


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


def test_splits_that_are_drawn_anew_are_counted_anew(data_root):
    ds = load(recipe())
    ds.items.loc[:1, "split"] = "left_out"
    assert ds.splits == {"train": 4, "test": 1, "left_out": 2}


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


# ---------------------------------------------------------------------------------------------- the commands


def test_commands_list_check_and_card(data_root, capsys):
    load(recipe())
    root = load(recipe(), count=3).root
    commands.list_()
    listed = capsys.readouterr().out
    assert (
        "flickr8k" in listed
        and "toy-" in listed
        and "generated" in listed
        and str(data_root) in listed.replace("\n", "")
    )
    commands.check()
    assert capsys.readouterr().out.count(": sound, content ") == 2
    commands.card(root.name)
    shown = capsys.readouterr().out
    assert "licence: CC0" in shown and "recipe: toy version 1, knobs {'count': 3, 'noise': 0.5}" in shown
    (root / "images.npy").write_bytes(b"")
    with pytest.raises(MmkitError, match="images.npy has 0 bytes"):
        commands.check()
    assert "toy: sound" in capsys.readouterr().out
    for wrong, message in {
        "toyy": "unknown data set 'toyy': did you mean 'toy'?",
        "flickr8k": "'flickr8k' is not prepared: mmkit data prepare flickr8k",
    }.items():
        with pytest.raises(MmkitError) as error:
            commands.card(wrong)
        assert message in str(error.value)
    with pytest.raises(MmkitError, match="unknown data recipe 'scene': did you mean 'scenes'"):
        commands.prepare("scene")
