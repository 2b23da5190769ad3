# What does a loss pull on, and how does it share out the pull?
# The code of 01_losses_and_gradients.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import math
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F

import mmkit
from mmkit import strategies
from mmkit.models import CNN, TextTransformer
from mmkit.strategies.encoders import tokenizer
from mmkit.tasks import Answering, Retrieval
from mmkit.teach import plots, widgets
from mmkit.training import Inputs, batches, seeded, stream, train

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
assert set(guess) == {"InfoNCE", "hinge, sum", "hinge, hardest"}, f"one number for each of the three losses, got {list(guess)}"
assert all(0 <= value <= 1 for value in guess.values()), f"R@1 is a share between 0 and 1, got {guess}"
print("noted:", ", ".join(f"{name} {value:.2f}" for name, value in guess.items()))

# %% residuals-check
def compare(name, formula, gradient, library, x):
    """Print whether value and gradient by hand equal the library's and autograd's, to 1e-12 of the largest entry, at outputs x."""
    auto = torch.func.grad(library)(x)
    gaps = abs(formula(x) / library(x) - 1), (gradient(x) - auto).abs().max() / auto.abs().max()
    print(f"{name:26} by hand = library: {bool(max(gaps) < 1e-12)}   pulled: {int((auto != 0).sum())} of {auto.numel()} entries")


residual = lambda z, y: z.softmax(-1) - F.one_hot(y, z.shape[-1])
random, N, K = stream(seed, "mathematics"), 6, 5
(z, x, target), y = torch.randn(3, N, K, generator=random).double(), torch.arange(N) % K
compare("(1) cross-entropy", lambda z: (z.logsumexp(1) - z[range(N), y]).mean(), lambda z: residual(z, y) / N, lambda z: F.cross_entropy(z, y), z)
compare("(2) squared error", lambda x: ((x - target) ** 2).sum() / (N * K), lambda x: 2 * (x - target) / (N * K), lambda x: F.mse_loss(x, target), x)

# %% masked-check
M, words = torch.rand(N, 7, generator=random) < 0.3, torch.randint(K, (N, 7), generator=random)
(z, x, target), mean = torch.randn(3, N, 7, K, generator=random).double(), M[..., None].double() / M.sum()
mlm, mlm_pull = lambda z: -(mean * F.one_hot(words, K) * z.log_softmax(-1)).sum(), lambda z: mean * residual(z, words)
rec, rec_pull = lambda x: (mean * (x - target) ** 2).sum() / K, lambda x: 2 * mean * (x - target) / K
compare("(3) masked language model", mlm, mlm_pull, lambda z: F.cross_entropy(z[M], words[M]), z)
compare("(4) reconstruction", rec, rec_pull, lambda x: F.mse_loss(x[M], target[M]), x)
print(f"{int(M.sum())} of {M.numel()} positions are hidden, {K} entries each; nothing else is pulled")

# %% contrastive-losses
def infonce(s, tau):
    return F.cross_entropy(s / tau, torch.arange(len(s)))


def hinge(s, hardest):
    """Equation (7): the sum over the wrong texts, or the hardest of them alone."""
    h = (margin + s - s.diag()[:, None]).relu().masked_fill(torch.eye(len(s), dtype=torch.bool), 0)
    return (h.amax(1) if hardest else h.sum(1)).mean()

# %% contrastive-check
v, t = F.normalize(torch.randn(2, N, 8, generator=random).double(), dim=-1)
s, one, tau, b, own = v @ t.T, torch.eye(N).double(), 0.07, -1.0, torch.arange(N)
sign, h = 2 * one - 1, lambda s: (margin + s - s.diag()[:, None]).relu() * (1 - one)
push = lambda wrong: (wrong - torch.diag(wrong.sum(1))) / N  # wrong texts down, and the partner up by as much
pair, pair_pull = lambda s: -(sign * (s / tau + b)).sigmoid().log().sum() / N, lambda s: -sign * (-sign * (s / tau + b)).sigmoid() / (N * tau)
compare("(5) InfoNCE", lambda s: -(s / tau).softmax(1).diag().log().mean(), lambda s: ((s / tau).softmax(1) - one) / (N * tau), lambda s: infonce(s, tau), s)
compare("(6) sigmoid", pair, pair_pull, lambda s: F.binary_cross_entropy_with_logits(s / tau + b, one, reduction="sum") / N, s)
compare("(7) hinge, sum", lambda s: h(s).sum() / N, lambda s: push((h(s) > 0).double()), lambda s: N * F.multi_margin_loss(s, own, margin=margin), s)
compare("(7) hinge, hardest", lambda s: h(s).amax(1).mean(), lambda s: push(one[h(s).argmax(1)] * (h(s) > 0)), lambda s: hinge(s, True), s)
print("mmkit.core.contrastive_loss is (5), both ways:", torch.allclose(mmkit.core.contrastive_loss(v, t, 1 / tau), (infonce(s, tau) + infonce(s.T, tau)) / 2, rtol=1e-6))

