"""One strategy, trained once with one seed: `fit`."""

import math
import re
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import takewhile
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import nn

from mmkit.errors import MmkitError
from mmkit.models.identity import fingerprint
from mmkit.strategies.arms import arm
from mmkit.strategies.encoders import Encoders, tokenizer
from mmkit.strategies.ensembles import Combination
from mmkit.strategies.features import encoded
from mmkit.strategies.run import Budget, Run
from mmkit.strategies.saving import Trained
from mmkit.strategies.scoring import loader_of, pairs, scores_of, splits_of
from mmkit.pretraining.probe import probes
from mmkit.strategies.start import start
from mmkit.training.code import sources
from mmkit.strategies.strategy import Fitting, Stage, Strategy, require_function
from mmkit.strategies.tuned import learning_rate, rate_from
from mmkit.tasks import Task
from mmkit.training import (
    Batches,
    Checkpoint,
    Cost,
    Loader,
    Objective,
    RowBatches,
    flops_of,
    forget_peak,
    peak_bytes,
    seeded,
    stream,
    train,
)
from mmkit.training.groups import parameter_groups, trains

BATCH = 64
KINDS = {
    "strategy": (Strategy | Combination, "an arm's name or a Strategy"),
    "task": (Task, "a task on loaded data, such as mmkit.tasks.Answering(mmkit.load('scenes'))"),
    "budget": (Budget, "a Budget, such as Budget(pairs=256)"),
    "encoders": (Encoders, "of the type Encoders, such as Encoders(image='vit')"),
    "seed": (Integral, "a whole number"),
    "lr": (Real | None, "a number or None"),
    "batch": (Integral, "a whole number"),
}


def fit(
    strategy: Strategy | Combination | str,
    task,
    *,
    budget: Budget,
    seed: int,
    encoders: Encoders = Encoders(),
    lr: float | None = None,
    batch: int = BATCH,
    evaluate: tuple[str, ...] | None = None,
    checkpoint: str | Path | None = None,
) -> Run:
    """Train a strategy on `budget.pairs` of the task's training pairs and score it on the test split and every
    out-of-domain one.

    strategy: an arm of the table by name, or a `Strategy` of one's own. Runs of one seed share the choice of pairs,
    their order and the head's first weights. lr: None takes the arm's tuned value (`strategies/tuned.json`), or its
    grid's middle where none was searched for; `lr_from` in the settings says which. evaluate: splits; None is `test`
    and all `ood_*`. checkpoint: a folder in which the run is kept at its checks and from which it goes on after a
    kill; for long runs. Raises MmkitError for an unknown arm, more pairs than there are, an empty split, or a loss
    that is not finite.
    """
    strategy = arm(strategy) if isinstance(strategy, str) else strategy
    given = {"strategy": strategy, "task": task, "budget": budget, "encoders": encoders, "seed": seed, "lr": lr}
    _require(given | {"batch": batch})
    if batch < 1 or not (lr is None or 0 < lr < math.inf):
        raise MmkitError(f"batch is 1 or more and lr above 0, got batch={batch} and lr={lr}: leave them out")
    options = {"seed": seed, "encoders": encoders, "batch": batch}
    if isinstance(strategy, Combination):
        return strategy.fit(fit, task, budget=budget, lr=lr, evaluate=evaluate, **options)
    strategy.modalities_of(task)
    splits = splits_of(task, evaluate)
    origin = rate_from(task.tuned_as, strategy.name, lr, real=encoders.real)
    rate = learning_rate(task.tuned_as, strategy.name, real=encoders.real) if lr is None else lr

    fitting = _begin(strategy, task, encoders, budget, splits, seed=seed, lr=rate, batch=batch)
    fitting.refit = partial(fit, budget=replace(budget, flops=None), **options)
    if strategy.prepare:
        strategy.prepare(fitting)
    loaders = _loaders(strategy, fitting, splits)
    steps = _steps(strategy, fitting, loaders)
    history, ends = _train(strategy, fitting, loaders, steps, checkpoint)
    return _result(strategy, fitting, loaders[strategy.stages[-1].name].evaluation(), splits, history, ends, origin)


def _require(given: dict) -> None:
    """Raise MmkitError for an argument of `fit` of another kind."""
    for name, value in given.items():
        kind, example = KINDS[name]
        if not isinstance(value, kind):
            raise MmkitError(f"{name} is {example}, got {value!r}")


