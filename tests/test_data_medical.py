"""The medical recipes on small made sources in the originals' layouts, DICOM files the tests write, and the mirror
where there is one."""

import hashlib
import io
import os
import tarfile
import zipfile
from dataclasses import replace

import pytest
from PIL import Image

from data_recipes import covid_cxr, iu_xray_reports
from mmkit.data import load, prepared
from mmkit.errors import MmkitError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path


def reported(ds):
    return {line["name"]: line["reason"] for line in ds.card["reported"]}


# ---------------------------------------------------------------------------------------------- reports


def report(number, sections, terms=("normal",)):
    abstract = "".join(f'<AbstractText Label="{label}">{text}</AbstractText>' for label, text in sections.items())
    majors = "".join(f"<major>{term}</major>" for term in terms)
    found = f'<uId id="CXR{number}"/><Abstract>{abstract}</Abstract><MeSH>{majors}</MeSH>'
    return f'<?xml version="1.0" encoding="utf-8"?><eCitation>{found}</eCitation>'


REPORTS = {
    "1.xml": report(
        1,
        {
            "COMPARISON": "None.",
            "INDICATION": "Cough",
            "FINDINGS": "Clear\n   lungs.",
            "IMPRESSION": "Normal chest x-XXXX.",
        },
    ),
    "10.xml": report(
        10,
        {"INDICATION": "Pain", "FINDINGS": "", "IMPRESSION": "No acute disease &lt;1 cm."},
        ("Lung/hypoinflation", "Opacity"),
    ),
    "2.xml": report(2, {"INDICATION": "Fever", "FINDINGS": "Small effusion."}, ("No Indexing",)),
    "3.xml": report(3, {"INDICATION": "Fever", "FINDINGS": "", "IMPRESSION": " "}),
    "4.xml": report(4, {"FINDINGS": "Cut"})[:-20],
    "5.xml": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + report(5, {"FINDINGS": "&e;"}).split("?>")[1],
    "6.xml": report(6, {"FINDINGS": "Clear."}).replace('<uId id="CXR6"/>', ""),
}


