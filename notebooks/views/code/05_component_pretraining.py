# How much does an encoder learn before it ever sees a pair, and what is that worth?
# The code of 05_component_pretraining.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F

import mmkit
from mmkit import stats, strategies
from mmkit.models import CNN, TextTransformer
from mmkit.models.text import vocabulary
from mmkit.models.vision import scaled
from mmkit.repro import claims, paths, recorded, records
from mmkit.repro.matching import aligned_terms
from mmkit.teach import plots
from mmkit.training import Batch, Batches, Losses, batches, encode_all, parameter_groups
from mmkit.training import seeded, stream, train

# %% parameters
data: str = "scenes"  # data set: a recipe or one of your own
both: float = 1.0  # scenes only: share of answers that need both modalities
pool: int = 3000  # scenes only: images without texts, and as many texts without images
label: str = "label_answer"  # column of items that holds the answer
role: str = "question"  # kind of text that goes with the image
cues: list[str] = ["label_heading", "label_beacon"]  # labels that the image encoder learns by hand
said: list[str] = ["label_turn", "label_path"]  # labels that the text encoder learns by hand
shown: list[str] = ["label_shape", "label_size", "label_ground"]  # more to probe images for
kinds: list[str] = ["labels", "reconstruction"]  # pretraining of the runs by name
steps: int = 200  # of pretraining
pairs: int = 512  # labelled pairs for fusion and everything
epochs: int = 20  # passes over them
lr: float = 0.004  # highest learning rate on pairs
seed: int = 0  # one seed for pairs, order, masks and first weights, each from its own stream
published: str = "pretraining"  # plan whose published records are read; empty: this run alone

# %% guess
CHOICES = ["150 labels", "3,000 labels", "3,000 other labels", "drew 2,400 steps"]
guess = {"best": "3,000 labels", "lead": 0.1}

# %% guess-check
assert set(guess) == {"best", "lead"}, f"answer both questions, got {guess}"
assert guess["best"] in CHOICES, f"{guess['best']!r} is not one of {CHOICES}"
assert -1 <= guess["lead"] <= 1, "a lead is a share: write five points as 0.05"

# %% load
dataset = mmkit.load(data, **({"both": both, "pool": pool} if data == "scenes" else {}))
task = mmkit.tasks.Answering(dataset, label=label, role=role)
words = vocabulary(dataset, task.language)
loader = task.loader(words)


def new_encoders(seed):
    """Both encoders with their first weights, which depend on the seed alone."""
    image, text = seeded(seed, "image", CNN), seeded(seed, "text", TextTransformer, len(words))
    return {"image": image, "text": text}


pools = [name if name in dataset.splits else "train" for name in ("pool_image", "pool_text")]
pictures, others = (torch.from_numpy(dataset.rows(name)) for name in pools)
texts, owner = dataset.texts_of(others, role=role)
inputs = {"image": dataset.pixels(pictures), "text": words(texts)}
items = {"image": pictures, "text": others[torch.as_tensor(owner)]}  # whose they are
print(f"{len(inputs['image']):,} images, {len(texts):,} texts; answers: {', '.join(task.classes)}")

# %% loop
def pretrain(side, parts, objective, target=None):
    """Some steps of an objective on a modality's pool: the loss of the first and the last."""
    where, losses, x = f"pretraining the {side} encoder", Losses(), inputs[side]
    rows = batches(torch.arange(len(x)), 64, stream(seed, f"{where}/order"))
    fed = (Batch(part, {side: x[part]}, None if target is None else target[part]) for part in rows)
    options = {"steps": steps, "lr": 0.002, "hooks": [losses], "where": where}
    seeded(seed, f"{where}/dropout", train, parts, objective, fed, **options)
    print(f"{side}: loss {losses.losses[0]:.2f} -> {losses.losses[-1]:.2f} in {steps} steps")

# %% draw
def hide(pixels, noise):
    """A quarter of the 8 x 8 patches turned grey."""
    hidden = torch.rand(len(pixels), 1, 8, 8, generator=noise) < 0.25
    return pixels.masked_fill(F.interpolate(hidden.float(), pixels.shape[2:]).bool(), 127)


def draw_loss(parts, batch, noise=stream(seed, "pretraining the image encoder/mask")):
    """Equation (1)."""
    whole = batch.inputs["image"]
    drawn = parts["decoder"](parts["encoder"](hide(whole, noise)).summary)
    return F.mse_loss(drawn, scaled(whole, 16).flatten(1))


