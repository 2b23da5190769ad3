"""Pretext tasks: what an encoder can learn from its own modality, on data that is not paired.

A pretext task is a module around an encoder: (raw input, generator) -> scalar loss; a supervised one is given the
labels in place of the generator.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.core import contrastive_loss
from mmkit.models.captioner import caption_loss
from mmkit.models.text import MASK, PAD
from mmkit.models.vision import scaled
from mmkit.training.batch import Batch, batches
from mmkit.training.cost import Phase
from mmkit.training.loop import train
from mmkit.training.seeds import seeded, stream


@dataclass(frozen=True)
class Part:
    """A part of a model that a run makes: an encoder of a modality, or a task's own decoder.

    build: () -> the module, its first weights drawn from the global generator. pretext: module -> its pretext task
    (`mmkit.training.pretext`), None for a part that cannot be pretrained alone. role: the texts it learns from, None
    for every role."""

    build: Callable[[], nn.Module]
    pretext: Callable[[nn.Module], nn.Module] | None = None
    role: str | None = None


class Reconstruction(nn.Module):
    """An image with patches blanked out goes through the encoder's summary and back to 16 x 16 pixels: mean squared
    error over all of them.

    The bottleneck makes the summary hold the scene (compare masked autoencoders, arXiv 2111.06377, which keep the
    tokens)."""

    SIDE = 16

    def __init__(self, encoder: nn.Module, *, grid: int = 8, ratio: float = 0.25):
        super().__init__()
        self.encoder, self.grid, self.ratio = encoder, grid, ratio
        self.decoder = nn.Sequential(nn.Linear(encoder.summary_dim, 256), nn.ReLU(), nn.Linear(256, 3 * self.SIDE**2))

    def forward(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        hidden = torch.rand(len(pixels), 1, self.grid, self.grid, generator=generator).to(pixels.device) < self.ratio
        hidden = F.interpolate(hidden.float(), size=pixels.shape[2:], mode="nearest").bool()
        seen = pixels.masked_fill(hidden, 127)
        return F.mse_loss(self.decoder(self.encoder(seen).summary), scaled(pixels, self.SIDE).flatten(1))


class MaskedLanguageModel(nn.Module):
    """Cross-entropy of the words that were hidden, and of no others (BERT, arXiv 1810.04805, without its random
    replacements)."""

    def __init__(self, encoder: nn.Module, vocabulary: int, *, ratio: float = 0.25):
        super().__init__()
        self.encoder, self.ratio = encoder, ratio
        self.to_word = nn.Linear(encoder.dim, vocabulary)

    def forward(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        hidden = (torch.rand(ids.shape, generator=generator).to(ids.device) < self.ratio) & (ids != PAD)
        hidden[:, 0] |= ~hidden.any(1)  # at least one word a text
        tokens = self.encoder(ids.masked_fill(hidden, MASK)).tokens
        return F.cross_entropy(self.to_word(tokens[hidden]), ids[hidden])


class Contrast(nn.Module):
    """Two views of one image are each other's answer among the views of a batch (SimCLR, arXiv 2002.05709): InfoNCE of
    a projection of the summary, at temperature 0.2.

    A view is cut from 3/4 of the image's side or more, a place and a size of its own, and changed in brightness and
    contrast. Nothing is mirrored or turned: that would teach the encoder to forget which way an arrow points."""

    def __init__(self, encoder: nn.Module, *, dim: int = 64, temperature: float = 0.2):
        super().__init__()
        self.encoder, self.scale = encoder, 1 / temperature
        width = encoder.summary_dim
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))

    def forward(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        one, two = (self.project(self.encoder(view(pixels, generator)).summary) for _ in range(2))
        return contrastive_loss(F.normalize(one, dim=1), F.normalize(two, dim=1), self.scale)


def view(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Another view of each image (B, 3, H, W) uint8: a crop, brightness by up to 0.2 and contrast by up to 20 %."""
    draw = torch.rand(5, len(pixels), generator=generator).to(pixels.device)
    side, (x, y) = 0.75 + 0.25 * draw[0], 2 * draw[1:3] - 1
    brightness, contrast = 0.4 * draw[3] - 0.2, 0.8 + 0.4 * draw[4]
    crop = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    crop[:, 0, 0] = crop[:, 1, 1] = side
    crop[:, 0, 2], crop[:, 1, 2] = x * (1 - side), y * (1 - side)
    places = F.affine_grid(crop, list(pixels.shape), align_corners=False)
    seen = F.grid_sample(scaled(pixels, pixels.shape[-1]), places, align_corners=False)
    seen = seen * contrast[:, None, None, None] + brightness[:, None, None, None]
    return (seen.clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)


class Supervised(nn.Module):
    """Cross-entropy of a modality's own labels, read from the summary by a linear head each; their mean.

    classes: label -> how many classes. The target is (B, labels), -1 where a label is unknown."""

    def __init__(self, encoder: nn.Module, classes: Mapping[str, int]):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(encoder.summary_dim, count) for count in classes.values())

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        summary, losses = self.encoder(x).summary, []
        for head, labels in zip(self.heads, target.T, strict=True):
            known = (labels >= 0).sum().clamp(min=1)
            losses.append(F.cross_entropy(head(summary), labels, ignore_index=-1, reduction="sum") / known)
        return torch.stack(losses).mean()


class NextWord(nn.Module):
    """A decoder as a language model: the next word of texts without images."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.encoder = decoder

    def forward(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        return caption_loss(self.encoder, None, ids)


def pretrain(
    pretext: nn.Module,
    take: Callable[[Tensor], Tensor],
    rows: Tensor,
    *,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    where: str,
    steps: int | None = None,
    target: Tensor | None = None,
) -> tuple[Phase, list[dict]]:
    """Train a pretext task, and with it its encoder, on `take(rows)`; nothing of another modality is seen.

    steps: in place of `epochs` passes. target: (N, ...) labels by row, for a supervised task."""
    noise = stream(seed, f"{where}/mask")
    steps = steps or max(1, epochs * (len(rows) // min(batch, len(rows))))

    def shown() -> Iterator[Batch]:
        for part in batches(rows, batch, stream(seed, f"{where}/order")):
            x = take(part)
            yield Batch(part, {"raw": x}, None if target is None else target[part].to(x.device))

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.inputs["raw"], noise if batch.target is None else batch.target)

    return seeded(seed, f"{where}/dropout", train, pretext, objective, shown(), steps=steps, lr=lr, where=where)
