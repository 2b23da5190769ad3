"""A trained model in a folder: weights, what is needed to ask it, and a card that says what it is for."""

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

import mmkit
from mmkit.data.folders import replacing, writing
from mmkit.errors import MmkitError, unknown
from mmkit.metrics.captioning import caption_words
from mmkit.models.adapters import merged
from mmkit.models.text import WordTokenizer
from mmkit.strategies.encoders import Encoders
from mmkit.tasks import TASKS, Task

SCHEMA = "mmkit.model/1"
WEIGHTS, ABOUT, CARD = "model.safetensors", "model.json", "README.md"


def save(run, folder: str | Path) -> Path:
    """Write a run's model: `model.safetensors`, `model.json` and a model card, `README.md`. Returns the folder.

    Raises MmkitError for a run without a model, a combination of several models, and a folder that holds something
    else: nothing is overwritten unasked."""
    folder = Path(folder)
    if run.model is None or run.trained is None:
        raise MmkitError(f"the run of {run.arm!r} holds no single model that can be saved: save its members")
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise MmkitError(f"{folder} holds something already: name a new folder, or remove that one")
    about, model = _about(run), merged(run.model)
    weights = {}
    for name, value in model.state_dict().items():
        if not name.startswith("own_heads."):  # heads that balanced the training and are not asked afterwards
            weights[name] = value.detach().cpu().contiguous().clone()
    with writing(folder.parent, "name a folder that you can write"):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as part:
            save_file(weights, part, metadata={"schema": SCHEMA})
        with replacing(folder / CARD) as part:
            Path(part).write_text(card(run, about), encoding="utf-8")
        with replacing(folder / ABOUT) as part:  # last: a folder without it is no model
            Path(part).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Within the block, whatever a damaged or hostile description of a model leads to is one line."""
    try:
        yield
    except MmkitError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise MmkitError(f"{Path(folder) / ABOUT} does not describe a model ({reason}): save it again") from error


class Trained(NamedTuple):
    """What a trained model needs to be asked: its task, encoders and tokenizer."""

    task: Task
    encoders: Encoders
    words: Callable | None


def load(
    folder: str | Path, *, encoders: Encoders | None = None, task: type[Task] | None = None
) -> tuple[dict, nn.Module, Trained]:
    """What `model.json` says, the model in evaluation mode, and what it needs to be asked.

    encoders, task: for parts and tasks of one's own, which the file can only name. Raises MmkitError for a folder that
    holds no model, one of another version, and weights that do not fit."""
    folder = Path(folder)
    about = _read(folder)
    kind = task or TASKS.get(about["task"])
    if kind is None:
        raise unknown("task", about["task"], TASKS)
    trained = _trained(about, encoders, kind)
    parts = _parts(about, trained)
    model = trained.task.build(parts, seed=0)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
        for name, x in model.state_dict().items():
            if name in weights and (weights[name].dtype != x.dtype or not weights[name].isfinite().all()):
                raise RuntimeError(f"{name} is not finite or of another type")
        model.load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise MmkitError(f"the weights in {folder} do not fit their model ({reason}): save it again") from error
    return about, model.eval(), trained


def _read(folder: Path) -> dict:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        schema = about["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MmkitError(f"{folder} holds no saved model ({ABOUT}: {error}): name the folder of Run.save") from error
    if schema != SCHEMA:
        raise MmkitError(f"the model in {folder} has schema {schema!r}, this mmkit reads {SCHEMA!r}: save it again")
    return about


def _about(run) -> dict:
    trained, dataset = run.trained, run.trained.task.dataset
    words = None
    if isinstance(trained.words, WordTokenizer):
        words = {"tokenizer": trained.words.saved(), "length": trained.words.length, "split": bool(trained.words.split)}
    scores = {}
    for name, score in run.scores.items():
        low, high = score.interval()
        clusters = len(np.unique(score.clusters))
        scores[name] = {"value": score.value, "low": low, "high": high, "items": len(score.items), "clusters": clusters}
    keys = ("name", "title", "licence", "terms", "citation", "content")
    data = {key: dataset.card.get(key, "") for key in keys}
    versions = {"mmkit": mmkit.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {
        "schema": SCHEMA,
        "arm": run.arm,
        "task": run.task,
        "state": trained.task.state(),
        "encoders": trained.encoders.settings(),
        "modalities": list(run.model.modalities),
        "words": words,
        "data": data,
        "seed": run.seed,
        "budget": asdict(run.budget),
        "settings": run.settings,
        "scores": scores,
        "cost": run.cost.as_dict(),
        "versions": versions,
        "machine": platform.machine(),
    }


def _trained(about: dict, encoders: Encoders | None, kind: type[Task]) -> Trained:
    settings = dict(about["encoders"])
    others = settings.pop("others", {})
    if others and encoders is None:
        names = ", ".join(f"{name} ({built})" for name, built in others.items())
        raise MmkitError(
            f"the model has parts of its own, {names}: pass them, load(folder, encoders=Encoders(others=...))"
        )
    encoders = encoders or Encoders(**settings)
    words = None
    if about["words"]:
        split = caption_words if about["words"]["split"] else None
        words = WordTokenizer.restored(about["words"]["tokenizer"], length=about["words"]["length"], split=split)
    elif encoders.real:
        words = encoders.given("text").tokenizer
    return Trained(kind.restored(about["state"], words), encoders, words)


def _parts(about: dict, trained: Trained) -> dict:
    """The modules that the saved weights go into."""
    own = trained.task.own_parts(trained.words)
    modules = {}
    for name in dict.fromkeys((*about["modalities"], *own)):
        if name in own:
            modules[name] = own[name].build()
        elif trained.encoders.real:
            modules[name] = trained.encoders.given(name)
        else:
            modules[name] = trained.encoders.part(name, len(trained.words) if trained.words else 0).build()
    return modules


def card(run, about: dict) -> str:
    """The model card, in Markdown."""
    data, budget, cost = about["data"], about["budget"], about["cost"]
    rows = []
    for name, score in about["scores"].items():
        interval = f"[{score['low']:.3f}, {score['high']:.3f}]"
        rows.append(f"| {name} | {score['value']:.3f} | {interval} | {score['items']:,} in {score['clusters']:,} |")
    made = f"torch {about['versions']['torch']}, Python {about['versions']['python']}, {about['machine']}"
    return f"""# {run.arm}, {run.task} on {data["name"]}

A model of the mmkit teaching kit: strategy `{run.arm}`, task `{run.task}`, seed {run.seed}.

## Intended use

Teaching and the study of training strategies. Not for decisions about people; nothing in it is for diagnosis.

## Data and terms

{data["title"]} (`{data["name"]}`, content {data["content"][:12]}). Licence: {data["licence"]}.
{data["terms"]}
{data["citation"]}

## Scores

| metric | value | 95 % interval | items in clusters |
|---|---|---|---|
{chr(10).join(rows)}

Intervals resample clusters of items. They do not hold another training run: one seed says nothing of a strategy.

## How it was made

{budget["pairs"]:,} labelled pairs, {budget["epochs"]} passes, {cost["flops"]:.3g} FLOPs,
{cost["parameters_total"]:,} parameters; encoders: {about["settings"]["start"]}. {made}.

## Limits

It knows what its training pairs show and nothing else: another style, language, camera or hospital is another task.
"""
