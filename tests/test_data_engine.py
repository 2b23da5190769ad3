"""Recipe -> prepared set -> Dataset, and what goes wrong on the way."""

import errno
import json
import time

import numpy as np
import pytest
import torch
from data_toy import PIXELS, fill_one_by_one, recipe

from mmkit.data import Dataset, commands, load, prepared, split_by_hash
from mmkit.errors import MmkitError

GOLDEN = "76cc5f30ccbaf0dafd5c0c678b70c1d5f625c88247732d5cf9deb035ad91bd62"


pytestmark = pytest.mark.usefixtures("data_root")


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


def told(**facts):
    """A toy set that says what each modality tells; "shape" is told by the image, "colour" by the text."""

    def prepare(writer, sources, **knobs):
        fill_one_by_one(writer, sources, **knobs)
        writer.facts(**facts)

    return recipe(prepare, name="told", version=int(time.monotonic_ns()))


def test_the_card_says_which_labels_a_modality_tells(data_root, capsys):
    plain = load(recipe())
    assert plain.facts == {} and "facts" not in plain.card and load(told()).content == plain.content == GOLDEN
    ds = load(told(image=["label_shape"], text=("label_colour", "label_shape")))
    assert ds.facts == {"image": ("label_shape",), "text": ("label_colour", "label_shape")}
    assert prepared.check(ds.root)["schema"] == 1 and ds.content != plain.content
    assert load(told(image=["label_colour"])).content not in (ds.content, plain.content)
    load(told(text=["label_colour", "label_shape"]))
    commands.card("told")
    assert "  told by text alone: label_colour, label_shape\n" in capsys.readouterr().out


def test_facts_changed_on_the_card_are_seen(data_root):
    ds = load(told(image=["label_shape"]))
    (ds.root / "card.json").write_text(json.dumps(ds.card | {"facts": {"image": ["label_colour"]}}))
    with pytest.raises(MmkitError, match="its card says"):
        Dataset(ds.root, prepared.read_card(ds.root))
    (ds.root / "card.json").write_text(json.dumps(ds.card | {"facts": ["label_colour"]}))
    with pytest.raises(MmkitError, match="facts: "):
        prepared.read_card(ds.root)


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"images": ["label_shape"]}, "unknown modality 'images': did you mean 'image'?"),
        ({"audio": ["label_shape"]}, "unknown modality 'audio'"),
        ({"text": ["label_colours"]}, "unknown label that text tells 'label_colours': did you mean 'label_colour'?"),
        ({"image": ["split"]}, "unknown label that image tells 'split'"),
    ],
)
def test_facts_that_no_column_holds_are_refused(facts, message):
    with pytest.raises(MmkitError) as error:
        load(told(**facts))
    assert message in str(error.value)


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
    found = {name: set() for name in ("train", "val", "test")}
    for group, name in zip(groups, split, strict=True):
        found[name].add(group)
    assert {name: len(members) for name, members in found.items()} == {"train": 32, "val": 4, "test": 4}
    assert split_by_hash(["a", "b", "c", "d"]).tolist() == ["train", "train", "test", "val"]
    with pytest.raises(MmkitError, match="2 groups cannot be split into train, val and test: give at least 3"):
        split_by_hash(["a", "b", "a"])


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


def test_splits_that_are_drawn_anew_are_counted_anew(data_root):
    ds = load(recipe())
    ds.items.loc[:1, "split"] = "left_out"
    assert ds.splits == {"train": 4, "test": 1, "left_out": 2}


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
