"""One arm, trained once with one seed: `fit`."""

import hashlib
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.errors import MmkitError
from mmkit.models import Average
from mmkit.strategies.arms import DERIVED, Arm, Stage, arm
from mmkit.strategies.encoders import Encoders, features, fresh, pool_texts, self_supervised, tokenizer
from mmkit.strategies.run import Budget, Run
from mmkit.strategies.tuned import learning_rate
from mmkit.training import Cost, Inputs, batches, choose, device, flops_of, forget_peak, peak_bytes, seeded, stream, train

BATCH = 64


def fit(name: str, task, *, budget: Budget, seed: int, encoders: Encoders = Encoders(), lr: float | None = None, batch: int = BATCH, evaluate: tuple[str, ...] | None = None) -> Run:
    """Train an arm on `budget.pairs` of the task's training pairs and score it on the test split and every out-of-domain one.

    Arms of one seed share the choice of pairs, their order and the head's first weights. lr: None takes the arm's tuned value
    (`strategies/tuned.json`). evaluate: splits; None is `test` and all `ood_*`. Raises MmkitError for an unknown arm, more pairs
    than there are, an empty split, or a loss that is not finite.
    """
    if name in DERIVED:
        return _derived(name, task, budget=budget, seed=seed, encoders=encoders, lr=lr, batch=batch, evaluate=evaluate)
    plan = arm(name)
    if plan.single and plan.single not in task.modalities:
        raise MmkitError(f"{name!r} is not defined for {task.name}: a single modality has nothing to be compared with")
    lr = learning_rate(task.name, name, real=encoders.real) if lr is None else lr
    rows = pairs(task, budget.pairs, seed)
    words = tokenizer(task.dataset, encoders, language=task.language)
    inputs = Inputs.of(task.dataset, words, role=task.role, language=task.language, device=device()[0])
    splits = {split: task.rows(split) for split in _evaluated(task, evaluate)}
    validation = task.rows("val")
    cost = Cost()
    forget_peak()
    model = _model(plan, task, encoders, words, seed=seed, cost=cost).to(inputs.device)
    inputs = replace(inputs, blank=plan.blank)
    learn = inputs.shuffled(rows, stream(seed, "shuffle")) if plan.shuffled else inputs

    given = _given(plan, task, encoders, model, learn, rows, validation, splits, seed=seed, cost=cost)
    stages = _lengths(plan, budget, len(rows), min(batch, len(rows)))
    if budget.flops is not None:
        stages = _stretch(stages, budget.flops - cost.flops, lambda stage: _step_flops(model, task, given[stage.name], rows[:batch], stage))
    history = _train(plan, task, model, given, stages, batches(rows, batch, stream(seed, "order")), validation, seed=seed, lr=lr, cost=cost)
    cost.peak_bytes, cost.parameters_total = peak_bytes(), sum(p.numel() for p in model.parameters())

    seen = replace(given[plan.stages[-1].name], partner=None)
    scores = _scores(task, model, seen, splits, blank=plan.blank is None and plan.single is None)
    kept = max(entry["validation"] for entry in history if entry["where"] == history[-1]["where"])
    settings = {**task.settings(), **encoders.describe(plan.start), "lr": lr, "batch": batch, "epochs": budget.epochs, "validation": kept}
    return Run(name, task.name, task.dataset.name, task.dataset.content, seed, budget, settings, scores, cost, history, model.eval())


def _given(plan: Arm, task, encoders: Encoders, model: nn.Module, learn: Inputs, rows: Tensor, validation: Tensor, splits: dict[str, Tensor], *, seed: int, cost: Cost) -> dict[str, Inputs]:
    """What each stage is shown: pixels and ids, or, where encoders stay as they came, their features, encoded once.

    Small encoders that a later stage trains are not encoded: running them costs little more than reading their features."""
    given = {stage.name: learn for stage in plan.stages}
    frozen = all(stage.locked for stage in plan.stages)
    if frozen or (encoders.real and plan.stages[0].locked):
        used = torch.cat([rows, validation, *(splits.values() if frozen else ())]).unique()
        encoded, cost.phases["encode"] = features(
            learn, model.image, model.text, rows=used, learnt=rows, tokens=task.fusion == "cross_attention", key=_key(plan, task, encoders, seed, used)
        )
        given |= {stage.name: encoded for stage in plan.stages if stage.locked}
    return given