decoder = lambda: nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 3 * 16**2))
drawer = new_encoders(seed)["image"]
drawing = {"encoder": drawer, "decoder": seeded(seed, "image pretext", decoder)}
pretrain("image", nn.ModuleDict(drawing), draw_loss)

# %% name
def name_loss(parts, batch):
    """Equation (2); targets (B, K), -1 where a label is unknown."""
    (x,) = batch.inputs.values()
    summary, each = parts["encoder"](x).summary, zip(parts["heads"], batch.target.T)
    losses = [F.cross_entropy(head(summary), codes, ignore_index=-1) for head, codes in each]
    return sum(losses) / len(losses)


encoders = new_encoders(seed)
for side, columns in {"image": cues, "text": said}.items():
    target = torch.stack([dataset.labels(items[side], name) for name in columns], dim=1)
    sizes, width = [len(dataset.classes(name)) for name in columns], encoders[side].summary_dim
    heads = lambda: nn.ModuleList(nn.Linear(width, size) for size in sizes)
    parts = {"encoder": encoders[side], "heads": seeded(seed, f"{side} pretext", heads)}
    pretrain(side, nn.ModuleDict(parts), name_loss, target)

# %% probe
rows = {"learn": task.rows("train")[:1000], "ask": task.rows("val")}  # with labels, and without


def summaries(encoder, part):
    """(N, S): what a frozen image encoder makes of some items."""
    take = lambda some: loader.input("image", rows[part][some])
    return encode_all(encoder, len(rows[part]), take, tokens=False).summary.double()


def probe(z, asked, column):
    """Equation (3): the share of validation items whose label a linear reader finds."""
    codes, wanted = (dataset.labels(rows[part], column) for part in ("learn", "ask"))
    mean, spread = z.mean(0), z.std(0) + 1e-6
    z, one_hot = (z - mean) / spread, F.one_hot(codes, len(dataset.classes(column))).double()
    gram = z.T @ z + 10.0 * torch.eye(z.shape[1], dtype=z.dtype)
    weights = torch.linalg.solve(gram, z.T @ (one_hot - one_hot.mean(0)))
    found = ((asked - mean) / spread @ weights + one_hot.mean(0)).argmax(1)
    return (found == wanted).double().mean().item()

# %% probes
untrained = [new_encoders(1000 + other)["image"] for other in range(5)]  # the control
made = {"untrained": untrained, "learnt to draw": [drawer], "learnt labels": [encoders["image"]]}
columns, known = [cues[0], *shown], {}
names = [column.removeprefix("label_") for column in columns]
for how, several in made.items():
    seen = [[summaries(encoder, part) for part in rows] for encoder in several]
    known[how] = [round(100 * sum(probe(*z, c) for z in seen) / len(seen), 1) for c in columns]
    print(f"{how}:", ", ".join(f"{name} {one} %" for name, one in zip(names, known[how])))

# %% probes-figure
caption = "What a linear reader finds in frozen image encoders. Bars: chance. One seed."
floor = [100 / len(dataset.classes(column)) for column in columns]
with plots.figure(width=7, height=2.5, alt=f"{caption} {known}", caption=caption) as axis:
    for how, marker, colour in zip(made, "os^", (plots.GREY, plots.ORANGE, plots.BLUE)):
        axis.plot(known[how], names, marker, color=colour, label=how, ms=10, mfc="none", mew=2)
    axis.plot(floor, names, "|", color="black", markersize=16)
    axis.set(xlim=(0, 104), xlabel="read by a linear probe (%)")
    axis.invert_yaxis()
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))

