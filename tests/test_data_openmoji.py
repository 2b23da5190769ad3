"""The openmoji recipe on a small made folder, and on the mirror where there is one."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from data_recipes import openmoji
from mmkit.data import load, split_by_hash
from mmkit.errors import MmkitError

ROWS = [
    # hexcode, group, subgroups, annotation, tags, openmoji_tags, skintone_base_hexcode
    ("1F44B", "people-body", "hand", "waving hand", "hello, wave", "wave, greet", "1F44B"),
    ("1F44B-1F3FB", "people-body", "hand", "waving hand: light skin tone", "", "", "1F44B"),
    ("1F9D1-1F3FC-200D-1F33E", "people-body", "role", "farmer: medium-light", "", "", ""),
    ("1F9D1-200D-1F33E", "people-body", "role", "farmer", "plant", "", ""),
    ("1F3FB", "component", "skin-tone", "light skin tone", "", "", ""),
    ("1F600", "smileys-emotion", "face", "grinning face", "face, grin", "smile", ""),
    ("26FF", "flags", "flag", "a flag without picture", "", "", ""),
]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    pictures = tmp_path / "mirror/openmoji/color-72px"
    pictures.mkdir(parents=True)
    columns = ["hexcode", "group", "subgroups", "annotation", "tags", "openmoji_tags", "skintone_base_hexcode"]
    pd.DataFrame(ROWS, columns=columns).to_csv(pictures.parent / "openmoji.csv", index=False)
    for index, (hexcode, *_) in enumerate(ROWS[:-1]):
        picture = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
        picture.paste((200, 30 + index, 30, 255), (24, 24, 48, 48))
        picture.save(pictures / f"{hexcode}.png")
    return replace(
        openmoji.RECIPE, files=tuple(replace(file, sha256=None, size=None) for file in openmoji.RECIPE.files)
    )


def test_captions_labels_groups_and_white_background(recipe):
    ds = load(recipe)
    assert (
        ds.images.shape == (6, 72, 72, 3)
        and ds.images[0, 0, 0].tolist() == [255] * 3
        and ds.images[0, 36, 36].tolist() == [200, 30, 30]
    )
    assert ds.texts_of([0, 1])[0] == ["waving hand", "hello, wave, greet", "waving hand: light skin tone"]
    assert ds.items["group"].tolist() == ["1F44B", "1F44B", "1F9D1-200D-1F33E", "1F9D1-200D-1F33E", "1F3FB", "1F600"]
    assert (
        ds.classes("label_group") == ["component", "people-body", "smileys-emotion"]
        and ds.items["label_subgroup"].iloc[0] == "hand"
    )
    assert ds.items.groupby("group")["split"].nunique().max() == 1
    assert ds.card["reported"] == [{"name": "26FF.png", "reason": "no such picture"}]


def test_emoji_drawn_alike_stay_in_one_split(recipe, tmp_path):
    pictures = tmp_path / "mirror/openmoji/color-72px"
    shutil.copy(pictures / "1F9D1-200D-1F33E.png", pictures / "1F600.png")
    ds = load(recipe)
    assert ds.items.set_index("id")["group"].to_dict() == {
        "1F44B": "1F44B",
        "1F44B-1F3FB": "1F44B",
        "1F9D1-1F3FC-200D-1F33E": "1F600",
        "1F9D1-200D-1F33E": "1F600",
        "1F600": "1F600",
        "1F3FB": "1F3FB",
    }


def test_strays_and_damage_are_reported(recipe, tmp_path):
    pictures = tmp_path / "mirror/openmoji/color-72px"
    (pictures / "1F600.png").write_bytes((pictures / "1F600.png").read_bytes()[:50])
    shutil.copy(pictures / "1F44B.png", pictures / "FFFF.png")
    reported = {line["name"]: line["reason"] for line in load(recipe).card["reported"]}
    assert reported["FFFF.png"] == "not in openmoji.csv" and reported["1F600.png"].startswith("damaged picture: ")
    for path in pictures.iterdir():
        path.unlink()
    with pytest.raises(MmkitError, match="no picture of openmoji.csv is in openmoji-72x72-color.zip"):
        load(recipe, size=32)


if os.environ.get("MMKIT_MIRROR"):  # where no mirror is named there is nothing to test
    MIRROR = Path(os.environ["MMKIT_MIRROR"]) / "openmoji"

    def test_the_real_table():
        table = pd.read_csv(MIRROR / "openmoji.csv", dtype=str, keep_default_na=False)
        pictures = {path.stem for path in (MIRROR / "color-72px").iterdir()}
        assert (
            len(table) == 4_495
            and len(pictures) == 4_494
            and set(table["hexcode"]) - pictures == {"1F3F4-E0065-E0073-E0063-E006D-E007F"}
        )
        table["base"] = [
            openmoji.base_emoji(*pair) for pair in zip(table["hexcode"], table["skintone_base_hexcode"], strict=True)
        ]
        table["split"] = split_by_hash(table["base"])
        toned = table["hexcode"].str.contains("1F3F[BCDEF]") & (table["hexcode"].str.len() > 5)
        assert (
            toned.sum() == (table["skintone"] != "").sum() == 2_030
            and not table["base"][toned].str.contains("1F3F[BCDEF]").any()
        )
        assert table.groupby("base")["split"].nunique().max() == 1 and table["base"].nunique() == 2_465
        share = table["split"].value_counts(normalize=True)
        assert 0.75 < share["train"] < 0.85 and min(share["val"], share["test"]) > 0.05

    def test_no_picture_of_the_real_set_is_in_two_splits():
        ds = load("openmoji")
        pictures = pd.Series([hashlib.sha256(image.tobytes()).hexdigest() for image in ds.images])
        assert ds.items["split"].groupby(pictures).nunique().max() == 1 and pictures.nunique() < len(ds)
        assert min(ds.splits.values()) > 0.05 * len(ds)
