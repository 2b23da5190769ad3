"""MedMNIST v2 at 28 x 28: eighteen sets of small medical images with their official splits, chosen by the knob `set`.

The only text an item has is what it shows (role `class`): it is the label in words, for prompts and for contrastive
training, and no input for a classifier. `label_class` is the class's name; the fourteen findings of chestmnist are
`label_NAME`, 1 or 0. Grey images are repeated in three channels. Of the 3D sets (28 x 28 x 28) the three channels are
the middle slices along the three axes. No set names its patients, so every image is a group of its own: intervals by
image are too narrow where patients have several.
"""

import zipfile
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmkit.data import File, Recipe, Writer
from mmkit.data.fetch import Sources
from mmkit.data.progress import progress
from mmkit.errors import MmkitError, unknown

ORGANS = (
    "bladder, femur-left, femur-right, heart, kidney-left, kidney-right, liver, lung-left, lung-right, pancreas, spleen"
)


class Set(NamedTuple):
    """One of the sets.

    md5: of its official file. train, val, test: images of the official splits. classes: their names, by number.
    """

    md5: str
    train: int
    val: int
    test: int
    classes: str

    @property
    def names(self) -> list[str]:
        return self.classes.split(", ")

    def limit(self, name: str) -> int:
        """The most bytes that the file of set `name` can have: pixels and labels uncompressed, and a little more."""
        pixels = 28**3 if name.endswith("3d") else 3 * 28**2
        return (self.train + self.val + self.test) * (pixels + len(self.names)) + 1_000_000


