"""The recipe of MedMNIST on small files as it publishes them."""

import hashlib
import http.server
import io
import os
import threading
from dataclasses import replace

import numpy as np
import pytest

from data_recipes import medmnist
from mmkit.data import load, prepared
from mmkit.errors import MmkitError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MMKIT_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path


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
        for text, row in zip(texts, codes, strict=True):
            assert text == ", ".join(label for label, there in zip(names, row, strict=True) if there)
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


if os.environ.get("MMKIT_MIRROR"):  # where no mirror is named there is nothing to test
    MIRROR = os.environ["MMKIT_MIRROR"]

    def test_medmnists_numbers_are_those_of_the_official_list():
        lines = open(os.path.join(MIRROR, "checksums/medmnist_official_md5.tsv"), encoding="utf-8").read().splitlines()
        official = {}
        for line in lines[1:]:
            name, md5, url, *sizes, _ = line.split("\t")
            official[name] = (md5, url, tuple(map(int, sizes)))
        here = {file.only["set"]: file for file in medmnist.RECIPE.files}
        assert {name: (file.md5, file.url, tuple(medmnist.SETS[name][1:4])) for name, file in here.items()} == official
