"""A run that is killed between two checks and goes on ends with the digits of one that was never killed, hooks
included."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmkit.errors import MmkitError
from mmkit.models import CNN, Concat, Multimodal, TextTransformer
from mmkit.models.adapters import add_adalora
from mmkit.models.identity import digest
from mmkit.training import (
    Batch,
    Checkpoint,
    EarlyStopping,
    Losses,
    RankAllocation,
    Unfreeze,
    WeightAverage,
    checkpoint,
    cross_entropy,
    seeded,
    stream,
    train,
)

STEPS = 20  # checks stand after steps 5, 10, 15 and 20


class Killed(BaseException):
    """In the place of a signal: nothing in between may catch it."""


class Feed:
    """Batches of noise, whose stream can be kept."""

    def __init__(self):
        self.generator = stream(0, "feed")

    def __next__(self):
        pixels = torch.randint(0, 256, (4, 3, 16, 16), generator=self.generator, dtype=torch.uint8)
        ids = torch.randint(1, 20, (4, 5), generator=self.generator)
        return Batch(torch.arange(4), {"image": pixels, "text": ids}, torch.arange(4) % 3)

    def state(self):
        return {"generator": self.generator.get_state()}

    def restore(self, state):
        self.generator.set_state(state["generator"])


def built():
    encoders = {"image": CNN(size=16), "text": TextTransformer(20)}
    return Multimodal(encoders, Concat(encoders, dim=8), nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)))


class Halving:
    """A student's hook without state of its own: halves the rates at every check."""

    def after_check(self, state):
        for group in state.optimizer.param_groups:
            group["initial_lr"] /= 2


class Momentum:
    """A student's hook with tensors and numbers of its own: adds a fading sum of its gradients to one gradient."""

    def __init__(self):
        self.sum, self.share = torch.zeros(8), 1.0

    def after_backward(self, state):
        gradient = state.model.head[1].weight.grad
        self.sum, self.share = self.sum * 0.9 + gradient[0], self.share * 0.9
        gradient[0] += self.share * self.sum

    def state(self):
        return {"sum": self.sum, "share": self.share}

    def restore(self, state):
        self.sum, self.share = state["sum"], state["share"]


HOOKS = {
    "losses": lambda model: Losses(),
    "average": lambda model: WeightAverage(0.8),
    "stopping": lambda model: EarlyStopping(2),
    "unfreezing": lambda model: Unfreeze(["head.*", "fusion.*", "*"], every=7),
    "ranks": lambda model: RankAllocation(add_adalora(model.text, steps=STEPS, rank=4, start=12)),
    "halving": lambda model: Halving(),
    "momentum": lambda model: Momentum(),
}


def run(make, folder=None, *, killed=None):
    """The model's digest, the hook, the history and the cost."""

    at = []

    def kill(state):
        at.append(state.step)
        if state.step == killed:
            raise Killed

    def score(model):
        """Falls after the first check, so that patience is counted."""
        return -float(at[-1])

    model = seeded(0, "model", built)
    hooks = [seeded(0, "hook", make, model), SimpleNamespace(after_step=kill)]
    kept = Checkpoint(folder / "kept.safetensors", {"code": 1}) if folder else None
    options = {"validate": score, "checks": 4, "keep_best": False, "checkpoint": kept}
    phase, history = seeded(
        0, "train", train, model, cross_entropy, Feed(), steps=STEPS, lr=1e-2, hooks=hooks, **options
    )
    return digest(model), hooks[0], history, (phase.flops, phase.steps, phase.parameters_trained)


@pytest.mark.parametrize(("name", "killed", "first"), [*((name, 12, 10) for name in HOOKS), ("ranks", 17, 15)])
def test_a_run_with_a_hook_goes_on_with_the_same_digits(name, killed, first, tmp_path, capsys):
    whole, hook, history, cost = run(HOOKS[name])
    with pytest.raises(Killed):
        run(HOOKS[name], tmp_path, killed=killed)
    again, other, later, price = run(HOOKS[name], tmp_path)
    assert f"going on from step {first} of {STEPS}" in capsys.readouterr().out
    assert (again, later, price) == (whole, history, cost)
    if name == "stopping":
        assert len(history) == 3, "patience counts the checks before the kill, too"
    if name == "losses":
        assert other.losses == hook.losses and len(hook.losses) == STEPS
    if name == "average":
        assert all(value.equal(hook.weights[key]) for key, value in other.weights.items())


def test_the_hooks_matter_for_the_digits():
    """Or the test above would hold for hooks that do nothing."""
    plain = run(lambda model: Losses())[0]
    acting = {name: run(HOOKS[name])[0] for name in ("unfreezing", "ranks", "halving", "momentum")}
    assert plain not in acting.values() and len(set(acting.values())) == len(acting)


def test_other_hooks_are_another_run(tmp_path):
    with pytest.raises(Killed):
        run(HOOKS["average"], tmp_path, killed=12)
    with pytest.raises(MmkitError, match=r"is of another run \(hooks differ\)"):
        run(HOOKS["losses"], tmp_path)


def test_a_state_that_cannot_be_kept_is_one_line(tmp_path):
    odd = SimpleNamespace(after_step=lambda state: None, state=lambda: {"seen": {1, 2}}, restore=print)
    with pytest.raises(
        MmkitError, match=r"a hook's state\(\) is a dict of tensors and JSON values, got .*set"
    ) as error:
        run(lambda model: odd, tmp_path)
    assert "\n" not in str(error.value)


def test_a_hook_with_half_of_the_two_methods_is_refused():
    with pytest.raises(MmkitError, match="has one of the methods state and restore: a checkpoint needs both"):
        run(lambda model: SimpleNamespace(after_step=print, state=dict))


class Accelerator:
    """A device module whose random state is one number, drawn from by a hook."""

    def __init__(self):
        self.at = torch.tensor([7], dtype=torch.uint8)

    def get_rng_state(self):
        return self.at.clone()

    def set_rng_state(self, state):
        self.at = state

    def after_backward(self, state):
        self.at = self.at * 5 + 3  # wraps around, as a byte does
        state.model.head[1].bias.grad += self.at.float() / 255


def test_the_random_state_of_an_accelerator_is_kept_where_there_is_one(tmp_path, monkeypatch):
    def attempt(*given, **options):
        device = Accelerator()
        monkeypatch.setattr(checkpoint, "_accelerator", lambda: device)
        return run(lambda model: device, *given, **options)

    whole = attempt()[0]
    with pytest.raises(Killed):
        attempt(tmp_path, killed=12)
    assert attempt(tmp_path)[0] == whole