SETS = {
    "pathmnist": Set(
        "a8b06965200029087d5bd730944a56c1",
        89996,
        10004,
        7180,
        "adipose, background, debris, lymphocytes, mucus, smooth muscle, normal colon mucosa, "
        "cancer-associated stroma, colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": Set(
        "02c8a6516a18b556561a56cbdd36c4a8",
        78468,
        11219,
        22433,
        "atelectasis, cardiomegaly, effusion, infiltration, mass, nodule, pneumonia, pneumothorax, "
        "consolidation, edema, emphysema, fibrosis, pleural, hernia",
    ),
    "dermamnist": Set(
        "0744692d530f8e62ec473284d019b0c7",
        7007,
        1003,
        2005,
        "actinic keratoses and intraepithelial carcinoma, basal cell carcinoma, benign keratosis-like "
        "lesions, dermatofibroma, melanoma, melanocytic nevi, vascular lesions",
    ),
    "octmnist": Set(
        "c68d92d5b585d8d81f7112f81e2d0842",
        97477,
        10832,
        1000,
        "choroidal neovascularization, diabetic macular edema, drusen, normal",
    ),
    "pneumoniamnist": Set("28209eda62fecd6e6a2d98b1501bb15f", 4708, 524, 624, "normal, pneumonia"),
    "retinamnist": Set(
        "bd4c0672f1bba3e3a89f0e4e876791e4", 1080, 120, 400, "grade 0, grade 1, grade 2, grade 3, grade 4"
    ),
    "breastmnist": Set("750601b1f35ba3300ea97c75c52ff8f6", 546, 78, 156, "malignant, normal or benign"),
    "bloodmnist": Set(
        "7053d0359d879ad8a5505303e11de1dc",
        11959,
        1712,
        3421,
        "basophil, eosinophil, erythroblast, immature granulocyte, lymphocyte, monocyte, neutrophil, platelet",
    ),
    "tissuemnist": Set(
        "ebe78ee8b05294063de985d821c1c34b",
        165466,
        23640,
        47280,
        "collecting duct or connecting tubule, distal convoluted tubule, glomerular endothelial cells, "
        "interstitial endothelial cells, "
        "leukocytes, podocytes, proximal tubule segments, thick ascending limb",
    ),
    "organamnist": Set("68e3f8846a6bd62f0c9bf841c0d9eacc", 34561, 6491, 17778, ORGANS),
    "organcmnist": Set("b9ceb9546e10131b32923c5bbeaea2b1", 12975, 2392, 8216, ORGANS),
    "organsmnist": Set("9ab87b696fb54e2a387ebe992d6ed5f1", 13932, 2452, 8827, ORGANS),
    "organmnist3d": Set(
        "a0c5a1ff56af4f155c46d46fbb45a2fe",
        971,
        161,
        610,
        "liver, kidney-right, kidney-left, femur-right, femur-left, bladder, heart, lung-right, lung-left, "
        "spleen, pancreas",
    ),
    "nodulemnist3d": Set("8755a7e9e05a4d9ce80a24c3e7a256f3", 1158, 165, 310, "benign, malignant"),
    "adrenalmnist3d": Set("bbd3c5a5576322bc4cdfea780653b1ce", 1188, 98, 298, "normal, hyperplasia"),
    "fracturemnist3d": Set(
        "6aa7b0143a6b42da40027a9dda61302f",
        1027,
        103,
        240,
        "buckle rib fracture, nondisplaced rib fracture, displaced rib fracture",
    ),
    "vesselmnist3d": Set("b41fd4f7e7e2feedddb201585ecafa1b", 1335, 191, 382, "vessel, aneurysm"),
    "synapsemnist3d": Set("1235b78a3cd6280881dd7850a78eadb6", 1230, 177, 352, "inhibitory synapse, excitatory synapse"),
}
BATCH = 4096


def channels(images: np.ndarray) -> np.ndarray:
    """Images (B, H, W), (B, H, W, 3) or (B, D, D, D), uint8, as (B, H, W, 3)."""
    if images.ndim == 3:
        return np.repeat(images[..., None], 3, axis=3)
    if images.shape[3] == 3:
        return images
    middle = images.shape[1] // 2
    return np.stack([images[:, middle], images[:, :, middle], images[:, :, :, middle]], axis=3)


def about(labels: np.ndarray, names: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Label columns and texts of some items, from labels (B, 1), or (B, classes) of 0 and 1.

    Raises MmkitError for a class that has no name.
    """
    labels = labels.astype(np.int64)
    if (
        labels.min() < 0
        or labels.max() >= (2 if labels.shape[1] > 1 else len(names))
        or labels.shape[1] not in (1, len(names))
    ):
        raise MmkitError(
            f"labels of shape {labels.shape} from {labels.min()} to {labels.max()} do not fit "
            f"the {len(names)} classes: it is not the official file"
        )
    if labels.shape[1] == 1:
        said = [names[code] for code in labels[:, 0]]
        return pd.DataFrame({"label_class": said}), said
    named = np.array(names, dtype=object)
    said = [", ".join(named[row == 1]) or "no finding" for row in labels]
    return pd.DataFrame({f"label_{name}": column for name, column in zip(names, labels.T, strict=True)}), said


def prepare(writer: Writer, sources: Sources, *, set: str) -> None:
    if set not in SETS:
        raise unknown("set of MedMNIST", set, SETS)
    try:
        with np.load(sources[f"{set}.npz"], allow_pickle=False) as file:
            arrays = {
                f"{split}_{kind}": file[f"{split}_{kind}"]
                for split in ("train", "val", "test")
                for kind in ("images", "labels")
            }
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise MmkitError(f"{set}.npz is not a MedMNIST file ({error}): delete it and run again") from error
    for split in ("train", "val", "test"):
        images, labels = arrays.pop(f"{split}_images"), arrays.pop(f"{split}_labels")
        if not len(images) == len(labels) == getattr(SETS[set], split):
            found = f"{len(images)} images and {len(labels)} labels in {split}"
            expected = f"{getattr(SETS[set], split)} of each"
            raise MmkitError(f"{set}.npz has {found}, expected {expected}: it is not the official file")
        for first in progress(range(0, len(images), BATCH), label=f"{set} {split}", unit="batches"):
            rows = writer.images(channels(images[first : first + BATCH]))
            columns, texts = about(labels[first : first + BATCH], SETS[set].names)
            items = writer.items(
                columns.assign(id=[f"{split}-{n:06d}" for n in first + np.arange(len(rows))], split=split, image=rows)
            )
            writer.texts(pd.DataFrame({"item": items, "text": texts, "role": "class"}))


RECIPE = Recipe(
    name="medmnist",
    title="MedMNIST v2: eighteen sets of medical images at 28 x 28, one by the knob set",
    task="classification",
    licence="CC BY 4.0; dermamnist CC BY-NC 4.0",
    terms="keep the attribution; cite MedMNIST and the source of the set. Not for clinical use.",
    citation="J. Yang, R. Shi, D. Wei et al.: MedMNIST v2, a large-scale lightweight benchmark for 2D and 3D "
    "biomedical image classification. Scientific Data 10, 2023. zenodo.org/records/10519652",
    version=1,
    files=tuple(
        File(
            f"{name}.npz",
            f"https://zenodo.org/records/10519652/files/{name}.npz?download=1",
            md5=which.md5,
            limit=which.limit(name),
            mirror=f"medmnist/{name}.npz",
            only={"set": name},
        )
        for name, which in SETS.items()
    ),
    knobs={"set": "pneumoniamnist"},
    prepare=prepare,
)
