"""Random tables, cards, plans, DICOM files, pictures and archives, by hypothesis: each ends well or in one line.

    fuzz.py [KIND ...] [--minutes 15] [--seed 0]

Each kind gets its minutes. A find is whatever is no success and no `MmkitError` (of pictures: no `DamagedImage`), takes
more than 20 seconds, or writes outside its folder; hypothesis makes it small before it is printed. Exit 1 with finds.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
FOLDER = Path(tempfile.mkdtemp(prefix="mmkit-fuzz-"))
os.environ |= {"MMKIT_DATA": str(FOLDER / "data"), "MMKIT_RUNS": str(FOLDER / "runs")}

import numpy as np  # noqa: E402  after the folders are set
import pydicom  # noqa: E402
import yaml  # noqa: E402
from data_dicom import RAMP, write_dicom  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.errors import HypothesisException  # noqa: E402
from PIL import Image  # noqa: E402

from mmkit.data import DamagedImage, add, commands, load, read_image  # noqa: E402
from mmkit.data.archive import unpack  # noqa: E402
from mmkit.errors import MmkitError  # noqa: E402
from mmkit.repro import claims, plan  # noqa: E402

SLOW = 20  # seconds of the processor
PHOTOS = FOLDER / "photos"
CELLS = ["", " ", "p0.png", "p1.png", "./p2.png", "p3.png ", "../x", '"', "a,b", "\n", "\r", "\t", "\0", "漢"]
CELLS += ["\u2028", "nan", "-1", "0", "1", "1.0", "+1", "true", "\ufeff", "\U0001f600", "\u200b", "train", "val"]
CELLS += ["test", "Train", "dev", "pool_text", "pool_image", "['a']", '{"a": 1}', "[laughs]", "N/A", "\x1b[2J", ";"]
NAMES = ["image", "caption", "label", "label_x", "group", "split", "language", "Image", "caption ", "x", "", "text"]
NAMES += ["label_", "id", "path", "item", "role", "patient_id", "Split"]
words = st.text(max_size=6) | st.sampled_from(CELLS)
numbers = st.integers() | st.floats() | st.booleans() | st.none() | st.just(10**400)
values = st.recursive(
    words | numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
)


# ---------------------------------------------------------------------------------------------- what is made


@st.composite
def csv_files(draw):
    """A table with the names a table has, and rows of odd cells; most rows name a picture and say something."""
    odd = draw(st.booleans())
    plain = st.sampled_from(["label", "label_x", "language", "x", "y"])
    names = draw(st.lists(st.sampled_from(NAMES) | words if odd else plain, max_size=3, unique=not odd))
    names = ["image", "caption", *names] if not odd or draw(st.integers(0, 4)) else names
    row = st.lists(words, min_size=len(names), max_size=len(names) + (odd and not draw(st.integers(0, 9))))
    rows = draw(st.lists(row, min_size=0 if odd else 6, max_size=8))
    for n, row in enumerate(rows[: 0 if odd and draw(st.booleans()) else None]):
        row[:2] = [f"p{n % 6}.png", "w" if odd else f"w {row[1]}"][: len(row)]
    separator, newline = draw(st.sampled_from(",,;\t")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quoted = draw(st.booleans())

    def cell(text):
        return '"' + text.replace('"', '""') + '"' if quoted and set(text) & set(',;\t"\n\r') else text

    return "t.csv", newline.join(separator.join(map(cell, row)) for row in [names, *rows])


@st.composite
def jsonl_files(draw):
    """Objects with the fields of a table and values of any kind."""
    lines = []
    for n in range(draw(st.integers(0, 7))):
        row = draw(st.dictionaries(st.sampled_from(NAMES) | words, values, max_size=4))
        if draw(st.integers(0, 4)):
            row |= {"image": f"p{n % 6}.png", "caption": draw(st.sampled_from(["w", "x", ["a", "b"]]))}
        with contextlib.suppress(ValueError):  # a whole number too long to be written
            lines.append(json.dumps(row))
    return "t.jsonl", "\n".join(
        lines + draw(st.lists(st.sampled_from(["[]", "1", "null", "{", '{"a":1}{']), max_size=1))
    )


@st.composite
def changed(draw, value):
    """A JSON value with one place to four of it replaced, renamed or taken away."""
    holder = [json.loads(json.dumps(value))]
    for _ in range(draw(st.integers(1, 4))):
        at, key = holder, 0
        while isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 3)):
            at = at[key]
            key = draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        kind = draw(st.integers(0, 4))
        if kind == 0 and isinstance(at, dict):
            at[draw(words)] = at.pop(key)
        elif kind == 1 and at is not holder:
            del at[key]
        else:
            at[key] = draw(values)
    return holder[0]


@st.composite
def damaged(draw, files):
    """One of some files (name, bytes) with a few bytes changed, taken away or put in."""
    name, data = draw(st.sampled_from(files))
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 8))):
        at, kind = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(0, 4))
        if kind == 0:
            del data[at : at + draw(st.sampled_from([1, 4, 100]))]
        elif kind == 1:
            data[at:at] = draw(st.binary(min_size=1, max_size=50))
        else:
            data[at : at + 1] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))])
    return name, bytes(data)


# ---------------------------------------------------------------------------------------------- what is tried


def tables():
    """Tables of one's own images, added."""

    def attempt(file, dry_run, unpaired):
        (FOLDER / file[0]).write_bytes(file[1].encode("utf-8", "surrogatepass"))
        options = {"size": 16, "force": True, "allow_unpaired": unpaired, "dry_run": dry_run}
        add("mine", images=PHOTOS, table=FOLDER / file[0], **options)
        if not dry_run:
            load("mine")

    return attempt, (csv_files() | jsonl_files(), st.booleans(), st.booleans())


