"""DICOM files to pixels: windows, orientations, identifiers, and what is no image; pictures of every kind."""

import numpy as np
import pydicom
import pytest
from data_dicom import RAMP, grey, write_dicom
from PIL import Image

from mmkit.data import DamagedImage, add, load, read_dicom, read_image
from mmkit.errors import MmkitError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path


def reported(ds):
    return {line["name"]: line["reason"] for line in ds.card["reported"]}


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


# ---------------------------------------------------------------------------------------------- your own images


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
