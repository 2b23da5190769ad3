# How large should the batch of a contrastive loss be, and what stands in its way?
# The code of 15_gpu_optimised_core.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import time
import timeit
from copy import deepcopy

import torch
from IPython.display import Markdown, display
from torch.nn import functional as F

import mmkit
from mmkit.core import contrastive_loss, gradient_cache
from mmkit.models import fast, pretrained
from mmkit.repro import claims, paths, recorded, records
from mmkit.repro.report import arm_points
from mmkit.strategies import Budget, fit
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
more: bool = False  # time the encoder by ONNX Runtime and torch.compile too: a minute, and the extra `fast`
seed: int = 0  # decides embeddings, pairs, order and first weights
published: str = "core"  # plan whose published records are shown beside this run; empty: this run alone

# %% guess
guess = {"times faster": 1.5, "best batch": 64}

# %% guess-check
assert set(guess) == {"times faster", "best batch"} and all(value > 0 for value in guess.values()), f"two positive numbers, got {guess}"
print(f"noted: {guess}")

# %% naive
def two_matrices(image, text, scale):
    target = torch.arange(len(image))
    return (F.cross_entropy(scale * image @ text.T, target) + F.cross_entropy(scale * text @ image.T, target)) / 2


def one_matrix(image, text, scale):
    scores, target = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def batch(n, noise=5.0, dim=width, kind=torch.float32):
    """Unit vectors, each text its image with noise; noise 5: near misses, 2: told apart. Never zeros."""
    generator = stream(seed, "embeddings")
    image = F.normalize(torch.randn(n, dim, generator=generator), dim=1)
    text = F.normalize(image + noise / 384**0.5 * torch.randn(n, dim, generator=generator), dim=1)
    return [x.to(kind).requires_grad_() for x in (image, text)] + [torch.tensor(100.0).requires_grad_()]


def gradients(loss, inputs):
    return torch.autograd.grad(loss(*inputs), inputs)

# %% tiles
def tiles(image, text, scale, size):
    """Scores tile by tile with the positives at -inf: (rows, columns, scores)."""
    for i in range(0, len(image), size):
        for j in range(0, len(text), size):
            scores = scale * image[i : i + size] @ text[j : j + size].T
            yield slice(i, i + size), slice(j, j + size), scores.fill_diagonal_(-torch.inf) if i == j else scores


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
        g = p[i, None] * (scores - rows[i, None]).exp() + q[None, j] * (scores - columns[None, j]).exp()  # (3)
        d_image[i] += g @ text[j]
        d_text[j] += g.T @ image[i]
    unit = grad / (2 * len(image))
    return unit * scale * d_image, unit * scale * d_text, unit * (image * d_image).sum(), None


Tiled.backward = staticmethod(backward)


def tiled(image, text, scale, size=tile):
    return Tiled.apply(image, text, scale, size)

