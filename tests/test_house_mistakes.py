"""What a strategy may get wrong, or ask for at an odd moment: one line with the remedy, and nothing silent."""

from dataclasses import replace

import pytest
import torch

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.models.adapters import add_lora
from mmkit.strategies import Budget, Encoders, Stage, Strategy, fit
from mmkit.tasks import Answering, Retrieval
from mmkit.training import Group, Unfreeze, distilled

pytestmark = pytest.mark.slow
SMALL = {"train": 96, "val": 32, "test": 32, "ood": 32, "pool": 64}
OPTIONS = {"budget": Budget(pairs=64, epochs=6), "seed": 0, "encoders": Encoders(epochs=1), "lr": 3e-3}


@pytest.fixture(scope="module")
def task():
    return Answering(load("scenes", **SMALL))


def staged(**choices):
    return Strategy("mine", "mine", stages=(Stage("joint", **choices),))


class StopAt:
    def __init__(self, step):
        self.step = step

    def after_step(self, state):
        state.stop = state.step == self.step


def test_a_hook_stops_the_training_at_once_and_the_end_is_validated(task):
    run = fit(staged(hooks=lambda fitting: [StopAt(1)]), task, **OPTIONS)
    assert run.cost.phases["joint"].steps == 2
    assert run.history[-1]["step"] == 2 and 0 <= run.settings["validation"] <= 1


def test_what_a_teacher_cost_is_counted(task):
    def wrap(objective, fitting):
        return distilled(objective, fitting.fit("scratch").model)

    run, alone = fit(staged(wrap=wrap), task, **OPTIONS), fit("scratch", task, **OPTIONS)
    assert run.cost.phases["scratch/joint"].flops == alone.cost.flops
    assert run.cost.flops > 2 * alone.cost.flops


def test_weights_that_a_loss_cannot_use_are_refused():
    retrieval = Retrieval(load("scenes", **SMALL))

    def weighted(loader, fitting):
        return replace(loader, weight=torch.ones(len(loader.dataset)))

    with pytest.raises(MmkitError, match="weight"):
        fit(Strategy("heavy", "weighted", show=weighted), retrieval, **OPTIONS)


def test_a_strategys_name_does_not_lead_out_of_the_folder_of_checkpoints(task, tmp_path):
    folder = tmp_path / "kept"
    fit(Strategy("../../out", "mine"), task, **OPTIONS, checkpoint=folder)
    assert [path.parent for path in tmp_path.rglob("*.safetensors")] == [folder]


def test_a_checkpoint_knows_what_the_strategy_does_and_not_its_name_alone(task, tmp_path):
    fit(staged(groups=(Group("head.*"),)), task, **OPTIONS, checkpoint=tmp_path)
    with pytest.raises(MmkitError, match="is of another run .*definition"):
        fit(staged(), task, **OPTIONS, checkpoint=tmp_path)


def two_adapters(fitting):
    add_lora(fitting.model.text, rank=2)
    add_lora(fitting.model.text, rank=2)


MISTAKES = {
    "the objective .* gave a tensor": lambda: staged(
        wrap=lambda own, fitting: lambda model, batch: model(batch.inputs)
    ),
    "the transform nothing gave a NoneType": lambda: Strategy("mine", "mine", transforms=(nothing,)),
    r"is a class: make one, StopAt\(\)": lambda: staged(hooks=lambda fitting: [StopAt]),
    "has adapters already": lambda: Strategy("mine", "mine", prepare=two_adapters),
    "was thawed and no group": lambda: staged(
        groups=(Group("head.*"),), hooks=lambda fitting: [Unfreeze(["head.*", "fusion.*"], every=1)]
    ),
    "unknown modality in the start of 'mine' 'imge'": lambda: Strategy("mine", "mine", {"imge": "pretrained"}),
    "groups of the stage 'joint' are a tuple": lambda: staged(groups=Group("head.*")),
    "stages of 'mine' are a tuple": lambda: Strategy("mine", "mine", stages=Stage("joint")),
    "wrap of the stage 'joint' is not a function": lambda: staged(wrap=3),
}


def nothing(batch, generator):
    return None


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line(message, task):
    with pytest.raises(MmkitError, match=message) as caught:
        fit(MISTAKES[message](), task, **OPTIONS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": float("nan")}, {"batch": 0}])
def test_a_rate_and_a_batch_are_above_zero(options, task):
    with pytest.raises(MmkitError, match="batch is 1 or more and lr above 0"):
        fit("scratch", task, **OPTIONS | options)
