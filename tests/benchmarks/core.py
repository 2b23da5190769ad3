"""The core against plain PyTorch, open_clip, Liger and cut-cross-entropy: forward and backward, by turns, one process.

    core.py cpu | busy | gpu | encoder      writes core_cpu.md, ... in notebooks/records/benchmarks

`busy` is `cpu` beside another process that trains a network. The extra `bench` installs the competitors. `one_matrix`
is the plain form of `mmkit.core.reference`. Times are medians with the 10th and 90th percentile; the ratio is the
median of the ratios of single turns, and the least of them. CPU: processor seconds on one thread, wall seconds on more;
memory is the growth of a fresh process's peak. GPU: events, the allocator's peak.
"""

import argparse
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from copy import deepcopy
from importlib import metadata
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import mmkit
from mmkit.core import contrastive_loss, linear_cross_entropy, ranks_both_ways, reference, retrieval_ranks, sigmoid_loss
from mmkit.models import pretrained
from mmkit.models.fast import FEWEST, quick

TABLES = Path(__file__).parents[2] / "notebooks" / "records" / "benchmarks"
WIDTH, VOCABULARY = 512, 30522


def pairs(n, device="cpu", dtype=torch.float32):
    """The hard regime: unit vectors with near misses, scale 100. Never zeros."""
    generator = torch.Generator(device).manual_seed(0)
    image, text = (torch.empty(n, WIDTH, device=device).normal_(generator=generator) for _ in range(2))
    text.mul_(5.8).add_(image)
    for x in (image, text):
        x.div_(x.norm(dim=1, keepdim=True))  # in place: the peak of memory is to be the loss's own
    return [x.to(dtype).requires_grad_() for x in (image, text)] + [
        torch.tensor(100.0, device=device, requires_grad=True)
    ]


def tokens(t, device="cpu", dtype=torch.float32):
    generator = torch.Generator(device).manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, device=device)  # noqa: E731
    inputs = [draw(t, WIDTH).to(dtype).requires_grad_(), (0.1 * draw(VOCABULARY, WIDTH)).to(dtype).requires_grad_()]
    return inputs, torch.randint(VOCABULARY, (t,), generator=generator, device=device)


def infonce_ways():
    from open_clip.loss import ClipLoss

    return {"mmkit": contrastive_loss, "one_matrix": reference.contrastive_loss, "open_clip ClipLoss": ClipLoss()}


def sigmoid_ways():
    from open_clip.loss import SigLipLoss

    theirs, bias = SigLipLoss(), -20.0
    return {
        "mmkit": lambda a, b, s: sigmoid_loss(a, b, s, bias),
        "one_matrix": lambda a, b, s: reference.sigmoid_loss(a, b, s, bias),
        "open_clip SigLipLoss": lambda a, b, s: theirs(a, b, s, bias),
    }


def word_ways(target):
    ways = {
        "mmkit": lambda h, w: linear_cross_entropy(h, w, target),
        "one_matrix": lambda h, w: F.cross_entropy(F.linear(h, w).float(), target),
    }
    if hasattr(F, "linear_cross_entropy"):
        ways["torch native"] = lambda h, w: F.linear_cross_entropy(h, w, target)
    if target.is_cuda:
        from cut_cross_entropy import linear_cross_entropy as cut
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        ways["Liger"] = lambda h, w: Liger.apply(h, w, target)[0]
        ways["cut-cross-entropy, exact"] = lambda h, w: cut(h, w, target, impl="cce_exact")
    return ways


def step(loss, inputs):
    for x in inputs:
        x.grad = None
    loss(*inputs).backward()


