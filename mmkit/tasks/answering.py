"""Answering: a label that needs the image, the text, or both."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.data import Dataset
from mmkit.errors import MmkitError, unknown
from mmkit.metrics import Score, accuracy
from mmkit.models.fusion import FUSIONS, FusionClassifier, SingleClassifier, fusion
from mmkit.tasks.base import Task
from mmkit.training import Inputs, seeded


class Answering(Task):
    """Data: a set with a label and one text an item. Objective: cross-entropy. Metric: accuracy."""

    name, metric, modalities = "answering", "accuracy", ("image", "text")

    def __init__(self, dataset: Dataset, *, label: str = "label_answer", role: str = "question", language: str = "en", fusion: str = "concat", limit: int | None = None):
        self.dataset, self.label, self.role, self.language, self.fusion, self.limit = dataset, label, role, language, fusion, limit
        self.classes = dataset.classes(label)
        if len(self.classes) < 2:
            raise MmkitError(f"answering needs a label with at least two classes; {label!r} of {dataset.name!r} has {self.classes}")
        if fusion not in FUSIONS:
            raise unknown("fusion", fusion, FUSIONS)
        self.target = dataset.labels(range(len(dataset)), label)
        unlabelled = (self.target < 0).numpy() & dataset.items["split"].str.match("train|val|test|ood_").to_numpy()
        if unlabelled.any():
            raise MmkitError(f"{unlabelled.sum()} items of {dataset.name!r} have no {label!r}, first {dataset.items['id'][unlabelled].iloc[0]!r}: label them, or leave them out of the set")

    @property
    def tuned_as(self) -> str:
        """Where the table of tuned learning rates has this task: scenes have rates by whether none, some or all of their answers need both modalities."""
        share = self.dataset.card.get("knobs", {}).get("both") if self.dataset.name == "scenes" else None
        return self.name if share is None else f"answering, {({0.0: 'none', 1.0: 'all'}).get(share, 'some')} need both"

    def settings(self) -> dict:
        return {"label": self.label, "role": self.role, "language": self.language, "fusion": self.fusion, "limit": self.limit}

    def build(self, image: nn.Module, text: nn.Module, *, seed: int) -> FusionClassifier:
        """Encoders behind a fusion module and a linear head whose first weights depend on the seed alone."""
        return seeded(seed, "head", lambda: FusionClassifier(image, text, fusion(self.fusion, image, text), len(self.classes)))

    def build_single(self, modality: str, encoder: nn.Module, *, seed: int) -> SingleClassifier:
        return seeded(seed, "head", SingleClassifier, modality, encoder, len(self.classes))

    def loss(self, model: nn.Module, inputs: Inputs, rows: Tensor, generator: torch.Generator) -> Tensor:
        logits = model(inputs.image(rows), inputs.text(inputs.one_text(rows, generator)))
        return F.cross_entropy(logits, self.target[rows].to(logits.device))

    @torch.inference_mode()
    def logits(self, model: nn.Module, inputs: Inputs, rows: Tensor, *, batch: int = 512) -> Tensor:
        """(B, K) on the CPU, in evaluation mode."""
        model.eval()
        return torch.cat([model(inputs.image(part), inputs.text(inputs.one_text(part))).cpu() for part in rows.split(batch)])

    def scores(self, model: nn.Module, inputs: Inputs, rows: Tensor) -> dict[str, Score]:
        return {"accuracy": accuracy(self.logits(model, inputs, rows), self.target[rows], self.dataset.clusters(rows.numpy()))}

    def blank_scores(self, model: nn.Module, inputs: Inputs, rows: Tensor) -> dict[str, Score]:
        """Accuracy when one modality is shown empty: how much the model leans on the other."""
        return {f"blank_{m}/accuracy": self.scores(model, replace(inputs, blank=m), rows)["accuracy"] for m in self.modalities}
