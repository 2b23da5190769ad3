"""One arm, trained once with one seed: `fit`."""

import hashlib
import time
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmkit.errors import MmkitError
from mmkit.models import Average
from mmkit.strategies.arms import DERIVED, Arm, Stage, arm
from mmkit.strategies.balance import Blended, Modulated, blend_weights, end_losses, own_heads
from mmkit.strategies.encoders import Encoders, features, fresh, pool_texts, self_supervised, sources, tokenizer
from mmkit.strategies.run import Budget, Run, interpolate
from mmkit.strategies.tuned import learning_rate, rate_from
from mmkit.training import Cost, Inputs, Phase, batches, choose, device, flops_of, forget_peak, peak_bytes, seeded, stream, train

BATCH = 64
MEASURED = {"joint": "scratch", "image": "image_only", "text": "text_only"}  # what Gradient-Blending trains first


def fit(name: str, task, *, budget: Budget, seed: int, encoders: Encoders = Encoders(), lr: float | None = None, batch: int = BATCH, evaluate: tuple[str, ...] | None = None) -> Run:
    """Train an arm on `budget.pairs` of the task's training pairs and score it on the test split and every out-of-domain one.

    Arms of one seed share the choice of pairs, their order and the head's first weights. lr: None takes the arm's tuned value
    (`strategies/tuned.json`), or its grid's middle where none was searched for; `lr_from` in the settings says which. evaluate: splits; None is `test` and all `ood_*`. Raises MmkitError for an unknown arm, more pairs
    than there are, an empty split, or a loss that is not finite.
    """
    if name in DERIVED:
        return _derived(name, task, budget=budget, seed=seed, encoders=encoders, lr=lr, batch=batch, evaluate=evaluate)
    plan = arm(name)
    if plan.single and plan.single not in task.modalities:
        raise MmkitError(f"{name!r} is not defined for {task.name}: a single modality has nothing to be compared with")
    if plan.own_losses and not task.modalities:
        raise MmkitError(f"{name!r} is not defined for {task.name}: a modality alone has no loss there")
    if any(stage.mined for stage in plan.stages) and task.mined is None:
        raise MmkitError(f"{name!r} is not defined for {task.name}: negatives are mined where a batch is ranked, in retrieval")
    origin = rate_from(task.tuned_as, name, lr, real=encoders.real)
    lr = learning_rate(task.tuned_as, name, real=encoders.real) if lr is None else lr
    rows = pairs(task, budget.pairs, seed)
    words = task.words or tokenizer(task.dataset, encoders, language=task.language)
    inputs = Inputs.of(task.dataset, words, role=task.role, language=task.language, device=device()[0])
    splits = {split: task.rows(split) for split in _evaluated(task, evaluate)}
    validation = task.rows("val")
    cost = Cost()
    forget_peak()
    model = _model(plan, task, encoders, words, seed=seed, cost=cost).to(inputs.device)
    inputs = replace(inputs, blank=plan.blank)
    learn = inputs.shuffled(rows, stream(seed, "shuffle")) if plan.shuffled else inputs

    given = _given(plan, task, encoders, model, learn, rows, validation, splits, seed=seed, cost=cost)
    weights = dict.fromkeys(("joint", *task.modalities), 1.0)
    if plan.own_losses == "blended":
        weights, measured = _measured(task, inputs, rows, validation, budget=budget, seed=seed, encoders=encoders, batch=batch)
        cost.phases |= measured
    stages = _lengths(plan, budget, len(rows), min(batch, len(rows)))
    if budget.flops is not None:
        stages = _stretch(stages, budget.flops - cost.flops, lambda stage: _step_flops(model, task, given[stage.name], rows[:batch], stage))
    history, ends = _train(plan, task, model, given, stages, rows, min(batch, len(rows)), validation, seed=seed, lr=lr, still=encoders.real, cost=cost, weights=weights)
    cost.peak_bytes, cost.parameters_total = peak_bytes(), sum(p.numel() for p in model.parameters())

    seen = replace(given[plan.stages[-1].name], partner=None)
    scores = _scores(task, model, seen, splits, blank=plan.blank is None and plan.single is None)
    kept = max(entry["validation"] for entry in history if entry["where"] == history[-1]["where"]) if plan.mix is None else task.scores(model, seen, validation)[task.metric].value
    settings = {**encoders.describe(plan.start), **task.settings(), "lr": lr, "lr_from": origin, "batch": batch, "epochs": budget.epochs, "validation": kept}
    settings |= {"weights": weights} if plan.own_losses == "blended" else {}
    return Run(name, task.name, task.dataset.name, task.dataset.content, seed, budget, settings, scores, cost, history, model.eval(), ends)


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


