"""Captioning: say what an image shows, scored against what people said."""

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from mmkit.data import Dataset
from mmkit.errors import unknown
from mmkit.metrics import Score
from mmkit.metrics.captioning import caption_scores, caption_words
from mmkit.models import WordTokenizer
from mmkit.models.captioner import DECODERS, END, Captioner
from mmkit.models.decoding import Beams, beam_search
from mmkit.tasks.base import Task, require_loaded
from mmkit.tasks.texts import require_words, text_counts
from mmkit.training import Batch, Loader, View, seeded, text_view
from mmkit.training.objectives import require_equal_weights
from mmkit.pretraining import NextWord, Part

COLOUR, SHAPE = "red|green|blue|yellow|purple|cyan", "circle|square|cross|diamond"
FACTS = {  # of a caption of `scenes`, whatever its wording
    "heading": r"\b(up|right|down|left)\b(?! of)",
    "arrow": rf"\b({COLOUR})(?= arrow\b)|\barrow in ({COLOUR})\b",
    "relation": r"\b(left of|right of|above|below)\b",
    "size": r"\b(small|large)\b",
    "landmark": rf"\b({COLOUR})(?= (?:{SHAPE})\b)",
    "shape": rf"\b({SHAPE})\b",
    "ground": r"\b(plain|striped|dotted|checked)\b",
}


@dataclass(eq=False, repr=False)
class Captioning(Task):
    """Data: images with one or more English captions. Objective: cross-entropy of the next word. Metric: CIDEr-D of
    what beam search says.

    Words are those of the metrics, at least `min_count` times in the captions of the training split and the text
    pool. One that is not among them is read as unknown, is never a target and is never said. Captions of more than
    `length` words are learnt up to there, without an end; `settings` counts both. captions: how many of an image's
    captions a step draws. On `scenes` a caption is also parsed back into the seven facts of its scene. Raises
    MmkitError for a caption without words.
    """

    dataset: Dataset
    _: KW_ONLY
    role: str = "caption"
    decoder: str = "gru"
    dim: int = 128
    norm: str = "layer"
    dropout: float = 0.1
    label_smoothing: float = 0.0
    captions: int = 1
    length: int = 20
    min_count: int = 1
    beams: int = 1
    length_penalty: float = 0.5
    limit: int | None = None

    name, metric, fusion, language = "captioning", "cider_d", "cross_attention", "en"
    modalities, needs = ("image",), ("image",)

    def __post_init__(self):
        require_loaded(self.dataset)
        if self.decoder not in DECODERS:
            raise unknown("decoder", self.decoder, DECODERS)
        require_words(self.dataset, caption_words, role=self.role, language=self.language)
        self.words = _words(self.dataset, self.role, self.length, self.min_count)

    @property
    def tuned_as(self) -> str:
        """Where the table of tuned learning rates has this task: captions of photos are tuned by themselves."""
        return self.name if self.dataset.name == "scenes" else f"{self.name} of photos"

    def settings(self) -> dict:
        text = {"text": "none: the decoder has its own words", "vocabulary": len(self.words)}
        return self.options() | text | self.words.left_out

    def own_parts(self, words) -> dict[str, Part]:
        """The decoder, which learns the next word of texts without images when it is pretrained."""

        def decoder() -> nn.Module:
            return DECODERS[self.decoder](len(words), dim=self.dim, length=self.length, dropout=self.dropout)

        return {"text": Part(decoder, NextWord, self.role)}

    def build(self, parts: Mapping[str, nn.Module], *, seed: int) -> Captioner:
        (modality,) = self.modalities
        return seeded(
            seed, "head", Captioner, modality, parts[modality], parts["text"], dropout=self.dropout, norm=self.norm
        )

    def loader(self, words=None, *, device: torch.device | None = None) -> Loader:
        return replace(super().loader(words, device=device), targets=self.captions)

    def texts_read(self, words) -> dict:
        options = {"role": self.role, "language": self.language, "length": self.length, "told": self.told}
        return {"texts": text_counts(self.dataset, self.words, **options)}

    def targets(self, words) -> View:
        return text_view(self.dataset, self.words, role=self.role, language=self.language)

    def objective(self, model: Captioner, batch: Batch) -> Tensor:
        require_equal_weights(batch, "the loss of captioning")
        return model(batch.inputs, batch.target, label_smoothing=self.label_smoothing)

    def say(
        self, model: Captioner, loader: Loader, rows: Tensor, *, batch: int = 64, **options
    ) -> tuple[list[str], Beams]:
        """The best caption of each row, and for the last batch all beams. options: of `beam_search`, by default the
        task's."""
        options = {"beams": self.beams, "length_penalty": self.length_penalty, **options}
        (modality,) = self.modalities
        said = []
        for part in rows.split(batch):
            found = beam_search(model, {modality: loader.input(modality, part)}, **options)
            said += map(self.text, found.ids[:, 0])
        return said, found

    def predict(self, model: Captioner, inputs: dict) -> list[str]:
        """The best caption of each image."""
        found = beam_search(model, inputs, beams=self.beams, length_penalty=self.length_penalty)
        return [self.text(ids) for ids in found.ids[:, 0]]

    def text(self, ids: Tensor) -> str:
        """Ids (L,) as words, up to the end."""
        return " ".join(self.words.words(ids[ids != END]))

    def references(self, rows: Tensor) -> list[list[str]]:
        """What people said of each row."""
        texts, owner = self.dataset.texts_of(rows.numpy(), role=self.role)
        cuts = np.searchsorted(owner, np.arange(1, len(rows)))
        return [list(part) for part in np.split(np.array(texts, dtype=object), cuts)]

    def scores(self, model: Captioner, loader: Loader, rows: Tensor) -> dict[str, Score]:
        """The metrics of captioning; on `scenes` also `facts`, the share of the scene's facts told right, `exact`, all
        of them, and each by its name."""
        said, references = self.say(model, loader, rows)[0], self.references(rows)
        clusters = self.dataset.clusters(rows.numpy())
        scores = caption_scores(said, references, clusters)
        return scores | (fact_scores(said, references, clusters) if self.dataset.name == "scenes" else {})

    def blank_scores(self, model: Captioner, loader: Loader, rows: Tensor) -> dict[str, Score]:
        """What is said of an empty image: how much is habit of language."""
        scores = self.scores(model, loader.blanked("image"), rows)
        return {f"blank_image/{name}": scores[name] for name in ("bleu_4", "cider_d", "exact") if name in scores}


