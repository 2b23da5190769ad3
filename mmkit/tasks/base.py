"""What `mmkit.strategies.fit` asks of a task, and what most tasks answer."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmkit.data import DamagedImage, Dataset, read_image
from mmkit.data.rules import PAIRED
from mmkit.errors import MmkitError, unknown
from mmkit.metrics import Score
from mmkit.models.text import UNKNOWN, WordTokenizer, vocabulary
from mmkit.pretraining import Part
from mmkit.tasks.texts import text_counts
from mmkit.training import Batch, Loader, View, array_view, text_view


def require_loaded(dataset: object) -> None:
    """Raise MmkitError for the name of a data set in the place of the set."""
    if isinstance(dataset, str | Path):
        raise MmkitError(f"a task takes a data set and not its name: mmkit.load({str(dataset)!r})")


class Task:
    """Data, an objective and metrics.

    name; metric: the score that chooses weights, higher is better; modalities: what a model of the task reads, by
    name: `text`, or an array of the data set. needs: those without which an item has no meaning in the task; of the
    others an item is shown an empty one where the set says that it may lack it. alone: whether a single modality has
    an objective of its own.
    can_mine: whether batches of hard negatives can be made. words: the task's own tokenizer, None for the encoders'.
    fusion: how modalities are joined. role, language: of the texts. limit: the most rows of a split that are scored.
    image_size: pixels a side of images that are read from files; None takes the set's. told: which counts of texts
    are warned of, see `mmkit.tasks.texts`."""

    name = metric = ""
    modalities: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    alone = can_mine = False
    fusion, language, role = "concat", "en", "caption"
    words: Callable[[list[str]], Tensor] | None = None
    limit: int | None = None
    image_size: int | None = None
    told: tuple[str, ...] = ("cut", "made_equal", "alike", "unknown")
    dataset: Dataset

    @property
    def tuned_as(self) -> str:
        """Where the table of tuned learning rates has this task."""
        return self.name

    def settings(self) -> dict:
        """The task's options, for a record."""
        return {}

    def options(self) -> dict:
        """The fields of a task that is a dataclass, but for its data set."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "dataset"}

    def own_parts(self, words) -> Mapping[str, Part]:
        """Parts that the task brings itself, such as a decoder, by name."""
        return {}

    def build(self, parts: Mapping[str, nn.Module], *, seed: int) -> nn.Module:
        """The model around encoders (and own parts), by name; its other first weights depend on the seed alone."""
        raise self._lacks("build")

    def objective(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of one batch."""
        raise self._lacks("objective")

    def scores(self, model: nn.Module, loader: Loader, rows: Tensor) -> dict[str, Score]:
        """The metrics of some rows, in evaluation mode."""
        raise self._lacks("scores")

    def blank_scores(self, model: nn.Module, loader: Loader, rows: Tensor) -> dict[str, Score]:
        """The metrics with modalities shown empty; none where that has no meaning."""
        return {}

    def loader(self, words: Callable | None = None, *, device: torch.device | None = None) -> Loader:
        """The task's data by row. words: the tokenizer; None takes the task's own, or one of the set's unpaired
        texts. Warns of texts that are cut or equal, as `text_counts` does."""
        words = words or self.words or (vocabulary(self.dataset, self.language) if "text" in self.modalities else None)
        views = {modality: self.view(modality, words) for modality in self.modalities}
        self.texts_read(words)
        return Loader(self.dataset, views, self.targets(words), device=device or torch.device("cpu"))

    def view(self, modality: str, words) -> View:
        """One modality of the task. Raises MmkitError for one that the data set does not have."""
        required = modality in self.needs or modality in self.dataset.card.get("required", PAIRED)
        if modality == "text":
            return text_view(self.dataset, words, role=self.role, language=self.language, required=required)
        if modality not in self.dataset.arrays:
            raise unknown(f"modality of {self.dataset.name!r}", modality, [*self.dataset.arrays, "text"])
        return array_view(self.dataset, modality, required=required)

    def texts_read(self, words) -> dict:
        """For a record: `texts`, the counts of `text_counts`; empty for a task without texts. words: the tokenizer."""
        if "text" not in self.modalities:
            return {}
        options = {"role": self.role, "language": self.language, "told": self.told}
        return {"texts": text_counts(self.dataset, words, **options)}

    def targets(self, words):
        """What the loader hands on as the target: (N, ...), one per task by name, a View, or None."""
        return None

    def input(self, modality: str, values) -> Tensor:
        """Raw inputs of a modality as a model takes them: texts (list of str), image files or pixels (B, 3, H, W)
        uint8, or (B, ...) arrays of another modality. Raises MmkitError for a text of which no word is known."""
        values = [values] if isinstance(values, str | Path) else values
        if not hasattr(values, "__len__") or not len(values):
            raise MmkitError(f"{modality} is {values!r}: give a list with one entry or more")
        files = [isinstance(value, str | Path) for value in values]
        if modality == "text":
            if not all(isinstance(value, str) for value in values):
                raise MmkitError(f"texts are strings, got a {type(values[0]).__name__}: text=['which way?']")
            return self._ids(list(values))
        if all(files):
            return torch.stack([self._pixels(Path(path)) for path in values])
        if any(files):
            raise MmkitError(f"{modality} mixes files and arrays: give one or the other")
        return _array(modality, values)

    def _pixels(self, path: Path) -> Tensor:
        try:
            image = read_image(path, size=self.image_size or self.dataset.images.shape[1])
        except DamagedImage as error:
            raise MmkitError(f"{path} is not an image that can be read: {error}") from error
        return torch.from_numpy(image.copy()).permute(2, 0, 1)

    def _ids(self, texts: list[str]) -> Tensor:
        ids = self.words(texts)
        if isinstance(self.words, WordTokenizer):
            unread = (ids <= UNKNOWN).all(1)
            if unread.any():
                text = texts[int(unread.nonzero()[0])]
                raise MmkitError(f"no word of {text!r} is known to this model: ask in the language of its texts")
        return ids

    def predict(self, model: nn.Module, inputs: dict):
        """What the model says of some inputs, by modality, as `input` makes them."""
        raise self._lacks("predict")

    def state(self) -> dict:
        """What a saved model needs of its task, as JSON values: the options, not the data."""
        kept = {}
        for name, value in vars(self).items():
            with suppress(TypeError, ValueError):  # of what is no JSON value: data, tensors, tokenizers
                kept[name] = json.loads(json.dumps(value))
        return kept | {"image_size": self.dataset.images.shape[1]}

    @classmethod
    def restored(cls, state: dict, words) -> "Task":
        """A task without data, for a saved model: it builds the model and predicts, and scores nothing."""
        task = cls.__new__(cls)
        vars(task).update(state)
        task.modalities, task.words = tuple(state.get("modalities", cls.modalities)), words
        return task

    def rows(self, split: str) -> Tensor:
        """The rows a split is scored on: all of it, or the first `limit`. Raises MmkitError for a split that is not
        there or is empty."""
        return torch.from_numpy(self.dataset.rows(split))[: self.limit]

    def _lacks(self, method: str) -> MmkitError:
        return MmkitError(
            f"the task {self.name or type(self).__name__!r} has no {method}: write it, as mmkit.tasks.Answering does"
        )


