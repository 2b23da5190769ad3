# What does a loss pull on, and how does it share out the pull?
# The code of 01_losses_and_gradients.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import inspect
from functools import partial
from itertools import count

import pandas as pd
import torch
from IPython.display import Markdown, display
from torch.nn import functional as F

import mmkit
from mmkit import strategies
from mmkit.core import contrastive_loss, reference
from mmkit.explain.pulls import Watch, added, felt, flat, own_loss, pull, same_gradient, shares
from mmkit.models import CNN, TextTransformer
from mmkit.models.text import vocabulary
from mmkit.teach import plots, widgets
from mmkit.training import Batches, batches, constant, cross_entropy, seeded, stream, train

# %% parameters
data: str = "scenes"  # images and captions to retrieve: a recipe or one of your own
temperatures: list[float] = [0.005, 0.02, 0.07, 0.3, 1.0]  # InfoNCE is trained once with each
margin: float = 0.2  # of the hinge losses
pairs: int = 1024  # pairs to train on
batch: int = 64  # pairs of a step
steps: int = 80  # steps of each retrieval model
joint_steps: int = 40  # steps of each model in the part on joint training
lr: float = 0.003  # highest learning rate
seed: int = 0  # pairs, order and first weights, each from its own stream

# %% guess
guess = {"InfoNCE": 0.8, "hinge, sum": 0.7, "hinge, hardest": 0.8}

# %% guess-check
assert {*guess} == {"InfoNCE", "hinge, sum", "hinge, hardest"}, f"a number each, got {guess}"
assert all(0 <= value <= 1 for value in guess.values()), f"shares lie between 0 and 1: {guess}"

# %% residuals-check
def residual(z, y):
    return z.softmax(-1) - F.one_hot(y, z.shape[-1])


random, N, K = stream(seed, "mathematics"), 6, 5
(z, x, target), y = torch.randn(3, N, K, generator=random).double(), torch.arange(N) % K
print("(1) cross-entropy ", same_gradient(lambda z: F.cross_entropy(z, y), z, residual(z, y) / N))
by_hand = 2 * (x - target) / (N * K)
print("(2) squared error ", same_gradient(lambda x: F.mse_loss(x, target), x, by_hand))

# %% masked-check
M = torch.rand(N, 1, generator=random) < 0.5  # of N words, those that are hidden
mlm, rec, hidden = M * residual(z, y) / M.sum(), M * 2 * (x - target) / (K * M.sum()), M[:, 0]
print("(3) masked words  ", same_gradient(lambda z: F.cross_entropy(z[hidden], y[hidden]), z, mlm))
print("(4) reconstruction", same_gradient(lambda x: F.mse_loss(x[hidden], target[hidden]), x, rec))

# %% contrastive-losses
print(inspect.getsource(reference.contrastive_loss), inspect.getsource(reference.sigmoid_loss))


def infonce(s, tau):
    return F.cross_entropy(s / tau, torch.arange(len(s)))


def hinge(s, hardest):
    """Equation (7): the sum over the wrong texts, or the hardest of them alone."""
    h = (margin + s - s.diag()[:, None]).relu().masked_fill(torch.eye(len(s), dtype=torch.bool), 0)
    return (h.amax(1) if hardest else h.sum(1)).mean()

# %% contrastive-check
v, t = F.normalize(torch.randn(2, N, 8, generator=random).double(), dim=-1)
s, one, tau, b, partner = v @ t.T, torch.eye(N).double(), 0.07, -1.0, torch.arange(N)
sign, h = 2 * one - 1, (margin + s - s.diag()[:, None]).relu() * (1 - one)
push = lambda wrong: (wrong - torch.diag(wrong.sum(1))) / N  # wrong texts down, the partner up
nce, pair = (s / tau).softmax(1) - one, -sign * (-sign * (s / tau + b)).sigmoid()
binary = partial(F.binary_cross_entropy_with_logits, target=one, reduction="sum")
ranked = partial(F.multi_margin_loss, target=partner, margin=margin)
sums, maxima = push((h > 0).double()), push(one[h.argmax(1)] * (h > 0))
print("(5) InfoNCE       ", same_gradient(partial(infonce, tau=tau), s, nce / (N * tau)))
print("(6) sigmoid       ", same_gradient(lambda s: binary(s / tau + b) / N, s, pair / (N * tau)))
print("(7) hinge, sum    ", same_gradient(lambda s: N * ranked(s), s, sums))
print("(7) hinge, hardest", same_gradient(partial(hinge, hardest=True), s, maxima))
same = torch.allclose(contrastive_loss(v, t, 1 / tau), reference.contrastive_loss(v, t, 1 / tau))
print("the fast contrastive_loss equals the plain one:", same)

