"""Named arrays: a set of any modalities, what an item may lack, and that the bytes are those of the content hash."""

import json
import os
import time

import numpy as np
import pandas as pd
import pytest
import torch

from mmkit.data import Recipe, commands, load, prepared
from mmkit.errors import MmkitError

SCENES = "9391b15954ce7c1e12d9f516df96070ba753b285b0e3a3ed27135ddfc54ccc46"
PHANTOMS = "906a8f8eaaba406a25e3b04b35d3aaf5a8852a6ec956b2beae71faa021c6e7fb"
ABOUT = {"name": "street", "title": "A street", "task": "none", "licence": "CC0", "terms": "none", "citation": "nobody"}
PIXELS = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
SOUND = np.arange(3 * 8, dtype=np.int16).reshape(3, 8) - 5
CLIPS = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
RANGE = np.linspace(0, 80, 2 * 6, dtype=np.float32).reshape(2, 6, 1)


pytestmark = pytest.mark.usefixtures("data_root")


def recipe(fill, **changed):
    def prepare(writer, sources):
        fill(writer)

    return Recipe(**(ABOUT | {"version": 1, "prepare": prepare} | changed))


def fill_street(writer, *, sound=SOUND, rate=16000, distance=RANGE):
    """Four items: all modalities; sound and range; an image with a text; and a sound alone in a pool."""
    images = writer.images(PIXELS)
    first, last = (
        writer.array("audio", sound[:2], sampling_rate=rate),
        writer.array("audio", sound[2:], sampling_rate=rate),
    )
    clips, ranges = writer.array("clip", CLIPS, frames_per_second=12.5), writer.array("range", distance, unit="m")
    writer.item("all", split="train", image=images[0], audio=first[0], clip=clips[1], range=ranges[0], label_car=1)
    writer.item("heard", split="train", audio=first[1], range=ranges[1], label_car=0)
    writer.item("seen", split="test", image=images[1], label_car=-1)
    writer.item("pooled", split="pool_audio", audio=last[0], label_car=-1)
    writer.text(0, "a car passes")
    writer.text(2, "ein Auto", language="de", role="report")


@pytest.fixture
def street():
    return load(recipe(fill_street))


# ---------------------------------------------------------------------------------------------- what is prepared


@pytest.mark.parametrize(
    ("name", "knobs", "content"),
    [
        ("scenes", {"train": 64, "val": 16, "test": 16, "ood": 16, "pool": 32}, SCENES),
        ("phantoms", {"train": 8, "val": 4, "test": 4, "ood": 4, "pool": 8}, PHANTOMS),
    ],
)
def test_sets_of_images_and_texts_keep_the_hash_that_published_records_name(name, knobs, content):
    ds = load(name, **knobs)
    assert ds.content == content and ds.card["schema"] == 1 and not {"arrays", "required"} & ds.card.keys()
    assert list(ds.arrays) == ["image"] and ds.arrays["image"] is ds.images


def test_every_array_gives_back_what_was_written(street):
    assert list(street.arrays) == ["image", "audio", "clip", "range"] and street.card["schema"] == 2
    for name, written in {"image": PIXELS, "audio": SOUND, "clip": CLIPS, "range": RANGE}.items():
        assert isinstance(street.arrays[name], np.memmap) and np.array_equal(street.arrays[name], written)
        assert street.arrays[name].dtype == written.dtype
    assert street.array_rows("audio").tolist() == [0, 1, -1, 2] and street.array_rows("image").tolist() == [
        0,
        -1,
        1,
        -1,
    ]
    assert street.array_rows("clip").tolist() == [1, -1, -1, -1] and street.array_rows("range").dtype == np.int64
    sound = street.read("audio", [3, 0])
    assert sound.dtype == torch.int16 and sound.tolist() == SOUND[[2, 0]].tolist()
    assert torch.equal(street.read("image", [2]), street.pixels([2])) and street.read("image", [2]).shape == (
        1,
        3,
        4,
        5,
    )
    assert street.read("range", torch.tensor([1])).tolist() == RANGE[1:].tolist()
    assert street.label_columns == ["label_car"] and street.labels([0, 1, 2], "label_car").tolist() == [1, 0, -1]
    assert street.texts_of([0, 1])[0] == ["a car passes"]
    assert street.texts_of([2], role="report", language="de")[0] == ["ein Auto"]
    assert street.splits == {"train": 2, "test": 1, "pool_audio": 1} and prepared.check(street.root)
    assert repr(street).startswith(
        "Dataset('street': 2 images 4x5, 3 audio 8 int16, 2 clip 3x4x4 uint8, 2 range 6x1 float32, 2 texts; train 2"
    )


