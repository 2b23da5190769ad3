"""Where the checkout, its notebooks and the runs are, and what a run's folder says; light, so that listing runs is quick."""

import json
import os
from pathlib import Path

from mmkit.errors import MmkitError

LOG = "stderr.txt"


def notebooks() -> Path:
    """The checkout's notebooks. Raises: MmkitError when there is no checkout."""
    from mmkit.notebooks import folder  # not before: it imports jupyter_client

    return folder()


def root() -> Path:
    """The checkout: the folder that holds `mmkit/` and `notebooks/`. Raises: MmkitError when there is none."""
    return notebooks().parent


def runs() -> Path:
    """Where runs are kept: `$MMKIT_RUNS`, or `runs/` in the checkout. Not created here."""
    named = os.environ.get("MMKIT_RUNS")
    return (Path(named).expanduser() if named else root() / "runs").resolve()  # a run's processes are known by the files they hold, which have no links in their names


def is_done(batch: Path, key: str) -> bool:
    """A run is done when its record exists: nothing else counts."""
    return os.path.isfile(f"{batch}/{key}/record.json")


def read_json(path: Path | str, missing: str = "") -> dict:
    """A file of a run's or plan's folder. Raises: MmkitError when it is gone or damaged."""
    try:
        with open(path, "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError:
        raise MmkitError(missing or f"{path} is gone: run the plan again") from None
    except ValueError as error:
        raise MmkitError(f"{path} is damaged ({error}): remove its folder and run the plan again") from error
