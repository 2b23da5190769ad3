"""The training loop, in the open: batches, loss, gradient, step, and a stop when a loss is not finite."""

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from itertools import chain, count
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmkit.errors import MmkitError
from mmkit.training.cost import Phase


def batches(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled batches of `size` rows (all rows when there are fewer); each pass sees every row once but for the ragged end."""
    size = min(size, len(rows))
    while True:
        order = rows[torch.randperm(len(rows), generator=generator)]
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def warmup_cosine(step: int, steps: int, *, warmup: float = 0.1) -> float:
    """Learning-rate factor: linear rise over the first `warmup` share of steps, then half a cosine down to zero."""
    rise = max(1, round(warmup * steps))
    return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def train(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    rows: Iterator[Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    adjust: Callable[[], None] | None = None,
    validate: Callable[[], float] | None = None,
    checks: int = 5,
    where: str = "training",
) -> tuple[Phase, list[dict]]:
    """Train whatever parameters of `model` require a gradient for `steps` steps of AdamW.

    loss_of: a batch of rows -> scalar loss. adjust: may change the gradients before each step. validate: a score, higher is better, taken `checks` times; the best weights by it are
    kept. Returns the phase's cost (validation left out) and its history. Raises MmkitError when a loss is not finite, saying where.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    phase = Phase(steps=steps, parameters_trained=sum(p.numel() for p in parameters))
    history, best, best_weights = [], -math.inf, None
    check_at = {round(steps * (k + 1) / checks) - 1 for k in range(checks)} if validate else set()
    model.train()
    with curves(where) as board:
        started = time.perf_counter()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * warmup_cosine(step, steps)
            with nullcontext() if step else FlopCounterMode(display=False) as counter:
                loss = loss_of(next(rows))
                loss.backward()
            if step == 0:
                phase.flops = float(counter.get_total_flops()) * steps
            if board:
                board.add_scalar("loss", loss.item(), step + 1)
                board.add_scalar("learning_rate", optimizer.param_groups[0]["lr"], step + 1)
            if not torch.isfinite(loss):
                raise MmkitError(f"the loss became {loss.item()} in {where}, step {step} of {steps}: lower lr (now {lr:g}) or look for NaN in the inputs")
            if adjust:
                adjust()
            nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step in check_at:
                phase.seconds += time.perf_counter() - started
                model.eval()
                score = _validated(validate, f"{where}, validation after step {step + 1} of {steps}")
                model.train()
                if board:
                    board.add_scalar("validation", score, step + 1)
                history.append({"where": where, "step": step + 1, "loss": loss.item(), "validation": score})
                if score > best:
                    best, best_weights = score, deepcopy(model.state_dict())
                started = time.perf_counter()
    phase.seconds += time.perf_counter() - started
    if best_weights is not None:
        model.load_state_dict(best_weights)
    return phase, history


def _validated(validate: Callable[[], float], where: str) -> float:
    """The score, or an MmkitError that says where training stood when it could not be had (a ValueError is one of `core`)."""
    try:
        return validate()
    except (MmkitError, ValueError) as error:
        raise MmkitError(f"{where}: {error}; was lr too high?") from error


def curves(where: str) -> AbstractContextManager:
    """TensorBoard's writer for one stage of training, where `MMKIT_TENSORBOARD` names a folder: `component, fusion` goes to `component/fusion`, the second time to
    `component/fusion-2`. Otherwise None: nothing is imported and nothing written. Raises MmkitError when TensorBoard is not installed."""
    if not (base := os.environ.get("MMKIT_TENSORBOARD")):
        return nullcontext()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MmkitError("MMKIT_TENSORBOARD is set and TensorBoard is not installed: pip install -e '.[tensorboard]', or unset it") from error
    folder = Path(base).expanduser().joinpath(*(re.sub(r"[^\w.=+-]+", "_", part) for part in where.split(", ")))
    places = chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))
    return SummaryWriter(str(next(place for place in places if not place.exists())))