# %% retrieval
task = mmkit.tasks.Retrieval(mmkit.load(data))
words = vocabulary(task.dataset)
loader, rows, val = task.loader(words), strategies.pairs(task, pairs, seed), task.rows("val")


def untrained():
    text = seeded(seed, "text", TextTransformer, len(words))
    return task.build({"image": seeded(seed, "image", CNN), "text": text}, seed=seed)


@torch.no_grad()
def similarities(model):
    """(B, B) image x text for the first items of validation, in float64."""
    image, text = model.eval()(loader(val[:batch]).inputs).values()
    return (image @ text.T).double()

# %% learn
def learn(loss_at):
    """R@1 on validation, and `similarities`, after training with the loss `loss_at(step)`."""
    model, clock, order = untrained(), count(), batches(rows, batch, stream(seed, "order"))

    def objective(model, batch):
        image, text = model(batch.inputs).values()
        loss, s = loss_at(next(clock)), image @ text.T
        return (loss(s) + loss(s.T)) / 2

    train(model, objective, Batches(loader, order, stream(seed, "texts")), steps=steps, lr=lr)
    return task.scores(model, loader, val)["recall@1"].value, similarities(model)


losses = {f"InfoNCE {tau:g}": partial(infonce, tau=tau) for tau in temperatures}
losses |= {f"hinge, {kind}": partial(hinge, hardest=kind != "sum") for kind in ("sum", "hardest")}
learned = {name: learn(lambda step, loss=loss: loss) for name, loss in losses.items()}
recall = {name: score for name, (score, _) in learned.items()}

# %% felt
middle = min(temperatures, key=lambda tau: abs(tau - 0.07))
stages = {"untrained": similarities(untrained()), "trained": learned[f"InfoNCE {middle:g}"][1]}
dial = sorted({*temperatures, *(0.005 * 200 ** torch.linspace(0, 1, 30)).tolist()})
numbers = ", ".join(f"{name} {score:.2f}" for name, score in recall.items())

# %% hardness-figure
caption = f"Above: wrong texts felt (8). Below: R@1 after {steps} steps. {numbers}. One seed."
with plots.figure(2, 1, height=5.4, sharex=True, alt=caption, caption=caption) as (above, below):
    for name, colour in (("hinge, sum", plots.GREEN), ("hinge, hardest", plots.VERMILION)):
        below.axhline(recall[name], color=colour, label=name)
        for s, line in zip(stages.values(), ("--", "-")):
            above.axhline(felt(shares(losses[name], s)), color=colour, linestyle=line)
    for (stage, s), line in zip(stages.items(), ("--", "-")):
        n = [felt(shares(partial(infonce, tau=tau), s)) for tau in dial]
        above.plot(dial, n, line, color=plots.BLUE, label=f"{stage} encoders")
    below.plot(temperatures, [*recall.values()][: len(temperatures)], "o-", label="InfoNCE")
    above.set(xscale="log", yscale="log", ylabel="wrong texts felt", ylim=(0.9, 1.2 * batch))
    below.set(xlabel="temperature of InfoNCE", ylabel="R@1", ylim=(-0.03, 1))
    for axis in (above, below):
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)

# %% one-image-widget
captions = [task.dataset.texts_of([row])[0][0] for row in val[:batch].tolist()]


def draw(temperature=middle, encoders="trained", image=0):
    q = shares(partial(infonce, tau=temperature), stages[encoders])[image]
    top = q.argsort(descending=True)[:8].tolist()
    finding = f"With {encoders} encoders at temperature {temperature:.3g}, {felt(q[None]):.1f} of "
    finding += f"{len(q) - 1} wrong texts are felt. The truth: {captions[image]}"
    with plots.figure(width=9.0, height=3.0, alt=f"Bars. {finding}", caption=finding) as axes:
        axes.barh(range(len(top)), 100 * q[top], color=plots.VERMILION)
        axes.set(xlim=(0, 100), xlabel="share of the push (%)", title="pushed away")
        axes.set_yticks(range(len(top)), [captions[j] for j in top], fontsize=8)
        axes.invert_yaxis()


controls = widgets.live(draw, temperature=dial, encoders=list(stages), image=range(len(captions)))

# %% joint-model
def build(task):
    """Both encoders behind a fusion module, and a head of its own for each besides."""
    words = vocabulary(task.dataset)
    encoders = {"image": seeded(seed, "image", CNN, summary_dim=64)}
    encoders["text"] = seeded(seed, "text", TextTransformer, len(words))
    model = task.build(encoders, seed=seed)
    model.own_heads = strategies.balance.unimodal_heads(model, len(task.classes), seed=seed)
    return model, task.loader(words)