# %% count
class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Sizes of the memory that autograd keeps for the backward pass, leaves left out."""

    def __init__(self):
        self.pieces = {}
        super().__init__(self.pack, lambda x: x)

    def pack(self, x):
        owner = x if x._base is None else x._base
        if not (owner.is_leaf and owner.requires_grad):
            self.pieces[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x


VERSIONS = {"two matrices": two_matrices, "one matrix": one_matrix, "tiled": tiled, "mmkit.core": contrastive_loss}
n, exact = width // 2, [x.detach().double().requires_grad_() for x in batch(width // 2)]
for name, loss in VERSIONS.items():
    with (kept := Kept()):
        held = (loss(*batch(n)), sum(size == 4 * n * n for size in kept.pieces.values()))[1]
    apart = max(float((a - b).norm() / b.norm()) for a, b in zip(gradients(loss, exact), gradients(two_matrices, exact)))
    counted = flops_of(lambda: gradients(loss, batch(n))) / (n * n * width)  # noqa: B023
    print(f"{name:13} {counted:4.1f} N²D operations, keeps {held} N×N matrices, gradients equal to 1e-9: {apart < 1e-9}")

# %% draw
shown, size = 48, 16
a, b, _ = (x.detach() for x in batch(shown, noise=3.0, dim=24))
scores, block = (20 * a @ b.T).exp().log1p(), slice(size, 2 * size)
sums, again = scores.clone().fill_diagonal_(torch.nan), torch.full_like(scores, torch.nan)
again[block, block] = sums[block, block]
sums[block, 2 * size :] = sums[2 * size :] = torch.nan
with plots.figure(1, 3, width=10, height=3.6, alt="Three panels. Left: the whole matrix of scores with its bright diagonal. Middle: the forward pass, tiles up to the present one computed, the diagonal empty, sums growing at the right and below. Right: the backward pass, one tile computed again.", caption="Left: what the formula asks for. Middle: what is held, one tile (red) and two vectors of sums. Right: the same tile again on the way back, a factor of two small products.") as axes:
    for axis, picture, title in zip(axes, (scores, sums, again), ("N × N scores", "forward: sums", "backward: products")):
        axis.imshow(picture, vmin=0, vmax=float(scores.max()))
        axis.set(title=title, xticks=range(0, shown + 1, size), yticks=range(0, shown + 1, size), xlabel="texts", ylabel="images", xlim=(-1, shown + 13), ylim=(shown + 13, -1))
    axes[1].plot(*(size * torch.tensor(corners) - 0.5 for corners in ([1, 2, 2, 1, 1], [1, 1, 2, 2, 1])), color=plots.VERMILION, linewidth=3)
    for axis, rows, columns, colour in ((axes[1], sums.nansum(1), sums.nansum(0), plots.BLUE), (axes[2], again.nansum(1) > 0, again.nansum(0) > 0, plots.ORANGE)):
        axis.barh(range(shown), 10 * rows / rows.max(), left=shown + 1, height=1, color=colour)
        axis.bar(range(shown), 10 * columns / columns.max(), bottom=shown + 1, width=1, color=colour)

# %% ceilings
clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter  # processor time is deaf to what else runs


def fastest(call, count=2):  # seconds, the first call left out
    return min(timeit.repeat(call, number=1, repeat=count + 1, timer=clock)[1:])


side, big = min(2048, max(sizes)), torch.zeros(min(2048, max(sizes)) ** 2 * 8)
squares = {"float32": torch.randn(side, side), "bfloat16": torch.randn(side, side).bfloat16()}
peak = {kind: 2 * side**3 / fastest(lambda: torch.mm(x, x)) for kind, x in squares.items()}  # noqa: B023
bandwidth = 2 * 4 * len(big) / fastest(lambda other=torch.empty_like(big): other.copy_(big))
print(f"{torch.get_num_threads()} thread(s): {', '.join(f'{kind} {value / 1e9:,.0f} GFLOP/s' for kind, value in peak.items())}; {bandwidth / 1e9:.1f} GB/s copied; the roof bends at {peak['float32'] / bandwidth:.0f} operations a byte")

# %% traffic
class Traffic(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes of the operands that are larger than `cached`, over all operators that move data."""

    cached, moved = 0, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        found = operator(*args, **(kwargs or {}))
        operands = [] if operator.is_view else [x for x in torch.utils._pytree.tree_leaves((args, kwargs, found)) if isinstance(x, torch.Tensor)]
        self.moved += sum(x.numel() * x.element_size() for x in operands if x.untyped_storage().nbytes() > self.cached)
        return found


def moved(name, n):
    """Bytes of one forward and backward pass. In tiles the tile decides them, so that they are counted on many and scaled; the core's has 1,024 rows."""
    side = {"tiled": tile, "mmkit.core": 1024}.get(name, 0)
    rows = 8 * side or n
    with torch.device("meta"), Traffic() as traffic:  # shapes alone decide, nothing is computed
        traffic.cached = 4 * min(side * side, rows * width - 1)
        gradients((lambda *x: tiled(*x, side)) if side else VERSIONS[name], [torch.zeros(shape, requires_grad=True) for shape in ((rows, width), (rows, width), ())])
    return traffic.moved * (n / rows) ** 2