def test_the_card_says_type_shape_and_options_of_every_array(street, capsys):
    arrays = street.card["arrays"]
    assert {"dtype": "<i2", "shape": [3, 8], "sampling_rate": 16000}.items() <= arrays["audio"].items()
    assert arrays["clip"]["frames_per_second"] == 12.5 and arrays["range"]["unit"] == "m"
    assert set(street.card["files"]) == {
        "images.npy", "audio.npy", "clip.npy", "range.npy", "items.parquet", "texts.parquet",
    }  # fmt: skip
    commands.card("street")
    assert "array audio: 3 x 8, <i2, sampling_rate 16000" in capsys.readouterr().out


def test_content_depends_on_every_part_of_an_array():
    def content(version, **changed):
        return load(recipe(lambda writer: fill_street(writer, **changed), version=version)).content

    contents = [
        content(1),
        content(2, sound=SOUND + 1),
        content(3, rate=8000),
        content(4, distance=RANGE.astype(">f8")),
    ]
    assert len(set(contents)) == 4
    assert content(5, distance=RANGE.astype(">f4")) == contents[0], "the order of the bytes is no content"


def test_a_set_without_images_has_no_file_for_them():
    def fill(writer):
        rows = writer.array("audio", SOUND)
        table = pd.DataFrame(
            {"id": ["a", "b", "c"], "split": ["train", "val", "test"], "audio": rows, "label": [0, 1, 2]}
        )
        writer.items(table)

    ds = load(recipe(fill))
    assert list(ds.arrays) == ["audio"] and ds.images.shape == (0, 1, 1, 3) and len(ds.texts) == 0
    assert not (ds.root / "images.npy").exists() and ds.read("audio", ds.rows("val")).tolist() == SOUND[1:2].tolist()
    assert prepared.check(ds.root)["required"] == []


def test_a_set_may_say_what_every_item_must_have():
    def fill(writer, *required):
        writer.require(*required)
        fill_street(writer)

    assert load(recipe(lambda writer: fill(writer))).card["required"] == []
    with pytest.raises(
        MmkitError,
        match=r"1 of 4 items have no audio \(seen\): leave them out, or use the split pool_image for an image alone or",
    ):
        load(recipe(lambda writer: fill(writer, "audio"), version=2))
    with pytest.raises(
        MmkitError, match="unknown modality 'adio': did you mean 'audio'[?] there are audio, clip, image, range, text"
    ):
        load(recipe(lambda writer: fill(writer, "adio"), version=3))


def test_images_and_texts_with_gaps_are_a_set_where_it_is_declared():
    def fill(writer):
        writer.require()
        writer.item("seen", split="train", image=writer.image(PIXELS[0]))
        writer.text(writer.item("said", split="train"), "words")

    ds = load(recipe(fill))
    assert ds.card["schema"] == 2 and ds.array_rows("image").tolist() == [0, -1]
    with pytest.raises(
        MmkitError, match=r"item 'said' of 'street' has no image: take rows where array_rows\('image'\) is not -1"
    ):
        ds.pixels([0, 1])


# ---------------------------------------------------------------------------------------------- what is refused


def bad_item(**item):
    def fill(writer):
        fill_street(writer)
        writer.item("bad", **({"split": "train", "label_car": 0} | item))

    return fill


REFUSED = {
    "1 of 5 items have none of image, audio, clip, range, text (bad): leave them out": bad_item(),
    "1 of 5 items point beyond the 3 entries of 'audio' (bad): use the rows that Writer.array returned": bad_item(
        audio=3
    ),
    "column 'audio' holds 0.5, a float: expected whole numbers": bad_item(audio=0.5),
    "1 of 5 items have no range (bad)": bad_item(split="pool_range"),
    "1 of 5 items of the split pool_clip have an audio (bad): use another split, or no audio": bad_item(
        split="pool_clip", audio=1, clip=0
    ),
    "1 groups are in more than one split, first 'all' in train, test": bad_item(split="test", audio=1, group="all"),
    "audio 3 has shape (7,), the ones before it (8,): cut or pad them to one shape": lambda w: (
        w.array("audio", SOUND),
        w.array("audio", SOUND[:, 1:]),
    ),
    "audio 3 is int16 {'sampling_rate': 8000}, the ones before it int16 {'sampling_rate': 16000}": lambda w: (
        w.array("audio", SOUND, sampling_rate=16000),
        w.array("audio", SOUND, sampling_rate=8000),
    ),
    "array 'audio' must hold numbers of shape (N, ...), got <U1 (1, 1)": lambda w: w.array("audio", np.array([["a"]])),
    "array 'audio' must hold numbers of shape (N, ...), got int64 (3,)": lambda w: w.array("audio", np.arange(3)),
    "'text' is no name for an array: use lower-case letters, digits and '_', as in audio": lambda w: w.array(
        "text", SOUND
    ),
    "'../up' is no name for an array": lambda w: w.array("../up", SOUND),
    "array 'audio': options are numbers or texts": lambda w: w.array("audio", SOUND, rate=[1]),
    "images must be uint8 of shape (N, H, W, 3), got int16 (3, 8)": lambda w: w.array("image", SOUND),
}


