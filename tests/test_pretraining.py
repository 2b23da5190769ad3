"""Pretraining as a choice: objectives, labels of a modality's own, pools, steps; and what a linear probe reads."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from watched import SMALL

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.models import CNN
from mmkit.strategies import ARMS, Budget, Encoders, Strategy, fit
from mmkit.strategies.encoders import OBJECTIVES
from mmkit.tasks import Answering
from mmkit.pretraining import Contrast, Part, Supervised, linear_probe
from mmkit.pretraining.pretext import view
from mmkit.training import seeded, stream

OWN = {"image": "supervised", "text": "supervised"}
QUICK = {"budget": Budget(64, 1), "seed": 0, "lr": 3e-3, "evaluate": ("test",)}


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


@pytest.fixture(scope="module")
def task(scenes):
    return Answering(scenes)


def test_a_view_is_another_cut_of_the_same_picture_and_never_a_mirror():
    ramp = torch.linspace(40, 200, 32).round().to(torch.uint8).expand(64, 3, 32, 32)  # brighter to the right
    seen = view(ramp, stream(0, "view"))
    assert seen.shape == ramp.shape and seen.dtype == torch.uint8 and not seen.equal(ramp)
    rises = seen.float().diff(dim=3).mean((1, 2, 3))
    assert (rises > 0).all() and rises.std() > 0, "cuts of different sizes, none turned round"
    assert seen.float().mean((1, 2, 3)).std() > 5, "places and brightness differ"


def test_contrast_prefers_encoders_that_know_a_picture_again(scenes):
    pixels = scenes.pixels(scenes.rows("pool_image")[:32])
    task = seeded(0, "contrast", lambda: Contrast(CNN()))
    shuffled = seeded(0, "contrast", lambda: Contrast(CNN()))
    loss = task(pixels, stream(0, "views")).item()
    one, two = (shuffled.project(shuffled.encoder(view(pixels, stream(0, "again"))).summary) for _ in range(2))
    logits = F.normalize(one, dim=1) @ F.normalize(two, dim=1).roll(1, 0).T * shuffled.scale
    wrong = F.cross_entropy(logits, torch.arange(32)).item()
    assert loss < wrong, "the view of another picture is a worse answer than one's own"


def test_supervised_learns_labels_and_passes_over_unknown_ones():
    encoder = seeded(0, "cnn", CNN)
    heads = seeded(0, "heads", lambda: Supervised(encoder, {"a": 3, "b": 2}))
    pixels = torch.randint(0, 256, (6, 3, 32, 32), generator=stream(0, "x")).to(torch.uint8)
    known = torch.tensor([[0, 1], [1, -1], [2, -1], [-1, -1], [0, 0], [1, 1]])
    z = encoder(pixels).summary
    first = F.cross_entropy(heads.heads[0](z)[[0, 1, 2, 4, 5]], known[[0, 1, 2, 4, 5], 0])
    second = F.cross_entropy(heads.heads[1](z)[[0, 4, 5]], known[[0, 4, 5], 1])
    torch.testing.assert_close(heads(pixels, known), (first + second) / 2)
    assert heads(pixels, torch.full((6, 2), -1)).item() == 0, "nothing known, nothing to learn"


def test_a_linear_probe_is_ridge_regression_on_one_hot_codes():
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    z, labels = torch.randn(300, 8, generator=stream(0, "z")), torch.randint(0, 4, (300,), generator=stream(0, "y"))
    z[:, 0] += 2.0 * (labels == 1)
    labels[:7] = -1
    scale = StandardScaler().fit(z[7:200])
    twin = RidgeClassifier(alpha=10.0).fit(scale.transform(z[7:200]), labels[7:200])
    expected = twin.score(scale.transform(z[200:]), labels[200:])
    assert linear_probe(z[:200], labels[:200], z[200:], labels[200:]) == pytest.approx(expected, abs=0.011)
    assert linear_probe(z[:200], labels[:200], z[200:], labels[200:]) > 0.3


def test_what_pretraining_was_is_recorded_with_its_cost_and_its_probe(task, scenes):
    notes = {}
    for name, encoders in {
        "reconstruction": Encoders(objective={"image": "reconstruction"}, steps=60),
        "supervised": Encoders(objective=OWN, steps=60, pool=48, lr=4e-3),
    }.items():
        run = fit("frozen", task, encoders=encoders, **QUICK)
        notes[name] = run.settings["pretraining"]
        assert run.cost.phases["pretrain_image"].steps == 60 and run.cost.phases["pretrain_image"].flops > 0
    free, own = notes["reconstruction"]["image"], notes["supervised"]["image"]
    assert free["labels"] == 0 and free["entries"] == len(scenes.rows("pool_image"))
    assert own["entries"] == 48 and own["labels"] == 48 * len(scenes.facts["image"])
    for modality in ("image", "text"):
        assert set(own["probe"]) == set(scenes.facts["image"])
        assert set(notes["supervised"][modality]["probe"]) == set(scenes.facts[modality])
    assert "pretraining" not in fit("scratch", task, **QUICK).settings


def test_labels_teach_the_encoder_what_they_name(task):
    read = {}
    for labels in (("label_heading",), ("label_ground",)):
        encoders = Encoders(objective={"image": "supervised"}, labels={"image": labels}, steps=150, lr=4e-3)
        run = fit("frozen", task, encoders=encoders, **QUICK)
        read[labels] = run.settings["pretraining"]["image"]["probe"]["label_heading"]
    assert read["label_heading",] > read["label_ground",] + 0.1


def test_an_objective_of_the_strategy_is_the_same_as_of_the_encoders(task):
    by_name = Strategy("frozen", "the same", start="contrast", stages=ARMS["frozen"].stages)
    texts = Strategy("frozen", "the same", {"image": "contrast", "text": "masked words"}, ARMS["frozen"].stages)
    encoders = Encoders(steps=20)
    wanted = fit("frozen", task, encoders=replace(encoders, objective={"image": "contrast"}), **QUICK)
    found = fit(texts, task, encoders=encoders, **QUICK)
    assert found.scores["accuracy"].items.tolist() == wanted.scores["accuracy"].items.tolist()
    with pytest.raises(MmkitError, match="unknown objective of pretraining for text 'contrast'"):
        fit(by_name, task, encoders=encoders, **QUICK)


def test_a_larger_pool_holds_the_smaller_one_and_seeds_draw_others(task):
    from mmkit.pretraining.pool import _pool

    def rows(count, seed):
        encoders = Encoders(pool=count)
        return set(_pool(task, "image", None, Part(CNN), encoders, seed).rows.tolist())

    assert rows(10, 0) < rows(30, 0) and rows(10, 0) != rows(10, 1) and len(rows(10, 0)) == 10


REFUSED = {
    "unknown objective of pretraining for image 'contrats': did you mean 'contrast'": {
        "objective": {"image": "contrats"}
    },
    "unknown objective of pretraining for text 'contrast'": {"objective": {"text": "contrast"}},
    "steps of pretraining is 1 or more, got 0": {"steps": 0},
    "pool of pretraining is 1 or more, got -1": {"pool": -1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_wrong_choice_is_named(message):
    with pytest.raises(MmkitError, match=message):
        Encoders(**REFUSED[message])
    assert set(OBJECTIVES) == {"image", "text"}


def test_labels_that_are_not_there_are_named(task, scenes):
    unknown = Encoders(objective=OWN, labels={"image": ("label_heding",)})
    with pytest.raises(MmkitError, match="unknown label of 'scenes' 'label_heding': did you mean 'label_heading'"):
        fit("frozen", task, encoders=unknown, **QUICK)
    with pytest.raises(MmkitError, match="supervised pretraining of the image encoder: 'scenes' has no facts"):
        fit("frozen", task, encoders=Encoders(objective=OWN, labels={"image": ()}), **QUICK)