def _train(plan: Arm, task, model: nn.Module, given: dict[str, Inputs], stages: list[tuple[Stage, int]], rows: Tensor, batch: int, validation: Tensor,
           *, seed: int, lr: float, still: bool, cost: Cost, weights: dict[str, float]) -> tuple[list[dict], tuple]:
    """Train the stages one after another, add each to the cost and return the history. Every arm of a seed meets the same batches and texts.

    still: a locked encoder's dropout and statistics rest, too. Besides the history: of an arm that mixes weights, those at the end of each stage."""
    history, drawn, order, ends = [], stream(seed, "texts"), batches(rows, batch, stream(seed, "order")), ()
    for stage, steps in stages:
        _unlock(model, stage)
        shown = given[stage.name]
        if stage.mined:
            order, cost.phases[f"mining for {stage.name}"] = _mined(task, model, shown, rows, batch, seed)
        objective, adjust = _objective(plan, task, model, shown, drawn, seed, weights)
        cost.phases[stage.name], log = seeded(
            seed, f"dropout/{stage.name}", train, model, _resting(model, stage, objective) if still else objective, order, steps=steps, lr=lr * stage.pace, where=f"{plan.name}, {stage.name}",
            adjust=adjust, validate=lambda shown=shown: task.scores(model, replace(shown, partner=None), validation)[task.metric].value,
        )
        history += log
        ends += (deepcopy(model.state_dict()),) if plan.mix is not None else ()
    if ends:
        model.load_state_dict(interpolate(ends[0], ends[-1], plan.mix))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return history, ends


def _mined(task, model: nn.Module, inputs: Inputs, rows: Tensor, batch: int, seed: int):
    """The task's order of hard batches, and what finding it cost."""
    found, started = [], time.perf_counter()
    flops = flops_of(lambda: found.append(task.mined(model, inputs, rows, batch, stream(seed, "mined"))))
    return found[0], Phase(flops=flops, seconds=time.perf_counter() - started)


def _resting(model: nn.Module, stage: Stage, objective):
    """`objective`, with the encoders that the stage does not train in evaluation mode: locked means their running statistics, too."""

    def loss(rows: Tensor) -> Tensor:
        for side in {"image", "text"} - set(stage.parts):
            if getattr(model, side) is not None:
                getattr(model, side).eval()
        return objective(rows)

    return loss


def pairs(task, count: int, seed: int) -> Tensor:
    """The labelled pairs a seed may see: `count` rows of the training split; a larger count of the same seed contains them."""
    rows = torch.from_numpy(task.dataset.rows("train"))
    if count > len(rows):
        raise MmkitError(f"pairs={count} exceeds the {len(rows)} labelled pairs of {task.dataset.name!r} (split train); pass pairs<={len(rows)}, or prepare a larger set")
    return choose(rows, count, stream(seed, "pairs"))


def _evaluated(task, evaluate: tuple[str, ...] | None) -> tuple[str, ...]:
    return evaluate or ("test", *(split for split, size in task.dataset.splits.items() if split.startswith("ood_") and size))


