# How large should the batch of a contrastive loss be, and what stands in its way?
# The code of 15_gpu_optimised_core.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import inspect
from functools import partial

import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F

import mmkit
from mmkit.core import contrastive_loss, gradient_cache, reference
from mmkit.deploy.measure import Saved, ceilings, fastest, moved_bytes, seconds
from mmkit.models import fast, pretrained
from mmkit.repro import claims, paths, recorded, records, report
from mmkit.strategies import Budget, Stage, Strategy, fit
from mmkit.tasks import Retrieval
from mmkit.teach import plots
from mmkit.training import flops_of, stream

# %% parameters
sizes: list[int] = [512, 1024, 2048]  # batches N at which the loss is timed
width: int = 512  # width D of an embedding
tile: int = 512  # rows and columns of a tile of the pass written here
pairs: int = 512  # labelled pairs of the training runs
epochs: int = 6  # passes over them: the compute that every batch size may spend
batch_sizes: list[int] = [16, 64, 256]  # batches that are trained with
lr: float = 0.003  # learning rate at a batch of 64
images: int = 16  # images that the frozen encoder is timed on
more: bool = False  # time it by ONNX Runtime and torch.compile too: a minute, and the extra `fast`
seed: int = 0  # decides embeddings, pairs, order and first weights
published: str = "core"  # plan whose published records are shown, too; empty: this run alone

# %% guess
guess = {"times faster": 1.5, "best batch": 64}

# %% guess-check
assert set(guess) == {"times faster", "best batch"}, f"answer both questions, got {guess}"
assert all(value > 0 for value in guess.values()), f"two positive numbers, got {guess}"

# %% reference
display(Markdown(f"```python\n{inspect.getsource(reference.contrastive_loss)}```"))

# %% naive
def two_matrices(image, text, scale):
    """Equation (1) with one matrix from each side, as open_clip's `ClipLoss` computes it."""
    target = torch.arange(len(image))
    by_image, by_text = scale * image @ text.T, scale * text @ image.T
    return (F.cross_entropy(by_image, target) + F.cross_entropy(by_text, target)) / 2


def batch(n, noise=5.0, dim=width, kind=torch.float32):
    """Unit vectors, each text its image with noise (5: near misses, 2: told apart); the scale."""
    generator = stream(seed, "embeddings")
    image = F.normalize(torch.randn(n, dim, generator=generator), dim=1)
    shift = noise / 384**0.5 * torch.randn(n, dim, generator=generator)
    given = image, F.normalize(image + shift, dim=1), torch.tensor(100.0)
    return [x.to(kind).requires_grad_() for x in given]


def gradients(loss, inputs):
    return torch.autograd.grad(loss(*inputs), inputs)

# %% tiles
def tiles(image, text, scale, size):
    """Scores tile by tile with the positives at -inf: (rows, columns, scores)."""
    for i in range(0, len(image), size):
        for j in range(0, len(text), size):
            scores = scale * image[i : i + size] @ text[j : j + size].T
            if i == j:
                scores.fill_diagonal_(-torch.inf)
            yield slice(i, i + size), slice(j, j + size), scores


class Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, scale, size):
        rows, columns = torch.full((2, len(image)), -torch.inf, dtype=image.dtype)
        for i, j, scores in tiles(image, text, scale, size):
            rows[i] = torch.logaddexp(rows[i], scores.logsumexp(1))
            columns[j] = torch.logaddexp(columns[j], scores.logsumexp(0))
        positive, ctx.size = scale * (image * text).sum(1), size
        ctx.save_for_backward(image, text, scale, rows, columns, positive)
        return (F.softplus(rows - positive) + F.softplus(columns - positive)).mean() / 2  # (2)

# %% tiles-backward
def backward(ctx, grad):
    image, text, scale, rows, columns, positive = ctx.saved_tensors
    p, q = torch.sigmoid(rows - positive), torch.sigmoid(columns - positive)
    d_image, d_text = -(p + q)[:, None] * text, -(p + q)[:, None] * image
    for i, j, scores in tiles(image, text, scale, ctx.size):
        by_row = p[i, None] * (scores - rows[i, None]).exp()
        by_column = q[None, j] * (scores - columns[None, j]).exp()
        d_image[i] += (by_row + by_column) @ text[j]  # (3)
        d_text[j] += (by_row + by_column).T @ image[i]
    unit = grad / (2 * len(image))
    return unit * scale * d_image, unit * scale * d_text, unit * (image * d_image).sum(), None


