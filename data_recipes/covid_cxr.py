"""`covid_cxr`: frontal chest X-rays with clinical notes, from the covid-chestxray-dataset (ieee8023).

A teaching set: nothing learnt from it is for diagnosis.

Where an image goes; a patient (`group`) is always in one place:

* with a finding and a note: `train`, `val` or `test`, drawn by patient, those with and those without COVID-19 apart.
  `fold` draws anew;
* without a note, or unlabelled (the original says "todo" or "Unknown"): `pool_image`. A note of an unlabelled image
  is an item of `pool_text`;
* with `reports`, the Indiana reports (`iu_xray_reports`) are in `pool_text` too: a text component's own corpus.

Labels: `label_finding` as given, `label_covid` (1, 0, -1 unknown), `label_cause` (kinds of finding, the rare ones
together), `label_view`, `label_sex`, `label_age` (-1 unknown), `label_source` (the site an image was published on,
which alone says much about the finding). `licence`, `credit` and `url` are the image's. Left out, and named on the
card: images that are not frontal, and those whose licence does not let you use them.
"""

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from data_recipes import iu_xray_reports
from mmkit.data import DamagedImage, File, Recipe, Writer, read_image, split_by_hash
from mmkit.data.fetch import Sources
from mmkit.data.images import require_size
from mmkit.data.progress import progress
from mmkit.errors import MmkitError

ARCHIVE = replace(iu_xray_reports.ARCHIVE, optional=True, only={"reports": True})
UNLABELLED = {"", "todo", "Unknown"}
FRONTAL = {"PA", "AP", "AP Supine", "AP Erect", "", "?"}
NO_LABELS = {
    "label_finding": "",
    "label_covid": -1,
    "label_cause": "",
    "label_view": "",
    "label_sex": "",
    "label_age": -1,
    "label_source": "",
}
BACTERIA = {
    "Bacterial",
    "Chlamydophila",
    "E.Coli",
    "Klebsiella",
    "Legionella",
    "Mycoplasma",
    "Mycoplasma Bacterial Pneumonia",
    "Nocardia",
    "Staphylococcus",
    "Streptococcus",
}


def cause(finding: str) -> str:
    """The kind of a finding: covid-19, bacterial, fungal, none or other; "" for an unlabelled one."""
    if finding in UNLABELLED:
        return ""
    named = {"Pneumocystis": "fungal", "Aspergillosis": "fungal", "No Finding": "none"} | dict.fromkeys(
        BACTERIA, "bacterial"
    )
    return "covid-19" if "COVID-19" in finding else named.get(finding, "other")


def read_table(folder: Path) -> pd.DataFrame:
    """The rows of the metadata with columns file (in images/), finding and folder added.

    Raises MmkitError when it is not that table.
    """
    found = sorted([*folder.rglob("metadata_mirror.csv"), *folder.rglob("metadata.csv")])
    if not found:
        raise MmkitError(f"{folder} holds no metadata.csv: it is not the covid-chestxray-dataset")
    table = pd.read_csv(found[0], dtype=str, keep_default_na=False)
    for column in (
        "patientid",
        "sex",
        "age",
        "finding",
        "view",
        "modality",
        "filename",
        "doi",
        "url",
        "license",
        "clinical_notes",
        "other_notes",
    ):
        if column not in table:
            raise MmkitError(
                f"{found[0].name} has no column {column!r}: it is not the metadata of the covid-chestxray-dataset"
            )
    finding = table["finding"].str.split("/").str[-1].str.strip()  # later versions write Pneumonia/Viral/COVID-19
    return table.assign(file=table.get("mirror_file", table["filename"]), finding=finding, folder=str(found[0].parent))


def why_not(row) -> str:
    """Why an image is left out, or nothing."""
    if row.modality != "X-ray" or row.view not in FRONTAL:
        return f"not a frontal X-ray (modality {row.modality}, view {row.view})"
    if not row.license.startswith(("CC BY", "CC0")):
        return f"its licence does not let you use it ({row.license or 'none stated'})"
    return ""


def labels(row) -> dict[str, int | str]:
    kind = cause(row.finding)
    return {
        "label_finding": row.finding if kind else "",
        "label_covid": int(kind == "covid-19") if kind else -1,
        "label_cause": kind,
        "label_view": row.view.replace("?", ""),
        "label_sex": row.sex if row.sex in ("F", "M") else "",
        "label_age": int(float(row.age)) if row.age.replace(".", "", 1).isdigit() else -1,
        "label_source": urlsplit(row.url).netloc.removeprefix("www."),
        "licence": row.license,
        "credit": row.other_notes or (f"doi {row.doi}" if row.doi else row.url),
        "url": row.url,
    }