def write_reports(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as out:
        for name, text in REPORTS.items():
            info = tarfile.TarInfo(f"ecgen-radiology/{name}")
            info.size = len(text)
            out.addfile(info, io.BytesIO(text.encode()))
    return hashlib.md5(path.read_bytes()).hexdigest(), path.stat().st_size


@pytest.fixture
def archive(folders):
    md5, size = write_reports(folders / "mirror/iu_xray_reports/NLMCXR_reports.tgz")
    return replace(iu_xray_reports.ARCHIVE, md5=md5, size=size)


def test_reports_become_texts_by_section(archive):
    ds = load(replace(iu_xray_reports.RECIPE, files=(archive,)))
    assert (
        ds.splits == {"pool_text": 3} and ds.items["id"].tolist() == ["CXR1", "CXR2", "CXR10"] and len(ds.images) == 0
    )
    rows = ds.rows("pool_text")
    assert ds.texts_of(rows, role="findings")[0] == ["Clear lungs.", "Small effusion."]
    texts, owner = ds.texts_of(rows, role="impression")
    assert texts == ["Normal chest x-XXXX.", "No acute disease <1 cm."] and owner.tolist() == [0, 2], (
        "a report without findings is kept for its impression"
    )
    assert ds.labels(rows, "label_normal").tolist() == [1, -1, 0] and ds.items["terms"].tolist() == [
        "normal",
        "No Indexing",
        "Lung/hypoinflation; Opacity",
    ]
    assert prepared.check(ds.root)


def test_a_report_that_cannot_be_used_is_named(archive):
    why = reported(load(replace(iu_xray_reports.RECIPE, files=(archive,))))
    assert why.pop("3.xml") == "report CXR3 has neither findings nor impression"
    assert why.pop("4.xml").startswith("no readable report: ") and why.pop("6.xml") == "a report without an id"
    assert why.pop("5.xml").startswith("no readable report: DTDForbidden") and why == {}


def test_an_archive_without_reports_is_refused(folders):
    (folders / "empty").mkdir()
    with pytest.raises(MmkitError, match="holds no .xml: it is not the archive NLMCXR_reports.tgz"):
        list(iu_xray_reports.reports(folders / "empty", None))


# ---------------------------------------------------------------------------------------------- X-rays with notes

HEAD = "patientid,sex,age,finding,view,modality,filename,doi,url,license,clinical_notes,other_notes"
SITE = "https://www.eurorad.org/case/1"


def table(hierarchy=False):
    """Eight patients with COVID-19 and eight with other findings, two images and a note each; then what is special."""
    covid, strep = (
        ("Pneumonia/Viral/COVID-19", "Pneumonia/Bacterial/Streptococcus")
        if hierarchy
        else ("COVID-19", "Streptococcus")
    )
    rows = [
        f"{p},F,6{p % 8},{covid if p < 8 else strep},PA,X-ray,p{p}-{n}.png,10.1/x,{SITE},CC BY 4.0,"
        f'"Patient {p},\n note {n}.",'
        for p in range(16)
        for n in (0, 1)
    ]
    rows += [
        f"20,M,,Influenza,AP,X-ray,flu.png,,{SITE},CC BY-NC-SA,The only flu.,Case courtesy of Dr A",
        f"21,?,50.5,todo,?,X-ray,todo.png,,{SITE},CC BY,A note of an unlabelled image.,",
        f"22,F,50,todo,,X-ray,bare.png,,{SITE},CC BY,,",
        f"23,M,50,{covid},AP Supine,X-ray,silent.png,,{SITE},CC0,,",
        f"24,M,50,Unknown,PA,X-ray,unknown.png,,{SITE},CC BY,,",
        f"25,M,50,{covid},L,X-ray,lateral.png,,{SITE},CC BY,Lateral.,",
        f"26,M,50,{covid},PA,CT,scan.png,,{SITE},CC BY,CT.,",
        f"27,M,50,{covid},PA,X-ray,closed.png,,{SITE},,No licence.,",
        f"28,M,50,{covid},PA,X-ray,gone.png,,{SITE},CC BY,No file.,",
    ]
    return "\n".join([HEAD, *rows]) + "\n"


def write_xrays(folder, name, text):
    (folder / "images").mkdir(parents=True)
    (folder / name).write_text(text, encoding="utf-8")
    for line in text.splitlines():
        for file in (word for word in line.split(",") if word.endswith(".png") and word != "gone.png"):
            Image.new("L", (40, 30), 10 + sum(file.encode()) % 200).save(folder / "images" / file)


def covid(archive, **knobs):
    return load(
        replace(
            covid_cxr.RECIPE,
            files=(covid_cxr.RECIPE.files[0], replace(covid_cxr.ARCHIVE, md5=archive.md5, size=archive.size)),
        ),
        size=32,
        **knobs,
    )


@pytest.fixture
def xrays(folders, archive):
    write_xrays(folders / "mirror/covid_cxr", "metadata_mirror.csv", table())
    return archive


def test_patients_stay_together_and_both_kinds_are_in_every_split(xrays):
    ds = covid(xrays)
    paired = ds.items[ds.items["split"].isin(["train", "val", "test"])]
    assert len(paired) == 33 and (paired.groupby("group")["split"].nunique() == 1).all()
    assert (paired.groupby("split")["label_covid"].nunique() == 2).all() and set(paired["split"]) == {
        "train",
        "val",
        "test",
    }
    assert paired.groupby("split")["group"].nunique().to_dict() == {"train": 9, "val": 2, "test": 6}
    again = covid(xrays, fold=1)
    assert again.items["split"].tolist() != ds.items["split"].tolist() and prepared.check(again.root)
    assert again.splits.keys() == ds.splits.keys()


def test_labels_notes_and_rights_of_an_image(xrays):
    ds = covid(xrays)
    row = ds.items.index[ds.items["id"] == "flu.png"][0]
    assert ds.items.iloc[row].drop(["image", "split"]).to_dict() == {
        "id": "flu.png", "group": "patient-20", "label_finding": "Influenza", "label_covid": 0,
        "label_cause": "other", "label_view": "AP", "label_sex": "M", "label_age": -1, "label_source": "eurorad.org",
        "licence": "CC BY-NC-SA", "credit": "Case courtesy of Dr A", "url": SITE,
    }  # fmt: skip
    assert ds.texts_of([row], role="note")[0] == ["The only flu."]
    first = ds.items.index[ds.items["id"] == "p0-1.png"][0]
    assert (
        ds.texts_of([first], role="note")[0] == ["Patient 0, note 1."]
        and ds.items["credit"][first] == "doi 10.1/x"
        and ds.items["label_age"][first] == 60
    )
    assert ds.pixels([first]).unique().tolist() == [10 + sum(b"p0-1.png") % 200]


def test_what_is_unlabelled_or_silent_is_a_pool(xrays):
    ds = covid(xrays)
    pool = ds.items[ds.items["split"] == "pool_image"].set_index("id")
    assert pool["label_covid"].to_dict() == {"todo.png": -1, "bare.png": -1, "silent.png": 1, "unknown.png": -1}
    assert pool["label_finding"].to_dict() == {
        "todo.png": "",
        "bare.png": "",
        "silent.png": "COVID-19",
        "unknown.png": "",
    }
    assert pool.loc["todo.png", ["label_view", "label_sex", "label_age"]].tolist() == ["", "", 50]
    texts = ds.items[ds.items["split"] == "pool_text"]
    assert (
        texts["id"].tolist() == ["todo.png#note", "CXR1", "CXR2", "CXR10"]
        and texts["group"].tolist()[0] == "patient-21"
        and (texts["label_covid"] == -1).all()
    )
    assert ds.texts_of(texts.index.to_numpy(), role="note")[0] == ["A note of an unlabelled image."]
    assert ds.texts_of(texts.index.to_numpy(), role="findings")[0] == ["Clear lungs.", "Small effusion."]
    assert "CXR1" not in set(covid(xrays, reports=False).items["id"])


def test_what_must_not_be_used_is_left_out_by_name(xrays):
    why = reported(covid(xrays, reports=False))
    assert why.pop("gone.png").startswith("left out: [Errno 2] No such file")
    assert why == {
        "lateral.png": "left out: not a frontal X-ray (modality X-ray, view L)",
        "scan.png": "left out: not a frontal X-ray (modality CT, view PA)",
        "closed.png": "left out: its licence does not let you use it (none stated)",
    }


def test_an_unlabelled_image_of_a_patient_under_test_is_no_training_data(folders, archive):
    rows = "".join(f"{p},F,50,todo,PA,X-ray,extra{p}.png,,{SITE},CC BY,A later note.,\n" for p in range(16))
    write_xrays(folders / "mirror/covid_cxr", "metadata_mirror.csv", table() + rows)
    ds = covid(archive)
    held_out = set(ds.items["group"][ds.items["split"].isin(["val", "test"])])
    pooled = ds.items[ds.items["id"].str.startswith("extra")]
    assert len(pooled) == 2 * sum(f"patient-{p}" not in held_out for p in range(16)) and not held_out & set(
        pooled["group"]
    )
    assert (
        sum(reason.startswith("left out of the pool: its patient is in ") for reason in reported(ds).values())
        == 16 - len(pooled) // 2
        > 0
    )


def test_the_originals_archive_and_its_later_names_of_findings(folders, archive, monkeypatch):
    monkeypatch.delenv("MMKIT_MIRROR")
    write_xrays(folders / "covid-chestxray-dataset-abc", "metadata.csv", table(hierarchy=True))
    (folders / "data/raw/covid_cxr").mkdir(parents=True)
    with zipfile.ZipFile(folders / "data/raw/covid_cxr/covid-chestxray-dataset.zip", "w") as out:
        for path in (folders / "covid-chestxray-dataset-abc").rglob("*.*"):
            out.write(path, path.relative_to(folders))
    ds = covid(archive, reports=False)
    assert set(ds.items["label_finding"]) == {"COVID-19", "Streptococcus", "Influenza", ""} and set(
        ds.items["label_cause"]
    ) == {"covid-19", "bacterial", "other", ""}
    assert sum(ds.splits[name] for name in ("train", "val", "test")) == 33


ONE = f"1,F,50,COVID-19,PA,X-ray,a.png,,{SITE},CC BY"
BAD_TABLES = {
    "metadata_mirror.csv has no column 'license': it is not the metadata": table().replace(",license,", ",rights,"),
    "none of 1 rows has a usable image, a finding and a note": f"{HEAD}\n{ONE},,\n",
    "1 groups cannot be split into train, val and test: give at least 3": f"{HEAD}\n{ONE},One patient.,\n",
}


@pytest.mark.parametrize("message", BAD_TABLES)
def test_a_table_that_makes_no_set_is_refused(folders, archive, message):
    write_xrays(folders / "mirror/covid_cxr", "metadata_mirror.csv", BAD_TABLES[message])
    with pytest.raises(MmkitError, match=message):
        covid(archive)


def test_shares_that_leave_nothing_are_refused(xrays):
    with pytest.raises(
        MmkitError,
        match="val=0.5 and test=0.5 leave nothing to train on or nothing to test: give shares above 0 whose sum is "
        "below 1",
    ):
        covid(xrays, val=0.5, test=0.5)


# ---------------------------------------------------------------------------------------------- the real sets

if os.environ.get("MMKIT_MIRROR"):  # where no mirror is named there is nothing to test
    MIRROR = os.environ["MMKIT_MIRROR"]

    def test_the_real_reports(tmp_path, monkeypatch):
        monkeypatch.setenv("MMKIT_DATA", str(tmp_path))
        ds = load("iu_xray_reports")
        assert ds.splits == {"pool_text": 3927} and len(ds.card["reported"]) == 28
        assert ds.texts["role"].value_counts().to_dict() == {"impression": 3921, "indication": 3865, "findings": 3425}
        assert ds.texts_of([0], role="findings")[0][0].startswith(
            "The cardiac silhouette and mediastinum size are within normal limits."
        )

    def test_the_real_x_rays(tmp_path, monkeypatch):
        monkeypatch.setenv("MMKIT_DATA", str(tmp_path))
        ds = load("covid_cxr", size=16, reports=False)
        assert (
            ds.splits == {"train": 85, "val": 31, "test": 71, "pool_image": 166, "pool_text": 62}
            and len(ds.images) == 353
        )
        assert len(set(ds.items["group"][ds.items["image"] >= 0])) == 203 and (ds.texts["role"] == "note").sum() == 249
        assert (ds.items["licence"].str.startswith("CC BY") & (ds.items["credit"] != "")).all()
        assert (ds.items["label_finding"] == "Influenza").sum() == 1 and ds.items[
            "label_covid"
        ].value_counts().to_dict()[1] == 194
        assert prepared.check(ds.root)
