"""`mmkit.training.train` against the same loop written by hand, on one model, in one process, turn and turn about.

Prints a table of processor seconds, which other work on the machine lengthens less than wall time, and the median ratio; the promise is
at most 1.03. Data are drawn beforehand, so that only the loop is measured.
"""

import argparse
import platform
import statistics
import time
from copy import deepcopy

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import mmkit
from mmkit.models import CNN, ConcatFusion, FusionClassifier, TextTransformer
from mmkit.training import batches, stream, train, warmup_cosine

PROMISE = 1.03


def model() -> FusionClassifier:
    torch.manual_seed(0)
    image, text = CNN(), TextTransformer(100)
    return FusionClassifier(image, text, ConcatFusion(image, text), 4)


def by_hand(model, loss_of, rows, *, steps: int, lr: float) -> None:
    """What one would write in a notebook: AdamW, the same schedule, clipping."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps))
    model.train()
    for _ in range(steps):
        loss = loss_of(next(rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=240, help="steps of one training; 240 are 512 pairs, 30 epochs, batches of 64")
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
            rows = batches(torch.arange(512), 64, stream(0, "order"))
            started = time.process_time()
            ways[name](trained, lambda part, trained=trained: F.cross_entropy(trained(pixels[part], ids[part]), target[part]), rows, steps=options.steps, lr=1e-3)
            if turn:
                seconds[name].append(time.process_time() - started)
            weights[name] = trained.state_dict()
    for name, value in weights["by hand"].items():
        torch.testing.assert_close(weights["mmkit.training.train"][name], value, rtol=1e-3, atol=1e-4)

    ratios = [ours / theirs for ours, theirs in zip(seconds["mmkit.training.train"], seconds["by hand"])]
    ratio = statistics.median(ratios)
    table = Table("loop", "median s", "least s", title=f"{options.steps} steps, batches of 64, {options.repeats} turns, {options.threads} thread(s)")
    for name, taken in seconds.items():
        table.add_row(name, f"{statistics.median(taken):.3f}", f"{min(taken):.3f}")
    table.caption = f"ratio: median {ratio:.3f} of {min(ratios):.3f} to {max(ratios):.3f}, promised at most {PROMISE}\nmmkit {mmkit.__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    Console().print(table)
    if ratio > PROMISE:
        raise SystemExit(f"the loop takes {ratio:.3f} of the time of one written by hand, promised {PROMISE}")


if __name__ == "__main__":
    main()
