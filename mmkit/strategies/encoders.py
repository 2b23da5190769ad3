"""Where an arm's encoders come from: random, pretrained on the unpaired pools, or real ones."""

import hashlib
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import mmkit
from mmkit.data import Dataset, cached
from mmkit.errors import MmkitError, unknown
from mmkit.models import CNN, GRU, PRETRAINED, TextTransformer, ViT, WordTokenizer, pretrained
from mmkit.models.encoded import Encoded
from mmkit.models.pretrained import EfficientNetLite0
from mmkit.strategies.arms import ARMS
from mmkit.strategies.unimodal import image_objective, pretrain, text_objective
from mmkit.training import Inputs, Phase, encode_all, flops_of, seeded

IMAGE = {"cnn": CNN, "vit": ViT}
TEXT = {"transformer": TextTransformer, "gru": GRU}


@dataclass(frozen=True)
class Encoders:
    """Which encoders an arm uses. image, text: a small one (`cnn`, `vit`; `transformer`, `gru`) or a real one of `PRETRAINED`.

    size: pixels a side given to the image encoder (a hub model keeps its own). flip: a real image encoder sees each photo and its mirror image. length: how many word pieces of a text a real text encoder reads.
    epochs: passes over the pools in pretraining; batch, lr: its other settings."""

    image: str = "cnn"
    text: str = "transformer"
    size: int = 32
    flip: bool = False
    length: int = 40
    epochs: int = 2
    batch: int = 64
    lr: float = 2e-3

    def __post_init__(self):
        for kind, name, small in (("image", self.image, IMAGE), ("text", self.text, TEXT)):
            real = [key for key, weights in PRETRAINED.items() if weights.modality == kind]
            if name not in small and name not in real:
                raise unknown(f"{kind} encoder", name, [*small, *real])
        if self.flip and self.image != "efficientnet_lite0":
            raise MmkitError(f"flip=True is for efficientnet_lite0, {self.image!r} does not see mirror images: leave flip out")
        if (self.image in IMAGE) != (self.text in TEXT):
            raise MmkitError(f"image={self.image!r} and text={self.text!r} mix a small and a real encoder: take cnn or vit with transformer or gru, or two of {', '.join(PRETRAINED)}")

    @property
    def real(self) -> bool:
        return self.image in PRETRAINED

    @classmethod
    def suited(cls, dataset: Dataset, arm: str) -> "Encoders":
        """What the notebooks use: small encoders for small images; for photos (96 pixels and more) the real ones wherever an arm starts
        from given weights, and small ones on 64 pixels where it trains its own. Encoders that are fine-tuned see smaller photos, for time."""
        if dataset.images.shape[1] < 96:
            return cls()
        plan = ARMS.get(arm)
        if plan and plan.start == "pretrained" and not plan.random and arm != "component":
            return cls(image="efficientnet_lite0", text="minilm", size=192 if arm == "frozen" else 128, flip=arm == "frozen")
        return cls(size=64)

    def describe(self, start: str) -> dict:
        """For a record: the encoders, and where their first weights come from."""
        origin = "random" if start == "random" else ("external weights, cost not counted" if self.real else "self-supervised on the unpaired pools, cost counted")
        own = {"size": None} if self.real and not PRETRAINED[self.image].package else {}  # a hub model's own
        return {**asdict(self), **own, "start": origin}


def tokenizer(dataset: Dataset, encoders: Encoders, *, language: str):
    """The words of the unpaired texts (the training texts of a set without a pool), of every role; evaluation texts add nothing. A real
    text encoder brings its own."""
    return _real(encoders.text, length=encoders.length).tokenizer if encoders.real else _words(dataset, language)


_tokenizers: dict[tuple[str, str], WordTokenizer] = {}
_pool_ids: dict[tuple, Tensor] = {}


def _words(dataset: Dataset, language: str) -> WordTokenizer:
    key = (dataset.content, language)
    if key not in _tokenizers:
        splits = dataset.items["split"].to_numpy()[dataset.texts["item"].to_numpy()]
        seen = np.isin(splits, ["pool_text" if "pool_text" in dataset.splits else "train"]) & (dataset.texts["language"] == language).to_numpy()
        _tokenizers[key] = WordTokenizer(dataset.texts["text"][seen])
    return _tokenizers[key]


def pool_texts(dataset: Dataset, words: WordTokenizer, *, language: str, role: str | None = None) -> Tensor:
    """(N, L) ids of the unpaired texts, of one role or every; a set without a pool lends its training texts. Made once a data set."""
    key = (dataset.content, language, role, words)
    if key not in _pool_ids:
        rows = dataset.rows("pool_text" if "pool_text" in dataset.splits else "train")
        _pool_ids[key] = words([text for kind in ([role] if role else sorted(dataset.texts["role"].unique())) for text in dataset.texts_of(rows, role=kind, language=language)[0]])
    return _pool_ids[key]


@cache
def sources(*, real: bool) -> str:
    """A hash of the code that decides what a cached encoding is: given encoders depend on their models' code, others on their training's, too."""
    root, digest = Path(mmkit.__file__).parent, hashlib.sha256()
    for pattern in ("models/*.py", *(() if real else ("core/*.py", "training/*.py", "strategies/unimodal.py"))):
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _real(name: str, **settings) -> nn.Module:
    body = pretrained(name)
    vars(body).update(settings)
    return body


