"""Encoders by the name of their modality, a fusion module and a head: the parts that a strategy trains or freezes by
name.

`inputs` is a dictionary by modality; each value is raw (pixels, ids, a waveform) or already `Encoded`, which is how
frozen encoders run only once.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.errors import MmkitError, unknown
from mmkit.models.encoded import Encoded
from mmkit.models.fusion import require_names

Inputs = Mapping[str, Tensor | Encoded]


class Multimodal(nn.Module):
    """inputs -> head(fusion(encoded inputs)). An encoder is an attribute by its modality's name: `model.audio`.

    Raises MmkitError for a modality whose name a module needs for itself, and for an input that is missing or
    unknown."""

    def __init__(self, encoders: Mapping[str, nn.Module], fusion: nn.Module, head: nn.Module):
        super().__init__()
        require_names(encoders, type(self))
        for modality, encoder in encoders.items():
            self.add_module(modality, encoder)
        self.modalities, self.fusion, self.head = tuple(encoders), fusion, head

    def encode(self, inputs: Inputs) -> dict[str, Encoded]:
        """What each encoder makes of its modality's input; what is `Encoded` already is handed on."""
        encoded = {}
        for modality in self.modalities:
            if modality not in inputs:
                reads = ", ".join(self.modalities)
                raise MmkitError(
                    f"the model reads {reads}, the batch has no {modality!r}: add it to the loader's views"
                )
            given = inputs[modality]
            encoded[modality] = given if isinstance(given, Encoded) else getattr(self, modality)(given)
        return encoded

    def forward(self, inputs: Inputs) -> Tensor:
        return self.head(self.fusion(self.encode(inputs)))


class Average(nn.Module):
    """An ensemble: the mean of its members' log-probabilities (B, K)."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Inputs) -> Tensor:
        return torch.stack([F.log_softmax(member(inputs), dim=1) for member in self.members]).mean(0)


class Projections(nn.Module):
    """A hidden layer for each modality: summaries (B, S) -> (B, H), by modality."""

    NORMS = {"layer": nn.LayerNorm, "batch": partial(nn.BatchNorm1d, affine=False)}

    def __init__(self, widths: Mapping[str, int], *, hidden: int, dropout: float, norm: str):
        super().__init__()
        if norm not in self.NORMS:
            raise unknown("norm", norm, self.NORMS)
        self.layers = nn.ModuleDict()
        for modality, width in widths.items():
            linear = [nn.Dropout(dropout), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)]
            self.layers[modality] = nn.Sequential(self.NORMS[norm](width), *linear)

    def forward(self, encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
        return {modality: self.layers[modality](x.summary) for modality, x in encoded.items()}


class EmbeddingHead(nn.Module):
    """A linear map for each modality onto one sphere: (B, H) -> unit vectors (B, E), by modality; and the scale of
    their products.

    logit_scale: the logarithm of 1 / temperature, as in CLIP (arXiv 2103.00020). logit_bias: of SigLIP's loss, None
    without."""

    def __init__(self, modalities, *, hidden: int, dim: int):
        super().__init__()
        self.layers = nn.ModuleDict({modality: nn.Linear(hidden, dim, bias=False) for modality in modalities})
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_parameter("logit_bias", None)

    def forward(self, hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {modality: F.normalize(self.layers[modality](x), dim=1) for modality, x in hidden.items()}


class DualEncoder(Multimodal):
    """inputs -> unit vectors (B, E) of each modality in one space, for retrieval.

    norm: how a summary is scaled before its projection: `layer`, or `batch` (each feature by itself, which suits
    given features of unequal scale)."""

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        dim: int = 128,
        hidden: int = 256,
        dropout: float = 0.0,
        norm: str = "layer",
    ):
        widths = {modality: encoder.summary_dim for modality, encoder in encoders.items()}
        fusion = Projections(widths, hidden=hidden, dropout=dropout, norm=norm)
        super().__init__(encoders, fusion, EmbeddingHead(encoders, hidden=hidden, dim=dim))

    @property
    def logit_scale(self) -> Tensor:
        """1 / temperature, at most 100."""
        return self.head.logit_scale.exp().clamp(max=100)

    def embed(self, modality: str, x: Tensor | Encoded) -> Tensor:
        """Unit vectors (B, E) of one modality's inputs alone."""
        encoded = x if isinstance(x, Encoded) else getattr(self, modality)(x)
        return self.head(self.fusion({modality: encoded}))[modality]
