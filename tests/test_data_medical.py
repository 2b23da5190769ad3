"""The medical recipes on small made sources in the originals' layouts, DICOM files the tests write, and the mirror
where there is one."""

import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from data_recipes import covid_cxr, iu_xray_reports, medmnist
from mmkit.data import DamagedImage, add, load, prepared, read_dicom, read_image
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
    return f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{number}"/><Abstract>{abstract}</Abstract><MeSH>{majors}</MeSH></eCitation>'


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
        f'{p},F,6{p % 8},{covid if p < 8 else strep},PA,X-ray,p{p}-{n}.png,10.1/x,{SITE},CC BY 4.0,"Patient {p},\n note {n}.",'
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
        "id": "flu.png", "group": "patient-20", "label_finding": "Influenza", "label_covid": 0, "label_cause": "other", "label_view": "AP", "label_sex": "M",
        "label_age": -1, "label_source": "eurorad.org", "licence": "CC BY-NC-SA", "credit": "Case courtesy of Dr A", "url": SITE,
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


BAD_TABLES = {
    "metadata_mirror.csv has no column 'license': it is not the metadata of the covid-chestxray-dataset": table().replace(
        ",license,", ",rights,"
    ),
    "none of 1 rows has a usable image, a finding and a note": f"{HEAD}\n1,F,50,COVID-19,PA,X-ray,a.png,,{SITE},CC BY,,\n",
    "1 groups cannot be split into train, val and test: give at least 3": f"{HEAD}\n1,F,50,COVID-19,PA,X-ray,a.png,,{SITE},CC BY,One patient.,\n",
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


# ---------------------------------------------------------------------------------------------- MedMNIST

NUMBERS = {"train": 6, "val": 3, "test": 4}
KINDS = {
    "pneumoniamnist": ((), 1),
    "pathmnist": ((3,), 1),
    "organmnist3d": ((28,), 1),
    "chestmnist": ((), 14),
}  # the last axes of an image, columns of labels


def npz(name, **changed):
    """The bytes of a file as MedMNIST publishes it, with few images."""
    rng, (axes, columns) = np.random.default_rng(0), KINDS[name]
    arrays = {}
    for split, n in NUMBERS.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28, *axes), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (n, columns), dtype=np.uint8)
    out = io.BytesIO()
    np.savez_compressed(out, **(arrays | changed))
    return out.getvalue(), arrays


