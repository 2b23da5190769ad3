"""Fusion: what encoders made of an item's modalities, joined into one vector. Any number of modalities, by name.

Each module takes {modality: Encoded} and gives (B, D); it is built from {modality: encoder}, for the encoders' widths.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from mmkit.errors import MmkitError, unknown
from mmkit.models.encoded import Encoded, masked_mean
from mmkit.models.layers import Attention


class Concat(nn.Module):
    """Summaries side by side, normalised, through one hidden layer: (B, S) of each modality -> (B, D)."""

    def __init__(self, encoders: Mapping[str, nn.Module], *, dim: int = 128, dropout: float = 0.0):
        super().__init__()
        self.dim = dim
        widths = {modality: encoder.summary_dim for modality, encoder in encoders.items()}
        self.norms = nn.ModuleDict({modality: nn.LayerNorm(width) for modality, width in widths.items()})
        self.mlp = nn.Sequential(nn.Linear(sum(widths.values()), dim), nn.GELU(), nn.Dropout(dropout))

    def forward(self, encoded: Mapping[str, Encoded]) -> Tensor:
        return self.mlp(torch.cat([norm(encoded[modality].summary) for modality, norm in self.norms.items()], dim=1))


class Product(nn.Module):
    """Summaries mapped to one width, beside the elementwise product of each two (Hadamard pooling, arXiv 1610.04325):
    -> (B, D).

    The product lets one hidden layer hold a relation between two modalities that a sum of two maps cannot."""

    def __init__(self, encoders: Mapping[str, nn.Module], *, dim: int = 128, dropout: float = 0.0):
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleDict()
        for modality, encoder in encoders.items():
            self.layers[modality] = nn.Sequential(
                nn.LayerNorm(encoder.summary_dim), nn.Linear(encoder.summary_dim, dim)
            )
        count = len(self.layers)
        self.mlp = nn.Sequential(
            nn.Linear((count + count * (count - 1) // 2) * dim, dim), nn.GELU(), nn.Dropout(dropout)
        )

    def forward(self, encoded: Mapping[str, Encoded]) -> Tensor:
        mapped = [layer(encoded[modality].summary) for modality, layer in self.layers.items()]
        products = [a * b for a, b in combinations(mapped, 2)]
        return self.mlp(torch.cat([*mapped, *products], dim=1))


class CrossAttention(nn.Module):
    """Tokens of the last modality ask, tokens of the others answer; the mean of the answers goes on with the others'
    summaries: -> (B, D)."""

    def __init__(self, encoders: Mapping[str, nn.Module], *, dim: int = 128, heads: int = 4, dropout: float = 0.0):
        super().__init__()
        if len(encoders) < 2:
            raise MmkitError(
                f"cross-attention needs two modalities or more, got {', '.join(encoders)}: take fusion='concat'"
            )
        self.dim = dim
        *others, self.asking = encoders
        width = encoders[self.asking].dim
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        self.memory, self.norms, self.summaries = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for modality in others:
            width = encoders[modality].dim
            self.memory[modality] = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        self.attention = Attention(dim, heads, dropout=dropout)
        for modality in others:
            self.norms[modality] = nn.LayerNorm(encoders[modality].summary_dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        for modality in others:
            self.summaries[modality] = nn.Linear(encoders[modality].summary_dim, dim)

    def forward(self, encoded: Mapping[str, Encoded]) -> Tensor:
        asking = encoded[self.asking]
        query = self.query(asking.tokens)
        memory = torch.cat([layer(encoded[modality].tokens) for modality, layer in self.memory.items()], dim=1)
        mask = torch.cat([encoded[modality].mask for modality in self.memory], dim=1)
        answered = masked_mean(query + self.attention(query, memory, mask), asking.mask)
        for modality, layer in self.summaries.items():
            answered = answered + layer(self.norms[modality](encoded[modality].summary))
        return self.mlp(answered)


def require_names(modalities: Iterable[str], model: type[nn.Module] = nn.Module) -> None:
    """Raise MmkitError for a name that a module needs for itself, so that no part can have it."""
    taken = {"fusion", "head", "modalities", "training", *dir(nn.ModuleDict), *dir(model)}
    for modality in modalities:
        if not modality.isidentifier() or modality in taken:
            raise MmkitError(f"{modality!r} cannot name a modality: take a name like 'audio' that no module uses")


FUSIONS = {"concat": Concat, "product": Product, "cross_attention": CrossAttention}


def fusion(name: str, encoders: Mapping[str, nn.Module], **options) -> nn.Module:
    """A fusion module by name. One modality has nothing to be fused with: it goes through `Concat`'s hidden layer.
    Raises MmkitError for an unknown name, and for a modality whose name a module needs for itself."""
    if name not in FUSIONS:
        raise unknown("fusion", name, FUSIONS)
    require_names(encoders)
    kind = FUSIONS[name] if len(encoders) > 1 else Concat
    return kind(encoders, **options)
