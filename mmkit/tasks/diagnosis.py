"""Diagnosis: one condition, from image, text or both, with the patient as the cluster. A teaching task: nothing it
trains is for diagnosis."""

import hashlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mmkit.data import Dataset, split_by_hash
from mmkit.errors import MmkitError, unknown
from mmkit.metrics import Score, at_threshold, auroc, average_precision, brier, calibration_error, threshold
from mmkit.tasks.answering import Answering
from mmkit.training import Loader, stream


class Diagnosis(Answering):
    """Data: a label, of which one class is `positive` (default: the last) against the rest. Objective: cross-entropy.
    Metric: AUROC.

    specificity: what the threshold of `sensitivity` and `specificity` reaches on the validation split, which chooses
    it. Raises MmkitError when a split has fewer than two patients of either class: there is nothing to rank, and no
    interval."""

    name, metric = "diagnosis", "auroc"

    def __init__(
        self,
        dataset: Dataset,
        *,
        label: str = "label_pneumonia",
        positive: str | int | None = None,
        role: str = "note",
        specificity: float = 0.9,
        **options,
    ):
        super().__init__(dataset, label=label, role=role, **options)
        self.positive, self.specificity = self.classes[-1] if positive is None else positive, specificity
        if self.positive not in self.classes:
            raise unknown(f"class of {label!r}", str(positive), map(str, self.classes))
        self.target = torch.where(self.target >= 0, (self.target == self.classes.index(self.positive)).long(), -1)
        self.classes = [f"not {self.positive}", self.positive]
        for split in (
            name
            for name, size in dataset.splits.items()
            if size and (name in ("train", "val", "test") or name.startswith("ood_"))
        ):
            rows = dataset.rows(split)
            for code, name in enumerate(self.classes):
                patients = len(np.unique(dataset.clusters(rows[self.target[rows] == code])))
                if patients < 2:
                    raise MmkitError(
                        f"{label!r} of {dataset.name!r} is {name!r} for {patients} patients of split {split!r}: at "
                        "least 2 are needed; merge rare labels or choose another"
                    )

    def settings(self) -> dict:
        return {**super().settings(), "positive": self.positive, "specificity": self.specificity}

    def margin(self, model: nn.Module, loader: Loader, rows: Tensor) -> np.ndarray:
        """(B,) the logit of the positive class minus that of the other: the log-odds the model gives."""
        logits = self.logits(model, loader, rows).double()
        return (logits[:, 1] - logits[:, 0]).numpy()

    def scores(self, model: nn.Module, loader: Loader, rows: Tensor) -> dict[str, Score]:
        """AUROC, average precision, Brier score, calibration error; sensitivity and specificity at the threshold that
        validation chooses."""
        margin, validation = self.margin(model, loader, rows), self.rows("val")
        held = margin if torch.equal(rows, validation) else self.margin(model, loader, validation)
        cut = threshold(held, self.target[validation].numpy(), specificity=self.specificity)
        given, chance = self._given(rows), 1 / (1 + np.exp(-margin))
        ranked = {score.__name__: score(margin, *given) for score in (auroc, average_precision)}
        return (
            ranked
            | {score.__name__: score(chance, *given) for score in (brier, calibration_error)}
            | at_threshold(margin, *given, threshold=cut)
        )

    def blank_scores(self, model: nn.Module, loader: Loader, rows: Tensor) -> dict[str, Score]:
        """AUROC with one modality shown empty, and with the texts of others."""
        shown = {f"blank_{m}": loader.blanked(m) for m in self.modalities}
        if len(self.modalities) > 1:
            shown["shuffled_text"] = loader.shuffled(rows, stream(0, "texts of others"))
        return {
            f"{name}/auroc": auroc(self.margin(model, seen, rows), *self._given(rows)) for name, seen in shown.items()
        }

    def _given(self, rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return self.target[rows].numpy(), self.dataset.clusters(rows.numpy())


def reworded(dataset: Dataset, role: str, name: str, change: Callable[[str], str]) -> Dataset:
    """The same set with one more role of texts, `name`: `change` of each text of `role`, pools left out. Rows, splits
    and groups stay."""
    paired = ~dataset.items["split"].str.startswith("pool_").to_numpy()[dataset.texts["item"]]
    texts = dataset.texts[paired & (dataset.texts["role"] == role).to_numpy()].assign(
        text=lambda table: table["text"].map(change), role=name
    )
    other = Dataset(dataset.root, dataset.card)
    other.items, other.texts = dataset.items, pd.concat([dataset.texts, texts], ignore_index=True)
    other.content = hashlib.sha256("\n".join([dataset.content, name, *texts["text"]]).encode()).hexdigest()
    return other


def resplit(dataset: Dataset, label: str, seed: int) -> Dataset:
    """The same set, its paired patients dealt out anew to train, val and test: those who ever have the label (1), and
    the others, in equal shares. Pools keep nobody who is evaluated."""
    other = Dataset(dataset.root, dataset.card)
    other.items, other.texts = dataset.items.copy(), dataset.texts
    items = other.items
    paired = items["split"].isin(["train", "val", "test"])
    sick = items["group"].isin(items["group"][paired & (items[label] == 1)])
    for part in (paired & sick, paired & ~sick):
        patients = [f"{seed}/{group}" for group in items["group"][part]]
        items.loc[part, "split"] = split_by_hash(patients, val=0.15, test=0.35)
    held = items["group"].isin(items["group"][items["split"].isin(["val", "test"])])
    items.loc[held & items["split"].str.startswith("pool"), "split"] = "left_out"
    other.content = hashlib.sha256("\n".join([dataset.content, *items["split"]]).encode()).hexdigest()
    return other
