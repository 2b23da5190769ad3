"""What a trained model is scored on, and how."""

import torch
from torch import Tensor, nn

from mmkit.errors import MmkitError
from mmkit.metrics import Score
from mmkit.strategies.encoders import Encoders, tokenizer
from mmkit.training import Loader, choose, device, stream


def pairs(task, count: int, seed: int) -> Tensor:
    """The labelled pairs a seed may see: `count` rows of the training split; a larger count of the same seed contains
    them."""
    rows = torch.from_numpy(task.dataset.rows("train"))
    if count > len(rows):
        has = f"the {len(rows)} labelled pairs of {task.dataset.name!r} (split train)"
        raise MmkitError(f"pairs={count} exceeds {has}; pass pairs<={len(rows)}, or prepare a larger set")
    return choose(rows, count, stream(seed, "pairs"))


def loader_of(task, encoders: Encoders) -> Loader:
    """The task's loader with the encoders' tokenizer, on the device of this machine."""
    return task.loader(tokenizer(task, encoders), device=device()[0])


def splits_of(task, evaluate: tuple[str, ...] | None) -> dict[str, Tensor]:
    """The rows of the splits that are scored; None is `test` and all `ood_*`."""
    out_of_domain = [split for split, size in task.dataset.splits.items() if split.startswith("ood_") and size]
    return {split: task.rows(split) for split in evaluate or ("test", *out_of_domain)}


def scores_of(task, model: nn.Module, loader: Loader, splits: dict[str, Tensor], *, blank: bool) -> dict[str, Score]:
    """Scores by metric, with the split in front of every split but the test one. blank: with a modality shown empty,
    too."""
    scores = {}
    for split, rows in splits.items():
        prefix = "" if split == "test" else f"{split}/"
        scores |= {prefix + name: score for name, score in task.scores(model, loader, rows).items()}
    if blank and "test" in splits:
        scores |= task.blank_scores(model, loader, splits["test"])
    return scores
