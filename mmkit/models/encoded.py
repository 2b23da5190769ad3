"""What an encoder hands on.

Legend used in this room: B batch, C channels, H and W pixels, L text length, T tokens, D width of a token, S width
of a summary.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Encoded(NamedTuple):
    """tokens (B, T, D); mask (B, T) bool, True where a token is real; summary (B, S), one vector an item."""

    tokens: Tensor
    mask: Tensor
    summary: Tensor

    def rows(self, index) -> "Encoded":
        """The items of `index` (a tensor, array or slice)."""
        return Encoded(self.tokens[index], self.mask[index], self.summary[index])

    def blank(self) -> "Encoded":
        """The same shapes with nothing in them: the control for a missing modality."""
        return Encoded(torch.zeros_like(self.tokens), self.mask, torch.zeros_like(self.summary))

    def masked(self, missing: Tensor) -> "Encoded":
        """The same, blank where `missing` (B,) is True."""
        keep = ~missing
        return Encoded(self.tokens * keep[:, None, None], self.mask, self.summary * keep[:, None])

    def to(self, device: torch.device) -> "Encoded":
        """On a device, numbers in single precision."""
        return Encoded(*(part.to(device, torch.float32 if part.is_floating_point() else None) for part in self))


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (B, T, D), (B, T) -> (B, D)."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def encode_in_order(parts: list[Encoded]) -> Encoded:
    """Batches of encodings as one, padded to the longest."""
    width = max(part.tokens.shape[1] for part in parts)
    tokens = torch.cat([_padded(part.tokens, width) for part in parts])
    mask = torch.cat([_padded(part.mask, width) for part in parts])
    return Encoded(tokens, mask, torch.cat([part.summary for part in parts]))


def _padded(x: Tensor, width: int) -> Tensor:
    if x.shape[1] == width:
        return x
    return torch.cat([x, x.new_zeros(len(x), width - x.shape[1], *x.shape[2:])], dim=1)
