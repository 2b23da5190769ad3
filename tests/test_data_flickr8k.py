"""The flickr8k recipe on small made folders in the original's and the mirror's layout, and on the mirror where there
is one."""

import hashlib
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_recipes import flickr8k
from mmkit.data import load, prepared
from mmkit.errors import MmkitError

STRAY = "2258277193_586949ec62.jpg.1"
SIZES = {
    "a.jpg": (500, 375),
    "b.jpg": (333, 500),
    "c.jpg": (160, 160),
    "d.jpg": (40, 7),
    "e.jpg": (500, 333),
    "extra.jpg": (160, 160),
}


def photo(path, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


def make(images, text, chinese):
    """Six photos, one of them cut, one without caption, one in no list; a key and a list entry without photo."""
    for folder in (images, text, chinese.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, size) in enumerate(SIZES.items()):
        photo(images / name, size, seed)
    (images / "cut.jpg").write_bytes((images / "a.jpg").read_bytes()[:-500])
    photo(images / "bare.jpg", (160, 160), 99)
    names = [*SIZES, "cut.jpg", STRAY]
    (text / "Flickr8k.token.txt").write_text(
        "".join(f"{name}#{k}\t {name} says {k} .\n" for name in names for k in range(5))
    )
    (text / "Flickr_8k.trainImages.txt").write_text("a.jpg\nb.jpg\ncut.jpg\ngone.jpg\n")
    (text / "Flickr_8k.devImages.txt").write_text("c.jpg\nd.jpg\n")
    (text / "Flickr_8k.testImages.txt").write_text("e.jpg\n")
    chinese.write_text(
        "".join(f"{name}#zhc#{k} 照片 {name} {k}。\n" for name in SIZES for k in range(5)), encoding="utf-8"
    )


def check_made(ds, size):
    assert ds.splits == {"train": 2, "val": 2, "test": 1, "extra": 1} and ds.images.shape == (6, size, size, 3)
    assert ds.items["id"].tolist() == sorted(SIZES) and len(ds.texts) == 60
    texts, owner = ds.texts_of(ds.rows("val"))
    assert texts[4:6] == ["c.jpg says 4 .", "d.jpg says 0 ."] and owner.tolist() == [0] * 5 + [1] * 5
    assert ds.texts_of(ds.rows("test"), language="zh")[0][2] == "照片 e.jpg 2。"
    reported = {line["name"]: line["reason"] for line in ds.card["reported"]}
    assert reported.pop("cut.jpg").startswith("damaged photo, left out with its 5 captions: image file is truncated")
    assert reported == {
        STRAY: "no such photo (5 captions, split none)",
        "gone.jpg": "no such photo (0 captions, split train)",
        "bare.jpg": "no English caption",
    }
    colours = np.random.default_rng(0).integers(
        0, 256, (5, 5, 3), dtype=np.uint8
    )  # of a.jpg, squashed: its middle is still its middle
    assert np.abs(ds.images[0, size // 2, size // 2].astype(int) - colours[2, 2]).max() < 30


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    return tmp_path


def test_the_mirrors_layout(folders):
    make(
        folders / "mirror/flickr8k/images",
        folders / "mirror/flickr8k/text",
        folders / "mirror/flickr8k_cn/flickr8kzhc.caption.txt",
    )
    made = (folders / "mirror/flickr8k_cn/flickr8kzhc.caption.txt").read_bytes()
    chinese = replace(flickr8k.RECIPE.files[2], sha256=hashlib.sha256(made).hexdigest(), size=len(made))
    recipe = replace(flickr8k.RECIPE, files=(*flickr8k.RECIPE.files[:2], chinese))
    check_made(load(recipe), 160)
    check_made(load(recipe, size=64), 64)
    with pytest.raises(MmkitError, match="size=7 is out of range: pass a whole number of pixels, 16 <= size <= 512"):
        load(recipe, size=7)


def test_the_originals_layout(folders, monkeypatch):
    monkeypatch.delenv("MMKIT_MIRROR")
    raw = folders / "data/raw/flickr8k"
    make(folders / "Flicker8k_Dataset", folders / "text", raw / "flickr8kzhc.caption.txt")  # the archive's own spelling
    for archive, folder, prefix in (
        ("Flickr8k_Dataset.zip", "Flicker8k_Dataset", "Flicker8k_Dataset/"),
        ("Flickr8k_text.zip", "text", ""),
    ):
        with zipfile.ZipFile(raw / archive, "w") as out:
            for path in (folders / folder).iterdir():
                out.write(path, prefix + path.name)
                out.writestr(f"__MACOSX/{prefix}._{path.name}", "junk")
    files = tuple(replace(file, md5=None, sha256=None, size=None) for file in flickr8k.RECIPE.files)
    check_made(load(replace(flickr8k.RECIPE, files=files)), 160)
    assert sorted(path.name for path in raw.iterdir()) == sorted(file.name for file in files)


def test_a_photo_known_to_be_broken_inside_is_left_out_but_a_sound_copy_kept(folders, monkeypatch):
    images = folders / "mirror/flickr8k/images"
    make(images, folders / "mirror/flickr8k/text", folders / "unused.txt")
    recipe = replace(flickr8k.RECIPE, files=flickr8k.RECIPE.files[:2])
    monkeypatch.setattr(
        flickr8k, "BROKEN", {"b.jpg": hashlib.sha256((images / "b.jpg").read_bytes()).hexdigest(), "c.jpg": "0" * 64}
    )
    ds = load(recipe)
    assert ds.items["id"].tolist() == ["a.jpg", "c.jpg", "d.jpg", "e.jpg", "extra.jpg"] and ds.texts[
        "language"
    ].unique().tolist() == ["en"]
    assert {
        "name": "b.jpg",
        "reason": "damaged photo, left out with its 5 captions: the lower half of the photo is broken",
    } in ds.card["reported"]


def test_wrong_files_are_named(folders):
    images, text = folders / "mirror/flickr8k/images", folders / "mirror/flickr8k/text"
    make(images, text, folders / "unused.txt")
    recipe = replace(flickr8k.RECIPE, files=flickr8k.RECIPE.files[:2])
    (text / "Flickr8k.token.txt").write_text("a.jpg#0\tfine\nno caption here\n")
    with pytest.raises(
        MmkitError,
        match="Flickr8k.token.txt, line 2 is no caption: expected 'photo.jpg#0<tab>text', got 'no caption here'",
    ):
        load(recipe)
    (text / "Flickr_8k.testImages.txt").unlink()
    (text / "Flickr8k.token.txt").write_text("a.jpg#0\tfine\n")
    with pytest.raises(MmkitError, match="holds no Flickr_8k.testImages.txt: it is not the Flickr8k text archive"):
        load(recipe)


if os.environ.get("MMKIT_MIRROR"):  # where no mirror is named there is nothing to test
    MIRROR = Path(os.environ["MMKIT_MIRROR"])

    def test_the_real_texts():
        english = flickr8k.captions(MIRROR / "flickr8k/text/Flickr8k.token.txt")
        chinese = flickr8k.captions(MIRROR / "flickr8k_cn/flickr8kzhc.caption.txt")
        splits = flickr8k.split_of_photos(MIRROR / "flickr8k/text")
        assert (len(english), sum(map(len, english.values()))) == (8_092, 40_460) and {
            len(texts) for texts in english.values()
        } == {5}
        assert english.keys() - chinese.keys() == {STRAY} and sum(map(len, chinese.values())) == 40_455
        assert {split: list(splits.values()).count(split) for split in ("train", "val", "test")} == {
            "train": 6_000,
            "val": 1_000,
            "test": 1_000,
        }
        photos = {path.name for path in (MIRROR / "flickr8k/images").iterdir()}
        assert english.keys() - photos == {STRAY} and photos == chinese.keys() and len(photos - splits.keys()) == 91
        assert (
            english["1000268201_693b08cb0e.jpg"][0]
            == "A child in a pink dress is climbing up a set of stairs in an entry way ."
        )

    def test_forty_real_photos(folders):
        """The broken photo, and the first of each split, through the whole recipe."""
        real, small = MIRROR / "flickr8k", folders / "mirror/flickr8k"
        (small / "images").mkdir(parents=True)
        (small / "text").mkdir()
        chosen = [*flickr8k.BROKEN]
        for official in flickr8k.SPLITS:
            names = (real / f"text/Flickr_8k.{official}Images.txt").read_text().split()[:13]
            chosen += names
            (small / f"text/Flickr_8k.{official}Images.txt").write_text("\n".join(names))
        lines = (real / "text/Flickr8k.token.txt").read_text().splitlines(keepends=True)
        (small / "text/Flickr8k.token.txt").write_text(
            "".join(line for line in lines if line.split("#")[0] in {*chosen, STRAY})
        )
        for name in chosen:
            shutil.copy(real / "images" / name, small / "images")
        sums = (MIRROR / "SHA256SUMS").read_text().splitlines(keepends=True)
        ends = tuple(f"flickr8k/images/{name}" for name in chosen)
        (folders / "mirror/SHA256SUMS").write_text("".join(line for line in sums if line.strip().endswith(ends)))
        ds = load(replace(flickr8k.RECIPE, files=flickr8k.RECIPE.files[:2]))
        assert (
            ds.splits == {"train": 13, "val": 13, "test": 13}
            and ds.images.shape == (39, 160, 160, 3)
            and len(ds.texts) == 195
        )
        assert {line["name"] for line in ds.card["reported"]} == {STRAY, *flickr8k.BROKEN}
        assert prepared.check(ds.root)
        spread = ds.pixels(range(39)).float().std(dim=(1, 2, 3))
        assert spread.min() > 10  # no blank photo
