"""Models that are kept: saved, loaded and asked; and long runs that go on after a kill with the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import mmkit as kit
from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.strategies import Budget, Encoders, Run, Strategy, fit
from mmkit.tasks import Answering, Captioning, Retrieval
from mmkit.pretraining import Part

pytestmark = pytest.mark.slow
SMALL = {"train": 96, "val": 32, "test": 32, "ood": 32, "pool": 64}
OPTIONS = {"budget": Budget(pairs=64, epochs=2), "seed": 0, "encoders": Encoders(epochs=1), "lr": 3e-3}


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


@pytest.fixture(scope="module")
def answering(scenes):
    return fit("scratch", Answering(scenes), **OPTIONS)


def test_a_saved_model_answers_as_before_and_has_a_card(answering, scenes, tmp_path):
    folder = answering.save(tmp_path / "model")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json", "README.md"}
    loaded = kit.load_model(folder)
    rows = scenes.rows("test")[:4]
    questions = scenes.texts_of(rows, role="question")[0]
    asked = {"image": scenes.pixels(rows), "text": questions}
    before, after = answering.predict(**asked), loaded.predict(**asked)
    assert before == after and len(after) == 4
    assert abs(sum(after[0]["probability"].values()) - 1) < 1e-5 and after[0]["label"] in after[0]["probability"]
    card = (folder / "README.md").read_text()
    score = answering.scores["accuracy"]
    low, high = score.interval()
    assert f"| accuracy | {score.value:.3f} | [{low:.3f}, {high:.3f}] |" in card
    for part in ("Intended use", "Licence", "Limits", scenes.content[:12], "one seed says nothing"):
        assert part in card
    assert loaded.settings["saved_scores"]["accuracy"]["value"] == score.value


def test_a_model_reads_image_files(answering, scenes, tmp_path):
    folder = answering.save(tmp_path / "model")
    row = scenes.rows("test")[:1]
    question = scenes.texts_of(row, role="question")[0]
    pixels = scenes.pixels(row)[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "one.png")
    loaded = Run.load(folder)
    assert loaded.predict(image=tmp_path / "one.png", text=question) == answering.predict(
        image=pixels_of(pixels), text=question
    )


def pixels_of(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]


def test_captioners_and_retrievers_are_kept_too(scenes, tmp_path):
    pixels = scenes.pixels(scenes.rows("test")[:3])
    captioner = fit("scratch", Captioning(scenes, dim=32), **OPTIONS)
    loaded = Run.load(captioner.save(tmp_path / "captioner"))
    assert loaded.predict(image=pixels) == captioner.predict(image=pixels)
    retriever = fit("component", Retrieval(scenes, loss="sigmoid"), **OPTIONS)
    loaded = Run.load(retriever.save(tmp_path / "retriever"))
    texts = ["a red arrow pointing up", "a small blue circle"]
    vectors = loaded.predict(image=pixels, text=texts)
    assert torch.equal(vectors["text"], retriever.predict(text=texts)["text"])
    assert vectors["image"].shape == (3, 128) and torch.allclose(vectors["image"].norm(dim=1), torch.ones(3))


def test_what_only_balanced_the_training_is_not_kept(scenes, tmp_path):
    run = fit("ogm_ge", Answering(scenes), **OPTIONS)
    loaded = Run.load(run.save(tmp_path / "model"))
    assert not [name for name in loaded.model.state_dict() if name.startswith("own_heads")]


def test_parts_of_ones_own_are_named_and_must_be_passed(scenes, tmp_path):
    others = Encoders(epochs=1, others={"image": Part(lambda: kit.models.CNN(dim=16))})
    run = fit("scratch", Answering(scenes), **OPTIONS | {"encoders": others})
    folder = run.save(tmp_path / "model")
    with pytest.raises(MmkitError, match="the model has parts of its own, image .*: pass them"):
        Run.load(folder)
    assert Run.load(folder, encoders=others).model.image.dim == 16


def broken(folder, change):
    about = json.loads((folder / "model.json").read_text())
    change(about)
    (folder / "model.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(schema="mmkit.model/9"), "has schema 'mmkit.model/9', this mmkit reads"),
        (lambda about: about.update(task="aswering"), "unknown task 'aswering': did you mean 'answering'"),
        (lambda about: about["state"].update(classes=["a", "b"]), "do not fit their model"),
        (lambda about: about.pop("schema"), "holds no saved model"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_a_line(change, message, answering, tmp_path):
    folder = answering.save(tmp_path / "model")
    broken(folder, change)
    with pytest.raises(MmkitError, match=message) as caught:
        Run.load(folder)
    assert "\n" not in str(caught.value)


def test_mistakes_in_keeping_and_asking_are_answered(answering, scenes, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(MmkitError, match="holds something already"):
        answering.save(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(MmkitError, match="holds no saved model"):
        Run.load(tmp_path / "none")
    with pytest.raises(MmkitError, match="unknown modality 'txt': did you mean 'text'"):
        answering.predict(txt=["what?"])
    pixels = scenes.pixels(scenes.rows("test")[:1])
    with pytest.raises(MmkitError, match="no word of '图片在哪里' is known to this model"):
        answering.predict(image=pixels, text=["图片在哪里"])
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(MmkitError, match=r"no\.png is not an image that can be read"):
        answering.predict(image=tmp_path / "no.png", text=["what?"])
    with pytest.raises(MmkitError, match="the batch has no 'image'"):
        answering.predict(text=["what is it"])
    both = fit("ensemble_single", Answering(scenes), **OPTIONS)
    with pytest.raises(MmkitError, match="holds no single model"):
        both.save(tmp_path / "both")


# --- runs that go on ---

LONG = """
import hashlib, sys
import torch
torch.set_num_threads(1)
from mmkit.data import load
from mmkit.strategies import Budget, Encoders, fit
from mmkit.tasks import Captioning
scenes = load("scenes", train=96, val=32, test=32, ood=32, pool=64)
task, kept = Captioning(scenes, dim=32, dropout=0.2), sys.argv[1] if len(sys.argv) > 1 else None
options = {"budget": Budget(64, 24), "seed": 0, "encoders": Encoders(epochs=1), "batch": 16, "lr": 3e-3}
run = fit("component", task, evaluate=("val",), checkpoint=kept, **options)
digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in run.model.state_dict().values())).hexdigest()
losses, steps = [(h["step"], h["loss"]) for h in run.history], [p.steps for p in run.cost.phases.values()]
print("digest", digest, losses, run.cost.flops, steps)
"""


def told(process):
    return next(line for line in process.stdout.splitlines() if line.startswith("digest"))


def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path):
    script = tmp_path / "long.py"
    script.write_text(LONG)
    command = [sys.executable, str(script)]
    whole = subprocess.run(command, capture_output=True, text=True, check=True)
    folder, kills = tmp_path / "kept", 0
    for files in (1, 2):  # once in each stage, as soon as it has kept something new
        process = subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and len(list(folder.glob("*.safetensors"))) < files:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills == 2
    resumed = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=True)
    assert "going on from step" in resumed.stdout and told(resumed) == told(whole)


def test_a_checkpoint_of_another_run_is_refused_and_a_damaged_one_is_said(scenes, tmp_path, capsys):
    task = Answering(scenes)
    once = fit("scratch", task, **OPTIONS, checkpoint=tmp_path)
    with pytest.raises(MmkitError, match=r"is of another run \(lr, steps differ\)"):
        fit("scratch", task, **OPTIONS | {"lr": 1e-3, "budget": Budget(64, 3)}, checkpoint=tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-7])
    again = fit("scratch", task, **OPTIONS, checkpoint=tmp_path)
    assert "is damaged" in capsys.readouterr().out
    assert again.history == once.history


def test_a_finished_run_is_not_trained_again(scenes, tmp_path, monkeypatch):
    task = Answering(scenes)
    once = fit("scratch", task, **OPTIONS, checkpoint=tmp_path)
    monkeypatch.setattr(Answering, "objective", lambda *given: pytest.fail("trained again"))
    again = fit("scratch", task, **OPTIONS, checkpoint=tmp_path)
    assert again.history == once.history and again.cost.flops == once.cost.flops
    assert all(map(torch.equal, again.model.state_dict().values(), once.model.state_dict().values()))


def test_two_strategies_share_a_folder_of_checkpoints(scenes, tmp_path):
    for name in ("scratch", "frozen"):
        fit(name, Answering(scenes), **OPTIONS, checkpoint=tmp_path)
    fit(Strategy("mine", "mine"), Answering(scenes), **OPTIONS, checkpoint=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "scratch-joint.safetensors",
        "frozen-fusion.safetensors",
        "mine-joint.safetensors",
    }