@pytest.fixture
def serve(folders, monkeypatch):
    """Serves bodies under /NAME.npz?download=1; returns the recipe that fetches them from there."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bodies, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = bodies[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def recipe(name, body, md5=None):
        bodies[f"/{name}.npz?download=1"] = body
        monkeypatch.setitem(medmnist.SETS, name, medmnist.SETS[name]._replace(**NUMBERS))
        official = next(file for file in medmnist.RECIPE.files if file.name == f"{name}.npz")
        others = [replace(file, url="http://127.0.0.1:9/never") for file in medmnist.RECIPE.files if file != official]
        here = replace(
            official,
            url=f"http://127.0.0.1:{server.server_port}/{name}.npz?download=1",
            md5=md5 or hashlib.md5(body).hexdigest(),
        )
        return replace(medmnist.RECIPE, files=(here, *others))

    recipe.asked = asked
    yield recipe
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", KINDS)
def test_a_set_of_medmnist(serve, name):
    body, arrays = npz(name)
    ds = load(serve(name, body), set=name)
    assert ds.splits == NUMBERS and ds.images.shape == (13, 28, 28, 3) and serve.asked == [f"/{name}.npz?download=1"], (
        "the other seventeen are not fetched"
    )
    first = arrays["val_images"][0]
    expected = (
        [first] * 3
        if first.ndim == 2
        else [first[14], first[:, 14], first[:, :, 14]]
        if name == "organmnist3d"
        else [first[..., 0], first[..., 1], first[..., 2]]
    )
    assert np.array_equal(ds.images[ds.items["image"][ds.rows("val")[0]]], np.stack(expected, axis=2))
    codes = arrays["train_labels"]
    names = medmnist.SETS[name].names
    texts = ds.texts_of(ds.rows("train"), role="class")[0]
    if name == "chestmnist":
        assert ds.label_columns == [f"label_{label}" for label in names]
        assert np.array_equal(
            np.stack([ds.labels(ds.rows("train"), column).numpy() for column in ds.label_columns], axis=1), codes
        )
        assert texts == [", ".join(label for label, there in zip(names, row, strict=True) if there) for row in codes]
    else:
        assert texts == [names[code] for code in codes[:, 0]] == ds.items["label_class"][ds.rows("train")].tolist()
    assert ds.items["id"].tolist()[:2] == ["train-000000", "train-000001"] and prepared.check(ds.root)


def test_a_chest_without_finding_says_so():
    columns, texts = medmnist.about(np.eye(14, dtype=np.uint8)[:2] * [[0], [1]], medmnist.SETS["chestmnist"].names)
    assert texts == ["no finding", "cardiomegaly"] and columns["label_cardiomegaly"].tolist() == [0, 1]


def test_a_file_that_is_not_the_official_one_is_refused(serve):
    body, arrays = npz("pneumoniamnist")
    for other, message in {
        npz("pneumoniamnist", train_labels=np.array([[{"a": 1}]] * 6, dtype=object))[
            0
        ]: "is not a MedMNIST file .Object arrays cannot be loaded when allow_pickle=False",
        npz("pneumoniamnist", train_labels=arrays["train_labels"] + 9)[
            0
        ]: r"labels of shape \(6, 1\) from 9 to 10 do not fit the 2 classes: it is not the official file",
        npz("pneumoniamnist", val_images=arrays["test_images"])[
            0
        ]: "has 4 images and 3 labels in val, expected 3 of each",
        body[: len(body) // 2]: "pneumoniamnist.npz is not a MedMNIST file",
    }.items():
        with pytest.raises(MmkitError, match=message):
            load(serve("pneumoniamnist", other))
        os.remove(os.path.join(os.environ["MMKIT_DATA"], "raw/medmnist/pneumoniamnist.npz"))
    with pytest.raises(MmkitError, match="is not pneumoniamnist.npz: its md5"):
        load(serve("pneumoniamnist", body, md5="0" * 32))
    with pytest.raises(MmkitError, match="unknown set of MedMNIST 'pathmnst': did you mean 'pathmnist'"):
        load(medmnist.RECIPE, set="pathmnst")


def test_all_eighteen_sets_have_their_official_address_and_md5():
    files = {file.name.removesuffix(".npz"): file for file in medmnist.RECIPE.files}
    assert (
        files.keys() == medmnist.SETS.keys() and len(files) == 18 and len({file.md5 for file in files.values()}) == 18
    )
    assert all(
        file.url == f"https://zenodo.org/records/10519652/files/{name}.npz?download=1" and file.only == {"set": name}
        for name, file in files.items()
    )


# ---------------------------------------------------------------------------------------------- DICOM


def write_dicom(path, pixels, **attributes):
    """A digital X-ray as a hospital would send it, without identifiers."""
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID, data.file_meta.MediaStorageSOPClassUID = (
        ExplicitVRLittleEndian,
        DigitalXRayImageStorageForPresentation,
    )
    data.SOPClassUID, data.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.Modality, data.PatientSex, data.PatientAge, data.PatientName, data.PatientID = "DX", "F", "054Y", "", ""
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape[:2]
        data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
        data.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
        data.PlanarConfiguration = 0
        data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


RAMP = np.array([[0, 1000, 2000], [3000, 4000, 5000]], np.uint16)


def grey(path, **options):
    pixels = read_dicom(path, **options)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


def test_sixteen_bits_become_eight_from_the_least_to_the_largest(tmp_path):
    assert grey(write_dicom(tmp_path / "a.dcm", RAMP)) == [[0, 51, 102], [153, 204, 255]]
    assert grey(write_dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")) == [
        [255, 204, 153],
        [102, 51, 0],
    ]
    assert grey(write_dicom(tmp_path / "c.dcm", RAMP, PixelPaddingValue=0)) == [[0, 0, 64], [128, 191, 255]]
    assert grey(write_dicom(tmp_path / "d.dcm", RAMP * 0 + 7)) == [[0, 0, 0]] * 2
    assert grey(write_dicom(tmp_path / "e.dcm", np.array([[9]], np.uint8))) == [[0]]


def test_the_window_decides_what_is_black_and_white(tmp_path):
    """Linear windowing by DICOM PS3.3, C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5) * 255."""
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=[2000, 40], WindowWidth=[2001, 400])
    expected = np.round((((RAMP - 1999.5) / 2000) + 0.5) * 255).clip(0, 255)
    assert np.abs(np.array(grey(path)) - expected).max() <= 1 and grey(path)[1][1:] == [255, 255], (
        "values beyond the window are cut, not rescaled"
    )
    narrow = np.full((2, 3), 2000, np.uint16)
    assert grey(write_dicom(tmp_path / "b.dcm", narrow, WindowCenter=2000, WindowWidth=2000)) == [[128] * 3] * 2, (
        "the file's values do not stretch the window"
    )
    inverted = write_dicom(
        tmp_path / "c.dcm", RAMP, WindowCenter=2000, WindowWidth=2001, PhotometricInterpretation="MONOCHROME1"
    )
    assert np.array_equal(255 - np.array(grey(inverted)), grey(path))


def test_hounsfield_units_and_a_window_of_ones_own(tmp_path):
    stored = np.array([[-1024, 0, 1024, 1064, 1500]], np.int16)
    path = write_dicom(tmp_path / "ct.dcm", stored, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    assert grey(path, window=(40, 400)) == [[0, 0, 102, 128, 255]] and grey(path, window=(-600, 1500)) == [
        [0, 55, 230, 236, 255]
    ]


def test_a_lookup_table_in_place_of_a_window(tmp_path):
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4, 0, 8])
    table.add_new("LUTData", "US", [255, 200, 100, 0])
    assert grey(write_dicom(tmp_path / "a.dcm", np.array([[0, 1, 2, 3, 9]], np.uint16), VOILUTSequence=[table])) == [
        [255, 200, 100, 0, 0]
    ]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        ({"PatientOrientation": ["L", "F"]}, [[0, 51, 102], [153, 204, 255]]),
        ({"PatientOrientation": ["R", "F"]}, [[102, 51, 0], [255, 204, 153]]),
        ({"PatientOrientation": ["L", "H"]}, [[153, 204, 255], [0, 51, 102]]),
        ({"PatientOrientation": ["R", "H"]}, [[255, 204, 153], [102, 51, 0]]),
        ({"PatientOrientation": ["P", "F"]}, [[0, 51, 102], [153, 204, 255]]),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, [[0, 51, 102], [153, 204, 255]]),
        ({"ImageOrientationPatient": [-0.99, 0.1, 0, 0, 1, 0]}, [[102, 51, 0], [255, 204, 153]]),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, [[153, 204, 255], [0, 51, 102]]),
    ],
)
def test_the_patient_is_upright_and_faces_you(tmp_path, orientation, expected):
    assert grey(write_dicom(tmp_path / "a.dcm", RAMP, **orientation)) == expected


def test_colour_stays_colour(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(read_dicom(write_dicom(tmp_path / "a.dcm", colour)), colour)
    other = np.asarray(Image.fromarray(colour).convert("YCbCr"))
    assert (
        np.abs(
            read_dicom(write_dicom(tmp_path / "b.dcm", other, PhotometricInterpretation="YBR_FULL")).astype(int)
            - colour
        ).max()
        <= 3
    )


PERSONS = {
    "PatientID": {"PatientID": "12345"},
    "PatientName": {"PatientName": "Doe^Jane"},
    "PatientBirthDate": {"PatientBirthDate": "19500101"},
    "InstitutionName, ReferringPhysicianName": {
        "ReferringPhysicianName": "House^Gregory",
        "InstitutionName": "Princeton-Plainsboro",
    },
    "PersonName": {"VerifyingObserverSequence": [pydicom.Dataset()]},
}


@pytest.mark.parametrize("named", PERSONS)
def test_a_file_that_names_a_patient_is_refused_and_the_name_not_repeated(tmp_path, named):
    attributes = PERSONS[named]
    if named == "PersonName":
        attributes["VerifyingObserverSequence"][0].PersonName = "Watson^John"
    path = write_dicom(tmp_path / "scan.dcm", RAMP, **attributes)
    with pytest.raises(
        MmkitError,
        match=rf"scan.dcm identifies a patient \({named}\): make a de-identified copy first .*identifiers='drop'",
    ) as error:
        read_dicom(path)
    assert not any(secret in str(error.value) for secret in ("12345", "Doe", "1950", "House", "Princeton", "Watson"))
    assert read_dicom(path, identifiers="drop").shape == (2, 3, 3)
    assert read_dicom(write_dicom(path, RAMP, **attributes, PatientIdentityRemoved="YES")).shape == (2, 3, 3), (
        "its maker says that what is there is a pseudonym"
    )
    with pytest.raises(MmkitError, match="identifies a patient"):
        read_image(write_dicom(path, RAMP, **attributes))


def test_a_name_burnt_into_the_pixels_is_refused_whatever_is_asked(tmp_path):
    path = write_dicom(tmp_path / "scan.dcm", RAMP, BurnedInAnnotation="YES", PatientIdentityRemoved="YES")
    for identifiers in ("refuse", "drop"):
        with pytest.raises(
            MmkitError,
            match="scan.dcm has text burnt into its pixels .* mask it and say NO there, or leave the file out",
        ):
            read_dicom(path, identifiers=identifiers)
    with pytest.raises(MmkitError, match="unknown identifiers 'show': there are drop, refuse"):
        read_dicom(path, identifiers="show")


def test_files_without_usable_pixels_say_why(tmp_path):
    def cut(path):
        path.write_bytes(path.read_bytes()[:-5])
        return path

    (tmp_path / "text.dcm").write_text("hello")
    for path, reason in {
        write_dicom(tmp_path / "report.dcm", None): "it holds no pixel data: a report or a list, not an image",
        write_dicom(
            tmp_path / "palette.dcm", RAMP, PhotometricInterpretation="PALETTE COLOR"
        ): r"its colours \(PALETTE COLOR, 16 bits\) are not read here: export it as 8-bit RGB",
        write_dicom(
            tmp_path / "deep.dcm", np.zeros((2, 2, 3), np.uint16)
        ): r"its colours \(RGB, 16 bits\) are not read here",
        write_dicom(tmp_path / "film.dcm", RAMP, NumberOfFrames=2): "it holds 2 frames: export the one you want",
        cut(write_dicom(tmp_path / "cut.dcm", RAMP)): "its pixels cannot be read: ",
        tmp_path / "text.dcm": "not a DICOM file",
        tmp_path / "gone.dcm": "its pixels cannot be read: .*No such file",
    }.items():
        with pytest.raises(DamagedImage, match=reason):
            read_dicom(path)


# ---------------------------------------------------------------------------------------------- your own images, of every kind


def test_grey_transparent_deep_tiny_and_dicom_images_are_added_with_the_documented_pixels(folders):
    photos = folders / "photos"
    photos.mkdir()
    Image.new("L", (30, 20), 77).save(photos / "grey.png")
    Image.new("I;16", (30, 20), 77 * 257).save(photos / "deep.png")
    Image.new("I;16", (30, 20), 77 * 257).save(photos / "deep.tif")
    Image.new("RGBA", (30, 20), (200, 0, 0, 0)).save(photos / "clear.png")
    Image.new("RGBA", (30, 20), (0, 0, 0, 128)).save(photos / "half.png")
    Image.new("LA", (30, 20), (0, 0)).save(photos / "clear-grey.png")
    Image.new("1", (30, 20), 1).save(photos / "bits.png")
    Image.new("RGB", (1, 1), (1, 2, 3)).save(photos / "dot.png")
    write_dicom(photos / "xray.dcm", np.full((20, 30), 77, np.uint8), WindowCenter=128, WindowWidth=256)
    write_dicom(photos / "report.dcm", None)
    names = sorted(path.name for path in photos.iterdir())
    (folders / "captions.csv").write_text("image,caption\n" + "".join(f"{name},says {name}\n" for name in names))
    add("mine", images=photos, table=folders / "captions.csv", size=16)
    ds = load("mine")
    shades = {
        id: ds.pixels([row])[0, :, :, :].flatten(1).unique(dim=1).T.tolist() for row, id in enumerate(ds.items["id"])
    }
    assert shades.pop("dot.png") == [[1, 2, 3]] and shades.pop("half.png") == [[127] * 3]
    assert shades == {name: [[77] * 3] for name in ("grey.png", "deep.png", "deep.tif", "xray.dcm")} | {
        name: [[255] * 3] for name in ("clear.png", "clear-grey.png", "bits.png")
    }
    assert reported(ds) == {"report.dcm": "damaged image: it holds no pixel data: a report or a list, not an image"}


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

    def test_medmnists_numbers_are_those_of_the_official_list():
        lines = open(os.path.join(MIRROR, "checksums/medmnist_official_md5.tsv"), encoding="utf-8").read().splitlines()
        official = {
            name: (md5, url, tuple(map(int, sizes)))
            for name, md5, url, *sizes, _ in (line.split("\t") for line in lines[1:])
        }
        here = {file.only["set"]: file for file in medmnist.RECIPE.files}
        assert {name: (file.md5, file.url, tuple(medmnist.SETS[name][1:4])) for name, file in here.items()} == official