def split_of_patients(table: pd.DataFrame, *, val: float, test: float, fold: int) -> dict[str, str]:
    """Patient -> split, by the hash of fold and patient, patients with and without COVID-19 in the same shares."""
    sick = (table["finding"].map(cause) == "covid-19").groupby(table["patientid"]).any()
    drawn = {}
    for has in (True, False):
        patients = sick.index[sick == has]
        drawn |= dict(
            zip(patients, split_by_hash([f"{fold}/{patient}" for patient in patients], val=val, test=test), strict=True)
        )
    return drawn


def prepare(writer: Writer, sources: Sources, *, size: int, val: float, test: float, fold: int, reports: bool) -> None:
    require_size(size)
    if not (0 < val and 0 < test and val + test < 1):
        raise MmkitError(
            f"val={val} and test={test} leave nothing to train on or nothing to test: "
            "give shares above 0 whose sum is below 1"
        )
    table = read_table(sources["covid-chestxray-dataset.zip"])
    kept, images = [], []
    for row in progress(table.itertuples(), label="covid_cxr", unit="images", total=len(table)):
        try:
            if reason := why_not(row):
                raise DamagedImage(reason)
            images.append(read_image(Path(row.folder) / "images" / row.file, size=size))
            kept.append(row)
        except DamagedImage as damage:
            writer.report(row.file, f"left out: {damage}")
    notes = [" ".join(row.clinical_notes.split()) for row in kept]
    labelled = np.array([cause(row.finding) != "" for row in kept])
    paired = labelled & np.array([note != "" for note in notes])
    if not paired.any():
        raise MmkitError(
            f"none of {len(table)} rows has a usable image, a finding and a note: it is not the covid-chestxray-dataset"
        )
    split = split_of_patients(pd.DataFrame([kept[i] for i in np.flatnonzero(paired)]), val=val, test=test, fold=fold)
    for row, pixels, note, known, pair in zip(kept, images, notes, labelled, paired, strict=True):
        about = {"group": f"patient-{row.patientid}", **labels(row)}
        place = split[row.patientid] if pair else "pool_image"
        if not pair and split.get(row.patientid, "train") != "train":
            writer.report(row.file, f"left out of the pool: its patient is in {split[row.patientid]}")
            continue
        item = writer.item(row.file, image=writer.image(pixels), split=place, **about)
        if note and not known:
            item = writer.item(f"{row.file}#note", split="pool_text", **about)
        if note:
            writer.text(item, note, role="note")
    if ARCHIVE.name in sources:
        for name, texts, _ in iu_xray_reports.reports(sources[ARCHIVE.name], writer):
            item = writer.item(
                name,
                split="pool_text",
                **NO_LABELS,
                licence="CC BY-NC-ND 4.0",
                credit="Indiana University, Open-i",
                url=ARCHIVE.url,
            )
            for role, text in texts.items():
                writer.text(item, text, role=role)


COMMIT = "6a4242344473ccb5ed0d2148d8c7bfb1691e4ed8"
RECIPE = Recipe(
    name="covid_cxr",
    title="Frontal chest X-rays with clinical notes and findings, patients kept together, "
    "from the covid-chestxray-dataset",
    task="diagnosis from image and text",
    licence="per image, column licence: CC BY, CC BY-SA, CC BY-NC-SA (most are non-commercial); reports CC "
    "BY-NC-ND 4.0",
    terms="keep the licence and credit of each image; non-commercial as a whole. Not for diagnosis: few "
    "patients, and findings go with the hospital they come from.",
    citation="J. P. Cohen, P. Morrison, L. Dao et al.: COVID-19 Image Data Collection: Prospective Predictions Are"
    " the Future. MELBA, 2020. github.com/ieee8023/covid-chestxray-dataset",
    version=1,
    files=(
        File(
            "covid-chestxray-dataset.zip",
            "",
            page=f"https://github.com/ieee8023/covid-chestxray-dataset/archive/{COMMIT}.zip",
            mirror="covid_cxr",
            unpack=True,
        ),
        ARCHIVE,
    ),
    knobs={"size": 160, "val": 0.15, "test": 0.35, "fold": 0, "reports": True},
    prepare=prepare,
)
