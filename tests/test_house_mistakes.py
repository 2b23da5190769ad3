"""What a strategy may get wrong, or ask for at an odd moment: one line with the remedy, and nothing silent."""

import errno
import os
from dataclasses import replace

import pytest
import torch

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.models.adapters import add_lora
from mmkit.strategies import Budget, Encoders, Stage, Strategy, fit
from mmkit.tasks import Answering, Captioning, Diagnosis, Retrieval
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


def test_a_record_says_how_the_encoder_of_each_modality_started(task):
    run = fit(Strategy("mine", "mine", {"image": "pretrained"}), task, **OPTIONS)
    assert run.settings["start"] == "image: self-supervised on the unpaired pools, cost counted; text: random"


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
    r"wrap of the stage 'joint' is not a function of \(objective, fitting\)": lambda: staged(wrap=lambda own: own),
    r"hooks of the stage 'joint' is not a function of \(fitting\)": lambda: staged(hooks=lambda: []),
    r"schedule of the stage 'joint' is not a function of \(step, steps\)": lambda: staged(schedule=lambda step: 1.0),
    r"what wrap of the stage 'joint' gave is not a function of \(model, batch\)": lambda: staged(
        wrap=lambda own, fitting: lambda model: own
    ),
    "what wrap of the stage 'joint' gave is not a function": lambda: staged(wrap=lambda own, fitting: None),
    r"prepare of 'mine' is not a function of \(fitting\)": lambda: Strategy("mine", "mine", prepare=lambda: 0),
    r"show of 'mine' is not a function of \(loader, fitting\)": lambda: Strategy("mine", "mine", show=lambda loader: 0),
    "show of 'mine' gave a NoneType: return the loader": lambda: Strategy("mine", "mine", show=lambda *given: None),
    r"weight is a tensor \(\d+,\), .* got a tensor \(5,\)": lambda: weighing(torch.ones(5)),
    r"weight is a tensor \(\d+,\), .* got a list": lambda: weighing([1.0]),
    "one number of 0 or more for each item": lambda: weighing(-torch.ones(256)),
}


def weighing(weight):
    return Strategy("mine", "mine", show=lambda loader, fitting: replace(loader, weight=weight))


def nothing(batch, generator):
    return None


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line(message, task):
    with pytest.raises(MmkitError, match=message) as caught:
        fit(MISTAKES[message](), task, **OPTIONS)
    assert "\n" not in str(caught.value)


def test_a_built_in_function_is_taken_as_it_is():
    assert Stage("joint", schedule=max).schedule is max


class TwoTasks(Answering):
    """Two targets by name, as multi_task takes them."""

    def targets(self, words):
        return {"turn": self.target, "again": self.target}


@pytest.mark.parametrize("name", ["scratch", "joint_plus_unimodal", "ogm_ge"])
def test_targets_by_name_are_refused_by_losses_of_one(name, task):
    with pytest.raises(MmkitError, match=r"needs targets \(64,\), got one a task \(turn, again\)") as caught:
        fit(name, TwoTasks(task.dataset), **OPTIONS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "0"}, "seed is a whole number, got '0'"),
        ({"seed": 0.5}, "seed is a whole number, got 0.5"),
        ({"batch": 16.0}, "batch is a whole number, got 16.0"),
        ({"lr": "1e-3"}, "lr is a number or None, got '1e-3'"),
        ({"budget": 64}, r"budget is a Budget, such as Budget\(pairs=256\), got 64"),
        ({"encoders": "cnn"}, "encoders is of the type Encoders"),
        ({"task": "answering"}, "task is a task on loaded data"),
        ({"strategy": 3}, "strategy is an arm's name or a Strategy, got 3"),
    ],
)
def test_an_argument_of_another_kind_is_one_line(options, message, task):
    with pytest.raises(MmkitError, match=message):
        fit(**{"strategy": "scratch", "task": task} | OPTIONS | options)


@pytest.mark.parametrize(
    "given", [(64.0,), ("64",), (64, "3"), (64, 3, "1e9"), (64, 3, float("nan")), (True,)], ids=str
)
def test_a_budget_is_made_of_numbers(given):
    with pytest.raises(MmkitError, match="a budget needs pairs >= 8, .*: give numbers, pairs a whole one"):
        Budget(*given)


@pytest.mark.parametrize("kind", [Answering, Diagnosis, Retrieval, Captioning])
def test_the_name_of_a_data_set_is_no_data_set(kind):
    with pytest.raises(MmkitError, match=r"a task takes a data set and not its name: mmkit.load\('scenes'\)"):
        kind("scenes")


@pytest.mark.parametrize("reason", [errno.ENOENT, errno.EACCES, errno.EROFS])  # as /proc and a foreign folder give
def test_a_folder_that_cannot_be_written_is_one_line(reason, task, tmp_path, monkeypatch):
    run = fit("scratch", task, **OPTIONS)

    def refuse(path, *given, **options):
        raise OSError(reason, os.strerror(reason), str(path))

    monkeypatch.setattr(type(tmp_path), "mkdir", refuse)
    with pytest.raises(MmkitError, match=r"cannot write in .*: name a folder that you can write"):
        run.save(tmp_path / "model")
    with pytest.raises(MmkitError, match=r"cannot write in .*: name another folder for the checkpoints"):
        fit("scratch", task, **OPTIONS, checkpoint=tmp_path / "kept")


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": float("nan")}, {"batch": 0}])
def test_a_rate_and_a_batch_are_above_zero(options, task):
    with pytest.raises(MmkitError, match="batch is 1 or more and lr above 0"):
        fit("scratch", task, **OPTIONS | options)