# %% race
work, race = {"two matrices": 12, "one matrix": 6, "tiled": 8, "mmkit.core": 8}, {}  # N²D operations; seconds
for n in sizes:
    inputs = batch(n)
    taken = [{name: timeit.timeit(lambda: gradients(loss, inputs), number=1, timer=clock) for name, loss in VERSIONS.items()} for _ in range(2)]  # noqa: B023
    race |= {(name, n): min(turn[name] for turn in taken) for name in VERSIONS}  # turn and turn about, the faster counts
intensity = {(name, n): work[name] * n * n * width / moved(name, n) for name, n in race}
speed = {(name, n): work[name] * n * n * width / seconds for (name, n), seconds in race.items()}
print("\n".join(f"N = {n:,}: " + ", ".join(f"{name} {1e3 * race[name, n]:,.0f} ms" for name in VERSIONS) for n in sizes))

# %% roofline
most, gain = max(sizes), race["two matrices", max(sizes)] / race["mmkit.core", max(sizes)]
looks = dict(zip(VERSIONS, ((plots.VERMILION, "s"), (plots.ORANGE, "D"), (plots.SKY, "^"), (plots.BLUE, "o"))))
x = torch.logspace(0, 3, 200)
alt = f"Roofline of this machine on logarithmic axes, speed against operations a byte. All marks lie under the flat part of the float32 roof; those of the versions with a matrix lie left, those of the tiled pass and the core right; at N = {most:,} the core is {gain:.1f} times as fast as two matrices."
with plots.figure(width=7.5, height=4.4, alt=alt, caption=f"Marks grow with N ({', '.join(f'{n:,}' for n in sizes)}); times are those at {most:,}. All lie under the flat part, so bytes alone do not explain the order. Highest speed: {max(VERSIONS, key=lambda name: speed[name, most])}; longest time: {max(VERSIONS, key=lambda name: race[name, most])}. A mark near the roof may belong to code that computes too much.") as axes:
    for (kind, top), line in zip(peak.items(), ("-", "--")):
        axes.plot(x, torch.minimum(x * bandwidth, torch.tensor(top)) / 1e9, line, color=plots.BLACK if line == "-" else plots.GREY, label=f"roof, {kind}")
    for name, (colour, marker) in looks.items():
        for k, n in enumerate(sizes):
            axes.plot(intensity[name, n], speed[name, n] / 1e9, marker=marker, markersize=6 + 2 * k, color=colour, linestyle="none", label=f"{name}, {work[name]} N²D" if n == most else None)
        axes.annotate(f"{1e3 * race[name, most]:,.0f} ms", (intensity[name, most], speed[name, most] / 1e9), xytext=(8, 8 if name == "two matrices" else -14), textcoords="offset points", fontsize=8, color=colour)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte moved", ylabel="GFLOP/s")
    axes.legend(loc="lower right", fontsize=8)

# %% precision
def off_by(loss, noise, kind):
    """Relative error of the image gradient against (2) in float64 of the same numbers."""
    inputs = batch(512, noise, 384, kind)
    reference = gradients(tiled, [x.detach().double().requires_grad_() for x in inputs])[0]
    return float((gradients(loss, inputs)[0].double() - reference).norm() / reference.norm())


ways = {"ordinary": lambda a, b, scale: two_matrices(a, b, scale.to(a.dtype)), "core": contrastive_loss}
errors = {(way, kind): [off_by(ways[way], noise, kind) for noise in (5.0, 2.2)] for kind in (torch.float32, torch.bfloat16) for way in ways}
rows = "\n".join(f"| {way}, {str(kind)[6:]} | {near:.0e} | {apart:.0e} |" for (way, kind), (near, apart) in errors.items())
display(Markdown(f"| gradient of | near misses | told apart |\n|---|---|---|\n{rows}"))