Tiled.backward = staticmethod(backward)


def tiled(image, text, scale, size=tile):
    return Tiled.apply(image, text, scale, size)

# %% count
VERSIONS = {"two matrices": two_matrices, "one matrix": reference.contrastive_loss}
VERSIONS |= {"tiled": tiled, "mmkit.core": contrastive_loss}
n, work = 3 * width, {}
inputs, exact = batch(n), batch(n, kind=torch.float64)
wanted = gradients(reference.contrastive_loss, exact)
for name, loss in VERSIONS.items():
    with Saved() as saved:
        value = loss(*inputs)
    work[name] = flops_of(partial(gradients, loss, inputs)) / (n * n * width)
    same, matrix = map(torch.allclose, gradients(loss, exact), wanted), 4 * n * n in saved.sizes
    print(f"{name:12} {work[name]:4.1f} N²D, a matrix kept: {matrix}, equal gradients: {all(same)}")

# %% draw
shown, size = 48, 16
a, b, _ = (x.detach() for x in batch(shown, noise=3.0, dim=24))
scores, block = (20 * a @ b.T).exp().log1p(), slice(size, 2 * size)
sums, again = scores.clone().fill_diagonal_(0), torch.zeros_like(scores)
again[block, block] = sums[block, block]
sums[block, 2 * size :] = sums[2 * size :] = 0
panels = (scores, "N × N scores"), (sums, "forward: sums"), (again, "backward: products")
with plots.figure(1, 3, width=10, height=3.6, alt="All scores; tiles and sums; one tile") as axes:
    for axis, (picture, title) in zip(axes, panels):
        axis.imshow(picture.where(picture > 0, torch.nan), vmin=0, vmax=float(scores.max()))
        axis.set(title=title, xlabel="texts", ylabel="images", xticks=[0, 16, 32, 48])
        axis.set(yticks=[0, 16, 32, 48], xlim=(-1, 61), ylim=(61, -1))
        if picture is not scores:
            rows, columns = (10 * x / x.max() for x in (picture.sum(1), picture.sum(0)))
            axis.barh(range(shown), rows, left=49, height=1, color=plots.BLUE)
            axis.bar(range(shown), columns, bottom=49, width=1, color=plots.BLUE)
    axes[1].plot([16, 32, 32, 16, 16], [16, 16, 32, 32, 16], color=plots.VERMILION, linewidth=3)

# %% ceilings
peak, bandwidth = ceilings(min(2048, max(sizes)))
speeds = ", ".join(f"{kind} {value / 1e9:,.0f} GFLOP/s" for kind, value in peak.items())
print(f"{torch.get_num_threads()} thread(s): {speeds}; {bandwidth / 1e9:.1f} GB/s copied")
print(f"the roof bends at {peak['float32'] / bandwidth:.0f} operations a byte")

# %% traffic
def moved(name, n):
    """Bytes of one forward and backward pass over n pairs."""
    side = {"tiled": tile, "mmkit.core": 1024}.get(name, 0)
    rows = 8 * side or n
    loss = partial(tiled, size=side) if side else VERSIONS[name]
    with torch.device("meta"):  # shapes alone decide, nothing is computed
        shapes, cached = ((rows, width), (rows, width), ()), 4 * min(side * side, rows * width - 1)
        inputs = [torch.zeros(shape, requires_grad=True) for shape in shapes]
        return moved_bytes(partial(gradients, loss, inputs), cached=cached) * (n / rows) ** 2

# %% race
race = {}  # seconds
for n in sizes:
    inputs = batch(n)
    for name in [*VERSIONS, *VERSIONS]:  # turn and turn about, the faster counts
        taken = seconds(gradients, VERSIONS[name], inputs)
        race[name, n] = min(taken, race.get((name, n), taken))
    print(f"N = {n:,}: " + ", ".join(f"{name} {1e3 * race[name, n]:,.0f} ms" for name in VERSIONS))