def _train(plan: Arm, task, model: nn.Module, given: dict[str, Inputs], stages: list[tuple[Stage, int]], order, validation: Tensor, *, seed: int, lr: float, cost: Cost) -> list[dict]:
    """Train the stages one after another, add each to the cost and return the history. Every arm of a seed meets the same batches and texts."""
    history, drawn = [], stream(seed, "texts")
    for stage, steps in stages:
        _unlock(model, stage)
        shown = given[stage.name]
        cost.phases[stage.name], log = seeded(
            seed, f"dropout/{stage.name}", train, model, _objective(plan, task, model, shown, drawn, seed), order, steps=steps, lr=lr, where=f"{plan.name}, {stage.name}",
            validate=lambda shown=shown: task.scores(model, replace(shown, partner=None), validation)[task.metric].value,
        )
        history += log
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return history


def pairs(task, count: int, seed: int) -> Tensor:
    """The labelled pairs a seed may see: `count` rows of the training split; a larger count of the same seed contains them."""
    rows = torch.from_numpy(task.dataset.rows("train"))
    if count > len(rows):
        raise MmkitError(f"pairs={count} exceeds the {len(rows)} labelled pairs of {task.dataset.name!r} (split train); pass pairs<={len(rows)}, or prepare a larger set")
    return choose(rows, count, stream(seed, "pairs"))


def _evaluated(task, evaluate: tuple[str, ...] | None) -> tuple[str, ...]:
    return evaluate or ("test", *(split for split, size in task.dataset.splits.items() if split.startswith("ood_") and size))


def _model(plan: Arm, task, encoders: Encoders, words, *, seed: int, cost: Cost) -> nn.Module:
    vocabulary = len(words) if not encoders.real else 0
    image, text = fresh(encoders, vocabulary, seed=seed, start=plan.start)
    if plan.start == "pretrained" and not encoders.real:
        ids = pool_texts(task.dataset, words, language=task.language)
        cost.phases |= self_supervised(task.dataset, ids, image, text, encoders, vocabulary=vocabulary, language=task.language, seed=seed, device=device()[0])
    elif plan.start == "pretrained" and plan.name == "component":
        raise MmkitError("component pretrains its own encoders; with real ones take frozen, lp_ft or holistic, or leave the encoders small")
    if plan.single:
        return task.build_single(plan.single, image if plan.single == "image" else text, seed=seed)
    return task.build(image, text, seed=seed)


def _objective(plan: Arm, task, model: nn.Module, inputs: Inputs, drawn: torch.Generator, seed: int):
    if not plan.auxiliary:
        return lambda rows: task.loss(model, inputs, rows, drawn)
    if not task.modalities:
        raise MmkitError(f"{plan.name!r} is not defined for {task.name}: a modality alone has no loss there")
    heads = seeded(seed, "own heads", lambda: nn.ModuleDict({m: nn.Linear(getattr(model, m).summary_dim, len(task.classes)) for m in task.modalities}))
    model.own_heads = heads.to(inputs.device)

    def loss(rows: Tensor) -> Tensor:
        image, text = model.encode(inputs.image(rows), inputs.text(inputs.one_text(rows, drawn)))
        target = task.target[rows].to(inputs.device)
        own = sum(F.cross_entropy(heads[m](encoded.summary), target) for m, encoded in (("image", image), ("text", text)))
        return F.cross_entropy(model(image, text), target) + own

    return loss


def _unlock(model: nn.Module, stage: Stage) -> None:
    for name, part in model.named_children():
        for parameter in part.parameters():
            parameter.requires_grad_(name in stage.parts or name == "own_heads")