def cards():
    """Cards of prepared sets, opened by every command that reads one."""
    (FOLDER / "good.csv").write_text("image,caption\n" + "".join(f"p{n}.png,w\n" for n in range(6)))
    add("mine", images=PHOTOS, table=FOLDER / "good.csv", size=16, force=True)
    path = FOLDER / "data/mine/card.json"
    good = json.loads(path.read_text()) | {"notes": ["a"], "reported": [{"name": "a", "reason": "b"}]}
    good |= {"schema": 2, "arrays": {"image": {"dtype": "|u1", "shape": [6, 16, 16, 3]}}, "required": ["image", "text"]}

    def attempt(card):
        path.write_text(json.dumps(card))
        commands.list_()
        opened = (load, commands.card, commands.check)
        refused = [error for error in map(refusal, opened, ["mine"] * 3) if error]
        if refused:
            raise refused[0]

    return attempt, (changed(good),)


def refusal(call, *arguments):
    """The MmkitError of a call, or None."""
    try:
        call(*arguments)
    except MmkitError as error:
        return error
    return None


def plans():
    """Plans and claims, read and expanded into runs."""
    entry = {"notebook": "06_head_to_head", "parameters": {"pairs": 64}, "grid": {"epochs": [1, 2]}, "seeds": 2}
    good = {"name": "mine", "title": "t", "profile": "smoke", "notebooks": [entry], "claims": ["C1"]}
    kits = yaml.safe_load((ROOT / "notebooks" / "claims.yaml").read_text())
    kits = {"claims": kits["claims"][:2]}

    def attempt(content, edit):
        text = yaml.safe_dump(content[1], allow_unicode=True).encode("utf-8", "surrogatepass")
        (FOLDER / "mine.yaml").write_bytes(edit(text))
        if content[0] == "claims":
            claims.read_claims(path=FOLDER / "mine.yaml")
        else:
            plan.expand(plan.read_plan(FOLDER / "mine.yaml"), prepare=False)

    contents = st.tuples(st.just("plan"), changed(good)) | st.tuples(st.just("claims"), changed(kits))
    edits = st.just(bytes) | st.binary(max_size=5).map(lambda more: lambda text: text[:40] + more + text[40:])
    return attempt, (contents, edits)


KEYWORDS = """Rows Columns SamplesPerPixel BitsAllocated BitsStored HighBit PixelRepresentation
PhotometricInterpretation PlanarConfiguration WindowCenter WindowWidth RescaleSlope RescaleIntercept VOILUTFunction
PixelPaddingValue NumberOfFrames PatientOrientation ImageOrientationPatient BurnedInAnnotation PatientName
StudyDescription PatientIdentityRemoved""".split()


def dicom():
    """DICOM files: damaged bytes, and attributes of odd values."""
    about = {
        "WindowCenter": 40,
        "WindowWidth": 400,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "VOILUTFunction": "LINEAR",
    }
    whole = write_dicom(FOLDER / "whole.dcm", RAMP, **about).read_bytes()
    odd = st.dictionaries(
        st.sampled_from(KEYWORDS), st.none() | st.integers(-5, 70_000) | st.floats() | words | st.lists(words)
    )

    def attempt(file, attributes, identifiers):
        path = FOLDER / "f.dcm"
        path.write_bytes(file[1])
        if attributes:
            path.write_bytes(whole)
            data = pydicom.dcmread(path)
            try:
                for name, value in attributes.items():
                    setattr(data, name, value)
                data.save_as(path)
            except Exception:  # what cannot be written cannot be brought
                return
        require_picture(read_image(path, size=16, identifiers=identifiers))

    return attempt, (damaged([("f.dcm", whole)]), st.just({}) | odd, st.sampled_from(["refuse", "drop"]))


