"""A person who keeps a model, finds one of somebody else, or asks it with what she has at hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.models.adapters import add_bottlenecks, add_lora
from mmkit.models.identity import fingerprint
from mmkit.strategies import Budget, Encoders, Run, Stage, Strategy, fit
from mmkit.tasks import Answering
from mmkit.training import Group

pytestmark = pytest.mark.slow
SMALL = {"train": 96, "val": 32, "test": 32, "ood": 32, "pool": 64}
OPTIONS = {"budget": Budget(64, 2), "seed": 0, "encoders": Encoders(epochs=1), "lr": 3e-3, "evaluate": ("test",)}
NEW = (Group("fusion.*"), Group("head.*"))


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


@pytest.fixture(scope="module")
def asked(scenes):
    rows = scenes.rows("test")[:3]
    return {"image": scenes.pixels(rows), "text": scenes.texts_of(rows, role="question")[0]}


@pytest.fixture(scope="module")
def run(scenes):
    return fit("scratch", Answering(scenes), **OPTIONS)


@pytest.fixture(scope="module")
def kept(run, tmp_path_factory):
    return run.save(tmp_path_factory.mktemp("kept") / "model")


# --- asking ---


def test_one_question_is_asked_of_several_pictures(run, asked):
    together = run.predict(image=asked["image"], text=asked["text"][0])
    alone = run.predict(image=asked["image"], text=[asked["text"][0]] * 3)
    assert together == alone


def test_pictures_come_as_image_libraries_hold_them(run, asked):
    expected = run.predict(**asked)
    pixels = asked["image"].permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(np.ascontiguousarray(each)) for each in pixels]
    for given in (pixels, list(pixels), pictures, list(asked["image"]), asked["image"].double().numpy()):
        assert run.predict(image=given, text=asked["text"]) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image, text: {"image": image, "text": text[:2]}, "different numbers"),
        (lambda image, text: {"image": [], "text": []}, "give a list with one entry or more"),
        (lambda image, text: {"image": image[0], "text": text[:1]}, "add the batch"),
        (lambda image, text: {"image": image[:, :1], "text": text}, "three channels"),
        (lambda image, text: {"image": image.float() / 255, "text": text}, "scale them to 0 to 255"),
        (lambda image, text: {"image": image.long() * 100, "text": text}, "scale them to 0 to 255"),
        (lambda image, text: {"image": image * float("nan"), "text": text}, "NaN or infinite"),
        (lambda image, text: {"image": ["a.png", image[0]], "text": text[:2]}, "mixes files and arrays"),
        (lambda image, text: {"image": [image[0], image[0, :2]], "text": text[:2]}, "is no array"),
        (lambda image, text: {"image": image, "text": [1, 2, 3]}, "texts are strings, got a int"),
        (lambda image, text: {"image": image, "text": None}, "give a list with one entry or more"),
    ],
)
def test_what_cannot_be_asked_is_one_line(change, message, run, asked):
    with pytest.raises(MmkitError, match=message) as caught:
        run.predict(**change(**asked))
    assert "\n" not in str(caught.value)


# --- keeping ---


def test_a_model_with_low_rank_adapters_is_kept_and_answers_the_same(scenes, asked, tmp_path):
    stages = (Stage("joint", (Group("*lora_*"), *NEW)),)
    lora = Strategy("lora", "lora", stages=stages, prepare=lambda fitting: add_lora(fitting.model.text, rank=4))
    run = fit(lora, Answering(scenes), **OPTIONS)
    loaded = Run.load(run.save(tmp_path / "model"))
    assert any("lora_" in name for name in run.model.state_dict())  # the run itself stays as it was
    for before, after in zip(run.predict(**asked), loaded.predict(**asked), strict=True):
        assert before["probability"] == pytest.approx(after["probability"], abs=1e-5)


def test_adapters_that_cannot_be_merged_are_not_kept(scenes, tmp_path):
    stages = (Stage("joint", (Group("*adapter_*"), *NEW)),)
    strategy = Strategy("b", "b", stages=stages, prepare=lambda fitting: add_bottlenecks(fitting.model.text))
    with pytest.raises(MmkitError, match="cannot be merged"):
        fit(strategy, Answering(scenes), **OPTIONS).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Scaled(Answering):
    """A task of a student's own, with an option that is a dict."""

    name = "scaled"

    def __init__(self, dataset, *, weights):
        super().__init__(dataset)
        self.weights = weights


def test_all_options_of_a_students_task_are_kept(scenes, tmp_path):
    folder = fit("scratch", Scaled(scenes, weights={"a": 0.5}), **OPTIONS).save(tmp_path / "model")
    assert Run.load(folder, task=Scaled).trained.task.weights == {"a": 0.5}


def test_a_file_in_the_place_of_the_folder_is_said(run, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(MmkitError, match="notes holds something already"):
        run.save(tmp_path / "notes")


# --- a stranger's model ---


@pytest.mark.parametrize(
    "change",
    [
        {"state": [1]},
        {"state": None},
        {"state": {"predict": "x", "build": "y"}},
        {"encoders": {"evil": 1}},
        {"encoders": {"size": "32"}},
        {"encoders": {"others": 5}},
        {"modalities": None},
        {"words": 5},
        {"words": {"tokenizer": "{}", "length": 3, "split": False}},
        {"words": None},
        {"budget": {"pairs": "x"}},
        {"settings": None},
        {"data": None},
        {"task": ["x"]},
        {"budget": None},
    ],
)
def test_a_hostile_description_of_a_model_is_one_line(change, kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "model")
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | change))
    with pytest.raises(MmkitError, match="does not describe a model") as caught:
        Run.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": ' + "9" * 10_000 + "}", "[1]"])
def test_json_that_is_deep_or_huge_is_one_line(text, kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "model")
    (folder / "model.json").write_text(text)
    with pytest.raises(MmkitError, match="model"):
        Run.load(folder)


@pytest.mark.parametrize("change", [lambda x: x.float() * float("nan"), lambda x: x.to(torch.int8)])
def test_weights_that_are_no_numbers_or_of_another_type_are_refused(change, kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({name: change(value) for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(MmkitError, match="is not finite or of another type"):
        Run.load(folder)


# --- what a checkpoint knows of a notebook's code ---


def test_a_fingerprint_follows_what_a_notebooks_code_does():
    def made(text):
        space = {"__name__": "__main__"}
        exec(text, space)
        return fingerprint(space["f"])

    plain = "def f(batch): return batch * rate\nrate = 2"
    assert made(plain) == made(plain) and made(plain) != made(plain.replace("2", "3"))
    held = "class H:\n    def g(self): return 1\nf = lambda batch: H()"
    assert made(held) == made(held) and made(held) != made(held.replace("1", "2"))
    package = "from pandas import DataFrame\nf = lambda batch: DataFrame(batch)"  # by its name, not by all its code
    assert made(package) == made(package)