def seconds(work, device):
    """Of one call: by events on a GPU; on the CPU processor time on one thread, wall time on more."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    work()
    return clock() - started


def race(ways, inputs, *, device, turns, warm):
    """{way: seconds of each turn}, a way that runs out of memory left out."""
    taken = {name: [] for name in ways}
    for turn in range(warm + turns):
        for name in list(taken)[:: 1 if turn % 2 else -1]:
            try:
                spent = seconds(lambda name=name: step(ways[name], inputs), device)
            except torch.OutOfMemoryError:
                taken.pop(name)
                torch.cuda.empty_cache()
                continue
            if turn >= warm:
                taken[name].append(spent)
    return taken


def lines(what, taken, ways, floor=None, peaks=None):
    """Markdown rows: time in ms, ours over theirs, and time over the floor and peak memory where they are known."""
    for name in ways:
        if name not in taken:
            yield f"| {what} | {name} | out of memory | | | |"
            continue
        times = sorted(taken[name])
        low, high = (times[round(share * (len(times) - 1))] for share in (0.1, 0.9))
        ratios = [theirs / ours for theirs, ours in zip(taken[name], taken["mmkit"])]
        ratio, middle = f"{statistics.median(ratios):.2f} ({min(ratios):.2f})", statistics.median(times)
        over, peak = f"{middle / floor:.2f}" if floor else "", f"{peaks[name] / 1e6:,.0f}" if peaks else ""
        spread = f"{middle * 1e3:,.2f} ({low * 1e3:,.2f} to {high * 1e3:,.2f})"
        yield f"| {what} | {name} | {spread} | {ratio} | {over} | {peak} |"


HEAD = "| case | way | ms (p10 to p90) | times mmkit's (least) | over its floor | peak MB |\n|---|---|---|---|---|---|"


def title(device):
    if device == "cuda":
        machine, packages = (
            torch.cuda.get_device_name(),
            ("torch", "open_clip_torch", "liger-kernel", "cut-cross-entropy"),
        )
    else:
        products = f"matrix products in float32 '{torch.get_float32_matmul_precision()}'"
        kind = f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"
        load = f"load of the machine at the start {os.getloadavg()[0]:.1f}"
        machine, packages = (
            f"{kind}, {torch.get_num_threads()} thread(s), {products}, {load}",
            ("torch", "open_clip_torch"),
        )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    made = f"mmkit {mmkit.__version__}, {versions}, Python {platform.python_version()}. Made by `core.py`."
    return f"# The core, {datetime.date.today()}\n\n{machine}; {made}\n"


def cpu_memory(way, n):
    """Bytes by which the peak of a fresh process grows over forward and backward, libraries loaded before. Linux."""
    step(infonce_ways()[way], pairs(64))
    inputs = pairs(n)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, without what imports took
    status = lambda key: int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # noqa: E731
    before = status("VmRSS")
    step(infonce_ways()[way], inputs)
    print((status("VmHWM") - before) * 1024)


def ranks_row(device="cpu", dtype=torch.float32):
    image, rows = pairs(5000, device, dtype)[0].detach(), torch.arange(5000, device=device)
    owner = rows.repeat_interleave(5)
    noise = torch.randn(25000, WIDTH, generator=torch.Generator(device).manual_seed(1), device=device)
    text = F.normalize(image[owner].float() + 0.25 * noise, dim=1).to(dtype)
    turns = 3 if device == "cpu" else 40

    def one_matrix():
        scores, right = image @ text.T, rows[:, None] == owner
        return 1 + ((scores >= scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)) & ~right).sum(1)

    ways = {
        "one way": lambda: retrieval_ranks(image, text, rows, owner),
        "both ways": lambda: ranks_both_ways(image, text, owner),
        "one_matrix, one way": one_matrix,
    }
    taken = []
    for name, work in ways.items():
        taken.append(f"{name} {1e3 * statistics.median(seconds(work, device) for _ in range(turns)):,.1f} ms")
    ranks, wrong = retrieval_ranks(image, text, rows, owner), 0
    for part in rows.split(250):
        scores, right = image[part].double() @ text.double().T, part[:, None] == owner[None]
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        wrong += int((((scores >= best) & ~right).sum(1) + 1 != ranks[part]).sum())
    exact = f"{wrong} of 5,000 differ from float64 (mean rank {ranks.double().mean():.1f})"
    return f"Ranks of 5,000 x 25,000 x {WIDTH} in {str(dtype)[6:]}: {'; '.join(taken)}; {exact}."


def on_cpu(options):
    yield from (title("cpu"), HEAD)
    # medium: products of bfloat16 added in float32, where the processor has them
    cases = [("highest", n) for n in (512, 1024, 2048, 4096, 8192)] + [("medium", 4096)]
    for precision, n in cases:
        torch.set_float32_matmul_precision(precision)
        ways, turns = infonce_ways(), options.turns * (4 if n <= 2048 else 1)
        yield from lines(f"InfoNCE {n:,}, {precision}", race(ways, pairs(n), device="cpu", turns=turns, warm=2), ways)
    torch.set_float32_matmul_precision("highest")
    ways, turns = sigmoid_ways(), options.turns
    yield from lines("SigLIP 4,096", race(ways, pairs(4096), device="cpu", turns=turns, warm=1), ways)
    inputs, target = tokens(1024)
    ways = word_ways(target)
    yield from lines("linear cross-entropy, 1,024", race(ways, inputs, device="cpu", turns=turns, warm=1), ways)
    yield "\n" + ranks_row()
    if options.what == "busy":
        return
    yield "\n| peak memory of InfoNCE, MB | mmkit | one_matrix | open_clip ClipLoss | one_matrix's | ClipLoss's |"
    yield "|---|---|---|---|---|---|"
    for n in (1024, 8192, 16384):
        command, found = [sys.executable, __file__, "memory", "--threads", str(options.threads), "--n", str(n)], []
        for way in infonce_ways():
            done = subprocess.run([*command, "--way", way], check=True, capture_output=True, text=True)
            found.append(int(done.stdout) / 1e6)
        sizes = " | ".join(f"{x:,.0f}" for x in found)
        yield f"| {n:,} | {sizes} | {found[1] / found[0]:.1f} times | {found[2] / found[0]:.1f} times |"


TRAINER = """
import torch
from torch import nn
torch.set_num_threads(1)
model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.LazyLinear(10))
x, y = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
model(x)
optimiser = torch.optim.AdamW(model.parameters())
while True:
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimiser.step()
"""


def on_busy_cpu(options):
    """`on_cpu` while another process trains a small convolutional network on one thread."""
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER])
    try:
        time.sleep(10)  # its imports are over
        yield from on_cpu(options)
    finally:
        trainer.kill()


def ceilings():
    """bf16 operations and copied bytes a second that this GPU reaches."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    big, copy = (torch.empty(2**30, device="cuda", dtype=torch.uint8) for _ in range(2))
    works = {2 * 8192**3: lambda: torch.mm(a, b), 2**31: lambda: copy.copy_(big)}
    median = lambda work: statistics.median([seconds(work, "cuda") for _ in range(40)][10:])  # noqa: E731
    return [amount / median(work) for amount, work in works.items()]