# %% retrieval
task = Retrieval(mmkit.load(data))
vocabulary = tokenizer(task.dataset, strategies.Encoders(), language="en")
inputs = Inputs.of(task.dataset, vocabulary, role=task.role)
rows, shown = strategies.pairs(task, pairs, seed), task.rows("val")[:batch]


def untrained():
    return task.build(seeded(seed, "image", CNN), seeded(seed, "text", TextTransformer, len(vocabulary)), seed=seed).eval()


@torch.no_grad()
def similarities(model):
    """(B, B) image x text for the validation items of `shown`, in float64."""
    image, text = model(inputs.image(shown), inputs.text(inputs.one_text(shown)))
    return (image @ text.T).double()

# %% learn
def learn(loss_at):
    """R@1 on validation, and the similarities of `shown`, after training with the loss `loss_at(step)`, both ways."""
    model, drawn, clock = untrained(), stream(seed, "texts"), iter(range(steps))

    def objective(part):
        image, text = model(inputs.image(part), inputs.text(inputs.one_text(part, drawn)))
        loss, s = loss_at(next(clock)), image @ text.T
        return (loss(s) + loss(s.T)) / 2

    train(model, objective, batches(rows, batch, stream(seed, "order")), steps=steps, lr=lr)
    return task.scores(model, inputs, task.rows("val"))["recall@1"].value, similarities(model.eval())


losses = {f"InfoNCE {tau:g}": partial(infonce, tau=tau) for tau in temperatures}
losses |= {"hinge, sum": partial(hinge, hardest=False), "hinge, hardest": partial(hinge, hardest=True)}
learned = {name: learn(lambda step, loss=loss: loss) for name, loss in losses.items()}
recall = {name: score for name, (score, _) in learned.items()}

# %% felt
def shares(loss, s):
    """q of equation (8), (B, B); a row of zeros where nothing is pushed."""
    push = torch.func.grad(loss)(s).fill_diagonal_(0)
    return push / push.sum(1, keepdim=True).clamp(min=1e-30)


def felt(q):
    """n of equation (8), the mean over images that are pushed at all."""
    return torch.special.entr(q).sum(1)[q.sum(1) > 0].exp().mean().item()


middle = min(temperatures, key=lambda tau: abs(math.log(tau / 0.07)))
stages = {"untrained": similarities(untrained()), "trained": learned[f"InfoNCE {middle:g}"][1]}
dial = sorted({*temperatures, *torch.logspace(math.log10(min(temperatures)), math.log10(max(temperatures)), 30).tolist()})
numbers = ", ".join(f"{name} {score:.2f}" for name, score in recall.items())

# %% hardness-figure
caption = f"Above: how many of {batch - 1} wrong texts an image feels, equation (8). Below: R@1 after {steps} steps. {numbers}. One seed."
with plots.figure(2, 1, height=5.4, sharex=True, caption=caption, alt=f"Two panels over the temperature. {caption}") as (above, below):
    for (stage, s), line in zip(stages.items(), ("--", "-")):
        above.plot(dial, [felt(shares(partial(infonce, tau=tau), s)) for tau in dial], line, color=plots.BLUE, label=f"{stage} encoders")
    below.plot(temperatures, [recall[f"InfoNCE {tau:g}"] for tau in temperatures], "o-", color=plots.BLUE, label="InfoNCE")
    for name, colour in (("hinge, sum", plots.GREEN), ("hinge, hardest", plots.VERMILION)):
        below.axhline(recall[name], color=colour, label=name)
        for s, line in zip(stages.values(), ("--", "-")):
            above.axhline(felt(shares(losses[name], s)), color=colour, linestyle=line)
    ticks = sorted({1, 4, 16, batch - 1})
    above.set(xscale="log", yscale="log", ylabel="wrong texts felt", ylim=(0.9, 1.2 * batch), yticks=ticks, yticklabels=ticks)
    below.set(xlabel="temperature of InfoNCE", ylabel="R@1", ylim=(-0.03, 1), xticks=temperatures, xticklabels=[f"{tau:g}" for tau in temperatures])
    for axis in (above, below):
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)

