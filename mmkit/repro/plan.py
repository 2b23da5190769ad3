"""A plan: notebooks x parameter grid x seeds, read from YAML, and the key that says whether a run was already made."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

import mmkit
from mmkit import notebooks
from mmkit.errors import MmkitError, unknown
from mmkit.repro import paths
from mmkit.yamls import read_model

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)
MOST_RUNS = 100_000  # of one plan; more is a slip of the pen, and listing them alone would fill the memory
EVIDENCE = "evidence"  # the tag of the first cell of a notebook that reads published records
MOST_ENTRIES = 1000  # of one plan; each is read and checked
# What can change a number. Labs, plots, reports and the command line cannot.
ROOMS = ("core", "data", "models", "metrics", "training", "pretraining", "strategies", "tasks", "tuning")


class Entry(BaseModel):
    """One notebook of a plan. grid: every combination of its lists is run; seeds: a list, or how many from 0 on.

    timeout_s, memory_gb: what one run may take, all its processes together; no memory limit of its own by default.
    """

    model_config = STRICT
    notebook: str
    parameters: dict[str, object] = {}
    grid: dict[str, Annotated[list, Field(min_length=1)]] = {}
    seeds: Annotated[int, Field(ge=1)] | Annotated[list[int], Field(min_length=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1800
    memory_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Plan(BaseModel):
    """A plan file, checked. The profile's overrides come first, then `parameters`, the grid and the seed."""

    model_config = STRICT
    name: Annotated[str, Field(pattern=f"^{paths.NAME}$")]
    title: str
    profile: Literal["smoke", "lab", "full"] = "lab"
    notebooks: Annotated[list[Entry], Field(min_length=1, max_length=MOST_ENTRIES)]
    claims: list[str] = []


def plan_file(name: str | Path) -> Path:
    """The file of a plan by its name (in `notebooks/plans/`) or its path. Raises: MmkitError for an unknown name."""
    path, folder = Path(name), paths.notebooks() / "plans"
    if path.suffix in (".yaml", ".yml"):
        return Path(os.path.realpath(path))
    path = folder / f"{name}.yaml"
    if not re.fullmatch(paths.NAME, str(name)) or not path.is_file():
        raise unknown("plan", str(name), (file.stem for file in folder.glob("*.yaml")))
    return Path(os.path.realpath(path))


def read_plan(name: str | Path) -> Plan:
    """A plan by its name or its path. Raises: MmkitError with the key or name at fault."""
    path = plan_file(name)
    plan = read_model(path, Plan)
    if plan.name != path.stem and path.parent == Path(os.path.realpath(paths.notebooks() / "plans")):
        fault = f"{path.name} says 'name: {plan.name}', so its runs would go among those of that plan"
        raise MmkitError(f"{fault}: write 'name: {path.stem}', or rename the file")
    return plan


class Planned(BaseModel):
    """One run to make: plain data, so that any executor can carry it to any process.

    tensorboard: where its training curves go, which is no part of what it is.
    """

    model_config = ConfigDict(frozen=True)
    key: str
    notebook: str
    parameters: dict[str, object]
    profile: str
    data_hash: str | None
    timeout_s: float
    memory_gb: float | None
    label: str
    tensorboard: str | None = Field(None, exclude=True)


def expand(plan: Plan, *, prepare: bool = True) -> list[Planned]:
    """Every run of a plan, in order, with names and types checked against the notebooks' parameters cells.

    prepare: make the data sets the runs name, so that their content is in the key; else only look whether they are
    there.
    Raises: MmkitError for an unknown notebook or parameter (nearest name), a wrong type, two equal runs, more than
    `MOST_RUNS`, or a data set that cannot be made.
    """
    axes = [_axes(plan, entry) for entry in plan.notebooks]
    number = runs_asked(plan.model_dump())
    if number > MOST_RUNS:
        raise MmkitError(f"plan {plan.name!r} asks for {number:,} runs, at most {MOST_RUNS:,} are made: fewer, please")
    contents = {}
    code = code_hash()
    planned = []
    for entry, values in zip(plan.notebooks, axes, strict=True):
        planned += _runs(plan, entry, values, code, contents, prepare)
    if len({run.key for run in planned}) < len(planned):
        twice = f"plan {plan.name!r} holds the same run twice"
        raise MmkitError(f"{twice}: remove the repeated seed, grid value or notebook")
    return planned


