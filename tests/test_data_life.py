"""Inputs from life: tables with nearly right names and odd cells, 12-bit and signed pictures, broken EXIF, empty
DICOM tags."""

import json
import os
import struct
import zlib

import numpy as np
import pydicom
import pytest
from data_toy import ALL, HEAD, adding
from data_dicom import RAMP, grey, write_dicom
from PIL import Image

from mmkit.data import DamagedImage, commands, load, read_dicom, read_image
from mmkit.data.images import ScaledImage
from mmkit.errors import MmkitError


pytestmark = pytest.mark.usefixtures("data_root")


def lines(**changed):
    """A JSONL of ten pictures; changed: field -> value of the fourth."""
    rows = [{"image": f"p{n}.png", "caption": f"photo number {n}"} for n in range(10)]
    rows[3] |= changed
    return "\n".join(json.dumps(row) for row in rows)


def with_column(name, values):
    return f"image,caption,{name}\n" + "".join(f"p{n}.png,photo number {n},{value}\n" for n, value in enumerate(values))


# ---------------------------------------------------------------------------------------------- columns


NEAR = {
    "Split": "split", "SPLIT": "split", "splits": "split", "fold": "split", "data set": "split", "subset": "split",
    "splt": "split", "patient_id": "group", "PatientID": "group", "Subject": "group", "Group": "group",
    "groups": "group", "study-id": "group",
    "data_split": "split", "split_name": "split", "train_val_test_split": "split", "cv_fold": "split",
    "patient_uid": "group", "pid": "group", "MRN": "group", "StudyInstanceUID": "group", "accession_no": "group",
    "cluster": "group", "lang_code": "language", "report_language": "language", "lng": "language",
    "Language": "language", "lang": "language", "Labels": "label", "Label": "label", "LABEL_kind": "label",
}  # fmt: skip


@pytest.mark.parametrize("column", NEAR)
def test_a_column_of_a_nearly_right_name_is_asked_about(column, photos, data_root):
    message = (
        f"captions.csv has a column {column!r}, which looks like {NEAR[column]!r}: use it with --column {NEAR[column]}="
    )
    with pytest.raises(MmkitError) as error:
        adding(photos, with_column(column, ["a"] * 10))
    assert message in str(error.value) and not data_root.exists()


@pytest.mark.parametrize("column", ["phase", "usage", "tvt", "用途", "x"])
def test_a_column_that_holds_splits_is_asked_about_whatever_its_name(column, photos, data_root):
    text = with_column(column, ["Train"] * 7 + ["dev", "", "TEST"])
    with pytest.raises(MmkitError, match=f"a column '{column}', which looks like 'split': use it with --column split="):
        adding(photos, text)
    assert not data_root.exists()
    adding(photos, with_column(column, ["train"] * 10))  # a word that all rows hold parts nothing
    named = with_column(f"split,{column}", ["train,test"] * 9 + ["val,train"])
    assert adding(photos, named, force=True)["splits"] == {"train": 9, "val": 1}, "the table's own split comes first"


def test_splits_of_other_words_are_understood_or_said(photos):
    card = adding(photos, with_column("split", ["Training"] * 6 + ["validation", "testing", "eval", "ood_night"]))
    assert card["splits"] == {"train": 6, "val": 1, "test": 1, "eval": 1, "ood_night": 1}
    assert card["notes"] == ["splits that nothing is learnt from or scored on: eval"]


def test_a_label_of_1_and_minus_1_is_said_to_be_half_unknown(photos):
    card = adding(photos, with_column("label_sick", ["+1", "-1"] * 5))
    assert card["notes"] == ["1 and -1, of which -1 is read as unknown; write 0 for no: label_sick"]
    assert not adding(photos, with_column("label_sick", ["1", "-1", "0"] * 3 + ["1"]), force=True)["notes"]


def test_a_column_of_a_nearly_right_name_is_used_when_it_is_said(photos):
    text = with_column("Split", ["train"] * 8 + ["val", "test"])
    assert adding(photos, text, columns={"split": "Split"})["splits"] == {"train": 8, "val": 1, "test": 1}


def test_columns_that_are_not_used_are_said(photos, capsys):
    text = with_column("photographer,year", ["Ann,1999"] * 10)
    adding(photos, text)
    commands.card("mine")
    assert "note: columns that are not used: photographer, year" in capsys.readouterr().out
    assert "label" not in load("mine").items


