"""A budget of FLOPs pays for what a stage really computes: its own objective, the teacher that it trains, no hook."""

import pytest
import torch
from torch import nn

from mmkit.data import load
from mmkit.models import CNN
from mmkit.strategies import Budget, Encoders, Part, Stage, Strategy, fit
from mmkit.tasks import Answering
from mmkit.training import adversarial, distilled

pytestmark = pytest.mark.slow
SMALL = {"train": 96, "val": 32, "test": 32, "ood": 32, "pool": 64}
OPTIONS = {"seed": 0, "encoders": Encoders(epochs=1), "lr": 3e-3, "batch": 16, "evaluate": ("val",)}


@pytest.fixture(scope="module")
def task():
    return Answering(load("scenes", **SMALL))


def attacked(objective, fitting):
    return adversarial(objective, modality="image", size=4.0)


def taught(objective, fitting):
    return distilled(objective, fitting.fit("scratch").model)


def wrapped(*wraps):
    return Strategy("mine", "mine", stages=tuple(Stage(f"part {n}", wrap=wrap) for n, wrap in enumerate(wraps)))


@pytest.mark.parametrize("wraps", [(attacked,), (None, attacked), (taught,)])
def test_a_budget_of_flops_is_spent_on_the_wrapped_objective(wraps, task):
    plain = fit("scratch", task, budget=Budget(64, 4), **OPTIONS).cost
    flops = 4 * plain.flops
    run = fit(wrapped(*wraps), task, budget=Budget(64, 4, flops=flops), **OPTIONS)
    last = run.cost.phases[f"part {len(wraps) - 1}"]
    assert last.flops_a_step > 1.2 * plain.phases["joint"].flops_a_step, "or there is nothing to count"
    assert run.cost.flops == pytest.approx(flops, rel=0.08)
    if taught in wraps:
        assert run.cost.phases["scratch/joint"].flops == plain.flops


def test_a_teacher_is_trained_once_although_a_step_is_priced_first(task, monkeypatch):
    calls = []
    objective = Answering.objective
    monkeypatch.setattr(Answering, "objective", lambda *given: calls.append(1) or objective(*given))
    run = fit(wrapped(taught), task, budget=Budget(64, 2, flops=4e9), **OPTIONS)
    steps = sum(phase.steps for phase in run.cost.phases.values())
    assert len(calls) == steps + 1, "and one to price it"


class Normed(CNN):
    """An encoder with running statistics."""

    def __init__(self):
        super().__init__(size=32)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels):
        return super().forward(127 + 30 * self.norm(pixels.float()))


def test_pricing_a_step_leaves_the_model_as_it_was(task):
    """Nor is what a later stage freezes left frozen, or a batch counted by batch norm."""
    seen = []

    def look(fitting):
        seen.append(fitting.model.image.norm.num_batches_tracked.item())
        seen.append(all(parameter.requires_grad for parameter in fitting.model.parameters()))
        return ()

    encoders = Encoders(others={"image": Part(Normed)})
    strategy = Strategy("mine", "mine", stages=(Stage("joint", hooks=look),))
    fit(strategy, task, budget=Budget(64, 1, flops=4e9), **OPTIONS | {"encoders": encoders})
    assert seen == [0, True]


def test_what_a_strategy_trains_twice_are_two_models(task):
    models = []

    def prepare(fitting):
        models.extend(fitting.fit("scratch").model for _ in range(2))
        with torch.no_grad():
            models[0].head.weight.zero_()
        models.append(fitting.fit("scratch").model)

    fit(Strategy("mine", "mine", prepare=prepare), task, budget=Budget(64, 1), **OPTIONS)
    assert models[1].head.weight.equal(models[2].head.weight) and models[1].head.weight.abs().sum() > 0