# %% cache
towers = [torch.nn.Sequential(torch.nn.Linear(width, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 64)) for _ in range(2)]
given, held = [x.detach() for x in batch(512)[:2]], []


def encode(chunk):
    with (kept := Kept()):
        embeddings = [F.normalize(tower(x), dim=1) for tower, x in zip(towers, chunk)]
    held.append(sum(kept.pieces.values()))
    return embeddings


whole = contrastive_loss(*encode(given), 20.0)
cached = gradient_cache(encode, list(zip(*([part.clone() for part in x.split(64)] for x in given))), lambda *x: contrastive_loss(*x, 20.0))
print(f"chunks of 64: the same loss: {abs(float(whole.detach() - cached)) < 1e-5}; kept for the backward pass: 1/{held[0] / held[-1]:.1f}; encoded {(len(held) - 1) // 8} times")

# %% task
class Weighed(Retrieval):
    """Retrieval in a precision of choice; weighs what a training step keeps for its backward pass."""

    precision, kept = "float32", 0

    def loss(self, *given):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"), (kept := Kept()):
            loss = super().loss(*given)
        self.kept = sum(kept.pieces.values())
        return loss


def train(size, precision):
    problem = Weighed(dataset)
    problem.precision = precision
    result = fit("scratch", problem, budget=Budget(pairs, epochs), seed=seed, batch=size, lr=lr * (size / 64) ** 0.5)
    result.cost.peak_bytes = problem.kept  # exact, where the peak of the process would be mostly Python's
    mmkit.record(result, batch=size, precision=precision)

