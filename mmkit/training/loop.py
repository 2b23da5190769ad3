"""The training loop, in the open: batch, loss, gradient, step; hooks at named moments; a stop when a loss is not
finite."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmkit.errors import Diverged, MmkitError
from mmkit.training import hooks as moments
from mmkit.training.batch import Batch
from mmkit.training.checkpoint import Checkpoint
from mmkit.training.cost import Phase, flop_counter
from mmkit.training.curves import curves
from mmkit.training.groups import EVERYTHING, Group, parameter_groups
from mmkit.training.objectives import Objective
from mmkit.training.schedules import warmup_cosine


@dataclass
class State:
    """Where training stands; hooks read it, and may set `stop`.

    trained: the parameters that learn now, in the model's order. recount: whether the next step's FLOPs are counted."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0
    loss: Tensor | None = None
    history: list[dict] = field(default_factory=list)
    stop: bool = False
    trained: list[Tensor] = field(default_factory=list)
    recount: bool = True
    best: float = -math.inf
    best_weights: dict[str, Tensor] | None = None

    def trained_changed(self) -> None:
        """Parameters were frozen or thawed: list them, set the parts' modes, and count a step's FLOPs anew."""
        set_modes(self.model)
        learning = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in learning:
                remedy = f"name it there, for example Group({name.split('.')[0] + '.*'!r})"
                raise MmkitError(
                    f"{name!r} was thawed and no group of the training has it, so it would not learn: {remedy}"
                )
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.recount = True


def train(
    model: nn.Module,
    objective: Objective,
    batches: Iterator[Batch],
    *,
    steps: int,
    lr: float,
    groups: Sequence[Group] = EVERYTHING,
    schedule: Callable[[int, int], float] = warmup_cosine,
    hooks: Sequence[object] = (),
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    compiled: bool = False,
    clip: float = 1.0,
    validate: Callable[[nn.Module], float] | None = None,
    checks: int = 5,
    keep_best: bool = True,
    where: str = "training",
    checkpoint: Checkpoint | None = None,
) -> tuple[Phase, list[dict]]:
    """Train the parameters that `groups` name for `steps` steps of AdamW; the others are frozen.

    objective: (model, batch) -> scalar loss. schedule: step, steps -> a multiple of lr. hooks: see
    `mmkit.training.hooks`. autocast: the context of the forward pass, for mixed precision. compiled: by torch.compile,
    which takes a minute and pays in long runs. clip: the largest norm of all gradients. validate: model -> a score,
    higher is better, taken `checks` times; keep_best: whether the best weights by it are kept. checkpoint: where a long
    run is kept at its checks, and resumed from.

    Returns the phase's cost (validation left out) and its history. Raises MmkitError when a loss is not finite,
    saying where.
    """
    moments.check(hooks)
    optimizer = torch.optim.AdamW(parameter_groups(model, groups, lr), fused=True)
    state, phase = State(model, optimizer, steps), Phase()
    state.trained_changed()
    fast = torch.compile(objective) if compiled else objective
    check_at = {round(steps * (k + 1) / checks) - 1 for k in range(checks)} if validate else set()
    first = checkpoint.resume(state, phase, batches, hooks) if checkpoint else 0
    with curves(where) as recording:
        watched = (*hooks, *recording)
        started = time.perf_counter()
        for state.step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(state.step, steps)
            moments.call(watched, "before_step", state)

            counting = state.recount
            with flop_counter() if counting else nullcontext() as counter:
                with autocast():
                    state.loss = (objective if counting else fast)(model, next(batches))
                _require_scalar(state, where)
                state.loss.backward()
            phase.add_step(state.trained, float(counter.get_total_flops()) if counting else None)
            state.recount = False
            moments.call(watched, "after_backward", state)
            _require_finite(state, where)

            nn.utils.clip_grad_norm_(state.trained, clip)
            optimizer.step()
            moments.call(watched, "after_step", state)
            optimizer.zero_grad(set_to_none=True)

            if state.step in check_at or (state.stop and validate):
                phase.seconds += time.perf_counter() - started
                _check(state, validate, keep_best=keep_best, where=where)
                moments.call(watched, "after_check", state)
                if checkpoint:
                    checkpoint.keep(state, phase, batches, hooks)
                started = time.perf_counter()
            if state.stop:
                break
        phase.seconds += time.perf_counter() - started
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    return phase, state.history


def set_modes(model: nn.Module) -> None:
    """Training mode; but a part of which nothing is trained is put in evaluation mode: no dropout, no batch-norm
    updates."""
    model.train()
    for part in model.children():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def _require_scalar(state: State, where: str) -> None:
    loss = state.loss
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        given = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        remedy = "return one number that depends on the model, for example losses.mean()"
        raise MmkitError(f"the objective of {where} gave {given} without a gradient or of many numbers: {remedy}")


def _require_finite(state: State, where: str) -> None:
    if not torch.isfinite(state.loss):
        lr = max(group["initial_lr"] for group in state.optimizer.param_groups)
        place = f"{where}, step {state.step} of {state.steps}"
        raise Diverged(
            f"the loss became {state.loss.item()} in {place}: lower lr (now {lr:g}) or look for NaN in the inputs"
        )


def _check(state: State, validate: Callable[[nn.Module], float], *, keep_best: bool, where: str) -> None:
    """Validate, note it in the history, and keep the weights if they are the best so far."""
    state.model.eval()
    try:
        score = validate(state.model)
    except (MmkitError, ValueError) as error:  # a ValueError is one of `core`, for numbers that are not finite
        place = f"{where}, validation after step {state.step + 1} of {state.steps}"
        raise Diverged(f"{place}: {error}; was lr too high?") from error
    set_modes(state.model)
    state.history.append({"where": where, "step": state.step + 1, "loss": state.loss.item(), "validation": score})
    if keep_best and score > state.best:
        state.best, state.best_weights = score, deepcopy(state.model.state_dict())
