"""Flickr8k: 8,091 photos of people and dogs in action, each with five English and five Chinese captions."""

import re
from collections import defaultdict
from pathlib import Path

from mmkit.data import DamagedImage, File, Recipe, Writer, read_image
from mmkit.data.fetch import Sources
from mmkit.data.folders import file_hash
from mmkit.data.images import require_size
from mmkit.data.progress import progress
from mmkit.errors import MmkitError

SPLITS = {"train": "train", "dev": "val", "test": "test"}  # the official lists; photos in none of them are "extra"
KEY = re.compile(r"(?P<photo>.+?)#(?:zhc#)?\d+[ \t]+(?P<text>.+)")
# Photos whose pixels are broken inside a file that decodes: name -> sha256 of the broken file. A sound copy is kept.
BROKEN = {"1798209205_77dbf525b0.jpg": "d1255fcaaee0bacc97876ec33321d6ee4139af6f91599267db10cbf8e5bc43b1"}


def captions(path: Path) -> dict[str, list[str]]:
    """Captions of each photo, in the file's order, from lines `photo.jpg#0<tab>text` or `photo.jpg#zhc#0 text`."""
    found = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = KEY.fullmatch(line.strip())
        if match:
            found[match["photo"]].append(match["text"].strip())
        elif line.strip():
            raise MmkitError(
                f"{path.name}, line {number} is no caption: expected 'photo.jpg#0<tab>text', got {line[:60]!r}"
            )
    return found


def split_of_photos(folder: Path) -> dict[str, str]:
    """Photo name -> split, from the official lists."""
    lists = {
        split: _only(folder, f"Flickr_8k.{official}Images.txt").read_text(encoding="utf-8").split()
        for official, split in SPLITS.items()
    }
    return {name: split for split, names in lists.items() for name in names}


def prepare(writer: Writer, sources: Sources, *, size: int) -> None:
    """Squash every photo to size x size.

    Reported and left out: keys without a photo, damaged photos, photos without caption.
    """
    require_size(size)
    photos = {path.name: path for path in sorted(sources["Flickr8k_Dataset.zip"].rglob("*.jpg"))}
    texts = {"en": captions(_only(sources["Flickr8k_text.zip"], "Flickr8k.token.txt"))}
    if "flickr8kzhc.caption.txt" in sources:
        texts["zh"] = captions(sources["flickr8kzhc.caption.txt"])
    splits = split_of_photos(sources["Flickr8k_text.zip"])
    for name in sorted({*texts["en"], *splits} - photos.keys()):
        writer.report(
            name, f"no such photo ({len(texts['en'].get(name, []))} captions, split {splits.get(name, 'none')})"
        )
    for name, path in progress(photos.items(), label="flickr8k", unit="photos"):
        if name not in texts["en"]:
            writer.report(name, "no English caption")
            continue
        try:
            if file_hash(path) == BROKEN.get(name):
                raise DamagedImage("the lower half of the photo is broken")
            pixels = read_image(path, size=size)
        except DamagedImage as damage:
            writer.report(name, f"damaged photo, left out with its {len(texts['en'][name])} captions: {damage}")
            continue
        item = writer.item(name, split=splits.get(name, "extra"), image=writer.image(pixels))
        for language, by_photo in texts.items():
            for text in by_photo.get(name, []):
                writer.text(item, text, language=language)


def _only(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if not found:
        raise MmkitError(f"{folder} holds no {name}: it is not the Flickr8k text archive")
    return found[0]


RELEASE = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
RECIPE = Recipe(
    name="flickr8k",
    title="Flickr8k with Chinese captions: 8,091 photos, five captions each in two languages",
    task="image-text retrieval, captioning",
    licence="none granted for the photos, which belong to their Flickr users; captions for research",
    terms="non-commercial research and education only; do not redistribute. The form of the University of "
    "Illinois states the terms.",
    citation="M. Hodosh, P. Young, J. Hockenmaier: Framing Image Description as a Ranking Task. JAIR 47, 2013. "
    "Chinese captions: X. Li, W. Lan, J. Dong, H. Liu: Adding Chinese Captions to Images. ICMR 2016.",
    version=1,
    files=(
        File(
            "Flickr8k_Dataset.zip",
            f"{RELEASE}/Flickr8k_Dataset.zip",
            md5="f18a1e2920de5bd84dae7cf08ec78978",
            limit=1_200_000_000,
            mirror="flickr8k/images",
            unpack=True,
        ),
        File(
            "Flickr8k_text.zip",
            f"{RELEASE}/Flickr8k_text.zip",
            md5="bf6c1abcb8e4a833b7f922104de18627",
            limit=10_000_000,
            mirror="flickr8k/text",
            unpack=True,
        ),
        File(
            "flickr8kzhc.caption.txt",
            "https://raw.githubusercontent.com/li-xirong/flickr8kcn/master/data/flickr8kzhc.caption.txt",
            size=2420330,
            sha256="298918f03fb332911df3cda128a7a56f1f47c0513531c4f22eeecbea7d780bbb",
            mirror="flickr8k_cn/flickr8kzhc.caption.txt",
            optional=True,
        ),
    ),
    knobs={"size": 160},
    prepare=prepare,
)
