"""What a prepared set, its knobs and the questions to it refuse, and the remedy they name."""

import numpy as np
import pandas as pd
import pytest
from data_toy import PIXELS, one, recipe

from mmkit.data import load
from mmkit.errors import MmkitError


pytestmark = pytest.mark.usefixtures("data_root")


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
    "1 groups are in more than one split, first 'p1' in train, test: keep all items of a group": lambda w: (
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
