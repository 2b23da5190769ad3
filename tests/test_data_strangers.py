"""What strangers send: pictures that choose a program, archives and DICOM that lie about sizes, links, escapes,
cards."""

import io
import json
import subprocess
import tarfile
import zipfile

import numpy as np
import pydicom
import pytest
from data_toy import ALL, HEAD, adding
from PIL import Image, ImageFile
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from mmkit.data import DamagedImage, Writer, add, commands, load, read_dicom, read_image
from mmkit.data.archive import unpack
from mmkit.errors import MmkitError, printable

ESCAPE = "\x1b]0;owned\x07\x1b[31mred\u202egnp"

pytestmark = pytest.mark.usefixtures("data_root")


# ---------------------------------------------------------------------------------------------- pictures


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n"
OTHER = {
    "eps": EPS,
    "ppm": b"P6 1 1 255\n\0\0\0",
    "pcx": b"\x0a\x05\x01\x08" + bytes(124),
    "xbm": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0};",
    "pdf": b"%PDF-1.4\n",
}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_picture_is_decoded_as_its_name_says_and_no_content_chooses_the_program(kind, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    (tmp_path / f"photo{suffix}").write_bytes(OTHER[kind])
    with pytest.raises(DamagedImage, match=f"cannot identify image file 'photo{suffix}'"):
        read_image(tmp_path / f"photo{suffix}")


@pytest.mark.parametrize("name", ["photo.eps", "photo.heic", "photo"])
def test_a_picture_of_another_name_is_not_opened(name, tmp_path):
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(DamagedImage, match="is not read here: convert it to PNG or JPEG"):
        read_image(tmp_path / name)


def test_formats_of_the_web_may_bear_each_others_names(tmp_path):
    Image.new("RGB", (4, 2), (9, 9, 9)).save(tmp_path / "really-png.jpg", format="PNG")
    Image.new("RGB", (4, 2), (9, 9, 9)).save(tmp_path / "tiff.png", format="TIFF")
    assert read_image(tmp_path / "really-png.jpg").shape == (2, 4, 3)
    with pytest.raises(DamagedImage, match="cannot identify image file 'tiff.png'"):
        read_image(tmp_path / "tiff.png")


def test_a_decoder_that_fails_in_a_way_of_its_own_leaves_out_one_picture(photos, monkeypatch):
    def broken(self, *arguments):
        raise MemoryError if self.size == (31, 20) else ZeroDivisionError("by zero")

    Image.new("RGB", (31, 20)).save(photos / "p3.png")
    Image.new("RGB", (32, 20)).save(photos / "p4.png")
    load_all = ImageFile.ImageFile.load

    def load(self, *arguments):
        return broken(self) if self.size[0] > 30 else load_all(self, *arguments)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    reported = {line["name"]: line["reason"] for line in adding(photos, dry_run=True)["reported"]}
    assert reported == {"p3.png": "damaged image: MemoryError", "p4.png": "damaged image: by zero"}


# ---------------------------------------------------------------------------------------------- links


def test_links_out_of_the_folder_are_named_and_links_inside_are_followed(photos, tmp_path):
    Image.new("RGB", (30, 20), (200, 0, 0)).save(tmp_path / "private.png")
    (photos / "p3.png").unlink()
    (photos / "p3.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(
        MmkitError, match=r"1 images are links that lead out of .*photos \(p3.png\): put the files themselves"
    ):
        adding(photos)
    (photos / "p3.png").unlink()
    (photos / "p3.png").symlink_to(photos / "p4.png")
    assert adding(photos)["images"][0] == 10


def test_a_linked_folder_leads_nowhere_either(photos, tmp_path):
    (tmp_path / "private").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "private/secret.png")
    (photos / "sub").symlink_to(tmp_path / "private")
    with pytest.raises(MmkitError, match=r"1 images are links that lead out of .*photos \(sub/secret.png\)"):
        adding(photos, HEAD + ALL + "sub/secret.png,a secret\n")
    (photos / "loop.png").symlink_to(photos / "loop.png")
    assert adding(photos)["images"][0] == 10