def _begin(
    strategy: Strategy, task, encoders: Encoders, budget: Budget, splits: dict, *, seed: int, lr: float, batch: int
) -> Fitting:
    """The chosen pairs, the loader, and the model with its encoders as they start."""
    rows = pairs(task, budget.pairs, seed)
    words, loader, validation = tokenizer(task, encoders), loader_of(task, encoders), task.rows("val")
    used = strategy.modalities_of(task)
    loader.require(torch.cat([rows, validation, *splits.values()]), used)
    loader = replace(loader.only(used).blanked(*strategy.blank), transforms=strategy.transforms)
    forget_peak()
    parts, phases, notes = start(strategy, task, encoders, words, seed=seed, device=loader.device)
    model = task.build(parts, seed=seed).to(loader.device)
    for modality in set(notes) & set(used):
        notes[modality]["probe"] = probes(task, getattr(model, modality), modality, loader)
    settings = {"pretraining": notes} if notes else {}
    return Fitting(task, encoders, budget, seed, lr, batch, rows, validation, loader, model, Cost(phases), settings)


def _loaders(strategy: Strategy, fitting: Fitting, splits: dict) -> dict[str, Loader]:
    """What each stage is shown: raw inputs, or, as long as encoders are as they came, their features, encoded once.

    Small encoders that a later stage trains are not encoded: running them costs little more than reading their
    features."""
    loader = strategy.show(fitting.loader, fitting) if strategy.show else fitting.loader
    if not isinstance(loader, Loader):
        raise MmkitError(f"show of {strategy.name!r} gave a {type(loader).__name__}: return the loader")
    loaders = {stage.name: loader for stage in strategy.stages}
    model, task = fitting.model, fitting.task
    locked = list(takewhile(lambda stage: not _trains_encoders(model, stage), strategy.stages))
    all_locked = len(locked) == len(strategy.stages)
    if strategy.transforms or not (all_locked or (fitting.encoders.real and locked)):
        return loaders
    used = torch.cat([fitting.rows, fitting.validation, *(splits.values() if all_locked else ())]).unique()
    about = fitting.encoders.describe(strategy.any_pretrained)
    about |= {"data": task.dataset.content, "role": task.role, "language": task.language}
    tokens = task.fusion == "cross_attention"
    features, fitting.cost.phases["encode"] = encoded(
        loader, model, rows=used, learnt=fitting.rows, tokens=tokens, about=about
    )
    return loaders | {stage.name: features for stage in locked}


def _trains_encoders(model: nn.Module, stage: Stage) -> bool:
    return any(trains(model, stage.groups, modality) for modality in model.modalities)


def _steps(strategy: Strategy, fitting: Fitting, loaders: dict[str, Loader]) -> dict[str, int]:
    """How many steps each stage takes: its share of the epochs, or of the FLOPs that are left."""
    a_pass = len(fitting.rows) // min(fitting.batch, len(fitting.rows))
    steps = {stage.name: max(1, round(stage.share * fitting.budget.epochs * a_pass)) for stage in strategy.stages}
    if fitting.budget.flops is None:
        return steps
    each = {stage.name: _step_flops(fitting, stage, loaders[stage.name]) for stage in strategy.stages}
    left = fitting.budget.flops - fitting.cost.flops  # now, because a wrap may have trained a teacher
    factor = left / sum(steps[name] * each[name] for name in steps)
    steps = {name: round(count * factor) for name, count in steps.items()}
    *others, last = steps
    spent = sum(steps[name] * each[name] for name in others)
    steps[last] = round((left - spent) / each[last])  # the rest, so that rounding does not add up
    if min(steps.values()) < 1:
        remedy = "less than a step of each stage; raise it above the pretraining's cost"
        raise MmkitError(f"budget.flops leaves {left:.3g} FLOPs for training on pairs, {remedy}")
    return steps


def _step_flops(fitting: Fitting, stage: Stage, loader: Loader) -> float:
    objective, model = _objective(fitting, stage), deepcopy(fitting.model)  # a copy: batch norm counts batches, too
    parameter_groups(model, stage.groups, 1.0)  # freezes what the stage does not train
    batch = loader(fitting.rows[: fitting.batch], stream(0, "count"))
    return flops_of(lambda: objective(model, batch).backward())


def _objective(fitting: Fitting, stage: Stage) -> Objective:
    """The task's, as the stage wraps it."""
    if not stage.wrap:
        return fitting.task.objective
    wrapped = stage.wrap(fitting.task.objective, fitting)
    require_function(wrapped, f"what wrap of the stage {stage.name!r} gave", "model, batch")
    return wrapped


