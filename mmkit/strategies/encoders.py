"""Which encoders a run uses: small ones that it makes itself, real ones by name, or a student's own."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import cache

from torch import Tensor, nn

from mmkit.errors import MmkitError, unknown
from mmkit.models import CNN, GRU, PRETRAINED, TextTransformer, ViT, pretrained
from mmkit.models.pretrained import EfficientNetLite0
from mmkit.models.text import vocabulary
from mmkit.pretraining import Contrast, MaskedLanguageModel, Part, Reconstruction
from mmkit.pretraining.pool import SUPERVISED

IMAGE = {"cnn": CNN, "vit": ViT}
TEXT = {"transformer": TextTransformer, "gru": GRU}

OBJECTIVES = {  # of pretraining, without labels: modality -> name -> (encoder, size of the vocabulary) -> pretext task
    "image": {
        "masked reconstruction": lambda encoder, words: Reconstruction(encoder),
        "reconstruction": lambda encoder, words: Reconstruction(encoder, ratio=0.0),
        "contrast": lambda encoder, words: Contrast(encoder),
    },
    "text": {"masked words": MaskedLanguageModel},
}


@dataclass(frozen=True)
class Encoders:
    """image, text: a small one (`cnn`, `vit`; `transformer`, `gru`) or a real one of `PRETRAINED`.

    size: pixels a side given to the image encoder (a hub model keeps its own). flip: a real image encoder sees each
    photo and its mirror image. length: how many word pieces of a text a real text encoder reads. others: a `Part` for
    each modality besides images and texts, or in place of theirs.

    Of pretraining: objective: by modality, a name of `OBJECTIVES` or `supervised`; the first of them where none is
    given. labels: by modality, the columns that supervised pretraining learns; those that the set's card names as the
    modality's facts where none are given. pool: how many entries of the unpaired pool, drawn by the seed; None is all
    of it. steps: of training, or, where it is None, epochs: passes over the pool. batch, lr."""

    image: str = "cnn"
    text: str = "transformer"
    size: int = 32
    flip: bool = False
    length: int = 40
    epochs: int = 2
    batch: int = 64
    lr: float = 2e-3
    others: Mapping[str, Part] = field(default_factory=dict)
    objective: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pool: int | None = None
    steps: int | None = None

    def __post_init__(self):
        for modality, name in self.objective.items():
            self.require_objective(modality, name)
        for name in ("epochs", "batch", "pool", "steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise MmkitError(f"{name} of pretraining is 1 or more, got {getattr(self, name)}: leave it out")
        for kind, name, small in (("image", self.image, IMAGE), ("text", self.text, TEXT)):
            real = [key for key, weights in PRETRAINED.items() if weights.modality == kind]
            if name not in small and name not in real:
                raise unknown(f"{kind} encoder", name, [*small, *real])
        if self.flip and self.image != "efficientnet_lite0":
            raise MmkitError(
                f"flip=True is for efficientnet_lite0, {self.image!r} does not see mirror images: leave flip out"
            )
        if (self.image in IMAGE) != (self.text in TEXT):
            remedy = f"take cnn or vit with transformer or gru, or two of {', '.join(PRETRAINED)}"
            raise MmkitError(f"image={self.image!r} and text={self.text!r} mix a small and a real encoder: {remedy}")

    def require_objective(self, modality: str, name: str) -> None:
        """Raises MmkitError for an objective of pretraining that a modality does not have."""
        known = [SUPERVISED, *([] if modality in self.others else OBJECTIVES.get(modality, ()))]
        if name not in known:
            raise unknown(f"objective of pretraining for {modality}", name, known)

    @property
    def real(self) -> bool:
        """Whether the encoders come with given weights."""
        return self.image in PRETRAINED

    def part(self, modality: str, words: int) -> Part:
        """How the small encoder of a modality is made and pretrained; words: the size of the vocabulary. Raises
        MmkitError for an unknown modality."""
        if modality in self.others:
            return self.others[modality]
        name = self.objective.get(modality, next(iter(OBJECTIVES.get(modality, ())), None))
        pretext = None if name in (None, SUPERVISED) else lambda encoder: OBJECTIVES[modality][name](encoder, words)
        if modality == "image":
            return Part(lambda: IMAGE[self.image](size=self.size), pretext)
        if modality == "text":
            return Part(lambda: TEXT[self.text](words), pretext)
        remedy = f"Encoders(others={{{modality!r}: Part(build, pretext)}})"
        raise MmkitError(f"no encoder is known for the modality {modality!r}: name one, {remedy}")

    def given(self, modality: str) -> nn.Module:
        """A real encoder with its given weights."""
        if modality in self.others:
            return self.others[modality].build()
        body = deepcopy(_real(self.image) if modality == "image" else _real(self.text, length=self.length))
        if isinstance(body, EfficientNetLite0):
            body.size, body.flip = max(self.size, 96), self.flip
        return body

    def settings(self) -> dict:
        """The settings as JSON values; a part of one's own by the name of what builds it."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "others"}
        if self.others:
            values["others"] = {
                name: getattr(part.build, "__qualname__", repr(part.build)) for name, part in self.others.items()
            }
        return values

    def describe(self, pretrained: bool) -> dict:
        """For a record: the encoders, and where their first weights come from."""
        origin = "self-supervised on the unpaired pools, cost counted"
        if not pretrained:
            origin = "random"
        elif self.real:
            origin = "external weights, cost not counted"
        hub = {"size": None} if self.real and not PRETRAINED[self.image].package else {}  # a hub model's own
        return {**self.settings(), **hub, "start": origin}


def tokenizer(task, encoders: Encoders) -> Callable[[list[str]], Tensor]:
    """The task's own tokenizer, a real text encoder's, or else the words of the unpaired texts; evaluation texts add
    nothing."""
    if task.words:
        return task.words
    if encoders.real:
        return _real(encoders.text, length=encoders.length).tokenizer
    return vocabulary(task.dataset, task.language)


@cache
def _real(name: str, **settings) -> nn.Module:
    body = pretrained(name)
    vars(body).update(settings)
    return body