# %% train
dataset, middle = mmkit.load("scenes", train=pairs, val=150, test=300, ood=0, pool=8), sorted(batch_sizes)[len(batch_sizes) // 2]
for size, precision in [*((size, "float32") for size in batch_sizes), (middle, "bfloat16")]:
    train(size, precision)
mine, folder = recorded(), paths.notebooks() / "records" / published
evidence = records.read(folder) if published and folder.exists() else []
source = evidence or mine
seeds, known = ({read(result) for result in source} for read in (lambda r: r.row["seed"], lambda r: r.condition["batch"]))

# %% buys
def point(results, size, precision="float32"):
    """Mean and 95 % interval of R@1 over seeds, or None."""
    asked = {"batch": size, "precision": precision}
    conditions = [result.condition for result in results if asked.items() <= result.condition.items()]
    return arm_points(results, "recall@1", conditions[0])["scratch"] if conditions else None


ranked = sorted((point(source, size)["mean"], size) for size in known if point(source, size))
what = f"R@1 over {len(seeds)} seed(s)"
with plots.figure(width=6, height=3.2, alt=f"{what} against the batch size at equal compute, with 95 % intervals, and one mark for bfloat16 autocast.", caption=f"Each batch size passes over the pairs equally often; the highest mean is at {ranked[-1][1]}, the lowest at {ranked[0][1]}. Ring: this run.") as axes:
    for batch_size, precision, place, colour in (look for n in known for look in ((n, "float32", n, plots.BLUE), (n, "bfloat16", n * 1.1, plots.VERMILION))):
        if p := point(source, batch_size, precision):
            axes.errorbar(place, p["mean"], yerr=[[p["mean"] - p["low"]], [p["high"] - p["mean"]]] if len(seeds) > 1 else None, color=colour, marker="o")
        if ring := point(mine, batch_size, precision):
            axes.plot(place, ring["mean"], "o", markersize=11, fillstyle="none", color="0.4")
    axes.set_xscale("log", base=2)
    axes.set(xticks=sorted(known), xticklabels=sorted(known), xlabel="batch size (blue: float32, vermilion: bfloat16 autocast)", ylabel=what)

# %% encoder
encoder = pretrained("efficientnet_lite0")
plain = deepcopy(encoder.body).to(memory_format=torch.contiguous_format)
x = torch.rand(images, 3, encoder.size, encoder.size, generator=stream(seed, "photos")) * 2 - 1
with fast.quick(encoder, fast.FEWEST * more) as said, torch.inference_mode():
    ways = {"as timm gives it": plain.forward_features, "channels-last": lambda x: encoder.body.forward_features(x.contiguous(memory_format=torch.channels_last))}
    ways |= {"torch.compile": torch.compile(encoder.body.forward_features, options={"freezing": True}), said.split(":")[0]: encoder.maps} if more else {}
    rate = {name: images / fastest(lambda: way(x)) for name, way in ways.items()}  # noqa: B023
    apart = {name: float((way(x) - plain.forward_features(x)).norm() / plain.forward_features(x).norm()) for name, way in ways.items()}
for name in ways:
    print(f"{name:17} {rate[name]:6.1f} images/s, {rate[name] / rate['as timm gives it']:.2f} times, relative difference {apart[name]:.0e}")
print(f"20 epochs over 8,000 photos: {20 * 8000 / rate['channels-last'] / 60:.0f} min of encoding, or {8000 / rate['channels-last'] / 60:.0f} min when the features are kept")

# %% kept
for name in ("core_cpu", "core_encoder", "core_gpu"):
    display(Markdown((paths.notebooks() / "records" / "benchmarks" / f"{name}.md").read_text(encoding="utf-8").replace("# ", "#### ", 1)))

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
assert torch.isclose(torch.stack(merge(parts[1], parts[0])), torch.stack(merge(parts[0], parts[1]))).all(), "the order of the parts does not matter"
low = merge((torch.tensor(-800.0), torch.tensor(2.0)), (torch.tensor(-801.0), torch.tensor(1.0)))
assert torch.isclose(low[0] + low[1].log(), torch.tensor([-800.0, -800.0, -801.0]).logsumexp(0)) and low[0] == -800
print(f"log-sum-exp {float(m + s.log()):.4f}")

# %% largest
def largest_batch(memory, pair, row):
    """Largest whole N with pair * N² + row * N <= memory, all in bytes."""
    return int(((row**2 + 4 * pair * memory) ** 0.5 - row) / (2 * pair)) if pair else memory // row

# %% largest-check
assert largest_batch(1000, 1, 0) == 31 and largest_batch(1024, 1, 0) == 32, "a whole number that still fits"
assert largest_batch(1100, 1, 100) == 10 and largest_batch(1099, 1, 100) == 9, "rows cost too"
assert largest_batch(10**6, 0, 100) == 10_000, "without a matrix"
print(f"80 GB, width {width}: {largest_batch(80 * 10**9, 16, 16 * width):,} with matrices, {largest_batch(80 * 10**9, 0, 16 * width):,} without")

# %% findings
print(f"At N = {most:,} and D = {width} the core is {gain:.2f} times as fast as two matrices and {race['one matrix', most] / race['mmkit.core', most]:.2f} times as fast as one; you guessed {guess['times faster']}.")
print(f"At N = {min(sizes):,} one matrix takes {1e3 * race['one matrix', min(sizes)]:,.0f} ms and the core {1e3 * race['mmkit.core', min(sizes)]:,.0f} ms.")
print(f"On a batch that is told apart, the ordinary float32 gradient is {errors['ordinary', torch.float32][1] / errors['core', torch.float32][1]:,.0f} times further from float64 than the core's.")
print(f"At equal compute the highest mean R@1 over {len(seeds)} seed(s) is {ranked[-1][0]:.3f}, at batch {ranked[-1][1]}; you guessed {guess['best batch']}." + " One seed is an illustration, not evidence." * (len(seeds) == 1))
for verdict in claims.evaluate(claims.read_claims(["C14", "C14-memory"]), evidence) if evidence else []:
    print(f"{verdict.claim.id}: {verdict.verdict}. {verdict.claim.statement} {verdict.reason}")
