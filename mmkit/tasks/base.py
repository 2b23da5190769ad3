"""What `mmkit.strategies.fit` asks of a task besides its loss and its scores, and what most tasks answer."""

import torch
from torch import Tensor


class Task:
    """modalities: those with a loss of their own. words: the task's own tokenizer, None for the encoders'. text_part: what makes, from the number of words,
    the module it has in place of a text encoder. mined: what orders the pairs into batches of hard negatives."""

    modalities: tuple[str, ...] = ()
    words = text_part = mined = None

    @property
    def tuned_as(self) -> str:
        """Where the table of tuned learning rates has this task."""
        return self.name

    def rows(self, split: str) -> Tensor:
        """The rows a split is scored on: all of it, or the first `limit`. Raises MmkitError for a split that is not there or is empty."""
        return torch.from_numpy(self.dataset.rows(split))[: self.limit]