@pytest.mark.parametrize("message", REFUSED)
def test_an_array_or_an_item_that_breaks_a_rule_is_refused_and_leaves_nothing(message, data_root):
    with pytest.raises(MmkitError) as error:
        load(recipe(REFUSED[message]))
    assert message in str(error.value)
    assert [path.name for path in data_root.iterdir()] == [".street.lock"]


def test_wrong_questions_name_the_array_and_the_item(street):
    with pytest.raises(
        MmkitError,
        match="unknown array of 'street' 'adio': did you mean 'audio'[?] there are audio, clip, image, range",
    ):
        street.read("adio", [0])
    with pytest.raises(
        MmkitError, match=r"item 'seen' of 'street' has no audio: take rows where array_rows\('audio'\) is not -1"
    ):
        street.read("audio", [0, 2])
    with pytest.raises(MmkitError, match="item 'pooled' of 'street' has no clip: leave the rows of pool_audio out"):
        street.read("clip", [0, 3])
    with pytest.raises(MmkitError, match="rows 0 to 9 reach beyond the 4 items of 'street'"):
        street.read("audio", [0, 9])


# ---------------------------------------------------------------------------------------------- bytes and content


def aged(root):
    """As a set looks that was not written a moment ago; what is younger than a second is never remembered as sound."""
    for path in root.iterdir():
        os.utime(path, (1, 1))
    time.sleep(prepared.YOUNG + 0.05)


@pytest.mark.parametrize("name", ["images.npy", "audio.npy"])
@pytest.mark.parametrize("keep_time", [False, True])
def test_an_array_blanked_at_equal_size_is_noticed(street, name, keep_time):
    aged(street.root)
    load(recipe(fill_street))
    path = street.root / name
    before = path.stat()
    path.write_bytes(path.read_bytes()[:128].ljust(before.st_size, b"\0"))
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(MmkitError, match=f"damaged, {name} differs from its hash on the card: make it again"):
            load(recipe(fill_street))


def test_a_card_that_claims_another_content_or_hash_is_noticed(street):
    aged(street.root)
    load(recipe(fill_street))
    blank = np.zeros_like(SOUND)
    np.save(street.root / "audio.npy", blank)
    card = json.loads((street.root / "card.json").read_text())
    card["files"]["audio.npy"] = {"size": 176, "sha256": prepared.file_hash(street.root / "audio.npy")}
    (street.root / "card.json").write_text(json.dumps(card))
    with pytest.raises(MmkitError, match="has content .*, its card says"):
        load(recipe(fill_street))


def test_sound_bytes_are_read_once_and_again_when_a_file_changes(street, monkeypatch, data_root):
    aged(street.root)
    read = []
    monkeypatch.setattr(prepared, "_require_content", lambda *arguments: read.append(1))
    for _ in range(3):
        load(recipe(fill_street))
    assert len(read) == 1
    (street.root / "audio.npy").touch()
    load(recipe(fill_street))
    load(recipe(fill_street))
    assert len(read) == 3, "a file of this very moment is read again until it is a second old"


def test_where_nothing_can_be_remembered_the_bytes_are_read_each_time(street, monkeypatch, data_root):
    aged(street.root)
    (data_root / "cache").write_text("a file where the folder should be")
    assert load(recipe(fill_street)).content == street.content
    (street.root / "images.npy").write_bytes(bytes((street.root / "images.npy").stat().st_size))
    with pytest.raises(MmkitError, match="images.npy (is no array|differs from its hash)"):
        load(recipe(fill_street))
