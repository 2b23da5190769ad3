"""Your own images and captions: what becomes a set, and every way in which a table can be wrong."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from mmkit.data import add, commands, load, prepared, read_image
from mmkit.data.images import DamagedImage
from mmkit.errors import MmkitError


pytestmark = pytest.mark.usefixtures("data_root")


def picture(path, shade=100, size=(30, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode in ("L", "I;16") else (shade,) * len(mode)).save(path)


@pytest.fixture
def photos(tmp_path):
    for n in range(10):
        picture(tmp_path / f"photos/p{n}.png", shade=n)
    return tmp_path / "photos"


def table(folder, text, name="captions.csv"):
    path = folder.parent / name
    path.write_text(text, encoding="utf-8")
    return path


ALL = "".join(f"p{n}.png,photo number {n}\n" for n in range(10))


def adding(photos, text, **options):
    return add("mine", images=photos, table=table(photos, text), **({"size": 16} | options))


# ---------------------------------------------------------------------------------------------- what is made


def test_a_folder_and_a_csv_become_a_set(photos):
    adding(photos, f'\ufeffimage,caption\n{ALL}p3.png,"another, with a comma"\n', title="My photos", licence="CC0")
    ds = load("mine")
    assert ds.splits == {"train": 8, "val": 1, "test": 1} and ds.images.shape == (10, 16, 16, 3)
    row = ds.items.index[ds.items["id"] == "p3.png"][0]
    assert ds.texts_of([row])[0] == ["photo number 3", "another, with a comma"] and ds.pixels(
        [row]
    ).unique().tolist() == [3]
    assert ds.card["title"] == "My photos" and ds.card["recipe"] is None and len(ds.card["sources"][0]["sha256"]) == 64
    assert prepared.check(ds.root)


def test_all_columns_of_a_jsonl(photos):
    rows = [
        {
            "image": f"p{n}.png",
            "caption": [f"first {n}", f"zweitens {n}"],
            "label": n % 2,
            "label_kind": "cat" if n % 3 else "dog",
            "group": f"patient {n // 2}",
            "split": "dev" if n > 7 else "train",
        }
        for n in range(10)
    ]
    add("mine", images=photos, table=table(photos, "\n".join(map(json.dumps, rows)), "rows.jsonl"), size=16)
    ds = load("mine")
    assert ds.splits == {"train": 8, "val": 2} and ds.label_columns == ["label", "label_kind"]
    assert ds.labels(range(10), "label").tolist() == [0, 1] * 5 and ds.classes("label_kind") == ["cat", "dog"]
    assert ds.clusters(range(4)).tolist() == [0, 0, 1, 1] and ds.texts_of([0])[0] == ["first 0", "zweitens 0"]


def test_other_separators_names_languages_and_folders(photos):
    picture(photos / "sub/deep.jpg", shade=200)
    text = "Datei;Befund;language;label\nsub\\deep.jpg;ein Befund;de;\n./p0.png;one finding;;1\n"
    with pytest.raises(MmkitError, match="9 images have no caption"):
        adding(photos, text, columns={"image": "Datei", "caption": "Befund"})
    for n in range(1, 10):
        (photos / f"p{n}.png").unlink()
    picture(photos / "p1.png")
    adding(photos, text + "p1.png;two findings;en;0\n", columns={"image": "Datei", "caption": "Befund"})
    ds = load("mine")
    assert ds.items["id"].tolist() == ["sub/deep.jpg", "p0.png", "p1.png"] and ds.items["label"].tolist() == [-1, 1, 0]
    assert ds.texts["language"].tolist() == ["de", "en", "en"]


def test_labels_that_count_from_zero_are_numbers_and_all_others_are_names(photos):
    cells = {
        "label_count": [0, 1, 2] * 3 + [""],
        "label_coded": ["007", "7", "10"] * 3 + ["7"],
        "label_gap": [3, 9_000_000_000] * 5,
    }
    rows = [{"image": f"p{n}.png", "caption": "words"} for n in range(10)]
    for name, values in cells.items():
        for row, value in zip(rows, values, strict=True):
            row |= {} if value == "" else {name: value}
    add("mine", images=photos, table=table(photos, "\n".join(map(json.dumps, rows)), "rows.jsonl"), size=16)
    ds = load("mine")
    assert ds.labels([0, 1, 2, 9], "label_count").tolist() == [0, 1, 2, -1] and ds.classes("label_count") == [0, 1, 2]
    assert ds.classes("label_coded") == ["007", "10", "7"] and ds.labels([0, 1, 2], "label_coded").tolist() == [0, 2, 1]
    assert ds.classes("label_gap") == ["3", "9000000000"]


def test_groups_stay_in_one_split_without_a_split_column(photos):
    adding(photos, "image,caption,group\n" + "".join(f"p{n}.png,photo {n},g{n // 2}\n" for n in range(10)))
    items = load("mine").items
    assert items.groupby("group")["split"].nunique().max() == 1 and set(items["split"]) == {"train", "val", "test"}


def test_unpaired_images_and_texts_become_pools(photos):
    few = (
        "image,caption,split\n"
        + "".join(f"p{n}.png,photo {n},{'train' if n else 'test'}\n" for n in range(5))
        + "p5.png,,\n,a text alone,\n"
    )
    adding(photos, few, allow_unpaired=True)
    ds = load("mine")
    assert ds.splits == {"test": 1, "train": 4, "pool_image": 5, "pool_text": 1}
    assert (
        ds.texts_of(ds.rows("pool_text"))[0] == ["a text alone"]
        and ds.items["id"].iloc[ds.rows("pool_text")[0]] == "text-8"
    )
    assert len(ds.pixels(ds.rows("pool_image"))) == 5


def test_images_alone_and_texts_alone_are_pools(photos):
    adding(photos, "image,caption\n" + "".join(f"p{n}.png,\n" for n in range(10)), allow_unpaired=True)
    ds = load("mine")
    assert ds.splits == {"pool_image": 10} and len(ds.texts) == 0 and ds.pixels([3]).unique().tolist() == [3]
    for path in photos.iterdir():
        path.unlink()
    assert adding(photos, "image,caption\n,words\n", allow_unpaired=True, force=True)["splits"] == {"pool_text": 1}


def test_a_split_is_read_in_any_case(photos):
    names = ["TRAIN"] * 7 + ["Dev", "Test", "Night"]
    adding(photos, "image,caption,split\n" + "".join(f"p{n}.png,photo,{name}\n" for n, name in enumerate(names)))
    assert load("mine").splits == {"train": 7, "val": 1, "test": 1, "Night": 1}


def test_hidden_files_and_folders_are_no_images(photos):
    for name in (".ipynb_checkpoints/p0-checkpoint.png", "sub/.thumbs/deep/p1.png", ".p2.png"):
        picture(photos / name)
    assert adding(photos, HEAD + ALL)["images"][0] == 10


def test_an_accent_is_one_letter_or_two(photos):
    """A Mac names a file with the accent as a letter of its own, a table has them in one."""
    one, two = (unicodedata.normalize(form, "größe é.png") for form in ("NFC", "NFD"))
    assert one != two
    picture(photos / two, shade=200)
    adding(photos, HEAD + ALL + f"{one},the large one\n")
    ds = load("mine")
    [row] = np.flatnonzero(ds.items["id"] == two)
    assert len(ds) == 11 and ds.pixels([row]).unique().tolist() == [200] and ds.texts_of([row])[0] == ["the large one"]


def test_a_line_of_jsonl_ends_where_the_line_ends(photos):
    strange = "one\u2028two\u2029three\x85four"
    rows = [json.dumps({"image": f"p{n}.png", "caption": strange}, ensure_ascii=False) for n in range(10)]
    add("mine", images=photos, table=table(photos, "\r\n".join(rows), "rows.jsonl"), size=16)
    assert set(load("mine").texts["text"]) == {strange}


def test_an_unpaired_image_of_a_test_patient_is_left_out(photos):
    text = "image,caption,split,group\np0.png,zero,train,a\np1.png,one,test,b\np2.png,,,b\np3.png,,,a\n"
    card = adding(photos, text, allow_unpaired=True)
    assert card["reported"] == [{"name": "p2.png", "reason": "unpaired, and its group is in a split other than train"}]
    assert card["splits"]["pool_image"] == 7


def test_a_damaged_image_is_reported_by_name_and_left_out(photos):
    (photos / "p4.png").write_bytes((photos / "p4.png").read_bytes()[:60])
    (photos / "p5.png").write_text("not an image")
    text = f"image,caption\n{ALL}"
    assert {line["name"] for line in adding(photos, text, dry_run=True)["reported"]} == {"p4.png", "p5.png"}
    card = adding(photos, text)
    assert {line["name"]: line["reason"].split(":")[0] for line in card["reported"]} == {
        "p4.png": "damaged image",
        "p5.png": "damaged image",
    }
    ds = load("mine")
    assert len(ds) == 8 and not ds.texts["text"].isin(["photo number 4", "photo number 5"]).any()
    assert all(ds.pixels([row]).unique().item() == int(name[1]) for row, name in enumerate(ds.items["id"]))


def test_a_dry_run_writes_nothing(photos, data_root):
    card = adding(photos, f"image,caption\n{ALL}", dry_run=True)
    assert card == {
        "name": "mine",
        "splits": {"train": 8, "val": 1, "test": 1},
        "texts": 10,
        "reported": [],
        "notes": [],
    }
    assert not data_root.exists()


def test_the_same_data_is_the_same_set_and_force_replaces(photos):
    first = adding(photos, f"image,caption\n{ALL}")["content"]
    with pytest.raises(
        MmkitError, match="there is a data set 'mine' already: choose another name, or pass --force to replace it"
    ):
        adding(photos, f"image,caption\n{ALL}")
    assert adding(photos, f"image,caption\n{ALL}", force=True)["content"] == first
    assert adding(photos, f"image,caption\n{ALL}", force=True, size=20)["content"] != first


def test_commands(photos, capsys):
    commands.add(
        "mine",
        images=photos,
        table=table(photos, f"photo,words\n{ALL}"),
        columns={"image": "photo", "caption": "words"},
        size=16,
    )
    shown = capsys.readouterr().out
    assert "mine: " in shown and "train 8" in shown and "open it with mmkit.load('mine')" in shown
    commands.add("mine", images=photos, table=table(photos, f"image,caption\n{ALL}"), dry_run=True)
    assert "dry run: nothing was written" in capsys.readouterr().out
    commands.card("mine")
    assert "recipe: none, added by hand" in capsys.readouterr().out
    with pytest.raises(MmkitError, match="'mine' is a set of your own and has no knobs, got size"):
        load("mine", size=20)
    with pytest.raises(MmkitError, match="unknown data set 'mines': did you mean 'mine'[?]"):
        load("mines")


# ---------------------------------------------------------------------------------------------- what is refused

HEAD = "image,caption\n"
TWICE = "image,caption,{0}\np0.png,a,{1}\np0.png,b,{2}\n"
REFUSED = {
    "1 images named in the table are not in {photos} (photos/p3.png, nearest file 'p3.png')": HEAD
    + ALL.replace("p3.png", "photos/p3.png"),
    "1 images named in the table are not in {photos} (p33.png, nearest file 'p3.png'): correct their names or": HEAD
    + ALL
    + "p33.png,nothing\n",
    "1 captions name no image (row 12 of the table): name one, or pass --allow-unpaired to keep them as pool_text": HEAD
    + ALL
    + ",words alone\n",
    "2 images have no caption (p8.png, p9.png): add rows for them, move them out of {photos}, or": HEAD
    + ALL.replace("p9.png,photo number 9\n", "").replace("photo number 8", " "),
    "unknown column of captions.csv 'caption': did you mean 'captions'? there are captions,": "image,captions\n" + ALL,
    "unknown column of captions.csv 'image'": "file,caption\n" + ALL,
    "the table names an image outside the folder, '../secret.png': write paths relative to the folder": HEAD
    + "../secret.png,x\n",
    "the table names an image outside the folder, '/etc/x.png'": HEAD + "/etc/x.png,x\n",
    "the table names an image outside the folder, 'C:\\\\x.png'": HEAD + "C:\\x.png,x\n",
    "captions.csv has no rows: expected one row a caption": HEAD,
    "unknown column of captions.csv 'image': there are none": "",
    "captions.csv, line 3 has 3 fields, the header 2: put a caption that holds the separator in double quotes": HEAD
    + "p0.png,a dog\np1.png,a dog, running\n",
    "captions.csv, line 2 cannot be read (a quote is opened and not closed): close it, and write a quote inside": HEAD
    + 'p0.png,"a dog\n',
    "1 groups are in more than one split, first 'g' in train, test: keep all": "image,caption,group,split\n"
    + "".join(f"p{n}.png,photo,g,{'test' if n > 7 else 'train'}\n" for n in range(10)),
    "1 images have rows that disagree in 'split', first 'p0.png' with 'train', 'test': give all": TWICE.format(
        "split", "train", "test"
    ),
    "1 images have rows that disagree in 'label', first 'p0.png' with '1', '2'": TWICE.format("label", 1, 2),
    "9 images have no split (p1.png, p2.png, p3.png, ...): fill the column": "image,caption,split\n"
    + ALL.replace("\n", ",\n").replace("number 0,", "number 0,train"),
    "no image is in the split 'train', the splits are 'Learn', 'val': call the one": "image,caption,split\n"
    + ALL.replace("\n", ",Learn\n").replace("number 9,Learn", "number 9,Validation"),
    "captions.csv has 2 columns for 'caption': give the others another name in its header": "image,caption,caption\n"
    + ALL.replace("\n", ",again\n"),
    "captions.csv has 3 columns for 'label'": "image,caption,label,label,label\n" + ALL.replace("\n", ",1,2,3\n"),
}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("message", REFUSED)
def test_bad_tables(message, dry_run, photos, data_root, monkeypatch):
    monkeypatch.setattr(
        "mmkit.data.local.read_image", None
    )  # images may take hours: whatever is wrong with the table is said before
    with pytest.raises(MmkitError) as error:
        adding(photos, REFUSED[message], dry_run=dry_run)
    assert message.format(photos=photos) in str(error.value) and not data_root.exists()


def test_too_few_groups_for_splits(photos):
    for n in range(2, 10):
        (photos / f"p{n}.png").unlink()
    with pytest.raises(
        MmkitError,
        match="2 groups cannot be split into train, val and test: give at least 3, or name the splits in a column "
        "'split'",
    ):
        adding(photos, HEAD + "p0.png,a\np1.png,b\n")


def test_no_usable_rows(photos):
    for path in photos.iterdir():
        path.write_text("not an image")
    with pytest.raises(MmkitError, match="'mine' has no usable rows: p.* [(]damaged image: cannot identify image file"):
        adding(photos, HEAD + ALL)


NAMES = {
    "scenes": "'scenes' is the name of a recipe or reserved: choose another, for example my_scenes",
    "flickr8k-0a1b2c3d": "is the name of a recipe or reserved",
    "cache": "'cache' is the name of a recipe or reserved",
    "My Photos": "'My Photos' is no name for a data set: use lower-case letters, digits, '-' and '_'",
    "../up": "'../up' is no name for a data set",
}


@pytest.mark.parametrize("name", NAMES)
def test_bad_names(name, photos):
    with pytest.raises(MmkitError) as error:
        add(name, images=photos, table=table(photos, HEAD + ALL))
    assert NAMES[name] in str(error.value)


def test_bad_files_and_options(photos, tmp_path):
    for message, options in {
        "is no folder: pass the folder with the images as images=": {"images": tmp_path / "nowhere"},
        "there is no table '": {"table": tmp_path / "nowhere.csv"},
        "latin.csv is not UTF-8 (byte 22): save it as UTF-8": {"table": tmp_path / "latin.csv"},
        "bad.jsonl, line 2 is not JSON (": {"table": tmp_path / "bad.jsonl"},
        "list.jsonl, line 1 is a list: expected an object such as": {"table": tmp_path / "list.jsonl"},
        "size=8 is out of range: pass a whole number of pixels, 16 <= size <= 512": {"size": 8},
        "unknown column of captions.csv 'words': there are caption, image": {"columns": {"caption": "words"}},
        "unknown table field 'capton': did you mean 'caption'?": {"columns": {"capton": "caption"}},
        "unknown table field 'labels': did you mean 'label'?": {"columns": {"labels": "caption"}},
        "unknown table field 'label_'": {"columns": {"label_": "caption"}},
        "two.csv has 2 columns for 'caption': give the others another name in its header, or leave out": {
            "table": tmp_path / "two.csv",
            "columns": {"caption": "report"},
        },
    }.items():
        (tmp_path / "latin.csv").write_bytes("image,caption\na.png,Größe\n".encode("latin1"))
        (tmp_path / "two.csv").write_text("image,caption,report\np0.png,short,long\n")
        (tmp_path / "bad.jsonl").write_text('{"image": "p0.png", "caption": "x"}\n{"image": \n')
        (tmp_path / "list.jsonl").write_text('["p0.png", "x"]\n')
        with pytest.raises(MmkitError) as error:
            add("mine", **({"images": photos, "table": table(photos, HEAD + ALL), "size": 16} | options))
        assert message in str(error.value)


# ---------------------------------------------------------------------------------------------- image files


def test_every_kind_of_image_becomes_rgb(tmp_path):
    picture(tmp_path / "grey.png", 77, mode="L")
    picture(tmp_path / "deep.png", 77 * 257, mode="I;16")
    Image.new("RGBA", (4, 2), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("P", (4, 2)).save(tmp_path / "palette.gif")
    Image.new("CMYK", (4, 2), (0, 0, 0, 255)).save(tmp_path / "cmyk.jpg")
    assert (
        np.unique(read_image(tmp_path / "grey.png")).tolist()
        == np.unique(read_image(tmp_path / "deep.png")).tolist()
        == [77]
    )
    assert np.unique(read_image(tmp_path / "clear.png", size=16)).tolist() == [255]
    assert read_image(tmp_path / "palette.gif").shape == read_image(tmp_path / "cmyk.jpg").shape == (2, 4, 3)
    assert read_image(tmp_path / "cmyk.jpg").max() < 8


def test_photos_are_upright_and_squashed(tmp_path):
    half = np.zeros((40, 20, 3), np.uint8)
    half[:20] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(half).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = read_image(tmp_path / "turned.jpg", size=16)
    assert upright.shape == (16, 16, 3) and upright[:4].max() < 20 and upright[-4:].min() > 235


@pytest.mark.parametrize("content", ["truncated", "text", "empty", "folder", "nan", "inf"])
def test_damaged_images(content, tmp_path):
    path = tmp_path / "x.jpg"
    if content == "folder":
        path.mkdir()
    elif content in ("nan", "inf"):
        Image.fromarray(np.array([[0.0, 0.5], [1.0, float(content)]], dtype=np.float32)).save(path, format="TIFF")
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes({"truncated": path.read_bytes()[:-200], "text": b"hello", "empty": b""}[content])
    with pytest.raises(DamagedImage) as error:
        read_image(path)
    assert str(tmp_path) not in str(error.value)
