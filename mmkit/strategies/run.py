"""What goes into a run and what comes out of it."""

from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor, nn

from mmkit.errors import MmkitError, unknown
from mmkit.metrics.score import Score
from mmkit.strategies import saving
from mmkit.strategies.saving import Trained
from mmkit.training.cost import Cost


@dataclass(frozen=True)
class Budget:
    """What an arm may spend.

    pairs: labelled pairs of the training split it may train on; every arm besides selects its weights on the same
        validation split.
    epochs: passes over them, all stages together.
    flops: when given, the stages on pairs are lengthened or shortened in proportion, so that the run, pretraining
        included, spends this much (hooks and the mining of negatives are not counted).
    """

    pairs: int
    epochs: int = 30
    flops: float | None = None

    def __post_init__(self):
        numbers = all(map(isinstance, (self.pairs, self.epochs, self.flops), (Integral, Real, Real | None)))
        if not numbers or self.pairs < 8 or self.epochs < 1 or not (self.flops is None or self.flops > 0):
            remedy = "give numbers, pairs a whole one"
            raise MmkitError(f"a budget needs pairs >= 8, epochs >= 1 and flops > 0, got {self}: {remedy}")


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
    trained: Trained | None = None

    def predict(self, **inputs):
        """What the model says of some inputs, by modality: `run.predict(image=["a.jpg"], text=["what is it?"])`.

        Answering gives labels with probabilities, captioning captions, retrieval unit vectors. Raises MmkitError for a
        modality that the model does not read or, but in retrieval, one that is missing."""
        if self.trained is None:
            raise MmkitError(f"the run of {self.arm!r} holds no single model that can be asked: ask its members")
        for modality in inputs:
            if modality not in self.model.modalities:
                raise unknown("modality", modality, self.model.modalities)
        task, device = self.trained.task, next(self.model.parameters()).device
        task.words = self.trained.words
        return task.predict(self.model, {name: task.input(name, values).to(device) for name, values in inputs.items()})

    def save(self, folder: str | Path) -> Path:
        """Keep the model in a new folder: `model.safetensors`, `model.json`, and a card, `README.md`."""
        return saving.save(self, folder)

    @classmethod
    def load(cls, folder: str | Path, **options) -> "Run":
        """A kept model, ready for `predict`; its scores stand in `settings["saved_scores"]`. See `saving.load`."""
        with saving.reading(folder):
            about, model, trained = saving.load(folder, **options)
            settings = about["settings"] | {"saved_scores": about["scores"]}
            data, content = about["data"]["name"], about["data"]["content"]
            try:
                budget = Budget(**about["budget"])
            except MmkitError as error:  # and `reading` says in which file
                raise ValueError(error) from error
        run = cls(about["arm"], about["task"], data, content, about["seed"], budget, settings, {}, Cost(), [], model)
        run.trained = trained
        return run


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