def _model(plan: Arm, task, encoders: Encoders, words, *, seed: int, cost: Cost) -> nn.Module:
    own = task.text_part  # what a task has in place of a text encoder
    vocabulary = len(words) if own or not encoders.real else 0
    image, text = fresh(encoders, vocabulary, seed=seed, start="random" if plan.random else plan.start, text=own)
    if plan.start == "pretrained" and not encoders.real:
        ids = pool_texts(task.dataset, words, language=task.language, role=task.role if own else None)
        towers = [deepcopy(tower) if side in plan.random else tower for side, tower in (("image", image), ("text", text))]  # what starts random stays as it is
        phases = self_supervised(task.dataset, ids, *towers, encoders, vocabulary=vocabulary, language=task.language, seed=seed, device=device()[0])
        cost.phases |= {name: phase for name, phase in phases.items() if name.removeprefix("pretrain_") not in plan.random}
    elif plan.start == "pretrained" and plan.name == "component":
        raise MmkitError("component pretrains its own encoders; with real ones take frozen, lp_ft or holistic, or leave the encoders small")
    if plan.single:
        return task.build_single(plan.single, image if plan.single == "image" else text, seed=seed)
    return task.build(image, text, seed=seed)


def _objective(plan: Arm, task, model: nn.Module, inputs: Inputs, drawn: torch.Generator, seed: int, weights: dict[str, float]):
    if not plan.own_losses:
        return lambda rows: task.loss(model, inputs, rows, drawn), None
    model.own_heads = own_heads(model, task, seed=seed).to(inputs.device)
    objective = (Modulated if plan.own_losses == "modulated" else Blended)(task, model, inputs, drawn, weights)
    return objective, getattr(objective, "adjust", None)


def _measured(task, inputs: Inputs, rows: Tensor, validation: Tensor, *, budget: Budget, seed: int, **options) -> tuple[dict[str, float], dict[str, Phase]]:
    """Gradient-Blending's weights, from training everything and each modality by itself first, and what that cost."""
    runs = {source: fit(name, task, budget=replace(budget, flops=None), seed=seed, evaluate=("val",), **options) for source, name in MEASURED.items()}
    losses = {source: end_losses(task, run.model, inputs, rows, validation) for source, run in runs.items()}
    return blend_weights(losses, len(task.classes)), {f"measure {source}/{key}": phase for source, run in runs.items() for key, phase in run.cost.phases.items()}


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
    own = ({} if encoders.real else {"seed": seed}) | ({"sides": "image"} if task.text_part else {})
    return {"what": "features", "code": sources(real=encoders.real), "data": task.dataset.content, "role": task.role, "language": task.language, "rows": hashlib.sha256(rows.numpy().tobytes()).hexdigest(),
            "tokens": task.fusion == "cross_attention", **own, **encoders.describe(plan.start)}


def _scores(task, model: nn.Module, inputs: Inputs, splits: dict[str, Tensor], *, blank: bool) -> dict:
    scores = {}
    for split, rows in splits.items():
        prefix = "" if split == "test" else f"{split}/"
        scores |= {prefix + key: score for key, score in task.scores(model, inputs, rows).items()}
    return scores | (task.blank_scores(model, inputs, splits["test"]) if blank and "test" in splits else {})


def _derived(name: str, task, *, seed: int, budget: Budget, encoders: Encoders, evaluate, lr: float | None, **options) -> Run:
    share = replace(budget, flops=budget.flops and budget.flops / 2)
    origin = rate_from(task.tuned_as, name, lr)
    if name == "ensemble_single" and lr is None:
        lr = learning_rate(task.tuned_as, name)  # tuned as an arm of its own: what is best for a member alone need not be best for the mean
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
    settings = {**members[0].settings, "lr": [m.settings["lr"] for m in members], "lr_from": origin, "validation": kept}
    return Run(name, task.name, members[0].data, members[0].data_hash, seed, budget, settings, _scores(task, model, inputs, splits, blank=False), cost, history, model)