def test_blanks_in_the_header_and_empty_rows_are_no_names_and_no_captions(photos):
    rows = ALL.splitlines(keepends=True)
    text = " image , caption ,\tsplit\n" + "".join(line.replace("\n", ", train\n") for line in rows)
    text = text.replace("p5.png", ",,\n\n , \t,\np5.png").replace("number 9, train", "number 9, val")
    assert adding(photos, text)["splits"] == {"train": 9, "val": 1}


WRITTEN = HEAD + "".join(f'p{n}.png,"{{0}}"\n' if n == 3 else f"p{n}.png,[laughs] a\n" for n in range(10))
OPEN = HEAD + 'p0.png,"two\nlines"\np1.png,"open\n' + ALL
TABLES = {
    "1 images named in the table are not in": ("captions.csv", f"{HEAD}{'1' * 300},a caption in the wrong column\n"),
    "rows.jsonl, line 4: 'caption' is an object: write a text": ("rows.jsonl", lines(caption={"en": "a"})),
    "rows.jsonl, line 4: 'label' is a list: write a text; only": ("rows.jsonl", lines(label=["a", "b"])),
    "rows.jsonl, line 4: 'caption' is a list: write a text": ("rows.jsonl", lines(caption=[["a"]])),
    "rows.jsonl, line 4: 'image' is an object": ("rows.jsonl", lines(image={"path": "p3.png"})),
    "rows.jsonl, line 1 is not JSON (an array over several lines)": ("rows.jsonl", '[\n {"image": "p0.png"}\n]'),
    "captions.csv, line 5: 'caption' is a list: write a text": ("captions.csv", WRITTEN.format("['a', 'b']")),
    "captions.csv, line 5: 'caption' is a list: write": ("captions.csv", WRITTEN.format('[""a"", ""b""]')),
    "captions.csv, line 5: 'caption' is an object": ("captions.csv", WRITTEN.format("{'en': 'a'}")),
    "captions.csv has a single column, 'image|caption': begin": ("captions.csv", (HEAD + ALL).replace(",", "|")),
    "captions.csv, line 2 cannot be read (field larger": ("captions.csv", HEAD + f"p0.png,{'a ' * 70_000}\n"),
    "1 of 10 items have a blank text (p0.png)": ("captions.csv", HEAD + ALL.replace("photo number 0", "\u200b \x07")),
    "captions.csv is JSON: write one object a line and call it": ("captions.csv", '[{"image": "a.png"}]'),
    "captions.json is JSON: save it as CSV, or as JSONL with one object a line": ("captions.json", "[]"),
    "captions.xlsx is a spreadsheet: save it as CSV": ("captions.xlsx", "PK"),
    "captions.csv, row 3 has neither image nor caption": ("captions.csv", "image,caption,label\np0.png,a,b\n,,c\n"),
    "captions.csv, line 4 cannot be read (a quote is opened and not closed)": ("captions.csv", OPEN),
    "captions.csv, line 2 cannot be read (',' expected after '\"')": ("captions.csv", HEAD + 'p0.png,"a "big" dog"\n'),
}  # fmt: skip


@pytest.mark.parametrize("message", TABLES)
def test_a_table_that_is_none_is_refused_with_its_line(message, photos, data_root):
    name, text = TABLES[message]
    with pytest.raises(MmkitError) as error:
        adding(photos, text, name=name)
    assert message in str(error.value) and len(str(error.value)) < 400 and not data_root.exists()


def test_a_list_of_captions_under_a_name_of_its_own_is_several_captions(photos):
    rows = [{"image": f"p{n}.png", "report": [f"first {n}", f"second {n}"] if n else "alone"} for n in range(10)]
    adding(photos, "\n".join(map(json.dumps, rows)), name="rows.jsonl", columns={"caption": "report"})
    ds = load("mine")
    assert ds.texts_of([0, 3])[0] == ["alone", "first 3", "second 3"] and not ds.texts["text"].str.contains("[[]").any()


def test_what_tables_write_for_an_unknown_label_is_unknown(photos):
    cells = {
        "label_sick": ["0", "1", "-1", "nan", "", "NaN", "0", "1", "0", "1"],
        "label_only": ["1", ""] * 5,
        "label_float": ["0.0", "1.0", ""] * 3 + ["1.0"],
        "label_kind": ["cat", "dog", "nan", "", "-1"] * 2,
        "label_sort": ["N/A", "null", "none", "NA", "#N/A"] * 2,
    }
    rows = ["image,caption," + ",".join(cells)]
    for n, values in enumerate(zip(*cells.values())):
        rows.append(f"p{n}.png,photo,{','.join(values)}")
    adding(photos, "\n".join(rows))
    ds = load("mine")
    assert ds.labels(range(10), "label_sick").tolist() == [0, 1, -1, -1, -1, -1, 0, 1, 0, 1]
    assert ds.labels([0, 1], "label_only").tolist() == [1, -1], "a class that is called 1 keeps its number"
    assert ds.labels([0, 1, 2], "label_float").tolist() == [0, 1, -1]
    assert ds.classes("label_sort") == ["none"], "a finding may be called none"
    assert ds.classes("label_kind") == ["cat", "dog"] and ds.labels(range(5), "label_kind").tolist() == [
        0,
        1,
        -1,
        -1,
        -1,
    ]