def fresh(encoders: Encoders, words: int, *, seed: int, start: str, text: Callable[[int], nn.Module] | None = None) -> tuple[nn.Module, nn.Module]:
    """Both encoders before any training of this run: random ones from the seed's own streams, or real ones. text: what makes a task's own text part."""
    if encoders.real:
        if start == "random":
            raise MmkitError(f"arms that start from random encoders train small ones here: leave image={encoders.image!r} and text={encoders.text!r} out, or take frozen, holistic or lp_ft")
        body = deepcopy(_real(encoders.image))
        if isinstance(body, EfficientNetLite0):
            body.size, body.flip = max(encoders.size, 96), encoders.flip
        return body, seeded(seed, "text", text, words) if text else deepcopy(_real(encoders.text, length=encoders.length))
    return seeded(seed, "image", IMAGE[encoders.image], size=encoders.size), seeded(seed, "text", text or TEXT[encoders.text], words)


def self_supervised(dataset: Dataset, ids: Tensor, image: nn.Module, text: nn.Module, encoders: Encoders, *, vocabulary: int, language: str, seed: int, device: torch.device) -> dict[str, Phase]:
    """Pretrain both encoders in place, each on its own pool: images without texts, texts without images. Kept in the cache by content.

    A set without pools lends its training images and its training texts, unpaired. Returns each phase's cost."""
    pool = lambda kind: torch.from_numpy(dataset.rows(kind if kind in dataset.splits else "train"))  # noqa: E731
    rows, texts = pool("pool_image"), ids
    about = {"what": "self-supervised encoders", "code": sources(real=False), "seed": seed, "encoders": asdict(encoders), "language": language, "vocabulary": vocabulary,
             "images": _fingerprint(dataset.pixels(rows.numpy())), "texts": _fingerprint(texts)}
    if hasattr(text, "remember"):
        about["decoder"] = {"text": repr(text), "length": text.length}

    def compute() -> dict[str, Tensor]:
        phases = {}
        phases["image"], _ = pretrain(image_objective(image, seed=seed).to(device), lambda part: dataset.pixels(part.numpy()).to(device), rows, epochs=encoders.epochs, batch=encoders.batch, lr=encoders.lr, seed=seed, where="pretraining the image encoder")
        phases["text"], _ = pretrain(text_objective(text, vocabulary, seed=seed).to(device), lambda part: _cut(texts[part]).to(device), torch.arange(len(texts)), epochs=encoders.epochs, batch=encoders.batch, lr=encoders.lr, seed=seed, where="pretraining the text encoder")
        kept = {f"{name}/{key}": value for name, model in (("image", image), ("text", text)) for key, value in model.state_dict().items()}
        return kept | {f"cost/{name}": torch.tensor([p.flops, p.seconds, p.steps, p.parameters_trained], dtype=torch.float64) for name, p in phases.items()}

    kept = cached(about, compute)
    for name, model in (("image", image), ("text", text)):
        model.load_state_dict({key.split("/", 1)[1]: value for key, value in kept.items() if key.startswith(f"{name}/")})
    return {f"pretrain_{name}": Phase(*(kind(v) for kind, v in zip((float, float, int, int), kept[f"cost/{name}"].tolist()))) for name in ("image", "text")}


def features(inputs: Inputs, image: nn.Module, text: nn.Module | None, *, rows: Tensor, learnt: Tensor, tokens: bool, key: dict) -> tuple[Inputs, Phase]:
    """`inputs` with frozen encoders' features of `rows` in place of pixels and, where there is a text encoder, ids, kept in the cache under `key`.

    The phase is what encoding `learnt`, the rows that are trained on, cost; the others are for evaluation, which no arm pays for."""
    dataset, device = inputs.dataset, inputs.device
    texts = inputs.all_texts(rows)[0]
    texts = texts[inputs.ids[texts].ne(0).sum(1).argsort(stable=True)]  # texts of one length together

    def see(part: Tensor) -> Tensor:
        return dataset.pixels(rows[part].numpy()).to(device)

    def read(part: Tensor) -> Tensor:
        return _cut(inputs.ids[texts[part]]).to(device)

    sides = {"image": (image, see, rows), "text": (text, read, texts)}
    sides = {side: part for side, part in sides.items() if part[0] is not None}

    def compute() -> dict[str, Tensor]:
        named, cost = {}, []
        for side, (encoder, take, index) in sides.items():
            count = len(index)
            started = time.perf_counter()
            named |= {f"{side}/{name}": value for name, value in encode_all(encoder, count, take, tokens=tokens, half=tokens)._asdict().items()}
            seconds = time.perf_counter() - started
            sample = torch.arange(count)[:: max(1, count // 8)].split(1)
            with torch.inference_mode():
                flops = sum(flops_of(lambda one=one: encoder(take(one))) for one in sample)  # noqa: B023, called here
            cost.append([flops / len(sample), seconds / count])
        return {**named, "cost": torch.tensor(cost, dtype=torch.float64)}

    kept = cached(key, compute)
    flops, seconds = (torch.tensor([len(learnt), len(inputs.all_texts(learnt)[0])][: len(sides)], dtype=torch.float64) @ kept["cost"]).tolist()
    given = {}
    for side, (_, _, index) in sides.items():
        count = len(dataset) if side == "image" else len(inputs.ids)
        position = torch.full((count,), count)  # beyond the end: a row that was not encoded cannot be asked for
        position[index] = torch.arange(len(index))
        given |= {f"{side}_features": Encoded(*(kept[f"{side}/{part}"] for part in Encoded._fields)), f"{side}_position": position}
    return replace(inputs, **given), Phase(flops=flops, seconds=seconds)


def _cut(ids: Tensor) -> Tensor:
    return ids[:, : max(1, int((ids != 0).sum(1).max()))]


def _fingerprint(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()
