"""A linear probe: what a linear reader finds in frozen features (Alain and Bengio 2016, arXiv 1610.01644)."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.data import cached
from mmkit.models.identity import digest, structure
from mmkit.training import Loader, encode_all
from mmkit.training.code import installed, sources


def linear_probe(learnt: Tensor, labels: Tensor, held: Tensor, wanted: Tensor, *, penalty: float = 10.0) -> float:
    """The share of labels that ridge regression on standardised features gets right.

    learnt (N, S) with labels (N,) fit it, held (M, S) with wanted (M,) test it; items whose label is -1, unknown, are
    left out. W = (Z'Z + penalty I)^-1 Z'(C - mean C), C one-hot; the answer is the largest of z W + mean C."""
    learnt, labels = learnt[labels >= 0].double(), labels[labels >= 0]
    held, wanted = held[wanted >= 0].double(), wanted[wanted >= 0]
    mean, spread = learnt.mean(0), learnt.std(0) + 1e-6
    z, classes = (learnt - mean) / spread, int(max(labels.max(), wanted.max())) + 1
    codes = F.one_hot(labels, classes).double()
    gram = z.T @ z + penalty * torch.eye(z.shape[1], dtype=z.dtype)
    weights = torch.linalg.solve(gram, z.T @ (codes - codes.mean(0)))
    answers = ((held - mean) / spread @ weights + codes.mean(0)).argmax(1)
    return float((answers == wanted).double().mean())


def probes(task, encoder: nn.Module, modality: str, loader: Loader, *, most: int = 1000) -> dict[str, float]:
    """How well a linear probe reads each fact that the set's card names for a modality, label -> validation accuracy;
    it learns from the first `most` training items. A measurement: no arm pays for it."""
    dataset, found = task.dataset, {}
    parts = [task.rows("train")[:most], task.rows("val")]

    def summaries(rows: Tensor) -> Tensor:
        take = lambda some: loader.input(modality, rows[some])  # noqa: E731
        return encode_all(encoder, len(rows), take, tokens=False).summary

    def compute(column: str) -> dict[str, Tensor]:
        labels = [dataset.labels(rows, column) for rows in parts]
        features = [summaries(rows) for rows in parts]
        return {"probe": torch.tensor(linear_probe(features[0], labels[0], features[1], labels[1]))}

    for column in dataset.facts.get(modality, ()):
        key = {"what": "probe", "code": sources(), "data": dataset.content, "weights": digest(encoder)}
        key |= {"structure": structure(encoder), "label": column, "role": task.role, "language": task.language}
        key |= {"most": most, "limit": task.limit}
        kept = cached(key, partial(compute, column)) if installed(encoder) else compute(column)
        found[column] = float(kept["probe"])
    return found