# %% joint-run
def run(task, objective, look, at, *, other=False, clip=torch.inf):
    """step -> `look(model)` before it; `other` shows each image with another item's text."""
    (model, loader), watch = build(task), Watch(look, at)
    chosen = strategies.pairs(task, pairs, seed)
    loader = loader.shuffled(chosen, stream(seed, "others")) if other else loader
    shown = (loader(part) for part in batches(chosen, batch, stream(seed, "order")))
    options = {"lr": lr, "schedule": constant, "clip": clip}
    train(model, objective, shown, steps=max(at) + 1, hooks=[watch], **options)
    return watch.seen

# %% couplings
redundant = mmkit.tasks.Answering(mmkit.load("scenes", both=0.0, either=1.0))
path = partial(run, redundant, look=lambda model: flat(model.image.parameters()), at=range(9))


def cross_modal(model, batch):
    image, text = (F.normalize(x.summary) for x in model.encode(batch.inputs).values())
    return infonce(image @ text.T, 0.07)


printed, apart, notices = added(own_loss("image"), own_loss("text")), path(own_loss("image")), {}
gap = max((x - apart[step]).abs().max() for step, x in path(printed).items())
print(f"(i) largest difference of the path under (9) from the path of the image alone: {gap:g}")
couplings = {"(9) as printed": printed, "a fusion module": cross_entropy}
couplings |= {"(9), one norm clipped": printed, "a cross-modal term": added(printed, cross_modal)}
couplings["one head for both"] = added(own_loss("image"), own_loss("text", head="image"))
for name, objective in couplings.items():
    clip = 1.0 if "clipped" in name else torch.inf
    own, moved = path(objective, clip=clip)[8], path(objective, clip=clip, other=True)[8]
    notices[name] = not torch.equal(own, moved)
    print(f"(ii) {name:22} the image encoder notices the texts: {notices[name]}")

# %% starving
whole, at = build(redundant)[1], sorted({0, 3, 6, 10, joint_steps // 2, joint_steps})
given, blanked = (loader(redundant.rows("val")) for loader in (whole, whole.blanked("image")))


def starved(logits, model):
    """Mean residual, text encoder's gradient, accuracy from the text alone (image blanked)."""
    z, y = logits(model, given), given.target
    told = (logits(model, blanked).argmax(1) == y).double().mean()
    pulled = pull(F.cross_entropy(z, y), model.text).norm()
    return torch.stack([residual(z, y).norm(dim=1).mean().detach(), pulled, told]).tolist()


joint = lambda model, batch: model(batch.inputs)
text_alone = lambda model, batch: model.own_heads["text"](model.text(batch.inputs["text"]).summary)
inside = run(redundant, cross_entropy, partial(starved, joint), at)
by_itself = run(redundant, own_loss("text"), partial(starved, text_alone), at)
names = ["residual", "pull", "right"]
tables = {"joint": pd.DataFrame(inside, names).T, "text alone": pd.DataFrame(by_itself, names).T}
display(pd.concat(tables, axis=1).rename_axis("step").round(3))

# %% conflict
mixed = mmkit.tasks.Answering(mmkit.load("scenes", both=0.0, either=0.0))
val, whole = mixed.rows("val"), build(mixed)[1]
kinds = mixed.dataset.items["label_kind"].to_numpy()[val]
told = [val[torch.from_numpy(kinds == kind)] for kind in ("image", "text")]
halves = [torch.cat([told[0][k::2], told[1][k::2]]) for k in (0, 1)]


def cosine(pair, model):
    a, b = (pull(cross_entropy(model, whole(rows)), model.fusion, model.head) for rows in pair)
    return F.cosine_similarity(a, b, dim=0).item()


pulls = run(mixed, cross_entropy, lambda model: [cosine(told, model), cosine(halves, model)], at)
names = ["image- with text-told", "random halves"]  # what the two cosines compare
display(pd.DataFrame(pulls, names).T.rename_axis("step").round(2))

# %% mlm
def mlm_loss(logits, ids, hidden):
    """Scalar. logits (B, L, K); ids (B, L), 0 is padding; hidden (B, L) bool."""
    real = hidden & (ids != 0)
    return F.cross_entropy(logits[real], ids[real], reduction="sum") / real.sum().clamp(min=1)

# %% mlm-check
ids = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 0, 0, 0]])
hidden = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]]) > 0
z = torch.randn(2, 5, 7, generator=stream(seed, "exercise")).double()
wanted = F.cross_entropy(z[hidden], ids[hidden])
assert torch.isclose(mlm_loss(z, ids, hidden), wanted), "the mean of -log p over hidden words"
assert torch.isclose(mlm_loss(z, ids, hidden | (ids == 0)), wanted), "padding is no word"
assert mlm_loss(z, ids, torch.zeros_like(hidden)) == 0, "nothing hidden: 0, not 0/0"
assert torch.isfinite(mlm_loss(1e4 * z, ids, hidden)), "the softmax's logarithm in one step"

