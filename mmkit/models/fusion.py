"""Two encoders joined: a classifier behind a fusion module, and a dual encoder with one space for both modalities.

The parts of a model are named `image`, `text` (the encoders), `fusion` and `head`, so that a training plan can say which of them it trains.
Either input of a model may be raw (pixels, ids) or already `Encoded`, which is how frozen encoders run only once.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.errors import unknown
from mmkit.models.encoded import Encoded, masked_mean
from mmkit.models.layers import Attention


class ConcatFusion(nn.Module):
    """Summaries side by side, normalised, through one hidden layer: (B, S_v), (B, S_t) -> (B, D)."""

    def __init__(self, image_encoder, text_encoder, *, dim: int = 128, dropout: float = 0.0):
        super().__init__()
        self.dim = dim
        self.norms = nn.ModuleList([nn.LayerNorm(image_encoder.summary_dim), nn.LayerNorm(text_encoder.summary_dim)])
        self.mix = nn.Sequential(nn.Linear(image_encoder.summary_dim + text_encoder.summary_dim, dim), nn.GELU(), nn.Dropout(dropout))

    def forward(self, image: Encoded, text: Encoded) -> Tensor:
        return self.mix(torch.cat([norm(part.summary) for norm, part in zip(self.norms, (image, text))], dim=1))


class ProductFusion(nn.Module):
    """Both summaries mapped to one width, beside their elementwise product (Hadamard pooling, arXiv 1610.04325): -> (B, D).

    The product lets one hidden layer hold a relation between the modalities that a sum of two maps cannot."""

    def __init__(self, image_encoder, text_encoder, *, dim: int = 128, dropout: float = 0.0):
        super().__init__()
        self.dim = dim
        self.image = nn.Sequential(nn.LayerNorm(image_encoder.summary_dim), nn.Linear(image_encoder.summary_dim, dim))
        self.text = nn.Sequential(nn.LayerNorm(text_encoder.summary_dim), nn.Linear(text_encoder.summary_dim, dim))
        self.mix = nn.Sequential(nn.Linear(3 * dim, dim), nn.GELU(), nn.Dropout(dropout))

    def forward(self, image: Encoded, text: Encoded) -> Tensor:
        a, b = self.image(image.summary), self.text(text.summary)
        return self.mix(torch.cat([a, b, a * b], dim=1))


class CrossAttentionFusion(nn.Module):
    """Text tokens ask, image tokens answer; the mean of the answered text tokens goes on with the image summary: -> (B, D)."""

    def __init__(self, image_encoder, text_encoder, *, dim: int = 128, heads: int = 4, dropout: float = 0.0):
        super().__init__()
        self.dim = dim
        self.query = nn.Sequential(nn.LayerNorm(text_encoder.dim), nn.Linear(text_encoder.dim, dim))
        self.memory = nn.Sequential(nn.LayerNorm(image_encoder.dim), nn.Linear(image_encoder.dim, dim))
        self.attention = Attention(dim, heads, dropout=dropout)
        self.image_norm = nn.LayerNorm(image_encoder.summary_dim)
        self.mix = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.image_summary = nn.Linear(image_encoder.summary_dim, dim)

    def forward(self, image: Encoded, text: Encoded) -> Tensor:
        query, memory = self.query(text.tokens), self.memory(image.tokens)
        answered = query + self.attention(query, memory, image.mask)
        return self.mix(masked_mean(answered, text.mask) + self.image_summary(self.image_norm(image.summary)))


FUSIONS = {"concat": ConcatFusion, "product": ProductFusion, "cross_attention": CrossAttentionFusion}


def fusion(name: str, image_encoder, text_encoder, **options) -> nn.Module:
    if name not in FUSIONS:
        raise unknown("fusion", name, FUSIONS)
    return FUSIONS[name](image_encoder, text_encoder, **options)


class _Joined(nn.Module):
    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module):
        super().__init__()
        self.image, self.text = image_encoder, text_encoder

    def encode(self, image: Tensor | Encoded, text: Tensor | Encoded) -> tuple[Encoded, Encoded]:
        return (image if isinstance(image, Encoded) else self.image(image)), (text if isinstance(text, Encoded) else self.text(text))


class FusionClassifier(_Joined):
    """(image, text) -> logits (B, K)."""

    def __init__(self, image_encoder, text_encoder, fusion_module, classes: int):
        super().__init__(image_encoder, text_encoder)
        self.fusion, self.head = fusion_module, nn.Linear(fusion_module.dim, classes)

    def forward(self, image, text) -> Tensor:
        return self.head(self.fusion(*self.encode(image, text)))


class SingleClassifier(_Joined):
    """Logits (B, K) from one modality alone; the other is not looked at."""

    def __init__(self, modality: str, encoder: nn.Module, classes: int, *, dim: int = 128):
        super().__init__(*((encoder, None) if modality == "image" else (None, encoder)))
        self.modality = modality
        self.fusion = nn.Sequential(nn.LayerNorm(encoder.summary_dim), nn.Linear(encoder.summary_dim, dim), nn.GELU())
        self.head = nn.Linear(dim, classes)

    def forward(self, image, text) -> Tensor:
        given = image if self.modality == "image" else text
        encoded = given if isinstance(given, Encoded) else getattr(self, self.modality)(given)
        return self.head(self.fusion(encoded.summary))


class Average(nn.Module):
    """An ensemble: the mean of its members' log-probabilities (B, K)."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image, text) -> Tensor:
        return torch.stack([F.log_softmax(member(image, text), dim=1) for member in self.members]).mean(0)


class DualEncoder(_Joined):
    """(image, text) -> unit vectors (B, E) each, for retrieval; `logit_scale` is the logarithm of 1 / temperature, as in CLIP (arXiv 2103.00020).

    norm: how a summary is scaled before its projection: `layer`, or `batch` (each feature by itself, which suits given features of unequal scale)."""

    NORMS = {"layer": nn.LayerNorm, "batch": partial(nn.BatchNorm1d, affine=False)}

    def __init__(self, image_encoder, text_encoder, *, dim: int = 128, hidden: int = 256, dropout: float = 0.0, norm: str = "layer"):
        super().__init__(image_encoder, text_encoder)
        if norm not in self.NORMS:
            raise unknown("norm", norm, self.NORMS)
        widths = (image_encoder.summary_dim, text_encoder.summary_dim)
        self.fusion = nn.ModuleList([nn.Sequential(self.NORMS[norm](w), nn.Dropout(dropout), nn.Linear(w, hidden), nn.GELU(), nn.Dropout(dropout)) for w in widths])
        self.head = nn.ModuleList([nn.Linear(hidden, dim, bias=False) for _ in widths])
        self.head.register_parameter("logit_scale", nn.Parameter(torch.tensor(math.log(1 / 0.07))))

    @property
    def logit_scale(self) -> Tensor:
        return self.head.logit_scale.exp().clamp(max=100)

    def embed_image(self, image) -> Tensor:
        encoded = image if isinstance(image, Encoded) else self.image(image)
        return F.normalize(self.head[0](self.fusion[0](encoded.summary)), dim=1)

    def embed_text(self, text) -> Tensor:
        encoded = text if isinstance(text, Encoded) else self.text(text)
        return F.normalize(self.head[1](self.fusion[1](encoded.summary)), dim=1)

    def forward(self, image, text) -> tuple[Tensor, Tensor]:
        return self.embed_image(image), self.embed_text(text)
