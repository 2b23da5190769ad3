"""OpenMoji: 4,494 emoji with the words people search them by.

Skin-tone variants and emoji drawn alike stay in one split.
"""

import hashlib

import numpy as np
import pandas as pd

from mmkit.data import DamagedImage, File, Recipe, Writer, read_image, split_by_hash
from mmkit.data.fetch import Sources
from mmkit.data.images import require_size
from mmkit.data.progress import progress
from mmkit.errors import MmkitError

SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}


def prepare(writer: Writer, sources: Sources, *, size: int) -> None:
    """Each emoji on white, size x size; first caption its annotation, second its search tags, where it has any."""
    require_size(size)
    pictures = {path.stem: path for path in sources["openmoji-72x72-color.zip"].rglob("*.png")}
    table = pd.read_csv(sources["openmoji.csv"], dtype=str, keep_default_na=False)
    for hexcode in sorted(pictures.keys() - set(table["hexcode"])):
        writer.report(f"{hexcode}.png", "not in openmoji.csv")
    missing = ~table["hexcode"].isin(pictures.keys())
    for hexcode in table["hexcode"][missing]:
        writer.report(f"{hexcode}.png", "no such picture")
    if missing.all():
        raise MmkitError(
            "no picture of openmoji.csv is in openmoji-72x72-color.zip: it is not the archive of release 17"
        )
    table = table[~missing]
    kept, images = [], []
    for row in progress(table.itertuples(), label="openmoji", unit="emoji", total=len(table)):
        try:
            images.append(read_image(pictures[row.hexcode], size=size))
            kept.append(row)
        except DamagedImage as damage:
            writer.report(f"{row.hexcode}.png", f"damaged picture: {damage}")
    groups = joined([base_emoji(row.hexcode, row.skintone_base_hexcode) for row in kept], images)
    for row, image, group, split in zip(kept, images, groups, split_by_hash(groups), strict=True):
        item = writer.item(
            row.hexcode,
            image=writer.image(image),
            split=split,
            group=group,
            label_group=row.group,
            label_subgroup=row.subgroups,
        )
        writer.text(item, row.annotation)
        if tags := tag_caption(row.tags, row.openmoji_tags):
            writer.text(item, tags)


def joined(groups: list[str], images: list[np.ndarray]) -> list[str]:
    """The groups, one name for all that share a picture.

    Some emoji of different code points are drawn alike: a cook and a man who cooks.
    """
    leader: dict[str, str] = {}
    first: dict[str, str] = {}

    def find(group: str) -> str:
        while group in leader:
            group = leader[group]
        return group

    for group, image in zip(groups, images, strict=True):
        one, other = sorted((find(group), find(first.setdefault(hashlib.sha256(image.tobytes()).hexdigest(), group))))
        if one != other:
            leader[other] = one
    return [find(group) for group in groups]


def base_emoji(hexcode: str, stated: str) -> str:
    """The emoji a skin-tone variant derives from: stated, or the code without tones. It keeps variants in one split."""
    return stated or "-".join(code for code in hexcode.split("-") if code not in SKIN_TONES) or hexcode


def tag_caption(*columns: str) -> str:
    """The search words of an emoji as one caption, in their order, each once."""
    return ", ".join(dict.fromkeys(word.strip() for column in columns for word in column.split(",") if word.strip()))


RELEASE = "https://github.com/hfg-gmuend/openmoji/releases/download/17.0.0"
RECIPE = Recipe(
    name="openmoji",
    title="OpenMoji 17: 4,494 emoji with annotations and search words",
    task="image-text retrieval, classification of 12 groups",
    licence="CC BY-SA 4.0",
    terms="free to use and to share under the same licence, with the words: All emojis designed by OpenMoji, "
    "the open-source emoji and icon project. License: CC BY-SA 4.0",
    citation="B. Gross, D. Utz and contributors: OpenMoji. HfG Schwaebisch Gmuend, openmoji.org, release 17.0.0.",
    version=2,
    files=(
        File(
            "openmoji-72x72-color.zip",
            "",
            page=f"{RELEASE}/openmoji-72x72-color.zip",
            mirror="openmoji/color-72px",
            unpack=True,
        ),
        File(
            "openmoji.csv",
            "https://raw.githubusercontent.com/hfg-gmuend/openmoji/17.0.0/data/openmoji.csv",
            size=718763,
            sha256="28375217b92fafacc59d7dfea631c720abedc883518dbf12a73d25d4032cbe7e",
            mirror="openmoji/openmoji.csv",
        ),
    ),
    knobs={"size": 72},
    prepare=prepare,
)
