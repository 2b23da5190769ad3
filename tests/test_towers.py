"""Towers that are frozen, fine-tuned or random (LiT's grid), and the weights between two models."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.models.text import vocabulary
from mmkit.strategies import ARMS, Budget, Encoders, fit, interpolate
from mmkit.strategies.start import start
from mmkit.tasks import Retrieval
from mmkit.training import Batch, Group, train

SMALL = {"train": 96, "val": 16, "test": 48, "ood": 16, "pool": 64}
QUICK = Encoders(epochs=1)


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


# ------------------------------------------------------------------------------------------- frozen, fine-tuned, random


@pytest.mark.parametrize("name", ["lit_Lu", "lit_LU", "lit_UL", "lit_uL", "lit_Uu", "lit_uU"])
def test_each_tower_starts_and_is_trained_as_its_letter_says(name, scenes):
    task, letters = Retrieval(scenes), dict(zip(("image", "text"), name[-2:]))
    cpu = torch.device("cpu")
    random, _, _ = start(ARMS["scratch"], task, QUICK, vocabulary(scenes), seed=0, device=cpu)
    given, _, _ = start(ARMS["holistic"], task, QUICK, vocabulary(scenes), seed=0, device=cpu)
    seen = {}

    class Watched(Retrieval):
        def objective(self, model, batch):
            for side in letters:
                seen.setdefault(side, deepcopy(getattr(model, side).state_dict()))
            return super().objective(model, batch)

    run = fit(name, Watched(scenes), budget=Budget(64, 1), seed=0, encoders=QUICK, evaluate=("test",))
    for side, letter in letters.items():
        first = (random if letter == "u" else given)[side].state_dict()
        assert all(value.equal(first[key]) for key, value in seen[side].items()), f"{side} starts {letter}"
        now = getattr(run.model, side).state_dict()
        same = all(value.equal(seen[side][key]) for key, value in now.items())
        assert same == (letter == "L"), f"{side} is trained {letter}"
        assert (f"pretrain_{side}" in run.cost.phases) == (letter != "u"), "only what is used is paid for"
    assert ARMS[name].modalities == ("image", "text") and "image" in ARMS[name].what


def test_a_frozen_encoders_statistics_stay():
    """A batch norm that is frozen keeps its running statistics, although training goes on around it; one that only
    normalises has no parameters, and follows its neighbours."""
    model = nn.ModuleDict(
        {
            "image": nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()),
            "text": nn.BatchNorm1d(3),
            "fusion": nn.BatchNorm1d(3, affine=False),
        }
    )

    def objective(model, batch):
        return sum(part(batch.inputs["x"]).sum() for part in model.values())

    batch = Batch(torch.arange(8), {"x": torch.randn(8, 3) + 5})
    train(model, objective, iter([batch] * 4), steps=4, lr=0.01, groups=(Group("text.*"),), validate=lambda _: 0.0)
    assert model["image"][0].running_mean.abs().max() == 0 and model["image"][0].num_batches_tracked == 0
    assert model["text"].running_mean.min() > 0 and model["fusion"].running_mean.min() > 0


# ---------------------------------------------------------------------------------------------- between two models


def test_interpolation_mixes_weights_and_buffers_and_keeps_counters():
    start, end = nn.BatchNorm1d(3).state_dict(), nn.BatchNorm1d(3).state_dict()
    end = {
        **end,
        "weight": torch.tensor([3.0, 1.0, -1.0]),
        "running_var": torch.tensor([5.0, 1.0, 1.0]),
        "num_batches_tracked": torch.tensor(7),
    }
    before = {name: value.clone() for name, value in start.items()}
    half = interpolate(start, end, 0.25)
    assert half["weight"].tolist() == [1.5, 1.0, 0.5] and half["running_var"].tolist() == [2.0, 1.0, 1.0]
    assert half["num_batches_tracked"].tolist() == 7 and half["num_batches_tracked"].dtype == torch.int64
    assert all(value.equal(start[name]) for name, value in before.items())
    for share, expected in ((0.0, start), (1.0, end)):
        for name, value in interpolate(start, end, share).items():
            assert value.equal(expected[name]) or not value.is_floating_point()
    with pytest.raises(MmkitError, match="weights of two different models cannot be mixed"):
        interpolate(start, nn.BatchNorm1d(4).state_dict(), 0.5)


def test_wise_ft_is_halfway_between_its_locked_and_its_tuned_end(scenes):
    task, budget = Retrieval(scenes), Budget(64, 10)
    options = {"budget": budget, "seed": 0, "encoders": QUICK, "lr": 2e-3}
    run, component = (fit(name, task, **options) for name in ("wise_ft", "component"))
    locked, tuned = run.ends
    for name, value in component.model.state_dict().items():
        assert value.equal(tuned[name]), "the same training as component's"
    assert any(not locked[name].equal(tuned[name]) for name in locked)
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, (locked[name] + tuned[name]) / 2)
    loader = task.loader()
    assert run.settings["validation"] == task.scores(run.model, loader, task.rows("val"))["recall@1"].value
    held = task.scores(run.model, loader, task.rows("ood_style"))["recall@1"]
    assert run.scores["ood_style/recall@1"].items.tolist() == held.items.tolist()
    assert component.ends == () and run.cost.flops == component.cost.flops