def test_a_folder_that_is_a_link_itself_is_the_owners_choice(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "t.csv").write_text(HEAD + ALL)
    assert add("mine", images=tmp_path / "link", table=tmp_path / "t.csv", size=16)["images"][0] == 10


# ---------------------------------------------------------------------------------------------- archives


def sparse_tar(real):
    """A member that declares a size below zero in its sparse header and holds `real` bytes."""
    info = tarfile.TarInfo("data.bin")
    info.size = real
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": "-5",
        "GNU.sparse.map": "0,1",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(bytes(real)))
    return out.getvalue()


def test_a_sparse_member_and_a_size_below_zero_are_refused(tmp_path):
    (tmp_path / "a.tgz").write_bytes(sparse_tar(1 << 16))
    (tmp_path / "out").mkdir()
    with pytest.raises(
        MmkitError, match="(has a negative size|is a sparse file): delete it and get it from its official"
    ):
        unpack(tmp_path / "a.tgz", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_bytes_that_come_out_are_counted_whatever_was_declared(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(5_000_000))
    monkeypatch.setattr("mmkit.data.archive.FLOOR", 1_000_000)
    (tmp_path / "out").mkdir()
    sizes = zipfile.ZipFile.infolist

    def liars(self):
        infos = sizes(self)
        for info in infos:
            info.file_size = 10
        return infos

    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return bytes(size)

    monkeypatch.setattr(zipfile.ZipFile, "infolist", liars)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, member: Endless())
    with pytest.raises(
        MmkitError, match="what is unpacked is more than the 1.0 MB that are plausible: its sizes are wrong"
    ):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 1_000_000


# ---------------------------------------------------------------------------------------------- DICOM


def dicom(path, pixels=None, syntax=ExplicitVRLittleEndian, **attributes):
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3) if pixels is None else pixels
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def test_a_dicom_file_that_declares_400_megapixels_is_left_out_before_they_are_made(tmp_path):
    path = dicom(tmp_path / "big.dcm", Rows=20000, Columns=20000)
    with pytest.raises(DamagedImage, match="its 20000 x 20000 pixels are beyond the limit of 89,478,485"):
        read_dicom(path)


