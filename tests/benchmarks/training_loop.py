"""`mmkit.training.train` against the same loop written by hand, on one model, in one process, turn and turn about.

Prints a table of processor seconds, which other work on the machine lengthens less than wall time, and the median
ratio; the promise is at most 1.03. Data are drawn beforehand, so that only the loop is measured.
"""

import argparse
import platform
import statistics
import time
from copy import deepcopy

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import mmkit
from mmkit.models import CNN, Concat, Multimodal, TextTransformer
from mmkit.training import Batch, batches, cross_entropy, stream, train, warmup_cosine

PROMISE = 1.03


def model() -> Multimodal:
    torch.manual_seed(0)
    encoders = {"image": CNN(), "text": TextTransformer(100)}
    fusion = Concat(encoders)
    return Multimodal(encoders, fusion, nn.Linear(fusion.dim, 4))


def by_hand(model, objective, batches, *, steps: int, lr: float) -> None:
    """What one would write in a notebook: AdamW, which does not decay vectors, the same schedule, clipping."""
    matrices, vectors = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps))
    model.train()
    for _ in range(steps):
        loss = objective(model, next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def shown(pixels, ids, target):
    """Endless batches of the drawn data."""
    for part in batches(torch.arange(len(target)), 64, stream(0, "order")):
        yield Batch(part, {"image": pixels[part], "text": ids[part]}, target[part])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=240, help="240 are 512 pairs, 30 epochs, batches of 64")
    options.add_argument("--repeats", type=int, default=9)
    options.add_argument("--threads", type=int, default=1)
    options = options.parse_args()
    torch.set_num_threads(options.threads)

    pixels = torch.randint(0, 256, (512, 3, 32, 32), generator=stream(0, "pixels"), dtype=torch.uint8)
    ids = torch.randint(3, 100, (512, 12), generator=stream(0, "ids"))
    target = torch.randint(0, 4, (512,), generator=stream(0, "target"))
    ways = {"by hand": by_hand, "mmkit.training.train": train}
    first, seconds, weights = model(), {name: [] for name in ways}, {}
    for turn in range(options.repeats + 1):  # the first turn warms up
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            trained = deepcopy(first)
            data = shown(pixels, ids, target)
            started = time.process_time()
            ways[name](trained, cross_entropy, data, steps=options.steps, lr=1e-3)
            if turn:
                seconds[name].append(time.process_time() - started)
            weights[name] = trained.state_dict()
    for name, value in weights["by hand"].items():
        torch.testing.assert_close(weights["mmkit.training.train"][name], value, rtol=1e-3, atol=1e-4)

    ratios = [ours / theirs for ours, theirs in zip(seconds["mmkit.training.train"], seconds["by hand"])]
    ratio = statistics.median(ratios)
    title = f"{options.steps} steps, batches of 64, {options.repeats} turns, {options.threads} thread(s)"
    table = Table("loop", "median s", "least s", title=title)
    for name, taken in seconds.items():
        table.add_row(name, f"{statistics.median(taken):.3f}", f"{min(taken):.3f}")
    versions = f"mmkit {mmkit.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    span = f"median {ratio:.3f} of {min(ratios):.3f} to {max(ratios):.3f}"
    table.caption = f"ratio: {span}, promised at most {PROMISE}\n{versions}, {platform.machine()}"
    Console().print(table)
    if ratio > PROMISE:
        raise SystemExit(f"the loop takes {ratio:.3f} of the time of one written by hand, promised {PROMISE}")


if __name__ == "__main__":
    main()
