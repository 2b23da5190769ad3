"""Retrieval: find an image's captions, and a caption's image."""

import torch
from torch import Tensor, nn

from mmkit.core import contrastive_loss
from mmkit.data import PairedDataset
from mmkit.metrics import Score, retrieval_scores
from mmkit.models.fusion import DualEncoder
from mmkit.training import Inputs, seeded


class Retrieval:
    """Data: images with one or more captions. Objective: symmetric InfoNCE. Metric: R@1, the mean of both directions."""

    name, metric, modalities = "retrieval", "recall@1", ()
    fusion = "dual"

    def __init__(self, dataset: PairedDataset, *, role: str = "caption", language: str = "en", dim: int = 128, hidden: int = 256, dropout: float = 0.0, norm: str = "layer", limit: int | None = None):
        self.dataset, self.role, self.language, self.limit = dataset, role, language, limit
        self.dim, self.hidden, self.dropout, self.norm = dim, hidden, dropout, norm

    def rows(self, split: str) -> Tensor:
        """The rows a split is scored on: all of it, or the first `limit`. Raises MmkitError for a split that is not there or is empty."""
        return torch.from_numpy(self.dataset.rows(split))[: self.limit]

    def settings(self) -> dict:
        return {"role": self.role, "language": self.language, "fusion": self.fusion, "dim": self.dim, "hidden": self.hidden, "dropout": self.dropout, "norm": self.norm, "limit": self.limit}

    def build(self, image: nn.Module, text: nn.Module, *, seed: int) -> DualEncoder:
        return seeded(seed, "head", DualEncoder, image, text, dim=self.dim, hidden=self.hidden, dropout=self.dropout, norm=self.norm)

    def loss(self, model: DualEncoder, inputs: Inputs, rows: Tensor, generator: torch.Generator) -> Tensor:
        image, text = model(inputs.image(rows), inputs.text(inputs.one_text(rows, generator)))
        return contrastive_loss(image, text, model.logit_scale)

    @torch.inference_mode()
    def embeddings(self, model: DualEncoder, inputs: Inputs, rows: Tensor, *, batch: int = 256) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, E), all their captions (M, E) and each caption's owner (M,), in evaluation mode."""
        model.eval()
        texts, owner = inputs.all_texts(rows)
        image = torch.cat([model.embed_image(inputs.image(part)).cpu() for part in rows.split(batch)])
        return image, torch.cat([model.embed_text(inputs.text(part)).cpu() for part in texts.split(batch)]), owner

    def scores(self, model: DualEncoder, inputs: Inputs, rows: Tensor) -> dict[str, Score]:
        return retrieval_scores(*self.embeddings(model, inputs, rows))

    def blank_scores(self, model: DualEncoder, inputs: Inputs, rows: Tensor) -> dict[str, Score]:
        """None: without one side there is nothing to rank."""
        return {}