def _lengths(plan: Arm, budget: Budget, count: int, batch: int) -> list[tuple[Stage, int]]:
    return [(stage, max(1, round(stage.share * budget.epochs * (count // batch)))) for stage in plan.stages]


def _step_flops(model: nn.Module, task, inputs: Inputs, rows: Tensor, stage: Stage) -> float:
    _unlock(model, stage)
    flops = flops_of(lambda: task.loss(model, inputs, rows, stream(0, "count")).backward())
    model.zero_grad(set_to_none=True)
    return flops


def _stretch(stages: list[tuple[Stage, int]], flops: float, step_flops) -> list[tuple[Stage, int]]:
    each = [step_flops(stage) for stage, _ in stages]
    factor = flops / sum(steps * cost for (_, steps), cost in zip(stages, each))
    lengths = [round(steps * factor) for _, steps in stages]
    lengths[-1] = round((flops - sum(steps * cost for steps, cost in zip(lengths[:-1], each))) / each[-1])  # the rest, so that rounding does not add up
    if min(lengths) < 1:
        raise MmkitError(f"budget.flops leaves {flops:.3g} FLOPs for training on pairs, less than a step of each stage; raise it above the pretraining's cost")
    return [(stage, steps) for (stage, _), steps in zip(stages, lengths)]


def _key(plan: Arm, task, encoders: Encoders, seed: int, rows: Tensor) -> dict:
    own = {} if encoders.real else {"seed": seed}
    return {"what": "features", "version": 3, "data": task.dataset.content, "role": task.role, "language": task.language, "rows": hashlib.sha256(rows.numpy().tobytes()).hexdigest(),
            "tokens": task.fusion == "cross_attention", **own, **encoders.describe(plan.start)}


def _scores(task, model: nn.Module, inputs: Inputs, splits: dict[str, Tensor], *, blank: bool) -> dict:
    scores = {}
    for split, rows in splits.items():
        prefix = "" if split == "test" else f"{split}/"
        scores |= {prefix + key: score for key, score in task.scores(model, inputs, rows).items()}
    return scores | (task.blank_scores(model, inputs, splits["test"]) if blank and "test" in splits else {})


def _derived(name: str, task, *, seed: int, budget: Budget, encoders: Encoders, evaluate, lr: float | None, **options) -> Run:
    share = replace(budget, flops=budget.flops and budget.flops / 2)
    if name == "ensemble_single" and lr is None:
        lr = learning_rate(task.name, name)  # tuned as an arm of its own: what is best for a member alone need not be best for the mean
    members = [fit(single, task, budget=share, seed=seed, encoders=encoders, evaluate=evaluate, lr=lr, **options) for single in ("image_only", "text_only")]
    phases = {f"{m.arm}/{key}": phase for m in members for key, phase in m.cost.phases.items()}
    cost = Cost(phases, max(m.cost.peak_bytes for m in members), sum(m.cost.parameters_total for m in members))
    history = [h for m in members for h in m.history]
    if name == "best_single":
        best = max(members, key=lambda m: m.settings["validation"])
        return Run(name, task.name, best.data, best.data_hash, seed, budget, {**best.settings, "chosen": best.arm}, best.scores, cost, history, best.model)
    model = Average([m.model for m in members]).eval()
    words = tokenizer(task.dataset, encoders, language=task.language)
    inputs = Inputs.of(task.dataset, words, role=task.role, language=task.language, device=device()[0])
    splits = {split: task.rows(split) for split in _evaluated(task, evaluate)}
    kept = task.scores(model, inputs, task.rows("val"))[task.metric].value
    settings = {**members[0].settings, "lr": [m.settings["lr"] for m in members], "validation": kept}
    return Run(name, task.name, members[0].data, members[0].data_hash, seed, budget, settings, _scores(task, model, inputs, splits, blank=False), cost, history, model)
