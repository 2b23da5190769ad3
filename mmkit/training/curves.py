"""Training curves for TensorBoard, where `MMKIT_TENSORBOARD` names a folder for them; without it nothing is imported and nothing written."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from mmkit.errors import MmkitError


@contextmanager
def curves(where: str) -> Iterator[Callable[..., None] | None]:
    """`write(step, loss=..., ...)` for one stage of training, into a folder of its own: `component, fusion` goes to `component/fusion`, the second time
    to `component/fusion-2`. None when no curves are asked for. Raises: MmkitError when tensorboard is not installed or the folder cannot be written."""
    base = os.environ.get("MMKIT_TENSORBOARD")
    if not base:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(_new(Path(base).expanduser().joinpath(*(re.sub(r"[^\w.=+-]+", "_", part) for part in where.split(", ")))))
    except ImportError as error:
        raise MmkitError("MMKIT_TENSORBOARD is set and TensorBoard is not installed: pip install 'mmkit[tensorboard]', or unset it") from error
    except OSError as error:
        raise MmkitError(f"no training curves can be written in {base} ({error.strerror}): set MMKIT_TENSORBOARD to a folder you can write, or unset it") from error

    def write(step: int, **values: float) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    with writer:
        yield write


def _new(folder: Path) -> str:
    """The folder, or the first of `folder-2`, `folder-3`, ... that is not there yet; made."""
    for number in count(1):
        made = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not made.exists():
            made.mkdir(parents=True)
            return str(made)