def _train(
    strategy: Strategy, fitting: Fitting, loaders, steps: dict[str, int], checkpoint
) -> tuple[list[dict], list[dict]]:
    """Train the stages one after another and add each to the cost. Every strategy of a seed meets the same batches and
    texts.

    Returns the history and, for a strategy that needs them to finish, the weights at the end of each stage."""
    model, seed = fitting.model, fitting.seed
    order, drawn = stream(seed, "order"), stream(seed, "texts")
    rows, history, ends = RowBatches(fitting.rows, fitting.batch, order), [], []
    for stage in strategy.stages:
        loader = loaders[stage.name]
        if stage.order:
            fitting.loader = loader
            rows = RowBatches(fitting.rows, fitting.batch, order, order=stage.order(fitting))
        fitting.objective = _objective(fitting, stage)
        fitting.cost.phases[stage.name], log = seeded(
            seed,
            f"dropout/{stage.name}",
            train,
            model,
            fitting.objective,
            Batches(loader, rows, drawn),
            steps=steps[stage.name],
            lr=fitting.lr * stage.lr,
            groups=stage.groups,
            schedule=stage.schedule,
            hooks=stage.hooks(fitting) if stage.hooks else (),
            autocast=stage.autocast(loader.device),
            compiled=stage.compiled,
            validate=_validation(fitting, loader.evaluation()),
            keep_best=stage.keep_best,
            where=f"{strategy.name}, {stage.name}",
            checkpoint=_checkpoint(checkpoint, strategy, stage, fitting, steps[stage.name]),
        )
        history += log
        if strategy.finish:
            ends.append(deepcopy(model.state_dict()))
    model.requires_grad_(True)
    if strategy.finish:
        strategy.finish(model, ends)
    return history, ends


def _validation(fitting: Fitting, loader: Loader):
    def score(model: nn.Module) -> float:
        return fitting.task.scores(model, loader, fitting.validation)[fitting.task.metric].value

    return score


def _checkpoint(folder, strategy: Strategy, stage: Stage, fitting: Fitting, steps: int) -> Checkpoint | None:
    if folder is None:
        return None
    about = {
        "code": sources("core", "data", "models", "metrics", "training", "pretraining", "strategies", "tasks"),
        "strategy": strategy.name,
        "definition": fingerprint([strategy, type(fitting.task), fitting.encoders.others]),
        "stage": stage.name,
        "steps": steps,
        "task": [fitting.task.name, fitting.task.settings()],
        "data": fitting.task.dataset.content,
        "encoders": fitting.encoders.settings(),
        "pairs": fitting.budget.pairs,
        "seed": fitting.seed,
        "lr": fitting.lr,
        "batch": fitting.batch,
    }
    name = re.sub(r"[^\w.=+-]+", "_", f"{strategy.name}-{stage.name}")  # a name must not lead out of the folder
    return Checkpoint(Path(folder) / f"{name}.safetensors", about)


def _result(
    strategy: Strategy,
    fitting: Fitting,
    loader: Loader,
    splits: dict,
    history: list[dict],
    ends: list[dict],
    origin: str,
) -> Run:
    """Scores, cost and settings of the trained model."""
    task, model, cost = fitting.task, fitting.model, fitting.cost
    cost.peak_bytes, cost.parameters_total = peak_bytes(), sum(p.numel() for p in model.parameters())
    whole = not strategy.blank and len(model.modalities) == len(task.modalities)
    scores = scores_of(task, model, loader, splits, blank=whole)
    last = [entry["validation"] for entry in history if entry["where"] == history[-1]["where"]]
    kept = max(last) if strategy.stages[-1].keep_best else last[-1]
    if strategy.finish:
        kept = _validation(fitting, loader)(model)
    words = tokenizer(task, fitting.encoders)
    settings = fitting.encoders.describe(strategy.any_pretrained) | task.settings() | task.texts_read(words)
    if not isinstance(strategy.start, str):
        starts = {name: fitting.encoders.describe(strategy.start_of(name) != "random") for name in model.modalities}
        settings["start"] = "; ".join(f"{name}: {each['start']}" for name, each in starts.items())
    settings |= {"lr": fitting.lr, "lr_from": origin, "batch": fitting.batch, "epochs": fitting.budget.epochs}
    settings |= {"validation": kept} | fitting.settings
    data = task.dataset
    return Run(
        strategy.name,
        task.name,
        data.name,
        data.content,
        fitting.seed,
        fitting.budget,
        settings,
        scores,
        cost,
        history,
        model.eval(),
        tuple(ends),
        Trained(task, fitting.encoders, words),
    )