# %% train-stages
accuracy = lambda model: task.scores(model, loader, task.rows("val"))["accuracy"].value
model = task.build(encoders, seed=seed)
paired, by_hand = batches(strategies.pairs(task, pairs, seed), 64, stream(seed, "order")), []
fed = Batches(loader, paired, stream(seed, "texts"))
for stage in strategies.ARMS["component"].stages:
    trained = parameter_groups(model, stage.groups, lr * stage.lr)  # and the rest is frozen
    count = sum(p.numel() for group in trained for p in group["params"])
    count_steps = round(stage.share * epochs * (pairs // paired.size))
    options = {"lr": lr * stage.lr, "groups": stage.groups, "validate": accuracy}
    _, log = train(model, task.objective, fed, steps=count_steps, where=stage.name, **options)
    by_hand += [check["validation"] for check in log]
    learnt = f"{[group.match for group in stage.groups]}, {count:,} parameters"
    print(f"{stage.name}: {learnt}, accuracy {max(by_hand):.2f}")

# %% runs
named = {"objective": {"image": "supervised", "text": "supervised"}}  # without one: to reconstruct
splits = tuple(name for name in ("test", "ood_style") if name in dataset.splits)
budget = strategies.Budget(pairs=pairs, epochs=epochs)
options, runs = {"budget": budget, "seed": seed, "lr": lr, "evaluate": splits}, {}
for arm, kind in [("scratch", "none"), *((a, k) for k in kinds for a in ("component", "frozen"))]:
    how = strategies.Encoders(steps=steps, **(named if kind == "labels" else {}))
    runs[arm, kind] = run = strategies.fit(arm, task, encoders=how, **options)
    about = {} if kind == "none" else {"pool": 0, "pretraining_steps": how.steps}
    mmkit.record(run, case="complex", compute="own", pretraining=kind, both=both, **about)
    print(f"{arm}, {kind}: {run.scores['accuracy'].value:.2f}, {run.cost.flops / 1e9:.0f} GFLOP")
if "labels" in kinds:
    checks = [check["validation"] for check in runs["component", "labels"].history]
    apart = sum(abs(one - two) for one, two in zip(by_hand, checks, strict=True)) / len(checks)
    assert apart < 0.05 or torch.cuda.is_available(), f"by hand is {apart:.3f} from by name"

# %% published-records
folder = paths.notebooks() / "records" / published
evidence = records.read(folder) if published and data == "scenes" and folder.exists() else []
source = evidence or recorded()
seeds = sorted({result.row["seed"] for result in source})
print("published records" if evidence else "no published records, this run alone: not evidence")

# %% figure-helpers
NAMES = ("case", "compute", "pretraining", "pool", "pretraining_steps")
groups = {}  # arm and condition -> seed -> result
for result in source:
    key = result.row["arm"], *(result.condition.get(name) for name in NAMES)
    groups.setdefault(key, {})[result.row["seed"]] = result
scratch = groups["scratch", "complex", "own", "none", None, None]
SPLITS = {"accuracy": "Test", "ood_style/accuracy": "Shifted style: dark ground, other words"}
SPLITS = {score: title for score, title in SPLITS.items() if score in source[0].row["scores"]}


def lead(first, score):
    """The paired difference of some results to training from scratch: effect, low, high."""
    common = sorted(first.keys() & scratch.keys())
    terms = [(1.0, score, None, [first[one] for one in common])]
    terms += [(-1.0, score, None, [scratch[one] for one in common])]
    return stats.t_interval(aligned_terms(terms))

# %% figure-data
WORDS = {"labels": "{0:,} labels", "other labels": "{0:,} other labels"}
WORDS |= {"reconstruction": "drew {1:,} steps", "contrast": "told pictures apart"}
points, references = [], {}
for (arm, case, compute, kind, _, steps), several in groups.items():
    if arm == "scratch" and compute == "own":
        references[case.replace("complex", "scratch")] = several
    if arm in ("component", "frozen") and compute == "own":
        about = [result.row["settings"]["pretraining"]["image"] for result in several.values()]
        read = sum(one["probe"].get(cues[0], 0.0) for one in about) / len(about)
        name = WORDS[kind].format(about[0]["entries"], steps)
        point = {"arm": arm, "kind": kind, "name": name, "probe": 100 * read}
        points.append(point | {score: lead(several, score) for score in SPLITS})
points.sort(key=lambda point: point["accuracy"][0])

# %% panel
COLOURS = dict(zip(WORDS, (plots.BLUE, plots.VERMILION, plots.ORANGE, plots.PURPLE)))
SMALL = {"fontsize": 9, "color": "0.3"}
MATTERS = dict(zip(SPLITS, claims.read_claims(["P-labels", "P-labels-style"])))
MATTERS = {score: claim.smallest_effect for score, claim in MATTERS.items()}  # as declared


def ground(axis, score):
    """What the points of a split are to be held against."""
    axis.axhspan(-MATTERS[score], MATTERS[score], color="0.92", lw=0)
    for name, x in (("chance", floor[0]), ("untrained encoder", known["untrained"][0])):
        axis.axvline(x, color="0.6", lw=1, ls=":")
        axis.annotate(f" {name}", (x, 0.01), xycoords=("data", "axes fraction"), **SMALL)
    for name, several in references.items():
        each, y = [result.row["scores"][score] for result in several.values()], lead(several, score)
        axis.axhline(y[0], color="0.3", lw=1, ls="--")
        name += f": {sum(each) / len(each):.2f} ({min(each):.2f} to {max(each):.2f})"
        axis.annotate(name, (0.01, y[0]), None, ("axes fraction", "data"), va="top", **SMALL)
    axis.set(title=SPLITS[score], xlim=(15, 128), xlabel="heading read by a linear probe (%)")
    axis.set_xticks(range(20, 101, 20))

# %% figure-labels
def draw_points(axis, score, gap=0.05):
    """The lead of each kind of pretraining, with its name; names that would touch move up."""
    placed = []
    for point in sorted(points, key=lambda point: point[score][0]):
        effect, low, high = point[score]
        colour, filled = COLOURS[point["kind"]], point["arm"] == "component"
        look = {"color": colour, "marker": "o", "ms": 9, "lw": 1.2}
        look |= {"yerr": [[effect - low], [high - effect]]} if len(seeds) > 1 else {}
        axis.errorbar(point["probe"], effect, mfc=colour if filled else "white", **look)
        if filled:
            side, name = "right" if point["probe"] < 62 else "left", f"   {point['name']}   "
            near = [y for other, y in placed if other == side and abs(y - effect) < gap]
            placed.append((side, max(near, default=effect - gap) + gap))
            axis.text(point["probe"], placed[-1][1], name, color=colour, va="center", ha=side)

# %% figure
told = [f"{p['name']}, {p['arm']}: {p['probe']:.0f} %, {p['accuracy'][0]:+.2f}" for p in points]
caption = f"Paired lead over scratch, {len(seeds)} seed(s). Grey: too little to matter."
shape = {"width": 6 * len(SPLITS), "height": 5.2, "squeeze": False, "sharey": True}
alt = f"{caption} Probe and lead on the test split: {'; '.join(told)}."
with plots.figure(1, len(SPLITS), alt=alt, caption=caption, **shape) as axes:
    for axis, score in zip(axes.flat, SPLITS):
        ground(axis, score)
        draw_points(axis, score)
    axes[0, 0].set_ylabel("lead over training from scratch")
    for fill, name in (("0.3", "then trained in stages"), ("white", "kept frozen")):
        axes[0, 0].plot([], [], "o", color="0.3", mfc=fill, label=name)
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 0.06))