def test_a_deflated_dicom_file_is_not_inflated(tmp_path):
    path = dicom(tmp_path / "small.dcm", np.zeros((3000, 3000), np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 100_000
    with pytest.raises(DamagedImage, match="its data set is deflated and of unknown size"):
        read_dicom(path)


FREE_TEXTS = """ImageComments StudyDescription SeriesDescription AdditionalPatientHistory ReasonForStudy
RequestedProcedureDescription InstitutionalDepartmentName ReferringPhysicianAddress PersonTelephoneNumbers TextValue
DerivationDescription ProtocolName CurrentPatientLocation PatientState RequestingService ContentDescription"""


@pytest.mark.parametrize("keyword", FREE_TEXTS.split())
def test_free_texts_that_may_name_a_patient_are_refused_and_can_be_dropped(keyword, tmp_path):
    path = dicom(tmp_path / "a.dcm", **{keyword: "Chest of Jane Roe"})
    with pytest.raises(
        MmkitError, match=rf"a.dcm identifies a patient \({keyword}\).*mmkit data add --identifiers drop"
    ):
        read_dicom(path)
    assert read_dicom(path, identifiers="drop").shape == (2, 3, 3)


def test_more_pixels_than_the_header_says_are_no_picture(tmp_path):
    """Of eight frames that nobody counted, three columns would pass for three colours."""
    with pytest.raises(DamagedImage, match=r"its pixels are \(8, 2, 3\), its header says 2 x 3"):
        read_dicom(dicom(tmp_path / "a.dcm", PixelData=b"\0" * 100))


def test_a_slope_that_is_no_number_is_damage(tmp_path):
    with pytest.raises(DamagedImage, match="its rescaling or its window is no number"):
        read_dicom(dicom(tmp_path / "a.dcm", RescaleSlope="nan", RescaleIntercept=0))


@pytest.mark.parametrize(
    ("kind", "value"), [("LO", "Jane Roe"), ("UN", b"Roe^Jane"), ("LT", "Müller"), ("SH", ["1", "Roe"])]
)
def test_private_attributes_that_may_name_a_patient_are_refused(kind, value, tmp_path):
    path = write_private(tmp_path / "a.dcm", kind, value)
    with pytest.raises(MmkitError, match=r"a.dcm identifies a patient \(private attributes\)"):
        read_dicom(path)
    assert read_dicom(path, identifiers="drop").shape == (2, 3, 3)


@pytest.mark.parametrize(("kind", "value"), [("DS", "1.5e3"), ("UN", b"\0\1\2\3"), ("FD", 2.5), ("LO", "")])
def test_private_numbers_name_nobody(kind, value, tmp_path):
    assert read_dicom(write_private(tmp_path / "a.dcm", kind, value)).shape == (2, 3, 3)


def write_private(path, kind, value):
    data = pydicom.dcmread(dicom(path))
    data.SpecificCharacterSet = "ISO_IR 192"
    data.private_block(0x0009, "SOME VENDOR", create=True).add_new(0x10, kind, value)
    data.save_as(path)
    return path


def test_identifiers_can_be_dropped_where_the_message_says(photos, mmkit, data_root):
    dicom(photos / "scan.dcm", ImageComments="Jane Roe")
    text = HEAD + ALL + "scan.dcm,a scan\n"
    with pytest.raises(MmkitError, match="scan.dcm identifies a patient"):
        adding(photos, text)
    arguments = ("--images", photos, "--table", photos.parent / "captions.csv", "--size", 16)
    done = mmkit("data", "add", "mine", *arguments, "--identifiers", "drop", "--card", "licence=CC0", check=0)
    assert "11" not in done.stderr and load("mine").card["licence"] == "CC0" and len(load("mine")) == 11
    assert b"Roe" not in b"".join(path.read_bytes() for path in (data_root / "mine").iterdir())
    wrong = mmkit("data", "add", "other", *arguments, "--card", "size=3", check=2)
    assert "unknown field of the card 'size': there are citation, licence, terms, title" in wrong.stderr


# ---------------------------------------------------------------------------------------------- text for a terminal


def test_what_a_terminal_obeys_is_written_out():
    assert printable(ESCAPE) == "\\x1b]0;owned\\x07\\x1b[31mred\\u202egnp"
    assert printable("tab\tand\nline, 漢字, é and \U0001f600") == "tab\tand\nline, 漢字, é and \U0001f600"
    assert printable("\ud800 \x9b31m\r") == "\\ud800 \\x9b31m\\x0d"
    assert str(MmkitError(f"unknown {ESCAPE}")) == f"unknown {printable(ESCAPE)}"


def test_a_long_message_keeps_its_beginning_and_its_remedy():
    text = str(MmkitError("no such thing " + "x" * 20_000_000 + ": do this instead"))
    assert len(text) < 1100 and text.startswith("no such thing") and text.endswith(": do this instead")
    assert str(MmkitError("line\n" * 5000)).endswith("[4801 more lines]")


def test_a_card_and_a_label_do_not_write_to_the_terminal(photos, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    adding(photos, HEAD + ALL, title=ESCAPE, licence="CC0\n  terms: none at all")
    commands.card("mine")
    commands.list_()
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown and "\\x1b]0;owned" in shown
    assert "licence: CC0\\n  terms: none at all" in shown, "a card has one line a field"
    with pytest.raises(MmkitError) as error:
        load("mine").labels([0], ESCAPE)
    assert "\x1b" not in str(error.value)


# ---------------------------------------------------------------------------------------------- cards


BAD_CARDS = {
    "reported.0.reason": {"reported": [{"name": "a"}]},
    "splits": {"splits": ["train"]},
    "splits.train": {"splits": {"train": "six"}},
    "files.images.npy.size": {"files": {"images.npy": {"size": "big", "sha256": ""}}},
    "its files lack images.npy": {"files": {}},
    "images": {"images": [1]},
    "recipe.version": {"recipe": {"name": "mine"}},
    "sources.0.from": {"sources": [{"name": "a"}]},
    "title": {"title": {"deep": 1}},
    "notes": {"notes": 7},
    "notes.0": {"notes": [{"deep": 1}]},
    "arrays.audio.shape": {"schema": 2, "arrays": {"image": {"shape": [1], "dtype": "|u1"}, "audio": {"dtype": "<f4"}}},
    "arrays.../../x": {"schema": 2, "arrays": {"../../x": {"shape": [1], "dtype": "|u1"}}},
    "content": {"content": None},
}


@pytest.mark.parametrize("field", BAD_CARDS)
def test_a_card_of_odd_values_is_one_line_and_breaks_no_list(field, photos, data_root, capsys):
    adding(photos)
    card = json.loads((data_root / "mine/card.json").read_text()) | BAD_CARDS[field]
    (data_root / "mine/card.json").write_text(json.dumps(card))
    commands.list_()
    assert "its card cannot be read" in " ".join(capsys.readouterr().out.split())
    for opening in (load, commands.card, commands.check):
        with pytest.raises(
            MmkitError, match=f"cannot be read .*{field}.*: delete that folder and prepare or add the set"
        ):
            opening("mine")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b'{"schema": NaN', b"null", b"[]", b"{}"])
def test_a_card_that_is_no_card_breaks_no_list(content, photos, data_root, capsys):
    adding(photos)
    (data_root / "mine/card.json").write_bytes(content)
    commands.list_()
    assert "its card cannot be read" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(MmkitError, match="delete that folder and prepare or add the set again"):
        load("mine")


def test_an_array_with_a_broken_header_is_damage(photos, data_root):
    adding(photos)
    path = data_root / "mine/images.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'".ljust(path.stat().st_size, b" "))
    with pytest.raises(
        MmkitError, match="damaged, images.npy is no array .*: add it again: mmkit data add mine --force"
    ):
        load("mine")