# %% one-image-widget
captions = [task.dataset.texts_of([row], role=task.role)[0][0] for row in shown.tolist()]


def one_image(temperature=middle, encoders="trained", image=0):
    q = shares(partial(infonce, tau=temperature), stages[encoders])[image]
    top = q.argsort(descending=True)[:8].tolist()
    finding = f"With {encoders} encoders at temperature {temperature:.3g}, {felt(q[None]):.1f} of {len(q) - 1} wrong texts are felt"
    with plots.figure(width=9.0, height=3.0, caption=f"The truth: {captions[image]} {finding}.", alt=f"The eight hardest of the wrong texts; {finding}.") as axes:
        axes.barh(range(len(top)), [100 * q[j] for j in top], color=plots.VERMILION)
        axes.set(xlim=(0, 100), xlabel="share of the push (%)", title="pushed away")
        axes.set_yticks(range(len(top)), [captions[j] for j in top], fontsize=8)
        axes.invert_yaxis()


controls = widgets.live(one_image, temperature=dial, encoders=list(stages), image=range(len(shown)))

# %% joint-model
def build(task):
    """Both encoders behind a fusion module, and a head of its own for each besides."""
    words = tokenizer(task.dataset, strategies.Encoders(), language="en")
    model = task.build(seeded(seed, "image", CNN, summary_dim=64), seeded(seed, "text", TextTransformer, len(words)), seed=seed)
    model.own = seeded(seed, "own heads", lambda: nn.ModuleList([nn.Linear(64, len(task.classes)) for _ in "vt"]))
    return model, Inputs.of(task.dataset, words, role="question")