def _array(modality: str, values) -> Tensor:
    """Values as one tensor of a type that models take. Raises MmkitError for what is not an array, numbers that are
    not finite, and images that are not (B, 3, H, W) pixels."""
    try:
        values = [np.asarray(value) for value in values] if isinstance(values, list | tuple) else values
        x = torch.as_tensor(np.stack(values) if isinstance(values, list) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MmkitError(f"{modality} is no array ({error}): give arrays of one shape, or files") from error
    x = x.float() if x.is_floating_point() else x
    if not torch.isfinite(x).all():
        raise MmkitError(f"{modality} holds NaN or infinite numbers: mend or leave those items out")
    if modality != "image":
        return x
    if x.ndim == 4 and x.shape[3] == 3 and x.shape[1] != 3:
        x = x.permute(0, 3, 1, 2)  # as image libraries hold pictures
    if x.ndim != 4 or x.shape[1] != 3:
        raise MmkitError(f"images are (B, 3, H, W), got {tuple(x.shape)}: add the batch, or make three channels of one")
    if x.min() < 0 or x.max() > 255 or (x.is_floating_point() and 0 < x.max() <= 1):
        raise MmkitError(f"pixels are 0 to 255, got {x.min():g} to {x.max():g}: scale them to 0 to 255")
    return x
