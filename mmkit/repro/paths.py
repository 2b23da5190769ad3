"""Where the checkout, its notebooks and the runs are."""

import os
from pathlib import Path

from mmkit.notebooks import folder as notebooks

__all__ = ["notebooks", "root", "runs"]


def root() -> Path:
    """The checkout: the folder that holds `mmkit/` and `notebooks/`. Raises: MmkitError when there is none."""
    return notebooks().parent


def runs() -> Path:
    """Where runs are kept: `$MMKIT_RUNS`, or `runs/` in the checkout. Not created here."""
    named = os.environ.get("MMKIT_RUNS")
    return Path(named).expanduser().absolute() if named else root() / "runs"
