"""Where a task's batches come from: raw pixels and ids, or the features of frozen encoders, by rows of the data set.

Legend: B rows asked for, M texts of the set, L text length.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from mmkit.data import Dataset
from mmkit.errors import MmkitError
from mmkit.models.encoded import Encoded
from mmkit.models.fast import quick


_ids: WeakKeyDictionary[Dataset, dict] = WeakKeyDictionary()


@dataclass(frozen=True)
class Inputs:
    """Images and texts of a data set by row.

    ids: (M, L) int64, the texts in the order of their items; start: (N + 1,) where each item's texts begin.
    image_features, text_features: what frozen encoders made of them, for the rows and texts that have a position; None means raw.
    partner: (N,) the row whose text stands in for a row's own (the shuffled-pairs control); blank: the modality shown empty.
    """

    dataset: Dataset
    ids: Tensor
    start: Tensor
    image_features: Encoded | None = None
    text_features: Encoded | None = None
    image_position: Tensor | None = None
    text_position: Tensor | None = None
    partner: Tensor | None = None
    blank: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, dataset: Dataset, tokenizer: Callable[[list[str]], Tensor], *, role: str, language: str = "en", device: torch.device | None = None) -> "Inputs":
        """All texts of one role and language as ids; a data set and a tokenizer that met before are not brought together again."""
        met, key = _ids.setdefault(dataset, {}), (getattr(tokenizer, "__self__", tokenizer), role, language)
        if key not in met:
            texts, owner = dataset.texts_of(np.arange(len(dataset)), role=role, language=language)
            met[key] = tokenizer(texts), torch.searchsorted(torch.from_numpy(owner), torch.arange(len(dataset) + 1))
        return cls(dataset, *met[key], device=device or torch.device("cpu"))

    def image(self, rows: Tensor) -> Tensor | Encoded:
        """Pixels (B, 3, H, W) uint8, or features."""
        if self.image_features is not None:
            features = self.image_features.rows(self.image_position[rows])
            return _to(features.blank() if self.blank == "image" else features, self.device)
        pixels = self.dataset.pixels(rows.numpy()).to(self.device)
        return torch.full_like(pixels, 127) if self.blank == "image" else pixels

    def text(self, index: Tensor) -> Tensor | Encoded:
        """Texts by their own index (B,): ids (B, L') cut to the longest, or features."""
        if self.text_features is not None:
            features = self.text_features.rows(self.text_position[index])
            return _to(features.blank() if self.blank == "text" else features, self.device)
        ids = self.ids[index]
        if self.blank == "text":
            return torch.ones_like(ids[:, :1]).to(self.device)
        return ids[:, : max(1, int((ids != 0).sum(1).max()))].to(self.device)

    def one_text(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The index of one text of each row: a random one, or the first without a generator."""
        rows = rows if self.partner is None else self.partner[rows]
        first, count = self._texts_from(rows)
        draw = torch.zeros(len(rows)) if generator is None else torch.rand(len(rows), generator=generator)
        return first + (draw * count).long()

    def all_texts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The indices of all texts of some rows, and their owners as positions in `rows`."""
        first, count = self._texts_from(rows)
        owner = torch.repeat_interleave(torch.arange(len(rows)), count)
        within = torch.arange(len(owner)) - torch.repeat_interleave(count.cumsum(0) - count, count)
        return first[owner] + within, owner

    def _texts_from(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where the texts of some rows begin, and how many there are. Raises MmkitError for a row without one of the wanted role and language."""
        first, count = self.start[rows], self.start[rows + 1] - self.start[rows]
        if not count.all():
            raise MmkitError(f"item {self.dataset.items['id'][int(rows[count == 0][0])]!r} of {self.dataset.name!r} has no text of the task's role and language: choose others, or leave such items out of the set")
        return first, count

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> "Inputs":
        """The same, with the texts of `rows` dealt out anew among them."""
        partner = torch.arange(len(self.dataset))
        partner[rows] = rows[torch.randperm(len(rows), generator=generator)]
        return replace(self, partner=partner)


def _to(features: Encoded, device: torch.device) -> Encoded:
    return Encoded(*(part.to(device, torch.float32 if part.is_floating_point() else None) for part in features))


@torch.inference_mode()
def encode_all(encoder: nn.Module, count: int, take: Callable[[Tensor], Tensor], *, tokens: bool, half: bool = False, batch: int | None = None) -> Encoded:
    """`encoder` over `count` inputs, in order, on the CPU afterwards. Without `tokens` only the summaries are kept; `half`: tokens are kept in half precision.

    batch: None takes 16 on a CPU, where a small batch stays in its caches, and 256 elsewhere. Raises MmkitError when a feature is
    not finite, saying which."""
    encoder.eval()
    batch = batch or (16 if next(encoder.parameters()).device.type == "cpu" else 256)
    parts = []
    with quick(encoder, count):
        for start in range(0, count, batch):
            out = encoder(take(torch.arange(start, min(start + batch, count))))
            if not torch.isfinite(out.summary).all():
                where = start + int((~torch.isfinite(out.summary)).any(1).nonzero()[0])
                raise MmkitError(f"the features of input {where} of {count} are not finite (encoder {type(encoder).__name__}): look for damage in that input or NaN in the weights")
            kept = Encoded(out.tokens.half() if half else out.tokens, out.mask, out.summary) if tokens else Encoded(out.tokens[:, :0], out.mask[:, :0], out.summary)
            parts.append(Encoded(*(part.cpu() for part in kept)))
    width = max(part.tokens.shape[1] for part in parts)
    pad = lambda x: x if x.shape[1] == width else torch.cat([x, x.new_zeros(len(x), width - x.shape[1], *x.shape[2:])], 1)  # noqa: E731
    return Encoded(torch.cat([pad(p.tokens) for p in parts]), torch.cat([pad(p.mask) for p in parts]), torch.cat([p.summary for p in parts]))
