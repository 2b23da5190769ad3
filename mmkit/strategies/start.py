"""Where a run's encoders come from: random, pretrained on the unpaired pools, or real ones."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import mmkit
from mmkit.data import Dataset, cached
from mmkit.errors import MmkitError, unknown
from mmkit.models.identity import digest, hash_of, is_installed, structure
from mmkit.strategies.encoders import Encoders
from mmkit.strategies.strategy import Strategy
from mmkit.training import Part, Phase, seeded
from mmkit.training.pretext import pretrain
from mmkit.training.views import cut


def start(
    strategy: Strategy, task, encoders: Encoders, words, *, seed: int, device: torch.device
) -> tuple[dict[str, nn.Module], dict[str, Phase]]:
    """The parts of a strategy's model before any training on pairs, by modality, and what pretraining them cost.

    Besides encoders these are the parts that a task brings itself (a decoder). Raises MmkitError where they cannot
    be had as the strategy asks."""
    used = strategy.modalities_of(task)
    if strategy.pretrains and encoders.real:
        raise MmkitError(
            f"{strategy.name} pretrains its own encoders; with real ones take frozen, lp_ft or holistic, or leave the "
            "encoders small"
        )
    own = task.own_parts(words)
    if not isinstance(strategy.start, str):
        for name in strategy.start:
            if name not in task.modalities and name not in own:
                raise unknown(f"modality in the start of {strategy.name!r}", name, {*task.modalities, *own})
    parts = {name: own.get(name) or _part(encoders, name, words) for name in dict.fromkeys((*used, *own))}
    modules, phases = {}, {}
    for name, part in parts.items():
        pretrained = strategy.start_of(name) == "pretrained"
        if encoders.real and name not in own:
            modules[name] = _given(encoders, name, pretrained)
            continue
        modules[name] = seeded(seed, name, part.build)
        if pretrained and not encoders.real:
            phases[f"pretrain_{name}"] = pretrained_in_place(
                modules[name], name, part, task, words, encoders, seed=seed, device=device
            )
    return modules, phases


def _part(encoders: Encoders, modality: str, words) -> Part | None:
    return None if encoders.real else encoders.part(modality, len(words))


def _given(encoders: Encoders, modality: str, pretrained: bool) -> nn.Module:
    if not pretrained:
        given = f"leave image={encoders.image!r} and text={encoders.text!r} out, or take frozen, holistic or lp_ft"
        raise MmkitError(f"arms that start from random encoders train small ones here: {given}")
    return encoders.given(modality)


def pretrained_in_place(
    module: nn.Module, modality: str, part: Part, task, words, encoders: Encoders, *, seed: int, device: torch.device
) -> Phase:
    """Train a part by its pretext task on its own pool: images without texts, texts without images. Kept in the cache
    by content; returns the cost.

    A set without a pool lends its training items, unpaired. Raises MmkitError for a part that has no pretext task."""
    if part.pretext is None:
        remedy = f"Part(build, pretext), see mmkit.training.pretext, or start={{{modality!r}: 'random'}}"
        raise MmkitError(f"the {modality} part has no pretext task to be pretrained by: give it one, {remedy}")
    take, count, content = pool(task, modality, words, role=part.role)
    pretext = seeded(seed, f"{modality} pretext", part.pretext, module)
    where = f"pretraining the {modality} encoder"
    options = {"epochs": encoders.epochs, "batch": encoders.batch, "lr": encoders.lr, "seed": seed, "where": where}
    about = {
        "what": "pretrained part",
        "code": sources(),
        "pool": content,
        "task": structure(pretext),
        "weights": digest(pretext),
        **options,
    }

    def compute() -> dict[str, Tensor]:
        phase, _ = pretrain(pretext.to(device), lambda rows: take(rows).to(device), torch.arange(count), **options)
        cost = [phase.flops, phase.seconds, phase.steps, phase.parameters_trained]
        return {f"part/{key}": value for key, value in module.state_dict().items()} | {
            "cost": torch.tensor(cost, dtype=torch.float64)
        }

    kept = cached(about, compute) if installed(pretext) else compute()
    module.load_state_dict({key.removeprefix("part/"): value for key, value in kept.items() if key.startswith("part/")})
    flops, seconds, steps, trained = kept["cost"].tolist()
    return Phase(flops=flops, seconds=seconds, steps=int(steps), parameters_trained=int(trained))


_pool_ids: dict[tuple, Tensor] = {}


def pool(task, modality: str, words, *, role: str | None = None) -> tuple[Callable[[Tensor], Tensor], int, str]:
    """The unpaired inputs of a modality: how to take some, how many there are, and their hash. role: of texts, None for
    every role."""
    dataset: Dataset = task.dataset
    split = f"pool_{modality}" if f"pool_{modality}" in dataset.splits else "train"
    rows = dataset.rows(split)
    if modality in dataset.arrays:
        rows = rows[dataset.array_rows(modality)[rows] >= 0]
        inputs = dataset.read(modality, rows)
        return lambda part: dataset.read(modality, rows[part.numpy()]), len(rows), hash_of(inputs)
    key = (dataset.content, task.language, role, words)
    if key not in _pool_ids:
        roles = [role] if role else sorted(dataset.texts["role"].unique())
        texts = []
        for each in roles:
            texts += dataset.texts_of(rows, role=each, language=task.language)[0]
        _pool_ids[key] = words(texts)
    ids = _pool_ids[key]
    return lambda part: cut(ids[part]), len(ids), hash_of(ids)


@cache
def sources(*rooms: str) -> str:
    """A hash of the code of some rooms; by default of those that decide what a cached encoding or encoder is."""
    root, found = Path(mmkit.__file__).parent, hashlib.sha256()
    for room in rooms or ("core", "models", "training"):
        for path in sorted((root / room).glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def installed(module: nn.Module) -> bool:
    """Whether the code of every part of a module is an installed package's, so that `sources` knows it; a class of a
    notebook may change any time."""
    return all(is_installed(type(part)) for part in module.modules())
