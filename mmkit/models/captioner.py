"""Captions from an image's tokens: two decoders behind one interface, and the model around them.

Legend: B captions, L their words, T image tokens, D width, V words. A caption's ids are padded with 0, of which the
first is its end; START goes in before its first word. A decoder takes words (B, L), what it remembers of the image
(None: a language model) and a state, and returns a `Step`. Without a state it reads whole captions from their start
(teacher forcing); with the state of the call before it reads the next words: the code that learns speaks.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.core import linear_cross_entropy
from mmkit.errors import MmkitError, unknown
from mmkit.models.encoded import Encoded, masked_mean
from mmkit.models.multimodal import Inputs, Multimodal
from mmkit.models.text import MASK, PAD, UNKNOWN

END, START, IGNORED = PAD, MASK, -100


class Step(NamedTuple):
    """hidden (B, L, D), from which `decoder.out` makes logits; attention (B, L, T), None without an image; state,
    tensors whose first dimension is B."""

    hidden: Tensor
    attention: Tensor | None
    state: list[Tensor]


class AttentionGRU(nn.Module):
    """A GRU whose state after each word asks the image's tokens by additive attention; the state and what it found say
    the next word together.

    Attention as in Show, Attend and Tell (arXiv 1502.03044), asked by the new state and beside the recurrence as in
    Knowing When to Look (arXiv 1612.01887, its spatial model), so that all words of a caption are trained at once.
    attend=False finds the image's summary at every word: no attention (compare Show and Tell, arXiv 1411.4555).
    """

    def __init__(self, words: int, *, dim: int = 128, length: int = 32, dropout: float = 0.0, attend: bool = True):
        super().__init__()
        self.dim, self.length, self.attend = dim, length, attend
        self.words = nn.Embedding(words, dim, padding_idx=PAD)
        self.first = nn.Linear(dim, dim)
        self.body = nn.GRU(dim, dim, batch_first=True)
        self.query, self.key, self.energy = (
            nn.Linear(dim, dim),
            nn.Linear(dim, dim, bias=False),
            nn.Linear(dim, 1, bias=False),
        )
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, words)

    def remember(self, image: Encoded) -> list[Tensor]:
        """What does not change from word to word: tokens, their keys, their mask and their mean, which goes in beside
        every word."""
        if not self.attend:
            image = Encoded(image.summary[:, None], image.mask[:, :1], image.summary)
        return [image.tokens, self.key(image.tokens), image.mask, masked_mean(image.tokens, image.mask)]

    def forward(self, ids: Tensor, memory: list[Tensor] | None, state: list[Tensor] | None = None) -> Step:
        tokens, keys, mask, mean = memory or (None, None, None, self.words.weight.new_zeros(len(ids), self.dim))
        first = torch.tanh(self.first(mean)) if state is None else state[0]
        states, last = self.body(self.dropout(self.words(ids) + mean[:, None]), first[None].contiguous())
        if memory is None:
            return Step(self.dropout(states), None, [last[0]])
        energy = self.energy(torch.tanh(keys[:, None] + self.query(states)[:, :, None])).squeeze(-1)  # (B, L, T)
        attention = energy.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        return Step(self.dropout(states + attention @ tokens), attention, [last[0]])


class DecoderLayer(nn.Module):
    """One layer: attention to the words so far, attention to the image, a small network; each normalised before and
    added to what came in."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(3)])
        self.qkv, self.query, self.key_value = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.ModuleList([nn.Linear(dim, dim) for _ in range(2)])
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def split(self, x: Tensor, parts: int) -> list[Tensor]:
        """(B, L, parts * D) -> `parts` tensors (B, heads, L, D / heads)."""
        return [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in x.chunk(parts, dim=2)]

    def self_attention(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Each word looks at itself and the words before it; keys and values of words that were read before come in as
        `past`."""
        query, *new = self.split(self.qkv(self.norms[0](x)), 3)
        if past:
            new = [torch.cat([before, now], dim=2) for before, now in zip(past, new)]
        total = new[0].shape[2]
        seen = torch.ones(x.shape[1], total, dtype=torch.bool, device=x.device).tril(total - x.shape[1])
        mixed = F.scaled_dot_product_attention(query, *new, attn_mask=seen)
        return x + self.dropout(self.out[0](mixed.transpose(1, 2).flatten(2))), new

    def cross_attention(self, x: Tensor, memory: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Each word looks at the image's tokens; the weights (B, L, T), the mean over heads, come out beside the
        result."""
        keys, values, mask = memory
        (query,) = self.split(self.query(self.norms[1](x)), 1)
        scores = query @ keys.transpose(2, 3) / keys.shape[3] ** 0.5
        attention = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
        return x + self.dropout(self.out[1]((attention @ values).transpose(1, 2).flatten(2))), attention.mean(1)

    def forward(
        self, x: Tensor, memory: tuple[Tensor, Tensor, Tensor] | None, past: list[Tensor]
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        x, past = self.self_attention(x, past)
        attention = None
        if memory is not None:
            x, attention = self.cross_attention(x, memory)
        return x + self.dropout(self.mlp(self.norms[2](x))), attention, past


class TransformerDecoder(nn.Module):
    """A Transformer decoder (arXiv 1706.03762), normalised first, with learned positions; its state holds the keys and
    values of the words before. The attention it reports is the mean over heads and layers."""

    def __init__(
        self, words: int, *, dim: int = 128, length: int = 32, dropout: float = 0.0, layers: int = 2, heads: int = 4
    ):
        super().__init__()
        self.dim, self.length = dim, length
        self.words = nn.Embedding(words, dim, padding_idx=PAD)
        self.positions = nn.Parameter(torch.randn(1, length + 1, dim) * 0.02)
        self.layers = nn.ModuleList([DecoderLayer(dim, heads, dropout) for _ in range(layers)])
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.out = nn.Linear(dim, words)

    def remember(self, image: Encoded) -> list[Tensor]:
        """Keys and values of the tokens for each layer, and the tokens' mask."""
        memory = []
        for layer in self.layers:
            memory += layer.split(layer.key_value(image.tokens), 2)
        return [*memory, image.mask]

    def forward(self, ids: Tensor, memory: list[Tensor] | None, state: list[Tensor] | None = None) -> Step:
        before = state[0].shape[2] if state else 0
        if before + ids.shape[1] > self.length + 1:
            raise MmkitError(
                f"{before + ids.shape[1] - 1} words exceed the decoder's length={self.length}: cut the captions, or "
                "build a longer decoder"
            )
        x = self.dropout(self.words(ids) + self.positions[:, before : before + ids.shape[1]])
        seen, kept = [], []
        for n, layer in enumerate(self.layers):
            x, attention, past = layer(
                x, memory and (*memory[2 * n : 2 * n + 2], memory[-1]), state[2 * n : 2 * n + 2] if state else []
            )
            seen.append(attention)
            kept += past
        return Step(self.norm(x), None if memory is None else torch.stack(seen).mean(0), kept)


DECODERS = {
    "gru": AttentionGRU,
    "gru_without_attention": partial(AttentionGRU, attend=False),
    "transformer": TransformerDecoder,
}


class EachFeature(nn.BatchNorm1d):
    """Every feature scaled by itself over the batch, whatever the dimensions before it."""

    def __init__(self, width: int):
        super().__init__(width, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


NORMS = {"layer": nn.LayerNorm, "batch": EachFeature}


class Memory(nn.Module):
    """An image's tokens and summary mapped to the decoder's width; tokens get learned positions. {modality: Encoded} ->
    Encoded.

    norm: how they are scaled before, `layer`, or `batch`, which suits given features of unequal scale."""

    def __init__(self, encoder: nn.Module, dim: int, *, tokens: int, dropout: float, norm: str):
        super().__init__()
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        self.tokens = nn.Sequential(NORMS[norm](encoder.dim), nn.Dropout(dropout), nn.Linear(encoder.dim, dim))
        self.summary = nn.Sequential(
            NORMS[norm](encoder.summary_dim), nn.Dropout(dropout), nn.Linear(encoder.summary_dim, dim)
        )
        self.positions = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)

    def forward(self, encoded: Mapping[str, Encoded]) -> Encoded:
        (image,) = encoded.values()
        return Encoded(self.tokens(image.tokens) + self.positions, image.mask, self.summary(image.summary))


class Captioner(Multimodal):
    """An encoder, its tokens mapped to the decoder's width (`fusion`), and the decoder (`head`).

    Batch statistics of a given encoder stay as they were given, whatever else is trained."""

    def __init__(
        self, modality: str, encoder: nn.Module, decoder: nn.Module, *, dropout: float = 0.0, norm: str = "layer"
    ):
        with torch.no_grad():
            tokens = encoder(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).tokens.shape[1]
        fusion = Memory(encoder, decoder.dim, tokens=tokens, dropout=dropout, norm=norm)
        super().__init__({modality: encoder}, fusion, decoder)

    def train(self, mode: bool = True) -> "Captioner":
        super().train(mode)
        for part in getattr(self, self.modalities[0]).modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    def memory(self, inputs: Inputs) -> list[Tensor]:
        """What the decoder remembers of the images."""
        return self.head.remember(self.fusion(self.encode(inputs)))

    def forward(self, inputs: Inputs, ids: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of a word. ids: one caption of each image, or several, image by image over and over."""
        memory = self.memory(inputs)
        memory = [x.repeat(len(ids) // len(x), *[1] * (x.ndim - 1)) for x in memory]
        return caption_loss(self.head, memory, ids, label_smoothing=label_smoothing)


def targets(ids: Tensor) -> Tensor:
    """(B, L) what is to be said: each word and the first END; IGNORED after it, and in place of a word that the
    vocabulary lacks."""
    return ids.masked_fill(((ids == END).cumsum(1) > 1) | (ids == UNKNOWN), IGNORED)


def caption_loss(
    decoder: nn.Module, memory: list[Tensor] | None, ids: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Teacher forcing: at each place of the captions `ids` (B, L) the cross-entropy of the next word, given the true
    words before it.

    A caption of more words than the decoder's length is read up to it, and has no end."""
    ids = F.pad(ids, (0, 1), value=END)[:, : decoder.length + 1]
    hidden = decoder(F.pad(ids[:, :-1], (1, 0), value=START), memory).hidden
    return linear_cross_entropy(
        hidden.flatten(0, 1),
        decoder.out.weight,
        targets(ids).flatten(),
        decoder.out.bias,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )
