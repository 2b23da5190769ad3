"""Answering: a label that needs one modality, another, or all of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmkit.data import Dataset
from mmkit.errors import MmkitError, unknown
from mmkit.metrics import Score, accuracy
from mmkit.models import Multimodal
from mmkit.models.fusion import FUSIONS, fusion
from mmkit.tasks.base import Task, require_loaded
from mmkit.tasks.texts import scored
from mmkit.training import Batch, Loader, cross_entropy, seeded


class Answering(Task):
    """Data: a set with a label. Objective: cross-entropy. Metric: accuracy.

    modalities: what the model reads; text alone is `("text",)`, a set's further arrays go by their names."""

    name, metric, alone = "answering", "accuracy", True

    def __init__(
        self,
        dataset: Dataset,
        *,
        label: str = "label_answer",
        role: str = "question",
        language: str = "en",
        fusion: str = "concat",
        modalities: tuple[str, ...] = ("image", "text"),
        limit: int | None = None,
    ):
        require_loaded(dataset)
        self.dataset, self.label, self.role, self.language, self.fusion, self.limit = (
            dataset,
            label,
            role,
            language,
            fusion,
            limit,
        )
        self.modalities = tuple(modalities)
        self.classes = dataset.classes(label)
        if len(self.classes) < 2:
            raise MmkitError(
                f"answering needs a label with at least two classes; {label!r} of {dataset.name!r} has {self.classes}"
            )
        if fusion not in FUSIONS:
            raise unknown("fusion", fusion, FUSIONS)
        self.target = dataset.labels(range(len(dataset)), label)
        unlabelled = (self.target < 0).numpy() & scored(dataset)
        if unlabelled.any():
            first = dataset.items["id"][unlabelled].iloc[0]
            remedy = "label them, or leave them out of the set"
            raise MmkitError(
                f"{unlabelled.sum()} items of {dataset.name!r} have no {label!r}, first {first!r}: {remedy}"
            )

    @property
    def tuned_as(self) -> str:
        """Where the table of tuned learning rates has this task: scenes have rates by whether none, some or all of
        their answers need both modalities."""
        share = self.dataset.card.get("knobs", {}).get("both") if self.dataset.name == "scenes" else None
        if share is None:
            return self.name
        return f"answering, {({0.0: 'none', 1.0: 'all'}).get(share, 'some')} need both"

    def settings(self) -> dict:
        given = {
            "label": self.label,
            "role": self.role,
            "language": self.language,
            "fusion": self.fusion,
            "limit": self.limit,
        }
        return given if self.modalities == ("image", "text") else given | {"modalities": list(self.modalities)}

    def targets(self, words) -> Tensor:
        return self.target

    def build(self, parts: Mapping[str, nn.Module], *, seed: int) -> Multimodal:
        """Encoders behind a fusion module and a linear head whose first weights depend on the seed alone."""

        def build() -> Multimodal:
            joined = fusion(self.fusion, parts)
            return Multimodal(parts, joined, nn.Linear(joined.dim, len(self.classes)))

        return seeded(seed, "head", build)

    def objective(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch)

    @torch.inference_mode()
    def logits(self, model: nn.Module, loader: Loader, rows: Tensor, *, batch: int = 512) -> Tensor:
        """(B, K) on the CPU, in evaluation mode."""
        model.eval()
        return torch.cat([model(loader(part).inputs).cpu() for part in rows.split(batch)])

    @torch.inference_mode()
    def predict(self, model: nn.Module, inputs: dict) -> list[dict]:
        """For each item the most probable class, `label`, and the `probability` of every class by name."""
        sizes = {modality: len(x) for modality, x in inputs.items()}
        if len(set(sizes.values()) - {1}) > 1:
            raise MmkitError(f"the inputs are of different numbers, {sizes}: give as many of each, or one for all")
        most = max(sizes.values(), default=0)
        inputs = {m: x.expand(most, *x.shape[1:]) for m, x in inputs.items()}
        chances = model.eval()(inputs).softmax(1).cpu()
        answers = []
        for row in chances.tolist():
            probability = dict(zip(map(str, self.classes), row, strict=True))
            answers.append({"label": max(probability, key=probability.get), "probability": probability})
        return answers

    def scores(self, model: nn.Module, loader: Loader, rows: Tensor) -> dict[str, Score]:
        clusters = self.dataset.clusters(rows.numpy())
        return {"accuracy": accuracy(self.logits(model, loader, rows), self.target[rows], clusters)}

    def blank_scores(self, model: nn.Module, loader: Loader, rows: Tensor) -> dict[str, Score]:
        """Accuracy when one modality is shown empty: how much the model leans on the others."""
        return {f"blank_{m}/accuracy": self.scores(model, loader.blanked(m), rows)["accuracy"] for m in self.modalities}
