"""Where an arm's encoders come from: random, pretrained on the unpaired pools, or real ones."""

import hashlib
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmkit.data import PairedDataset, cached
from mmkit.errors import MmkitError, unknown
from mmkit.models import CNN, GRU, PRETRAINED, TextTransformer, ViT, WordTokenizer, pretrained
from mmkit.models.encoded import Encoded
from mmkit.strategies.unimodal import image_objective, pretrain, text_objective
from mmkit.training import Inputs, Phase, encode_all, seeded

IMAGE = {"cnn": CNN, "vit": ViT}
TEXT = {"transformer": TextTransformer, "gru": GRU}


@dataclass(frozen=True)
class Encoders:
    """Which encoders an arm uses. image, text: a small one (`cnn`, `vit`; `transformer`, `gru`) or a real one of `PRETRAINED`.

    size: pixels a side given to the image encoder. epochs: passes over the pools in pretraining; batch, lr: its other settings."""

    image: str = "cnn"
    text: str = "transformer"
    size: int = 32
    epochs: int = 3
    batch: int = 64
    lr: float = 2e-3

    def __post_init__(self):
        for kind, name, small in (("image", self.image, IMAGE), ("text", self.text, TEXT)):
            real = [key for key, weights in PRETRAINED.items() if weights.modality == kind]
            if name not in small and name not in real:
                raise unknown(f"{kind} encoder", name, [*small, *real])
        if (self.image in IMAGE) != (self.text in TEXT):
            raise MmkitError(f"image={self.image!r} and text={self.text!r} mix a small and a real encoder: take cnn or vit with transformer or gru, or two of {', '.join(PRETRAINED)}")

    @property
    def real(self) -> bool:
        return self.image in PRETRAINED

    def describe(self, start: str) -> dict:
        """For a record: the encoders, and where their first weights come from."""
        origin = "random" if start == "random" else ("external weights, cost not counted" if self.real else "self-supervised on the unpaired pools, cost counted")
        return {**asdict(self), "start": origin}


def tokenizer(dataset: PairedDataset, encoders: Encoders, *, language: str):
    """The words of the training texts and the pool, of every role; evaluation texts add nothing. A real text encoder brings its own."""
    return _real(encoders.text).tokenizer if encoders.real else _words(dataset, language)


_tokenizers: dict[tuple[str, str], WordTokenizer] = {}


def _words(dataset: PairedDataset, language: str) -> WordTokenizer:
    key = (dataset.content, language)
    if key not in _tokenizers:
        splits = dataset.items["split"].to_numpy()[dataset.texts["item"].to_numpy()]
        seen = np.isin(splits, ["train", "pool_text"]) & (dataset.texts["language"] == language).to_numpy()
        _tokenizers[key] = WordTokenizer(dataset.texts["text"][seen])
    return _tokenizers[key]


@cache
def _real(name: str) -> nn.Module:
    return pretrained(name)


def fresh(encoders: Encoders, words: int, *, seed: int, start: str) -> tuple[nn.Module, nn.Module]:
    """Both encoders before any training of this run: random ones from the seed's own streams, or real ones."""
    if encoders.real:
        if start == "random":
            raise MmkitError(f"arms that start from random encoders train small ones here: leave image={encoders.image!r} and text={encoders.text!r} out, or take frozen, holistic or lp_ft")
        body = deepcopy(_real(encoders.image))
        if hasattr(body, "size"):
            body.size = encoders.size if encoders.size != 32 else body.size
        return body, deepcopy(_real(encoders.text))
    return seeded(seed, "image", IMAGE[encoders.image], size=encoders.size), seeded(seed, "text", TEXT[encoders.text], words)


