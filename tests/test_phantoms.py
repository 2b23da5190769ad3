"""The generated chests: what they promise about their bytes, their lesions, their words and their patients."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from data_recipes import phantoms
from data_recipes.phantoms import DIAGNOSES, FINDINGS, masks
from mmkit.data import Recipe, load
from mmkit.errors import MmkitError

DEFAULT = "b8c6890c10e43a05411482658d4e67678d975eaeb4923ff8d8e82d9812a070af"
SMALL = "7ad6cb228b46608073158e43da5c18bfe61d728166799d2618d89f323bb8c6a8"


@cache
def generate(**knobs):
    """Images, items and texts, small unless told otherwise. Not to be changed by a test."""
    return phantoms.generate(
        **phantoms.RECIPE.knobs | {"train": 150, "val": 20, "test": 60, "ood": 30, "pool": 40} | knobs
    )


def texts(items, table, role):
    """A role's texts with their item's columns beside them."""
    return table[table["role"] == role].join(items, on="item")


# ---------------------------------------------------------------------------------------------- bytes


def test_content_is_frozen():
    """A change here changes every record made with the set: raise the recipe's version and say so."""
    assert load("phantoms").content == DEFAULT
    assert load("phantoms", train=12, val=4, test=6, ood=4, pool=5, leak=0.0, hedge=1.0, seed=3).content == SMALL


def test_the_size_of_a_split_changes_no_other():
    (images, items, table), (more, items_more, table_more) = generate(), generate(train=160)
    for split in ("val", "test", "ood_hospital", "pool_image"):
        rows, rows_more = (i["image"][i["split"] == split].to_numpy() for i in (items, items_more))
        assert (images[rows] == more[rows_more]).all() and len(rows)
    said, said_more = (texts(i, t, "note") for i, t in ((items, table), (items_more, table_more)))
    assert said["text"][said["split"] == "test"].tolist() == said_more["text"][said_more["split"] == "test"].tolist()


def test_what_generate_refuses():
    bad = {
        "leak=1.5 is a share": {"leak": 1.5},
        "test=-1 is negative": {"test": -1},
        "seed=4294967296 is too large: .* up to 4294967295": {"seed": 2**32},
    }
    for message, knobs in bad.items():
        with pytest.raises(MmkitError, match=message):
            generate(**knobs)
    generate(train=1, val=1, test=1, ood=1, pool=1, seed=2**32 - 1)


# ---------------------------------------------------------------------------------------------- lesions


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_mask_holds_exactly_what_a_finding_changes(finding, monkeypatch):
    """The same chests drawn with and without the finding differ in its mask and nowhere else.

    A part may hide behind an effusion, or be as bright as it.
    """
    images, items, _ = generate()
    places = phantoms._places

    def without(table):
        return {name: at * (name != finding) for name, at in places(table).items()}

    monkeypatch.setattr(phantoms, "_places", without)
    bare = phantoms.generate(**phantoms.RECIPE.knobs | {"train": 150, "val": 20, "test": 60, "ood": 30, "pool": 40})[0]
    sharp = items.index[items["split"] == "train"]
    changed = (images != bare)[items["image"][sharp]].any(axis=3)
    mask = masks(items.loc[sharp], finding)
    assert not (changed & ~mask).any()
    assert mask.any(axis=(1, 2)).tolist() == (items.loc[sharp, f"label_{finding}"] == 1).tolist()
    alone = (items.loc[sharp, [f"label_{other}" for other in FINDINGS]].sum(axis=1) == 1).to_numpy() & mask.any(
        axis=(1, 2)
    )
    seen = {"cardiomegaly": 0.02, "effusion": 0.6}.get(
        finding, 0.85
    )  # a large heart adds its rim; an effusion stands before the heart too
    assert alone.sum() > 5 and changed[alone].sum() / mask[alone].sum() > seen


def test_sides_are_the_patients():
    _, items, _ = generate()
    for finding in ("opacity", "effusion", "nodule"):
        for side, half in (("right", slice(0, 32)), ("left", slice(32, 64))):
            mask = masks(items[items[f"side_{finding}"] == side], finding)
            assert mask.any() and mask[:, :, half].sum() > 0.95 * mask.sum()


def test_the_other_hospital_is_darker_in_contrast_and_half_as_sharp():
    images, items, _ = generate()
    ours, theirs = (images[items["image"][items["split"] == split]] for split in ("test", "ood_hospital"))
    assert theirs.std() < 0.75 * ours.std()
    assert (theirs[:, ::2, ::2] == theirs[:, 1::2, 1::2]).all() and not (ours[:, ::2, ::2] == ours[:, 1::2, 1::2]).all()