def test_heic_is_refused_by_name_before_the_images_are_read(photos, monkeypatch):
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setattr("mmkit.data.local.read_image", None)
    for text in (HEAD + ALL, HEAD + ALL + "IMG_1.HEIC,a photo\n"):
        with pytest.raises(
            MmkitError, match=r"1 images are of a kind that is not read here \(IMG_1.HEIC\): convert them"
        ):
            adding(photos, text)


# ---------------------------------------------------------------------------------------------- pictures


def deep(path, values):
    Image.fromarray(np.array(values)).save(path)
    return path


def shades(path):
    return read_image(path)[..., 0].tolist()


@pytest.mark.filterwarnings("ignore::mmkit.data.images.ScaledImage")
def test_values_of_few_bits_in_many_keep_their_steps(tmp_path):
    ramp = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    assert len(np.unique(shades(deep(tmp_path / "twelve.png", ramp)))) == 255
    assert shades(deep(tmp_path / "ten.tif", np.array([[0, 341, 1023]], np.uint16))) == [[0, 85, 255]]
    assert shades(deep(tmp_path / "eight.png", np.array([[0, 85, 255]], np.uint16))) == [[0, 85, 255]]
    assert shades(deep(tmp_path / "full.png", np.array([[0, 257, 65535]], np.uint16))) == [[0, 1, 255]]


@pytest.mark.filterwarnings("ignore::mmkit.data.images.ScaledImage")
def test_signed_and_large_values_are_scaled_by_their_range(tmp_path):
    assert shades(deep(tmp_path / "signed.tif", np.array([[-1024, 0, 1024]], np.int32))) == [[0, 128, 255]]
    assert shades(deep(tmp_path / "large.tif", np.array([[0, 500_000, 1_000_000]], np.int32))) == [[0, 128, 255]]
    assert shades(deep(tmp_path / "float.tif", np.array([[-1.0, 0.0, 1.0]], np.float32))) == [[0, 128, 255]]


