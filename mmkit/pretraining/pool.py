"""A part of a model, pretrained on the unpaired pool of its own modality; kept in the cache by content."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mmkit.data import Dataset, cached
from mmkit.errors import MmkitError
from mmkit.models.identity import digest, hash_of, structure
from mmkit.pretraining.pretext import Part, Supervised, pretrain
from mmkit.training import Phase, choose, seeded, stream
from mmkit.training.code import installed, sources
from mmkit.training.views import cut

SUPERVISED = "supervised"  # on the modality's own labels, for every modality


def pretrained_in_place(
    module: nn.Module, modality: str, part: Part, task, words, settings, *, seed: int, device: torch.device
) -> tuple[Phase, dict]:
    """Train a part by its pretext task on its own pool: images without texts, texts without images. Kept in the cache
    by content; returns the cost, and the objective with the number of entries and of labels it learnt from.

    A set without a pool lends its training items, unpaired, but not their labels. Raises MmkitError for a part that
    has no pretext task, and for labels that are not there."""
    pool = _pool(task, modality, words, part, settings, seed)
    make = part.pretext
    if pool.classes:
        make = partial(Supervised, classes=pool.classes)
    if make is None:
        remedy = f"Part(build, pretext), see mmkit.pretraining, or start={{{modality!r}: 'random'}}"
        raise MmkitError(f"the {modality} part has no pretext task to be pretrained by: give it one, {remedy}")
    pretext = seeded(seed, f"{modality} pretext", make, module)
    where, count = f"pretraining the {modality} encoder", len(pool.rows)
    options = {"epochs": settings.epochs, "batch": settings.batch, "lr": settings.lr, "seed": seed, "where": where}
    options["steps"] = settings.steps
    about = {
        "what": "pretrained part",
        "code": sources(),
        "pool": pool.content,
        "task": structure(pretext),
        "weights": digest(pretext),
        **options,
    }

    def take(rows: Tensor) -> Tensor:
        return pool.take(pool.rows[rows]).to(device)

    def compute() -> dict[str, Tensor]:
        phase, _ = pretrain(pretext.to(device), take, torch.arange(count), target=pool.target, **options)
        cost = [phase.flops, phase.seconds, phase.steps, phase.parameters_trained]
        return {f"part/{key}": value for key, value in module.state_dict().items()} | {
            "cost": torch.tensor(cost, dtype=torch.float64)
        }

    kept = cached(about, compute) if installed(pretext) else compute()
    module.load_state_dict({key.removeprefix("part/"): value for key, value in kept.items() if key.startswith("part/")})
    flops, seconds, steps, trained = kept["cost"].tolist()
    labels = int((pool.target >= 0).sum()) if pool.classes else 0
    note = {"objective": type(pretext).__name__, "entries": count, "labels": labels, "steps": int(steps)}
    return Phase(flops=flops, seconds=seconds, steps=int(steps), parameters_trained=int(trained)), note


@dataclass(frozen=True)
class Pool:
    """The unpaired inputs of a modality. take: entries (B,) -> raw input. rows: (M,) the entries that are used.
    content: a hash of all of it. classes: label -> number of classes, and target: (M, labels), -1 unknown, of
    supervised pretraining."""

    take: Callable[[Tensor], Tensor]
    rows: Tensor
    content: str
    classes: dict[str, int] | None = None
    target: Tensor | None = None


_pool_ids: dict[tuple, tuple[Tensor, Tensor]] = {}


def _pool(task, modality: str, words, part: Part, settings, seed: int) -> Pool:
    """The entries of a modality's pool, with their labels where pretraining is supervised."""
    dataset, supervised = task.dataset, settings.objective.get(modality) == SUPERVISED
    split = f"pool_{modality}" if f"pool_{modality}" in dataset.splits else "train"
    items = torch.from_numpy(dataset.rows(split))
    if modality in dataset.arrays:
        owners = items[torch.as_tensor(dataset.array_rows(modality)[items.numpy()] >= 0)]
        inputs = dataset.read(modality, owners)
        take = lambda rows: dataset.read(modality, owners[rows])  # noqa: E731, beside its twin
    else:
        inputs, owners = _texts(task, items, words, task.role if supervised else part.role)
        take = lambda rows: cut(inputs[rows])  # noqa: E731
    rows = torch.arange(len(owners))
    if settings.pool:
        rows = choose(rows, settings.pool, stream(seed, f"pool of {modality}"))
    if not supervised:
        return Pool(take, rows, hash_of(inputs, rows))
    columns = tuple(settings.labels.get(modality, dataset.facts.get(modality, ())))
    if split == "train" or not columns:
        lack = "no pool, and the labels of its pairs are the task's: take another objective"
        if split != "train":
            lack = f"no facts on its card for it: give Encoders(labels={{{modality!r}: ('label_...',)}})"
        raise MmkitError(f"supervised pretraining of the {modality} encoder: {dataset.name!r} has {lack}")
    target = torch.stack([dataset.labels(owners, column) for column in columns], dim=1)[rows]
    classes = {column: len(dataset.classes(column)) for column in columns}
    return Pool(take, rows, hash_of(inputs, rows, target), classes, target)


def _texts(task, items: Tensor, words, role: str | None) -> tuple[Tensor, Tensor]:
    """Word ids of the texts of some items, (M, L), and whose they are, (M,). role: None for every one."""
    dataset: Dataset = task.dataset
    key = (dataset.content, task.language, role, words, len(items))
    if key not in _pool_ids:
        texts, owners = [], []
        for each in [role] if role else sorted(dataset.texts["role"].unique()):
            found, owner = dataset.texts_of(items, role=each, language=task.language)
            texts, owners = texts + found, [*owners, items[torch.from_numpy(owner)]]
        _pool_ids[key] = words(texts), torch.cat(owners)
    return _pool_ids[key]
