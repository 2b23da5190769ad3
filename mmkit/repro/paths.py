"""Where the checkout, its notebooks and the runs are; light, so that listing runs is quick."""

import json
import os
import re
from pathlib import Path

from mmkit.errors import MmkitError, unknown

LOG = "stderr.txt"
NAME = r"[a-z0-9][a-z0-9_-]*"


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
    try:
        return (Path(named).expanduser() if named else root() / "runs").resolve()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, until Python 3.13
        raise MmkitError(f"MMKIT_RUNS={named!r} leads nowhere ({error}): point it at a folder") from error


def batch(plan: str) -> Path:
    """The folder of a plan's runs, which need not be there. Raises: MmkitError for what is no name of a plan."""
    if not re.fullmatch(NAME, plan):
        raise unknown("plan with runs", plan, (path.parent.name for path in runs().glob("*/plan.json")))
    return runs() / plan


def is_done(folder: Path, key: str) -> bool:
    """A run is done when its record exists: nothing else counts."""
    return os.path.isfile(f"{folder}/{key}/record.json")


def read_json(path: Path | str, missing: str = "") -> dict:
    """A file of a run's or plan's folder. Raises: MmkitError when it is gone or damaged."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError("no file")
        with open(path, "rb") as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        raise MmkitError(missing or f"{path} is gone: run the plan again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise MmkitError(f"{path} is damaged ({error}): remove its folder and run the plan again") from error
    if not isinstance(found, dict):
        raise MmkitError(f"{path} is damaged (no mapping): remove its folder and run the plan again")
    return found


def read_manifest(folder: Path, missing: str = "") -> dict:
    """`plan.json` of a folder, with runs that have a key and a label. Raises: MmkitError when it is gone or damaged."""
    found = read_json(folder / "plan.json", missing)
    runs = found.get("runs")
    if not isinstance(runs, list) or not all(map(_is_run, runs)):
        raise MmkitError(f"{folder / 'plan.json'} is damaged (no list of runs): run the plan again")
    return found


def _is_run(run: object) -> bool:
    """Whether an entry of a manifest names a run: its key is that of a folder, not a way out of it."""
    texts = [run.get("key"), run.get("label")] if isinstance(run, dict) else [None]
    return all(isinstance(text, str) for text in texts) and re.fullmatch(r"\w+", texts[0]) is not None