def deep_png(kind, scale):
    """A ramp of 256 grey values times scale in a PNG of 16 bits. kind: 2 colours, 4 grey with transparency, 6 both."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    channels = {2: 3, 4: 2, 6: 4}[kind]
    pixels = np.repeat(np.arange(256, dtype=np.uint32).reshape(16, 16, 1) * scale, channels, axis=2)
    if kind != 2:
        pixels[..., -1] = 2**16 - 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_deep_colours_keep_their_steps_or_are_refused(kind, tmp_path):
    (tmp_path / "a.png").write_bytes(deep_png(kind, 257))
    assert len(np.unique(read_image(tmp_path / "a.png"))) == 256
    (tmp_path / "a.png").write_bytes(deep_png(kind, 16))  # 12 bits in 16, of which the upper 8 would keep 16 values
    with pytest.raises(DamagedImage, match="its colours have 16 bits and do not fill them: convert it to 8 bits"):
        read_image(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DamagedImage, match="a folder, a pipe or a device, not a file"):
        read_image(tmp_path / "a.png")


def test_that_values_were_scaled_is_said(photos, tmp_path, capsys):
    with pytest.warns(ScaledImage, match="a.png: values scaled as 12 bits, no depth being declared"):
        read_image(deep(tmp_path / "a.png", np.array([[0, 4095]], np.uint16)))
    deep(photos / "p3.png", np.array([[0, 4095]], np.uint16))
    adding(photos)
    commands.card("mine")
    assert "note: 1 images were brought to 8 bits: p3.png: values scaled as 12 bits" in capsys.readouterr().out


def broken_exif(kind):
    return (
        b"Exif\0\0"
        + {
            "cut": b"II*\0\x08\0\0\0\xff\xff\x12\x01",
            "no TIFF": b"nothing of the kind",
            "far": b"II*\0\xff\xff\xff\x7f",
            "text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
            "zero": b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 5, 1, 0, 0, 0),
            "loop": b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0",
        }[kind]
    )


@pytest.mark.parametrize("kind", ["cut", "no TIFF", "far", "text", "zero", "loop"])
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
def test_a_sound_picture_with_broken_exif_is_read(kind, suffix, tmp_path):
    Image.new("RGB", (30, 20), (9, 9, 9)).save(tmp_path / f"a{suffix}", exif=broken_exif(kind))
    assert read_image(tmp_path / f"a{suffix}").shape == (20, 30, 3)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_every_orientation_is_turned_upright(turn, suffix, tmp_path):
    from PIL import ImageOps

    pixels = np.kron(np.array([[0, 80, 160], [40, 120, 240]], np.uint8), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert np.array_equal(read_image(tmp_path / f"a{suffix}")[..., 0], np.asarray(ImageOps.exif_transpose(image)))


def test_damage_that_empties_a_split_is_an_error(photos, data_root):
    (photos / "p9.png").write_bytes(b"broken")
    text = with_column("split", ["train"] * 8 + ["val", "test"])
    for dry_run in (True, False):
        with pytest.raises(
            MmkitError, match="no image of the split 'test' can be read: p9.png .damaged image: .*: mend them"
        ):
            adding(photos, text, dry_run=dry_run)
    (photos / "p9.png").unlink()
    text = with_column("split", ["train"] * 7 + ["val", "test", "test"]).replace("p9.png,photo number 9,test\n", "")
    assert adding(photos, text)["splits"] == {"train": 7, "val": 1, "test": 1}


# ---------------------------------------------------------------------------------------------- DICOM


EMPTY = {
    "window": {"WindowCenter": None, "WindowWidth": None},
    "only a centre": {"WindowCenter": 40, "WindowWidth": None},
    "no width": {"WindowCenter": 2500},
    "width 0": {"WindowCenter": 2500, "WindowWidth": 0},
    "slope": {"RescaleSlope": None, "RescaleIntercept": None},
    "slope 0": {"RescaleSlope": 0, "RescaleIntercept": 5},
    "a slope without intercept": {"RescaleSlope": 2},
    "function": {"VOILUTFunction": ""},
    "padding": {"PixelPaddingValue": None},
    "frames": {"NumberOfFrames": None},
    "orientation": {"ImageOrientationPatient": None, "PatientOrientation": None},
    "tables": {"VOILUTSequence": pydicom.Sequence(), "ModalityLUTSequence": pydicom.Sequence()},
    "burnt in": {"BurnedInAnnotation": ""},
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_attribute_that_is_there_but_empty_counts_as_absent(case, tmp_path):
    assert grey(write_dicom(tmp_path / "a.dcm", RAMP, **EMPTY[case])) == [[0, 51, 102], [153, 204, 255]]


@pytest.mark.parametrize("slope", [None, "", 0, 1])
def test_an_intercept_without_a_slope_counts(slope, tmp_path):
    """Of CT: the window is in Hounsfield units."""
    about = {"RescaleIntercept": -1000, "WindowCenter": 1000.5, "WindowWidth": 1001, "VOILUTFunction": "LINEAR"}
    if slope != "":
        about["RescaleSlope"] = slope
    assert grey(write_dicom(tmp_path / "a.dcm", RAMP, **about)) == [[0, 0, 128], [255, 255, 255]]


def test_an_empty_window_function_is_linear(tmp_path):
    window = {"WindowCenter": 2500, "WindowWidth": 5000}
    plain = grey(write_dicom(tmp_path / "a.dcm", RAMP, **window))
    assert grey(write_dicom(tmp_path / "b.dcm", RAMP, VOILUTFunction="", **window)) == plain


def test_dicom_without_a_suffix_is_known_by_its_mark(photos, tmp_path):
    for name in ("IM0001", "1.2.840.113619", "scan.DCM"):
        write_dicom(photos / name, np.full((20, 30), 77, np.uint8), WindowCenter=128, WindowWidth=256)
        assert np.unique(read_image(photos / name)).tolist() == [77]
    (photos / "notes.txt").write_text("no picture")
    (photos / "README").write_text("no picture")
    with pytest.raises(MmkitError, match=r"3 images have no caption \(1.2.840.113619, IM0001, scan.DCM\)"):
        adding(photos)
    text = HEAD + ALL + "".join(f"{name},a scan\n" for name in ("IM0001", "1.2.840.113619", "scan.DCM"))
    assert adding(photos, text)["images"][0] == 13


def test_a_window_without_width_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    for width in (0, -1, float("nan")):
        with pytest.raises(MmkitError, match="has no width: give the centre and a width above 0"):
            read_dicom(path, window=(40, width))