def self_supervised(dataset: PairedDataset, ids: Tensor, image: nn.Module, text: nn.Module, encoders: Encoders, *, vocabulary: int, language: str, seed: int) -> dict[str, Phase]:
    """Pretrain both encoders in place, each on its own pool: images without texts, texts without images. Kept in the cache by content.

    A set without pools lends its training images and its training texts, unpaired. Returns each phase's cost."""
    pool = lambda kind: torch.from_numpy(dataset.rows(kind if kind in dataset.splits else "train"))  # noqa: E731
    rows, texts = pool("pool_image"), ids
    about = {"what": "self-supervised encoders", "version": 1, "seed": seed, "encoders": asdict(encoders), "language": language, "vocabulary": vocabulary,
             "images": _fingerprint(dataset.pixels(rows.numpy())), "texts": _fingerprint(texts)}

    def compute() -> dict[str, Tensor]:
        phases = {}
        phases["image"], _ = pretrain(image_objective(image, seed=seed), lambda part: dataset.pixels(part.numpy()), rows, epochs=encoders.epochs, batch=encoders.batch, lr=encoders.lr, seed=seed, where="pretraining the image encoder")
        phases["text"], _ = pretrain(text_objective(text, vocabulary, seed=seed), lambda part: _cut(texts[part]), torch.arange(len(texts)), epochs=encoders.epochs, batch=encoders.batch, lr=encoders.lr, seed=seed, where="pretraining the text encoder")
        kept = {f"{name}/{key}": value for name, model in (("image", image), ("text", text)) for key, value in model.state_dict().items()}
        return kept | {f"cost/{name}": torch.tensor([p.flops, p.seconds, p.steps, p.parameters_trained], dtype=torch.float64) for name, p in phases.items()}

    kept = cached(about, compute)
    for name, model in (("image", image), ("text", text)):
        model.load_state_dict({key.split("/", 1)[1]: value for key, value in kept.items() if key.startswith(f"{name}/")})
    return {f"pretrain_{name}": Phase(*(kind(v) for kind, v in zip((float, float, int, int), kept[f"cost/{name}"].tolist()))) for name in ("image", "text")}


def features(inputs: Inputs, image: nn.Module, text: nn.Module, *, rows: Tensor, tokens: bool, key: dict | None) -> tuple[Inputs, Phase]:
    """`inputs` with frozen encoders' features in place of pixels and ids, and what the encoding cost. With a key, kept in the cache."""
    dataset, position = inputs.dataset, torch.full((len(inputs.dataset),), -1)
    position[rows] = torch.arange(len(rows))
    device = inputs.device
    order = inputs.ids.ne(0).sum(1).argsort(stable=True)  # texts of one length together

    def compute() -> dict[str, Tensor]:
        started = time.perf_counter()
        seen = encode_all(image, len(rows), lambda part: dataset.pixels(rows[part].numpy()).to(device), tokens=tokens)
        read = encode_all(text, len(order), lambda part: _cut(inputs.ids[order[part]]).to(device), tokens=tokens)
        seconds = time.perf_counter() - started
        read = read.rows(order.argsort())
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            image(dataset.pixels(rows[:8].numpy()).to(device))
            one = counter.get_total_flops() / min(8, len(rows)) * len(rows)
            text(_cut(inputs.ids[:8]).to(device))
            two = (counter.get_total_flops() - one / len(rows) * min(8, len(rows))) / min(8, len(order)) * len(order)
        named = {f"{side}/{name}": value for side, part in (("image", seen), ("text", read)) for name, value in part._asdict().items()}
        return {**named, "cost": torch.tensor([one + two, seconds], dtype=torch.float64)}

    kept = cached(key, compute) if key else compute()
    side = lambda name: Encoded(*(kept[f"{name}/{part}"] for part in Encoded._fields))  # noqa: E731
    flops, seconds = kept["cost"].tolist()
    return replace(inputs, image_features=side("image"), text_features=side("text"), image_position=position), Phase(flops=flops, seconds=seconds)


def _cut(ids: Tensor) -> Tensor:
    return ids[:, : max(1, int((ids != 0).sum(1).max()))]


def _fingerprint(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()