def runs_asked(plan: dict) -> int:
    """How many runs a plan asks for: every combination of an entry's grid, for each of its seeds."""
    total = 0
    for entry in plan["notebooks"]:
        seeds = entry["seeds"] if entry["seeds"] is not None else 1
        number = seeds if isinstance(seeds, int) else len(seeds)
        total += number * math.prod(map(len, entry["grid"].values()))
    return total


def _axes(plan: Plan, entry: Entry) -> dict[str, Sequence]:
    """What varies in an entry: the lists of its grid, and its seeds."""
    seeds = range(entry.seeds) if isinstance(entry.seeds, int) else entry.seeds
    seeded = {"seed": seeds} if seeds is not None else {}
    twice = sorted(entry.parameters.keys() & (entry.grid | seeded).keys() | entry.grid.keys() & seeded.keys())
    if twice:
        where = f"plan {plan.name!r}: {entry.notebook}: {twice[0]!r}"
        raise MmkitError(f"{where} is set twice, among the parameters, the grid and seeds; keep one")
    return entry.grid | seeded


def _runs(plan: Plan, entry: Entry, axes: dict, code: str, contents: dict, prepare: bool) -> Iterator[Planned]:
    """The runs of one entry. contents: the hash of each data set met so far."""
    path = notebooks.resolve(entry.notebook)
    declared = notebooks.parameters(path)
    overrides = notebooks.profile_overrides(path.stem, plan.profile, root=path.parent)
    cells = _making(path)
    curves = os.environ.get("MMKIT_TENSORBOARD")
    folder = os.path.abspath(os.path.expanduser(curves)) if curves else None
    for values in product(*axes.values()):
        varied = dict(zip(axes, values, strict=True))
        parameters = notebooks.merged(path.stem, declared, overrides, entry.parameters | varied)
        data = parameters.get("data", declared["data"].default if "data" in declared else None)
        data = data if isinstance(data, str) else None
        if data not in contents:
            contents[data] = _content(data, prepare=prepare) if data else None
        key = _key(cells, parameters, plan.profile, code, contents[data])
        label = " ".join([path.stem, *(f"{name}={value}" for name, value in varied.items())])
        log = os.path.join(folder, f"{_file_name(label)}-{key[:8]}") if folder else None
        what = {"notebook": str(path), "parameters": parameters, "profile": plan.profile, "data_hash": contents[data]}
        limits = {"timeout_s": entry.timeout_s, "memory_gb": entry.memory_gb}
        yield Planned(key=key, **what, **limits, label=label, tensorboard=log)


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", label)[:150]


def fingerprint(notebook: Path, parameters: dict, profile: str, data_hash: str | None) -> str:
    """The key of a run: a hash of the notebook's code, its parameters, the profile, the package's code and the data."""
    cells = _making(notebook)
    return _key(cells, parameters, profile, code_hash(), data_hash)


def _making(path: Path) -> list[str]:
    """The code of a notebook that can change a number: up to the cell tagged `evidence`, from which on records are only
    read and drawn."""
    made = []
    for cell in notebooks.code_cells(notebooks.read(path)):
        if EVIDENCE in notebooks.tags(cell):
            break
        made.append(cell["source"])
    return made


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def code_hash() -> str:
    """A hash of the code and tables (tuned learning rates) that can change a number, the same on every platform."""
    package = Path(mmkit.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(_code_files(package)):
        name = path.relative_to(package.parent).as_posix()
        if "/." not in name:  # what editors leave: a run's copy of the code is without it
            digest.update(name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def _code_files(package: Path) -> Iterator[Path]:
    for room in ROOMS:
        yield from (package / room).rglob("*.py")
        yield from (package / room).rglob("*.json")
    yield from (package.parent / "data_recipes").glob("*.py")


def _content(data: str, *, prepare: bool) -> str | None:
    """The content hash of a prepared set; None for one that is not prepared yet."""
    from mmkit.data.folders import data_root
    from mmkit.data.prepared import open_set, read_card

    if prepare:
        return open_set(data)[1]["content"]
    folder = data_root() / Path(data).name  # a name leads out of the folder of data sets nowhere
    return read_card(folder)["content"] if (folder / "card.json").is_file() else None
