"""What goes into a run and what comes out of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmkit.errors import MmkitError
from mmkit.metrics.score import Score
from mmkit.training.cost import Cost


@dataclass(frozen=True)
class Budget:
    """What an arm may spend.

    pairs: labelled pairs of the training split it may train on; every arm besides selects its weights on the same validation split.
    epochs: passes over them, all stages together.
    flops: when given, the stages on pairs are lengthened or shortened in proportion, so that the run, pretraining included, spends this much
        (losses that only balance modalities and the mining of negatives are not in the reckoning).
    """

    pairs: int
    epochs: int = 30
    flops: float | None = None

    def __post_init__(self):
        if self.pairs < 8 or self.epochs < 1 or (self.flops is not None and self.flops <= 0):
            raise MmkitError(f"a budget needs pairs >= 8, epochs >= 1 and flops > 0, got {self}")


@dataclass
class Run:
    """One arm, trained once with one seed, and what came of it. `scores` is keyed by metric, with the split in front of
    every split but the test one: `accuracy`, `ood_style/accuracy`. ends: of an arm that mixes weights, those it
    mixed."""

    arm: str
    task: str
    data: str
    data_hash: str
    seed: int
    budget: Budget
    settings: dict
    scores: dict[str, Score]
    cost: Cost
    history: list[dict] = field(default_factory=list)
    model: nn.Module | None = None
    ends: tuple[dict[str, Tensor], ...] = ()


def interpolate(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights and buffers `share` of the way from one state of a model to another (WiSE-FT, arXiv 2109.01903);
    counters, which are whole numbers, are the end's.

    Raises MmkitError when the two are not states of one model."""
    if {name: value.shape for name, value in start.items()} != {name: value.shape for name, value in end.items()}:
        raise MmkitError("weights of two different models cannot be mixed: give two states of one model")
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value.clone()
        for name, value in end.items()
    }