def peaks(ways, inputs):
    found = {}
    for name, loss in ways.items():
        for x in inputs:
            x.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, inputs)
        found[name] = torch.cuda.max_memory_allocated() - before
    return found


def on_gpu(options):
    speed, bandwidth = ceilings()
    yield from (
        title("cuda"),
        f"Ceilings of this run: {speed / 1e12:,.0f} TFLOP/s in bf16 (8192^3), {bandwidth / 1e12:.2f} TB/s copied.\n",
        HEAD,
    )
    cases = [("InfoNCE", infonce_ways, 8, n) for n in (8192, 32768, 131072, 1048576)]
    cases += [("SigLIP", sigmoid_ways, 6, n) for n in (8192, 32768)]
    for what, ways, products, n in cases:
        ways = ways() if n <= 32768 else {"mmkit": ways()["mmkit"]}
        inputs = pairs(n, "cuda", torch.bfloat16)
        taken = race(ways, inputs, device="cuda", turns=30 if n <= 131072 else 3, warm=10 if n <= 131072 else 1)
        alive = {name: ways[name] for name in taken}
        yield from lines(
            f"{what} {n:,}", taken, ways, floor=products * n * n * WIDTH / speed, peaks=peaks(alive, inputs)
        )
    inputs, target = tokens(16384, "cuda", torch.bfloat16)
    ways, floor = word_ways(target), 8 * 16384 * VOCABULARY * WIDTH / speed
    taken = race(ways, inputs, device="cuda", turns=30, warm=10)
    yield from lines(
        "linear cross-entropy, 16,384 tokens", taken, ways, floor, peaks({name: ways[name] for name in taken}, inputs)
    )
    yield "\n" + ranks_row("cuda", torch.bfloat16)