# ---------------------------------------------------------------------------------------------- letters and depth


def test_half_a_letter_and_deep_json_are_named_with_their_line(photos):
    rows = [json.dumps({"image": f"p{n}.png", "caption": f"photo {n}"}) for n in range(10)]
    for bad, message in {
        '{"image": "p3.png", "caption": "half \\ud83d"}': "rows.jsonl, line 3 holds half a letter",
        '{"image": "p3.png", "caption": ' + "[" * 50_000 + "}": "rows.jsonl, line 3 is not JSON (nested too deeply)",
        '{"image": "p3.png", "caption": "a", "caption": "b"}': "rows.jsonl, line 3 is not JSON ('caption' is",
    }.items():
        with pytest.raises(MmkitError) as error:
            adding(photos, "\n".join([*rows[:2], bad, *rows[2:]]), name="rows.jsonl")
        assert message in str(error.value)


def test_a_file_name_of_another_encoding_is_named(photos):
    name = b"gr\xf6\xdfe.png"
    (photos / "p3.png").rename(str(photos) + "/" + name.decode(errors="surrogateescape"))
    with pytest.raises(MmkitError, match="the name of a file in .*photos holds half a letter .*: write it in UTF-8"):
        adding(photos, HEAD + ALL.replace("p3.png,photo number 3\n", ""), allow_unpaired=True)


def test_what_was_left_out_under_a_broken_name_is_on_the_card(data_root):
    writer = Writer(data_root / "set")
    writer.text(writer.item("a", split="pool_text"), "words")
    writer.report("\udcf6.png", f"broken {ESCAPE}")
    about = {"name": "set", "title": "\udcf6", "task": "", "licence": "", "terms": "", "citation": ""}
    writer.finish(about | {"recipe": None, "knobs": {}, "sources": []})
    assert load("set").card["reported"][0]["name"] == "\\udcf6.png" and "\x1b" not in str(load("set").card)
