"""Pretext tasks: what an encoder can learn from its own modality, on data that is not paired.

A pretext task is a module around an encoder: (raw input, generator) -> scalar loss.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
) -> tuple[Phase, list[dict]]:
    """Train a pretext task, and with it its encoder, on `take(rows)`; nothing of another modality is seen."""
    noise = stream(seed, f"{where}/mask")
    steps = max(1, epochs * (len(rows) // min(batch, len(rows))))

    def shown() -> Iterator[Batch]:
        for part in batches(rows, batch, stream(seed, f"{where}/order")):
            yield Batch(part, {"raw": take(part)})

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.inputs["raw"], noise)

    return seeded(seed, f"{where}/dropout", train, pretext, objective, shown(), steps=steps, lr=lr, where=where)