# %% roofline
looks = [(plots.VERMILION, "s"), (plots.ORANGE, "D"), (plots.SKY, "^"), (plots.BLUE, "o")]
alt = "Roofline of this machine: speed against operations a byte for four ways to one loss."
with plots.figure(width=7.5, height=4.4, alt=alt) as axes:
    for (kind, top), line in zip(peak.items(), ("k-", "k--")):
        x, y = [1, top / bandwidth, 1000], [bandwidth / 1e9, top / 1e9, top / 1e9]
        axes.plot(x, y, line, label=f"roof, {kind}")
    for name, (colour, marker) in zip(VERSIONS, looks):
        for k, n in enumerate(sizes):
            operations = work[name] * n * n * width
            at = operations / moved(name, n), operations / race[name, n] / 1e9
            look = {"marker": marker, "markersize": 6 + 2 * k, "color": colour, "ls": ""}
            axes.plot(*at, **look, label=None if k else f"{name}, {work[name]:g} N²D")
        axes.text(*at, f"  {1e3 * race[name, n]:,.0f} ms", va="bottom" if work[name] > 8 else "top")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte moved", ylabel="GFLOP/s")
    axes.legend(loc="lower right", fontsize=8)

# %% precision
def off_by(loss, noise, kind):
    """Relative error of the image gradient against (2) in float64 of the same numbers."""
    inputs = batch(512, noise, 384, kind)
    exact = gradients(tiled, [x.detach().double().requires_grad_() for x in inputs])[0]
    return float((gradients(loss, inputs)[0].double() - exact).norm() / exact.norm())


errors = {}
for kind in (torch.float32, torch.bfloat16):
    for way, loss in (("two matrices", two_matrices), ("core", contrastive_loss)):
        near, apart = errors[way, kind] = [off_by(loss, noise, kind) for noise in (5.0, 2.2)]
        print(f"{way:12} {str(kind)[6:]:8} near misses {near:.0e}, told apart {apart:.0e}")

# %% cache
towers = [nn.Sequential(nn.Linear(width, 2048), nn.GELU(), nn.Linear(2048, 64)) for _ in range(2)]
images_of, texts_of, _ = (x.detach() for x in batch(512))


def encode(chunk):
    with Saved() as saved:
        embeddings = [F.normalize(tower(x), dim=1) for tower, x in zip(towers, chunk)]
    held.append(saved.total)
    return embeddings


held, loss = [], partial(contrastive_loss, logit_scale=20.0)
whole = loss(*encode((images_of, texts_of)))
chunks = [(images_of[part], texts_of[part]) for part in torch.arange(512).split(64)]
print("8 chunks of 64, same loss:", torch.allclose(whole, gradient_cache(encode, chunks, loss)))
print(f"kept for the backward pass: 1/{held[0] / held[-1]:.1f}; chunks encoded: {len(held) - 1}")

# %% task
def weighed(objective, fitting):
    """The same objective, which also counts what a step keeps for its backward pass."""

    def loss(model, batch):
        with Saved() as saved:
            value = objective(model, batch)
        fitting.settings["step_bytes"] = saved.total
        return value

    return loss


def train(size, precision):
    stage = Stage("joint", wrap=weighed, precision=precision)
    arm = Strategy("scratch", "random encoders, everything trained on the pairs", stages=(stage,))
    options = {"seed": seed, "batch": size, "lr": lr * (size / 64) ** 0.5}
    result = fit(arm, Retrieval(dataset), budget=Budget(pairs, epochs), **options)
    result.cost.peak_bytes = result.settings["step_bytes"]  # the process's peak is mostly Python
    mmkit.record(result, batch=size, precision=precision)

# %% train
dataset = mmkit.load("scenes", train=pairs, val=150, test=300, ood=0, pool=8)
for size in batch_sizes:
    train(size, "float32")