# %% joint-run
def run(task, objective, look, at, *, other=False, clip=math.inf):
    """step -> `look(model)` after that many AdamW steps on an objective; `other` deals each image another item's text."""
    (model, inputs), seen = build(task), {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step, part in zip(range(max(at) + 1), batches(strategies.pairs(task, pairs, seed), batch, stream(seed, "order"))):
        if step in at:
            seen[step] = look(model)
        text = inputs.text(inputs.one_text(part.roll(1) if other else part))
        optimizer.zero_grad()
        objective(model, model.image(inputs.image(part)), model.text(text), task.target[part]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return seen

# %% couplings
ce, unit, off, flat = F.cross_entropy, F.normalize, math.inf, lambda tensors: torch.cat([x.detach().flatten() for x in tensors])
image_alone, text_alone = (lambda m, v, t, y: ce(m.own[0](v.summary), y)), (lambda m, v, t, y: ce(m.own[1](t.summary), y))
printed, fused = lambda *given: image_alone(*given) + text_alone(*given), lambda m, v, t, y: ce(m(v, t), y)
redundant, few, notices = Answering(mmkit.load("scenes", both=0.0, either=1.0)), range(9), {}
for part, alone in (("image", image_alone), ("text", text_alone)):
    together, apart = (run(redundant, objective, lambda m, part=part: flat(getattr(m, part).parameters()), few) for objective in (printed, alone))
    print(f"(i) {part}: largest difference of the path under (9) from the path alone: {max((together[k] - apart[k]).abs().max().item() for k in few):g}")
couplings = {
    "(9) as printed": (printed, off), "a fusion module": (fused, off), "(9), one norm clipped": (printed, 1.0),
    "one head for both": (lambda m, v, t, y: image_alone(m, v, t, y) + image_alone(m, t, v, y), off),
    "a cross-modal term": (lambda m, v, t, y: printed(m, v, t, y) + infonce(unit(v.summary) @ unit(t.summary).T, 0.07), off),
}
for name, (objective, clip) in couplings.items():
    path, moved = (run(redundant, objective, lambda m: flat(m.image.parameters()), few, other=other, clip=clip) for other in (False, True))
    notices[name] = not torch.equal(path[8], moved[8])
    print(f"(ii) {name:22} the image encoder notices the texts: {notices[name]}")

# %% starving
def starved(read, model):
    """Of the logits `read(model, v, t)`: mean residual, the text encoder's gradient norm, and accuracy from the text alone (image blanked)."""
    z, blanked = (read(model, model.image(pixels), model.text(texts)) for pixels in (images, blank))
    gradient = torch.autograd.grad(ce(z, y), list(model.text.parameters()))
    return [x.item() for x in (residual(z, y).norm(dim=1).mean(), flat(gradient).norm(), (blanked.argmax(1) == y).double().mean())]


val, place = redundant.rows("val"), build(redundant)[1]
images, blank, texts, y = place.image(val), replace(place, blank="image").image(val), place.text(place.one_text(val)), redundant.target[val]
at = sorted({0, 3, 6, 10, joint_steps // 2, joint_steps})
inside = run(redundant, fused, partial(starved, lambda m, v, t: m(v, t)), at)
alone = run(redundant, text_alone, partial(starved, lambda m, v, t: m.own[1](t.summary)), at)
columns = pd.MultiIndex.from_product([["residual", "text gradient", "accuracy from the text"], ["joint", "text alone"]], names=["step", ""])
display(pd.DataFrame([[x for pair in zip(inside[k], alone[k]) for x in pair] for k in inside], index=list(inside), columns=columns).round(3))

# %% conflict
mixed = Answering(mmkit.load("scenes", both=0.0, either=0.0))
place, kinds = build(mixed)[1], mixed.dataset.items["label_kind"].to_numpy()[mixed.rows("val")]
told = [mixed.rows("val")[torch.from_numpy(kinds == kind)] for kind in ("image", "text")]
halves = [torch.cat([part[k::2] for part in told]) for k in (0, 1)]


def pull(model, rows):
    z = model(place.image(rows), place.text(place.one_text(rows)))
    return flat(torch.autograd.grad(ce(z, mixed.target[rows]), [*model.fusion.parameters(), *model.head.parameters()]))


pulls = run(mixed, fused, lambda m: [F.cosine_similarity(pull(m, a), pull(m, b), dim=0).item() for a, b in (told, halves)], at)
display(pd.DataFrame(pulls, index=["cosine, image-told with text-told", "cosine, random halves"]).T.rename_axis("step").round(2))

# %% mlm
def mlm_loss(logits, ids, hidden):
    """Scalar. logits (B, L, K); ids (B, L), 0 is padding; hidden (B, L) bool."""
    counted = hidden & (ids != 0)
    surprise = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    return (surprise * counted).sum() / counted.sum().clamp(min=1)

# %% mlm-check
ids, hidden = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 0, 0, 0]]), torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]]).bool()
z = torch.randn(2, 5, 7, generator=stream(seed, "exercise")).double().requires_grad_()
wanted = F.cross_entropy(z[hidden], ids[hidden])
assert torch.isclose(mlm_loss(z, ids, hidden), wanted), "the mean of -log p over the hidden words: divide by their number, not that of positions or texts"
assert not torch.autograd.grad(mlm_loss(z, ids, hidden), z)[0][~hidden].any(), "only hidden words are pulled"
assert torch.isclose(mlm_loss(z, ids, hidden | (ids == 0)), wanted), "padding is no word, hidden or not"
assert mlm_loss(z, ids, torch.zeros_like(hidden)) == 0, "nothing hidden: 0, not 0/0"
assert torch.isfinite(mlm_loss(1e4 * z, ids, hidden)), "take the logarithm of the softmax in one step"
print(f"loss {mlm_loss(z, ids, hidden).item():.3f} over {int(hidden.sum())} hidden words")

# %% both-ways
def infonce_gradient(s, tau):
    """(N, N): the gradient of (infonce(s, tau) + infonce(s.T, tau)) / 2 with respect to s, by hand."""
    return ((s / tau).softmax(1) + (s / tau).softmax(0) - 2 * torch.eye(len(s))) / (2 * len(s) * tau)

# %% both-ways-check
by_autograd = torch.func.grad(lambda s, tau: (infonce(s, tau) + infonce(s.T, tau)) / 2)
even, uneven = torch.zeros(4, 4), torch.rand(5, 5, generator=stream(seed, "exercise"))
assert torch.allclose(infonce_gradient(even, 1.0), by_autograd(even, 1.0), atol=1e-6), "all equal: each wrong pair is pushed by 1/16, each partner pulled by 3/16"
assert torch.allclose(infonce_gradient(uneven, 0.3), by_autograd(uneven, 0.3), atol=1e-6), "it differs from autograd at temperature 0.3"
print("equal to autograd where all similarities are equal")