# %% both-ways
def infonce_gradient(s, tau):
    """(N, N): the gradient of (infonce(s, tau) + infonce(s.T, tau)) / 2, by hand."""
    p = (s / tau).softmax(1) + (s / tau).softmax(0)
    return (p - 2 * torch.eye(len(s))) / (2 * len(s) * tau)

# %% both-ways-check
both_ways = torch.func.grad(lambda s, tau: (infonce(s, tau) + infonce(s.T, tau)) / 2)
off = lambda s, tau: (infonce_gradient(s, tau) - both_ways(s, tau)).abs().max()
assert off(torch.zeros(4, 4), 1.0) < 1e-6, "all equal: wrong pairs by 1/16, partners by -3/16"
assert off(torch.rand(5, 5, generator=stream(seed, "exercise")), 0.3) < 1e-6, "not autograd's"

# %% groups
def hardest_gradient(s, group, margin):
    """(N, N): the gradient of mean_i max_j h_ij, j over items of another group (N,) than i's."""
    same = group[:, None] == group[None, :]
    wrong, hardest = s.masked_fill(same, -torch.inf).max(1, keepdim=True)
    active = (margin + wrong - s.diag()[:, None] > 0).to(s.dtype) / len(s)
    return torch.zeros_like(s).scatter(1, hardest, active) - torch.diag(active[:, 0])

# %% groups-check
given_s = torch.tensor([[0.9, 0.8, 0.3], [0.1, 0.2, 0.3], [0.0, 0.1, 0.9]])
wanted = torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]) / 3
found = lambda s, group, m=0.2: hardest_gradient(s, torch.tensor(group), m)
assert torch.allclose(found(given_s, [0, 1, 2]), wanted), "text 2 near; 3 hardest; the margin kept"
wanted[0] = 0
assert torch.allclose(found(given_s - 1, [7, 7, 8]), wanted), "captions of one image, no negatives"
assert not found(given_s, [0.0, 0.0, 0.0]).any(), "one group: nothing to push"
assert (found(given_s, [0, 1, 2], 2.0).diag() < -0.3).all(), "a wide margin: one text a row counts"

# %% rescue
def hardest_at(step, total):
    """True where step 0, 1, ..., total - 1 uses the hardest negative alone, False: the sum."""
    return step >= total / 2

# %% rescue-check
assert not hardest_at(0, 90), "at the start the hardest negative collapses: begin with the sum"
assert all(hardest_at(step, 90) for step in range(60, 90)), "from two thirds on, the hardest"
rescued, _ = learn(lambda k: losses["hinge, hardest" if hardest_at(k, steps) else "hinge, sum"])
assert hardest_at(8, 12) and not hardest_at(0, 12), "decide by the share that is done"
assert not recall["hinge, sum"] > max(0.5, 2 * rescued), f"R@1 {rescued:.2f}: it collapsed"
print(f"R@1: hardest after the sum {rescued:.2f}; {numbers}")

# %% findings
best, last = max(temperatures, key=lambda tau: recall[f"InfoNCE {tau:g}"]), max(at)
before, after = (felt(shares(partial(infonce, tau=best), s)) for s in stages.values())
collapsed = ", ".join(name for name, (_, s) in learned.items() if s.std() < 0.01) or "none"
coupled = "; ".join(name for name, noticed in notices.items() if noticed)
(r, pulled, right), cosines = inside[last], [pair[0] for pair in pulls.values()]
text = f"""
* **Hardness.** R@1: {numbers}; hardest after the sum {rescued:.2f}. Your guesses: {guess}. At
  {best:g}, the best temperature, an image feels {before:.0f} of {batch - 1} wrong texts before
  training and {after:.0f} after it. Collapsed, their spread below 0.01: {collapsed}.
* **Separation.** The image encoder notices the texts under: {coupled}; not under (9) as printed.
* **Starving.** After {last} steps: residual {r:.3f}, text gradient {pulled:.4f}; with a blank image
  {right:.0%} are right, by the text encoder trained alone {by_itself[last][2]:.0%}.
* **{"Conflict" if min(cosines) <= -0.2 else "No conflict"}.** The two pulls on fusion and head have
  cosines from {min(cosines):.2f} to {max(cosines):.2f}.
* One seed: an illustration. Four losses are compared in [11](11_retrieval.ipynb)."""
display(Markdown(text))