# ---------------------------------------------------------------------------------------------- words


def test_a_report_says_what_said_columns_keep():
    _, items, table = generate(hedge=1.0)
    reports = texts(items, table, "report")
    doubt, denial = r"possible|cannot exclude|there may be|not excluded", r"\bno\b|not seen"
    for finding in FINDINGS:
        sentence = reports["text"].str.extract(rf"([^.]*\b{finding}\b[^.]*)\.")[0].fillna("")
        said = np.select(
            [sentence == "", sentence.str.contains(doubt), sentence.str.contains(denial)],
            ["", "uncertain", "absent"],
            "present",
        )
        assert said.tolist() == reports[f"said_{finding}"].tolist() and set(said) == {
            "",
            "uncertain",
            "absent",
            "present",
        }
        truth = reports.groupby(f"said_{finding}")[f"label_{finding}"].mean()
        assert truth["present"] == 1 and truth["absent"] == 0 and 0.05 < truth["uncertain"] < 0.9
    silent = (reports[[f"said_{finding}" for finding in FINDINGS]] == "").all(axis=1)
    assert silent.any() and reports["text"][silent].isin(phantoms.CLEAR).all()


@pytest.mark.parametrize("leak", [0.0, 0.5, 1.0])
def test_the_note_names_a_diagnosis_as_often_as_the_knob_says_and_always_the_right_one(leak):
    _, items, table = generate(leak=leak)
    notes = texts(items, table, "note").drop_duplicates("group")
    named = notes["text"].str.extract(f"({'|'.join(DIAGNOSES)})")[0]
    assert named.notna().tolist() == (notes["label_named"] == 1).tolist()
    assert named.notna().mean() == pytest.approx(leak, abs=0.1)
    assert ((named == "pneumonia") == (notes["label_pneumonia"] == 1))[named.notna()].all()


def test_hiding_the_diagnosis_leaves_the_same_sentences_for_all():
    _, items, table = generate()
    notes = texts(items, table, "note").drop_duplicates("group")
    told = notes["text"].str.replace("|".join(DIAGNOSES), "___", regex=True).str.extract(r"\. (.*)$")[0].fillna("")
    sick = notes["label_pneumonia"] == 1
    assert set(told[sick & (notes["split"] == "train")]) == set(told[~sick & (notes["split"] == "train")])
    assert notes["label_named"].groupby(sick).mean().diff().abs().iloc[-1] < 0.15


def test_symptoms_and_opacity_are_evidence_and_no_proof():
    _, items, _ = generate(train=800)
    first = items.drop_duplicates("group")
    for cue in ("label_opacity", "label_fever", "label_cough"):
        well, sick = first.groupby("label_pneumonia")[cue].mean()
        assert 0.1 < well < sick - 0.2 < 0.8


# ---------------------------------------------------------------------------------------------- patients


def test_views_share_everything_but_position_and_noise():
    images, items, table = generate()
    shared = [name for name in items if name not in ("id", "image", "label_view") and not name.startswith("at_")]
    assert (items.groupby("group")[shared].nunique() == 1).all(axis=None)
    assert set(items.groupby("group").size()) == {1, 2, 3}
    assert (texts(items, table, "note").groupby("group")["text"].nunique() == 1).all()
    two = items[items.duplicated("group")].iloc[0]
    first = items[items["group"] == two["group"]].iloc[0]
    assert not (images[two["image"]] == images[first["image"]]).all()


def test_no_patient_is_in_two_splits_and_a_set_that_has_one_is_refused():
    _, items, _ = generate()
    assert (items.groupby("group")["split"].nunique() == 1).all()

    def prepare(writer, sources):
        images, items, table = generate()
        rows = items["split"].isin(["train", "test"])
        items = items[rows].assign(image=writer.images(images[items["image"][rows]]))
        items["group"] = items["group"].str.replace("train|test", "p", regex=True)
        writer.items(items)
        writer.texts(pd.DataFrame({"item": range(len(items)), "text": "a note ."}))

    recipe = Recipe(
        name="mixed_patients", title="", task="", licence="", terms="", citation="", version=1, prepare=prepare
    )
    with pytest.raises(
        MmkitError,
        match="groups are in more than one split, first 'p-patient-0000' in train, test: keep all items of a group "
        "in one split, or test scores leak",
    ):
        load(recipe)
