"""Hooks: objects with methods named after moments of a step, each given the `State` of the loop.

Moments: before_step, after_backward, after_step, after_check. A hook holds state of its own, so it is made anew for
every run. `state()` -> a dict of tensors and JSON values, and `restore(state)`, whose tensors are on the CPU, let a
checkpoint keep that state; a hook without the two starts anew when a killed run goes on, and numbers may then differ.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from mmkit.errors import MmkitError
from mmkit.training.groups import Group, assign

MOMENTS = ("before_step", "after_backward", "after_step", "after_check")
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # peft's names, in AdaLoRA's `RankAllocator`


def check(hooks: Sequence[object]) -> None:
    """Raise MmkitError for a hook that has no method of a known name."""
    if not isinstance(hooks, Sequence):
        raise MmkitError(f"hooks are a list, got one {type(hooks).__name__}: put it in brackets, [hook]")
    for hook in hooks:
        if isinstance(hook, type):
            raise MmkitError(f"the hook {hook.__name__} is a class: make one, {hook.__name__}()")
        if not any(callable(getattr(hook, moment, None)) for moment in MOMENTS):
            raise MmkitError(
                f"the hook {type(hook).__name__} has none of the methods {', '.join(MOMENTS)}: name its method after a "
                "moment"
            )
        if callable(getattr(hook, "state", None)) != callable(getattr(hook, "restore", None)):
            raise MmkitError(
                f"the hook {type(hook).__name__} has one of the methods state and restore: a checkpoint needs both"
            )


def call(hooks: Sequence[object], moment: str, state) -> None:
    """Call the hooks that have a method of this name, in order."""
    for hook in hooks:
        method = getattr(hook, moment, None)
        if method is not None:
            method(state)


class Losses:
    """The loss of each step, `losses`: what a training curve is drawn from. The last one may be infinite or NaN."""

    def __init__(self):
        self.losses: list[float] = []

    def after_backward(self, state) -> None:
        self.losses.append(state.loss.item())

    def state(self) -> dict:
        return {"losses": list(self.losses)}

    def restore(self, state: dict) -> None:
        self.losses[:] = state["losses"]


class EarlyStopping:
    """Stop when the validation score has not risen for `patience` checks, as the history has them."""

    def __init__(self, patience: int):
        if patience < 1:
            raise MmkitError(f"patience={patience} would stop before the first check: take 1 or more")
        self.patience = patience

    def after_check(self, state) -> None:
        scores = [entry["validation"] for entry in state.history]
        since_best = len(scores) - 1 - scores.index(max(scores))
        state.stop |= since_best >= self.patience  # another hook may have stopped already


class Unfreeze:
    """Progressive unfreezing (ULMFiT, arXiv 1801.06146): one more layer learns every `every` steps, in the order of
    `patterns`.

    Raises MmkitError for a pattern that matches nothing, and at the first step when the last layer's turn comes
    after the last step."""

    def __init__(self, patterns: Sequence[str], *, every: int):
        if every < 1 or not patterns:
            raise MmkitError(f"unfreezing needs patterns and every >= 1, got {list(patterns)} and every={every}")
        self.patterns, self.every = tuple(patterns), every

    def before_step(self, state) -> None:
        if state.step == 0:
            assign(state.model, [Group(pattern) for pattern in self.patterns])
            last = (len(self.patterns) - 1) * self.every
            if last >= state.steps:
                raise MmkitError(
                    f"{self.patterns[-1]!r} would thaw at step {last} of {state.steps}: lower every={self.every}"
                )
        if state.step % self.every == 0:
            awake = self.patterns[: 1 + state.step // self.every]
            for name, parameter in state.model.named_parameters():
                parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in awake))
            state.trained_changed()


class WeightAverage:
    """An exponential moving average of the weights, `weights`: decay times what it was plus the rest of what it is
    now."""

    def __init__(self, decay: float = 0.99):
        if not 0 < decay < 1:
            raise MmkitError(f"decay={decay} is not between 0 and 1: take for example 0.99")
        self.decay, self.weights = decay, None

    @torch.no_grad()
    def after_step(self, state) -> None:
        current = state.model.state_dict()
        if self.weights is None:
            self.weights = {name: value.clone() for name, value in current.items()}
        for name, value in current.items():
            before = self.weights[name].to(value.device)  # what a checkpoint kept comes back on the CPU
            self.weights[name] = torch.lerp(value, before, self.decay) if value.is_floating_point() else value.clone()

    def state(self) -> dict:
        return dict(self.weights or {})

    def restore(self, state: dict) -> None:
        self.weights = dict(state) or None


class RankAllocation:
    """AdaLoRA's reallocation of ranks (arXiv 2303.10512) after every step; tuner: peft's `AdaLoraModel`, which reads
    the gradients."""

    def __init__(self, tuner: nn.Module):
        if not hasattr(tuner, "update_and_allocate"):
            raise MmkitError(f"{type(tuner).__name__} has no ranks to allocate: give peft's AdaLoraModel")
        self.tuner = tuner

    def after_step(self, state) -> None:
        self.tuner.update_and_allocate(state.step)

    def state(self) -> dict:
        """The running importance of every weight, and which ranks are left, as peft keeps them."""
        kept = {"rank_pattern": self._config.rank_pattern}
        for table in IMPORTANCE:
            kept |= {f"{table}/{name}": value for name, value in getattr(self.tuner.rankallocator, table).items()}
        return kept

    def restore(self, state: dict) -> None:
        self._config.rank_pattern = state["rank_pattern"]
        device = next(self.tuner.parameters()).device
        for key in state.keys() - {"rank_pattern"}:
            table, name = key.split("/")
            getattr(self.tuner.rankallocator, table)[name] = state[key].to(device)

    @property
    def _config(self):
        return self.tuner.peft_config[self.tuner.trainable_adapter_name]