def facts(caption: str) -> dict[str, str | None]:
    """The facts of a scene that a caption tells, by name; None for one that it does not tell, or tells in two ways."""
    found = {}
    for name, pattern in FACTS.items():
        values = {next(filter(None, match.groups())) for match in re.finditer(pattern, caption.lower())}
        found[name] = values.pop() if len(values) == 1 else None
    return found


def fact_scores(said: list[str], references: list[list[str]], clusters=None) -> dict[str, Score]:
    """Which facts of the scene captions tell as its first reference does: `facts` (mean share), `exact` (all seven),
    `fact/NAME`."""
    true, told = [facts(texts[0]) for texts in references], [facts(text) for text in said]
    right = {}
    for name in FACTS:
        pairs = [(a[name], b[name]) for a, b in zip(told, true, strict=True)]
        right[name] = np.array([a is not None and a == b for a, b in pairs], dtype=float)
    each = list(right.values())
    items = {"facts": np.mean(each, axis=0), "exact": np.min(each, axis=0)}
    items |= {f"fact/{name}": values for name, values in right.items()}
    clusters = np.arange(len(said)) if clusters is None else clusters
    return {name: Score(values, clusters) for name, values in items.items()}


_made: dict[tuple, WordTokenizer] = {}


def _words(dataset: Dataset, role: str, length: int, min_count: int) -> WordTokenizer:
    """The vocabulary of the training captions; one word more than `length` is kept, which shows that a caption is
    longer. Made once a data set."""
    key = (dataset.content, role, length, min_count)
    if key not in _made:
        rows = np.concatenate([dataset.rows(split) for split in ("train", "pool_text") if dataset.splits.get(split)])
        texts = dataset.texts_of(rows, role=role)[0]
        words = WordTokenizer(texts, split=caption_words, length=length + 1, min_count=min_count)
        ids = words(texts)
        words.left_out = {
            "captions_cut": int(ids[:, length:].ne(END).sum()),
            "words_unknown": float((ids == 1).sum() / (ids != END).sum()),
        }
        _made[key] = words
    return _made[key]