# %% known-loss
def known_loss(scores, codes):
    """scores (B, C), codes (B,) with -1 for unknown -> mean cross-entropy of the known ones."""
    known = codes >= 0
    return F.cross_entropy(scores[known], codes[known], reduction="sum") / known.sum().clamp(min=1)

# %% known-loss-check
scores = torch.randn(6, 4, generator=stream(seed, "check"))
for codes in ([0, 1, 2, 3, 0, 1], [0, -1, 2, -1, -1, 1], [-1, -1, -1, 3, -1, -1], [-1] * 6):
    each = [-scores[at].log_softmax(0)[code] for at, code in enumerate(codes) if code >= 0]
    loss, right = float(known_loss(scores, torch.tensor(codes))), sum(each) / max(1, len(each))
    assert abs(loss - right) < 1e-5, f"codes {codes}: {right:.3f}, got {loss:.3f}"

# %% pairs-for
def pairs_for(items, labels_each, price, pair_price):
    """How many whole pairs the labels of `items` items would pay for; prices in cents."""
    return items * labels_each * price // pair_price

# %% pairs-for-check
for case, right in {(9, 2, 5, 10): 9, (10, 2, 5, 30): 3, (7, 1, 3, 4): 5}.items():
    assert (got := pairs_for(*case)) == right, f"pairs_for{case} is {right}, got {got}"
for price in (10, 20):
    print(f"1,500 x 2 labels at 10 cents: {pairs_for(1500, 2, 10, price):,} pairs at {price} cents")

# %% findings
plan, lines = paths.read_json(folder / "plan.json")["claims"] if evidence else [], []
ran = claims.read_claims([claim["id"] for claim in plan]) if evidence else []
for found in claims.evaluate(ran, evidence, declared=claims.read_claims()):
    size = f"{found.estimate.effect:+.2f} [{found.estimate.low:+.2f}, {found.estimate.high:+.2f}]"
    lines.append(f"* {found.claim.statement} **{found.verdict}**, {size}.")
shares = ", ".join(f"{known[how][0]:.0f} % ({how})" for how in made)
head = f"A probe reads {names[0]} in {shares} of the images of this run, one seed. "
own = [point for point in points if point["arm"] == "component"]
if evidence:
    told = [f"{p['name']} " + "{:+.2f} [{:+.2f}, {:+.2f}]".format(*p["accuracy"]) for p in own]
    head += f"Leads of the components over scratch, {len(seeds)} seeds, test: {'; '.join(told)}. "
    head += f"You guessed {guess['best']}, by {guess['lead']:+.2f}."
display(Markdown("\n".join([head, "", *lines])))
