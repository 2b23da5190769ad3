"""Training curves for TensorBoard, where they are asked for."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from mmkit.errors import MmkitError


class Curves:
    """A hook that writes loss, learning rate and validation score, step by step; also the loss that is not finite and
    stops the training."""

    def __init__(self, writer):
        self.writer = writer

    def after_backward(self, state) -> None:
        self.writer.add_scalar("loss", state.loss.item(), state.step + 1)
        self.writer.add_scalar("learning_rate", state.optimizer.param_groups[0]["lr"], state.step + 1)

    def after_check(self, state) -> None:
        self.writer.add_scalar("validation", state.history[-1]["validation"], state.step + 1)


@contextmanager
def curves(where: str) -> Iterator[tuple[Curves, ...]]:
    """Hooks for one stage of training: `Curves` for TensorBoard, where `MMKIT_TENSORBOARD` names a folder; none, and
    nothing is imported or written.

    `component, fusion` goes to `component/fusion`, the second time to `component/fusion-2`. Raises MmkitError when
    TensorBoard is not installed."""
    base = os.environ.get("MMKIT_TENSORBOARD")
    if not base:
        yield ()
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        remedy = "pip install -e '.[tensorboard]', or unset it"
        raise MmkitError(f"MMKIT_TENSORBOARD is set and TensorBoard is not installed: {remedy}") from error
    parts = [re.sub(r"[^\w.=+-]+", "_", part) for part in where.split(", ")]
    folder = Path(base).expanduser().joinpath(*parts)
    places = chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))
    with SummaryWriter(str(next(place for place in places if not place.exists()))) as writer:
        yield (Curves(writer),)
