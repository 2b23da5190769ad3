"""Training curves for TensorBoard, where they are asked for."""

import os
import re
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, count
from pathlib import Path

from mmkit.errors import MmkitError


def curves(where: str) -> AbstractContextManager:
    """TensorBoard's writer for one stage of training, where `MMKIT_TENSORBOARD` names a folder; otherwise None, and
    nothing is imported or written.

    `component, fusion` goes to `component/fusion`, the second time to `component/fusion-2`. Raises MmkitError when
    TensorBoard is not installed."""
    base = os.environ.get("MMKIT_TENSORBOARD")
    if not base:
        return nullcontext()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        remedy = "pip install -e '.[tensorboard]' in the clone, or unset it"
        raise MmkitError(f"MMKIT_TENSORBOARD is set and TensorBoard is not installed: {remedy}") from error
    parts = [re.sub(r"[^\w.=+-]+", "_", part) for part in where.split(", ")]
    folder = Path(base).expanduser().joinpath(*parts)
    places = chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))
    return SummaryWriter(str(next(place for place in places if not place.exists())))