def pictures():
    """Pictures of every kind that is read, damaged."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    exif, files = Image.Exif(), []
    exif[0x0112] = 6
    made = {f"s.{kind}": Image.fromarray(pixels) for kind in ("png", "jpg", "gif", "bmp", "webp", "tif")}
    made |= {"d.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 16)}
    made |= {"d.tif": Image.fromarray(pixels[..., 0].astype(np.int32) - 99)}
    for name, image in made.items():
        image.save(
            FOLDER / name, **({"exif": exif} if name[:2] == "s." and name[2:] in ("jpg", "png", "webp", "tif") else {})
        )
        files.append((name, (FOLDER / name).read_bytes()))

    def attempt(file):
        (FOLDER / file[0]).write_bytes(file[1])
        require_picture(read_image(FOLDER / file[0], size=16))

    return attempt, (damaged(files),)


def require_picture(pixels):
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8


def archives():
    """Archives, damaged; nothing is written outside the folder."""
    import shutil
    import tarfile
    import zipfile

    files = []
    for mode in ("w", "w:gz", "w:xz", "w:bz2"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as archive:
            for n in range(3):
                member = tarfile.TarInfo(f"d/{n}.txt")
                member.size = 5000
                archive.addfile(member, io.BytesIO(bytes([n]) * 5000))
        files.append((mode, out.getvalue()))
    for compression in (0, 8, 12, 14):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", compression) as archive:
            for n in range(3):
                archive.writestr(f"d/{n}.txt", bytes([n]) * 5000)
        files.append((str(compression), out.getvalue()))

    def attempt(file):
        outer = FOLDER / "outer"
        shutil.rmtree(outer, ignore_errors=True)
        (outer / "out").mkdir(parents=True)
        (FOLDER / "x.bin").write_bytes(file[1])
        try:
            unpack(FOLDER / "x.bin", outer / "out")
        finally:
            assert os.listdir(outer) == ["out"], "it wrote outside"

    return attempt, (damaged(files),)


KINDS = {kind.__name__: kind for kind in (tables, cards, plans, dicom, pictures, archives)}


# ---------------------------------------------------------------------------------------------- rounds


def place(error) -> str:
    """Where in the kit an error came from."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}mmkit{os.sep}" in frame.filename
    ]
    return f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else repr(error)


def fuzz(name: str, seconds: float, first: int) -> tuple[Counter, dict[str, str]]:
    """Rounds of hypothesis until the time is over: counts, and finds by their place."""
    attempt, strategies = KINDS[name]()
    counts, finds, ends = Counter(), {}, time.monotonic() + seconds

    def one(drawn):
        begun = time.process_time()
        counts["examples"] += 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                attempt(*drawn)
            counts["accepted"] += 1
        except (MmkitError, DamagedImage):
            counts["refused"] += 1
        except Exception as error:
            if place(error) not in finds:
                raise
        assert time.process_time() - begun < SLOW or "slow" in finds, "slow"

    options = {"max_examples": 200, "deadline": None, "database": None, "print_blob": False}
    phases, checks = (Phase.generate, Phase.shrink), list(HealthCheck)
    while time.monotonic() < ends:
        first += 1
        test = settings(**options, phases=phases, suppress_health_check=checks)(given(st.tuples(*strategies))(one))
        try:
            seed(first)(test)()
        except HypothesisException:
            raise  # a fault of this tool
        except Exception as error:
            where = "slow" if "slow" in str(error) else place(error)
            finds[where] = f"{error}\n{' '.join(getattr(error, '__notes__', []))}"[:2000]
            print(f"{name}: {where}: {finds[where]}", flush=True)
    return counts, finds


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    PHOTOS.mkdir()
    for n in range(6):
        Image.new("RGB", (20, 20), (n, n, n)).save(PHOTOS / f"p{n}.png")
    found = 0
    for name in asked.kinds or KINDS:
        counts, finds = fuzz(name, 60 * asked.minutes, asked.seed)
        found += len(finds)
        said = ", ".join(f"{counts[key]:,} {key}" for key in ("examples", "accepted", "refused"))
        print(f"{name}: {said}, {len(finds)} finds in {asked.minutes:g} minutes", flush=True)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