train(sorted(batch_sizes)[len(batch_sizes) // 2], "bfloat16")
mine, folder = recorded(), paths.notebooks() / "records" / published
evidence = records.read(folder) if published and folder.exists() else []

# %% buys
def points(results):
    """(batch, precision) -> mean and 95 % interval of R@1 over seeds."""
    found = {}
    for condition in report.conditions(results):
        at = condition["batch"], condition["precision"]
        found[at] = report.arm_points(results, "recall@1", condition)["scratch"]
    return found


known, here = points(evidence or mine), points(mine)
with plots.figure(width=6, height=3.2, alt="R@1 against batch size at equal compute") as axes:
    for (size, kind), p in known.items():
        place, colour = f"{size}, {kind}", plots.BLUE if kind == "float32" else plots.VERMILION
        error = [[p["mean"] - p["low"]], [p["high"] - p["mean"]]] if evidence else None
        axes.errorbar(place, p["mean"], yerr=error, color=colour, marker="o")
        if (size, kind) in here:
            axes.plot(place, here[size, kind]["mean"], "o", ms=11, fillstyle="none", color="0.4")
    axes.set(xlabel="batch size and precision", ylabel="R@1", ylim=(0, None))

# %% encoder
encoder, other = pretrained("efficientnet_lite0"), pretrained("efficientnet_lite0")
plain = other.body.to(memory_format=torch.contiguous_format).forward_features
x = torch.rand(images, 3, encoder.size, encoder.size, generator=stream(seed, "photos")) * 2 - 1


def channels_last(x):
    return encoder.body.forward_features(x.contiguous(memory_format=torch.channels_last))


ways = {"as timm gives it": plain, "channels-last": channels_last}
with fast.quick(encoder, fast.FEWEST if more else 0) as said, torch.inference_mode():
    if more:
        folded = torch.compile(encoder.body.forward_features, options={"freezing": True})
        ways |= {"torch.compile": folded, said.split(":")[0]: encoder.maps}
    for name, way in ways.items():
        rate, apart = images / fastest(way, x), float((way(x) - plain(x)).norm() / plain(x).norm())
        print(f"{name:17} {rate:5.1f}/s, 8,000 in {8000 / rate / 60:.1f} min, off by {apart:.0e}")

# %% kept
for name in ("core_cpu", "core_encoder", "core_gpu"):
    file = paths.notebooks() / "records" / "benchmarks" / f"{name}.md"
    display(Markdown(file.read_text(encoding="utf-8").replace("# ", "#### ", 1)))

# %% merge
def merge(first, second):
    """(m, s) of two parts of a row -> (m, s) of both together."""
    m = torch.maximum(first[0], second[0])
    return m, sum(s * (part - m).exp() for part, s in (first, second))

# %% merge-check
row = torch.tensor([3.0, 900.0, -2.0, 898.0, 5.0])
parts = [(part.max(), (part - part.max()).exp().sum()) for part in row.split([1, 2, 2])]
m, s = merge(merge(parts[0], parts[1]), parts[2])
assert torch.isclose(m + s.log(), row.logsumexp(0)), "the parts together are the whole row"
assert merge(parts[1], parts[0]) == merge(*parts[:2]), "the order of the parts does not matter"
low = torch.tensor([-800.0, -800.0, -801.0])
m_low, s_low = merge((low[0], torch.tensor(2.0)), (low[2], torch.tensor(1.0)))
assert torch.isclose(m_low + s_low.log(), low.logsumexp(0)) and m_low == -800

# %% largest
def largest_batch(memory, pair, row):
    """Largest whole N with pair * N² + row * N <= memory, all in bytes."""
    return int(((row**2 + 4 * pair * memory) ** 0.5 - row) / (2 * pair)) if pair else memory // row

# %% largest-check
assert largest_batch(1000, 1, 0) == 31 and largest_batch(1024, 1, 0) == 32, "whole, and it fits"
assert largest_batch(1100, 1, 100) == 10 and largest_batch(1099, 1, 100) == 9, "rows cost too"
assert largest_batch(10**6, 0, 100) == 10_000, "without a matrix"

# %% findings
for name in ("two matrices", "one matrix"):
    ratios = [f"{race[name, n] / race['mmkit.core', n]:.2f} at N = {n:,}" for n in sizes]
    print(f"the time of {name} over the core's: {', '.join(ratios)}")
worse = errors["two matrices", torch.float32][1] / errors["core", torch.float32][1]
print(f"told apart, two matrices' float32 gradient is {worse:,.0f} times further from float64")
for (size, kind), p in known.items():
    print(f"equal compute, batch {size} in {kind}: mean R@1 {p['mean']:.3f} (you guessed {guess})")
declared = claims.read_claims(["C14", "C14-memory"])
for verdict in claims.evaluate(declared, evidence) if evidence else ():
    print(f"{verdict.claim.id}: {verdict.verdict}. {verdict.claim.statement} {verdict.reason}")
