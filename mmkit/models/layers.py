"""Attention and the Transformer block, in the open: the code that the notebooks teach is the code that runs.

PyTorch's own `nn.TransformerEncoderLayer` takes another, fused path in evaluation mode. That path skips adapters,
shifts a frozen encoder's numbers, and its FLOPs are counted differently from release to release. This one has a single
path.

Legend: B batch, T tokens, D width, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.errors import MmkitError


class Attention(nn.Module):
    """Multi-head attention (arXiv 1706.03762): softmax(Q K^T / sqrt(D / H)) V for each head, then a linear map.

    context: what keys and values are made of; None is self-attention. Raises MmkitError when `heads` does not divide
    `dim`."""

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise MmkitError(f"dim={dim} cannot be split among heads={heads}: take a number of heads that divides dim")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D / H)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D), context (B, S, D), mask (B, S) bool, True where a token of the context is real -> (B, T, D)."""
        context = x if context is None else context
        query, key, value = self.split(self.query(x)), self.split(self.key(context)), self.split(self.value(context))
        mask = None if mask is None else mask[:, None, None]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One Transformer layer, normalised first: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, *, hidden: int | None = None, dropout: float = 0.0):
        super().__init__()
        hidden = hidden or 2 * dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout=dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D), mask (B, T) bool, True where a token is real -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.norm1(x), mask=mask))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """`layers` blocks and a last normalisation. A row without any real token attends to everything: its output is not
    used."""

    def __init__(self, dim: int, layers: int, heads: int, *, hidden: int | None = None, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList([Block(dim, heads, hidden=hidden, dropout=dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D), mask (B, T) bool, True where a token is real -> (B, T, D)."""
        if mask is not None:
            mask = mask | ~torch.any(mask, dim=1, keepdim=True)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
