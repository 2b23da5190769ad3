"""One progress bar for all that takes longer than a second."""

import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(items: Iterable | None = None, *, label: str, unit: str, total: int | None = None, start: int = 0) -> tqdm:
    """A bar over `items`, or one to `update` by hand, that goes when it is done.

    Shown where somebody looks, in a terminal or a notebook opened by hand; quiet in logs and batches.
    """
    by_hand = "ipykernel" in sys.modules and not os.environ.get("MMKIT_RUN_DIR") and not os.environ.get("CI")
    size = {"unit": "B", "unit_scale": True} if unit == "B" else {"unit": f" {unit}"}
    return tqdm(
        items,
        desc=label,
        total=total,
        initial=start,
        leave=False,
        delay=1,
        disable=not (by_hand or sys.stderr.isatty()),
        **size,
    )
