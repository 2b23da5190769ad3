"""A plan: notebooks x parameter grid x seeds, read from YAML, and the key that says whether a run was already made."""

import hashlib
import json
import os
import re
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import mmkit
from mmkit import notebooks
from mmkit.errors import MmkitError, unknown
from mmkit.repro import paths

M = TypeVar("M", bound=BaseModel)
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, seven times as fast where libyaml is


class Entry(BaseModel):
    """One notebook of a plan. grid: every combination of its lists is run; seeds: a list, or how many from 0 on.

    timeout_s, memory_gb: what one run may take, all its processes together; no memory limit of its own by default.
    """

    model_config = STRICT
    notebook: str
    parameters: dict[str, object] = {}
    grid: dict[str, Annotated[list, Field(min_length=1)]] = {}
    seeds: Annotated[int, Field(ge=1)] | Annotated[list[int], Field(min_length=1)] | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 1800
    memory_gb: Annotated[float, Field(gt=0)] | None = None


class Plan(BaseModel):
    """A plan file, checked. The profile's overrides come first, then `parameters`, the grid and the seed."""

    model_config = STRICT
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    title: str
    profile: Literal["smoke", "lab", "full"] = "lab"
    notebooks: Annotated[list[Entry], Field(min_length=1)]
    claims: list[str] = []


def read_plan(name: str | Path) -> Plan:
    """A plan by its name (a file of `notebooks/plans/`) or its path. Raises: MmkitError with the key or name at fault."""
    path, folder = Path(name), paths.notebooks() / "plans"
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{name}.yaml"
        if not path.is_file():
            raise unknown("plan", str(name), (file.stem for file in folder.glob("*.yaml")))
    plan = read_yaml(path, Plan)
    if plan.name != path.stem and path.resolve().parent == folder.resolve():
        raise MmkitError(f"{path.name} says 'name: {plan.name}', so its runs would go among those of that plan: write 'name: {path.stem}', or rename the file")
    return plan


def read_yaml(path: Path, model: type[M]) -> M:
    """A YAML file as a checked model. Raises: MmkitError naming the file, the key and what was expected there."""
    try:
        return model.model_validate(yaml.load(path.read_text(encoding="utf-8"), LOADER))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MmkitError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        if first["type"] == "extra_forbidden":
            *outer, key = first["loc"]
            raise MmkitError(f"{path.name}: {unknown('key', key, _fields(model, outer))} (at {place})") from None
        raise MmkitError(f"{path.name}: {place or 'the file'}: {first['msg']}, got {str(first['input'])[:80]!r}") from None


def _fields(model: type[BaseModel], loc: list[str | int]) -> list[str]:
    """The keys a model allows at a place inside it."""
    for step in loc:
        if step in model.model_fields:
            kind = model.model_fields[step].annotation
            model = next((part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, BaseModel)), model)
    return list(model.model_fields)


class Planned(BaseModel):
    """One run to make: plain data, so that any executor can carry it to any process. tensorboard: where its training curves go, which is no part of what it is."""

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

    prepare: make the data sets the runs name, so that their content is in the key; else only look whether they are there.
    Raises: MmkitError for an unknown notebook or parameter (nearest name), a wrong type, two equal runs, or a data set
    that cannot be made.
    """
    planned, hashes, code, curves = [], {}, code_hash(), os.environ.get("MMKIT_TENSORBOARD")
    for entry in plan.notebooks:
        path = notebooks.resolve(entry.notebook)
        declared = notebooks.parameters(path)
        seeds = range(entry.seeds) if isinstance(entry.seeds, int) else entry.seeds
        seeded = {"seed": list(seeds)} if seeds is not None else {}
        axes = entry.grid | seeded
        twice = sorted(entry.parameters.keys() & axes.keys() | entry.grid.keys() & seeded.keys())
        if twice:
            raise MmkitError(f"plan {plan.name!r}: {entry.notebook}: {twice[0]!r} is set twice, among the parameters, the grid and seeds; keep one")
        for values in product(*axes.values()):
            varied = dict(zip(axes, values, strict=True))
            parameters = notebooks.checked(path, entry.parameters | varied, plan.profile)
            data = parameters.get("data", declared["data"].default if "data" in declared else None)
            if data not in hashes:
                hashes[data] = _content(data, prepare=prepare)
            key = fingerprint(path, parameters, plan.profile, hashes[data], code=code)
            label = " ".join([path.stem, *(f"{name}={value}" for name, value in varied.items())])
            limits = {"timeout_s": entry.timeout_s, "memory_gb": entry.memory_gb}
            log = str(Path(curves).expanduser().absolute() / (re.sub(r"[^\w.=+-]+", "_", label)[:150] + f"-{key[:8]}")) if curves else None
            planned.append(Planned(key=key, notebook=str(path), parameters=parameters, profile=plan.profile, data_hash=hashes[data], label=label, tensorboard=log, **limits))
    if len({run.key for run in planned}) < len(planned):
        raise MmkitError(f"plan {plan.name!r} holds the same run twice: remove the repeated seed, grid value or notebook")
    return planned


def fingerprint(notebook: Path, parameters: dict, profile: str, data_hash: str | None, *, code: str | None = None) -> str:
    """The key of a run: a hash of the notebook's code, its parameters, the profile, the package's code and the data."""
    cells = [cell["source"] for cell in notebooks.code_cells(notebooks.read(notebook))]
    parts = [cells, parameters, profile, code or code_hash(), data_hash]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def code_hash() -> str:
    """A hash of the package's code, its tables (tuned learning rates) and the data recipes, the same on every platform."""
    package = Path(mmkit.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.json"), *(package.parent / "data_recipes").glob("*.py")]):
        name = path.relative_to(package.parent).as_posix()
        if "/." not in name:  # what editors leave: a run's copy of the code is without it
            digest.update(name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def _content(data: object, *, prepare: bool) -> str | None:
    """The content hash of a prepared set; None for a notebook without data, or a set not prepared yet."""
    if not isinstance(data, str):
        return None
    from mmkit.data.folders import data_root
    from mmkit.data.prepared import open_set, read_card

    if prepare:
        return open_set(data)[1]["content"]
    folder = data_root() / data
    return read_card(folder)["content"] if (folder / "card.json").is_file() else None
