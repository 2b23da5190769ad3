"""What an encoder hands on.

Legend used in this room: B batch, C channels, H and W pixels, L text length, T tokens, D width of a token, S width of a summary.
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


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (B, T, D), (B, T) -> (B, D)."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