def folded(module):
    """The same network with each norm folded into the convolution before it."""
    before, last = "", None
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.BatchNorm2d) and isinstance(last, torch.nn.Conv2d):
            setattr(module, before, fuse_conv_bn_eval(last, child))
            setattr(module, name, getattr(child, "act", torch.nn.Identity()))  # timm's norms hold the activation
        else:
            folded(child)
        before, last = name, child
    return module


def encoder_ways(encoder, stack):
    """What computes the maps of the frozen EfficientNet-Lite0. Eager is timm's own: contiguous, float32."""
    plain, channels_last = deepcopy(encoder.body).to(memory_format=torch.contiguous_format), encoder.body
    fused = folded(deepcopy(channels_last))
    compiled = torch.compile(fused.forward_features, options={"freezing": True})
    stack.enter_context(quick(encoder, FEWEST))
    last = lambda x: x.contiguous(memory_format=torch.channels_last)  # noqa: E731
    return {
        "eager, contiguous": plain.forward_features,
        "eager, channels-last": lambda x: channels_last.forward_features(last(x)),
        "norms folded, channels-last": lambda x: fused.forward_features(last(x)),
        "norms folded, torch.compile with freezing": lambda x: compiled(last(x)),
        "ONNX Runtime (the kit's way)": encoder.maps,
    }


def of_encoder(options):
    """Images a second of each way, turn and turn about."""
    encoder, clock = pretrained("efficientnet_lite0"), time.process_time if options.threads == 1 else time.perf_counter
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "timm", "onnxruntime"))
    yield f"# The frozen image encoder on a CPU, {datetime.date.today()}\n"
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} thread(s)"
    made = f"mmkit {mmkit.__version__}, {versions}. Made by `core.py encoder`."
    yield f"EfficientNet-Lite0, {encoder.size} x {encoder.size} pixels, {machine}; {made}\n"
    yield "| images at a time | way | images/s (p10 to p90) | times eager | relative difference |"
    yield "|---|---|---|---|---|"
    x = torch.rand(16, 3, encoder.size, encoder.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with ExitStack() as stack, torch.inference_mode():
        ways = encoder_ways(encoder, stack)
        expected = ways["eager, contiguous"](x)
        for size in (4, 16):
            taken = {name: [] for name in ways}
            for turn in range(2 + options.turns):
                for name in list(ways)[:: 1 if turn % 2 else -1]:
                    started = clock()
                    for part in x.split(size):
                        ways[name](part)
                    if turn >= 2:
                        taken[name].append(clock() - started)
            for name, times in taken.items():
                low, high = (sorted(times)[round(share * (len(times) - 1))] for share in (0.1, 0.9))
                ratio = statistics.median(eager / ours for eager, ours in zip(taken["eager, contiguous"], times))
                maps = torch.cat([ways[name](part) for part in x.split(size)])
                apart = float((maps - expected).norm() / expected.norm())
                speed = f"{16 / statistics.median(times):.1f} ({16 / high:.1f} to {16 / low:.1f})"
                yield f"| {size} | {name} | {speed} | {ratio:.2f} | {apart:.0e} |"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["cpu", "busy", "gpu", "encoder", "memory"])
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--turns", type=int, default=5)
    options.add_argument("--n", type=int, default=8192, help="of `memory`, which `cpu` starts for each cell")
    options.add_argument("--way", default="mmkit")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "memory":
        return cpu_memory(options.way, options.n)
    made = []
    tables = {"cpu": on_cpu, "busy": on_busy_cpu, "gpu": on_gpu, "encoder": of_encoder}
    for line in tables[options.what](options):
        print(line, flush=True)
        made.append(line)
    name = "core_cpu_busy.md" if options.what == "busy" else f"core_{options.what}.md"
    (TABLES / name).write_text("\n".join(made) + "\n")


if __name__ == "__main__":
    main()