# %% groups
def hardest_gradient(s, group, margin):
    """(N, N): the gradient of mean_i max_j h_ij with respect to s, j over the items of another group (N,) than i's."""
    wrong, hardest = s.masked_fill(group[:, None] == group[None, :], -math.inf).max(1, keepdim=True)
    active = (margin + wrong - s.diag()[:, None] > 0).to(s.dtype) / len(s)
    return torch.zeros_like(s).scatter(1, hardest, active) - torch.diag(active[:, 0])

# %% groups-check
example, singles = torch.tensor([[0.9, 0.8, 0.3], [0.1, 0.2, 0.3], [0.0, 0.1, 0.9]]), torch.arange(3)
expected = torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]) / 3
assert torch.allclose(hardest_gradient(example, singles, 0.2), expected), "row 1: text 2 is too near; row 2: text 3 is hardest; row 3: the margin is kept"
expected[0] = 0
assert torch.allclose(hardest_gradient(example - 1, torch.tensor([7, 7, 8]), 0.2), expected), "captions of one image are no negatives of each other"
assert not hardest_gradient(example, torch.zeros(3), 0.2).any(), "one group: nothing to push"
assert torch.allclose(hardest_gradient(example, singles, 2.0).diag(), -torch.ones(3) / 3), "with a wide margin, too, one text a row counts"

# %% rescue
def hardest_at(step, total):
    """True where this step (0, 1, ..., total - 1) uses the hardest negative alone, False where it uses the sum."""
    return step >= total / 2

# %% rescue-check
assert not hardest_at(0, 90), "at the start the hardest negative collapses: begin with the sum"
assert all(hardest_at(step, 90) for step in range(60, 90)), "from two thirds on, the hardest negative alone"
rescued, _ = learn(lambda step: losses["hinge, hardest" if hardest_at(step, steps) else "hinge, sum"])
assert hardest_at(8, 12) and not hardest_at(0, 12), "decide by the share of the training that is done, not by a fixed step"
assert recall["hinge, sum"] < 0.5 or rescued > 0.5 * recall["hinge, sum"], f"R@1 {rescued:.2f}: it collapsed; stay longer with the sum"
print(f"R@1: hardest after the sum {rescued:.2f}, sum {recall['hinge, sum']:.2f}, hardest throughout {recall['hinge, hardest']:.2f}")

# %% findings
best, last = max(temperatures, key=lambda tau: recall[f"InfoNCE {tau:g}"]), max(at)
before, after = (felt(shares(partial(infonce, tau=best), stages[name])) for name in ("untrained", "trained"))
cosine, control = zip(*pulls.values())
spread = {name: learned[name][1].std().item() for name in ("hinge, hardest", f"InfoNCE {min(temperatures):g}", f"InfoNCE {middle:g}")}
display(Markdown(f"""
* **Hardness.** R@1: {numbers}; hardest after the sum {rescued:.2f}. Your guesses: {", ".join(f"{name} {value:.2f}" for name, value in guess.items())}. At {best:g}, the best of the temperatures, an image feels {before:.0f} of {batch - 1} wrong texts before training and {after:.0f} after it.
* **Collapse.** After training, the similarities of all pairs have a standard deviation of {", ".join(f"{width:.3f} ({name})" for name, width in spread.items())}. Collapsed, below 0.01: {", ".join(name for name, width in spread.items() if width < 0.01) or "none"}.
* **Separation.** The path of the image encoder does not depend on the texts under {", ".join(name for name, noticed in notices.items() if not noticed)}; it does with {", ".join(name for name, noticed in notices.items() if noticed)}.
* **Starving.** After {last} steps the joint model's residual is {inside[last][0]:.3f}, its text encoder's gradient has gone from {inside[0][1]:.2f} to {inside[last][1]:.4f}, and with the image blanked it is right in {inside[last][2]:.0%}; the text encoder trained alone in {alone[last][2]:.0%}.
* **{"Conflict" if min(cosine) <= -0.2 else "No conflict"}.** Image-told and text-told items pull the fusion module with cosines from {min(cosine):.2f} to {max(cosine):.2f}, negative at {sum(c < 0 for c in cosine)} of {len(cosine)} steps looked at; random halves, from {min(control):.2f} to {max(control):.2f}.
* One seed: an illustration. Four losses are compared in [11](11_retrieval.ipynb), starving is followed in [04](04_holistic_fine_tuning.ipynb); temperature and conflict have no plan yet.
"""))
