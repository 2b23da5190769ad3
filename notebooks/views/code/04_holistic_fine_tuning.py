# What does training everything together buy, and which modality does it starve?
# The code of 04_holistic_fine_tuning.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F

import mmkit
from mmkit import strategies
from mmkit.models import CNN, Concat, Multimodal, TextTransformer
from mmkit.models.text import vocabulary
from mmkit.tasks import Answering
from mmkit.teach import plots
from mmkit.training import Group, batches, cross_entropy, parameter_groups
from mmkit.training import seeded, stream, warmup_cosine

# %% parameters
data: str = "scenes"  # data set: a recipe or one of your own
label: str = "label_answer"  # column of items that holds the answer
role: str = "question"  # kind of text that goes with the image
both: list[float] = [1.0, 0.0]  # scenes only: share of answers that need both, one world each
either: float = 1.0  # scenes only: of the other answers, the share that image and text each tell
pairs: int = 512  # labelled pairs to train on
epochs: list[int] = [30, 10]  # passes over them, one number a world
batch: int = 64  # pairs of a step
lr: float = 0.003  # highest learning rate
checks: int = 10  # measurements along a training, a multiple of 5
seed: int = 0  # one seed for pairs, order and first weights, each from its own stream

# %% worlds
knobs = [{"both": share, "either": either} for share in both] if data == "scenes" else [{}]
tasks = [Answering(mmkit.load(data, **knob), label=label, role=role) for knob in knobs]
passes = (epochs + epochs[-1:] * len(tasks))[: len(tasks)]
world = {(1.0, either): "each answer needs both", (0.0, 1.0): "either one tells"}
names = [data] * len(tasks)
for place, knob in enumerate(knobs):
    if knob:
        kind = world.get((knob["both"], either), "mixed")
        names[place] = f"{kind} (both = {knob['both']:g})"
chance = 1 / len(tasks[0].classes)
for name, task in zip(names, tasks):
    row = strategies.pairs(task, pairs, seed)[0].item()
    text = task.dataset.texts_of([row], role=role)[0][0]
    print(f"{name}: {pairs} pairs of {task.dataset.splits['train']:,}, ", end="")
    print(f"{len(task.classes)} answers, chance {chance:.2f}")
    print(f"   first pair: an image with '{text}' -> {task.classes[int(task.target[row])]}")

# %% guess
guess = 0.5

# %% guess-check
assert 0 <= guess <= 1, f"a share lies between 0 and 1, got {guess}"
print(f"noted: {guess:.0%}")

# %% build
def build(task):
    """The joint model of equation (1), and the loader that makes its batches."""
    words = vocabulary(task.dataset, task.language)
    image = seeded(seed, "image", CNN)
    text = seeded(seed, "text", TextTransformer, len(words))
    encoders = {"image": image, "text": text}

    def joined():
        fusion = Concat(encoders)
        return Multimodal(encoders, fusion, nn.Linear(fusion.dim, len(task.classes)))

    return seeded(seed, "head", joined), task.loader(words)


model, loader = build(tasks[0])
for name, part in model.named_children():
    print(f"{name:7} {sum(p.numel() for p in part.parameters()):8,} parameters")

# %% gradients
own = loader(strategies.pairs(tasks[0], pairs, seed)[:batch])
other = own.with_input("text", own.inputs["text"].roll(1, 0))  # each image with another's text
v = tasks[0].build({"image": model.image}, seed=seed)  # the image encoder with a head of its own
t = tasks[0].build({"text": model.text}, seed=seed)


def gradient(given, *models):
    """The image encoder's gradient of the sum of the models' losses, as one vector."""
    loss = sum(cross_entropy(one, given) for one in models)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.image.parameters()])])


alone, summed, joint = gradient(own, v), gradient(own, v, t), gradient(own, model)
print(f"(2) the sum's gradient equals that of training apart: {torch.equal(summed, alone)}")
same = torch.equal(summed, gradient(other, v, t))
print(f"(2) it moves with other texts:                        {not same}")
moved = ((joint - gradient(other, model)).norm() / joint.norm()).item()
print(f"(1) the joint gradient moves with other texts:        {moved > 0.01}")

# %% inside
def inside(task, model, loader):
    """Validation accuracy, and the two shares of equation (3)."""
    rows = task.rows("val")
    swapped = loader.shuffled(rows, stream(seed, "swap"))
    answer = task.logits(model, swapped, rows).argmax(1)
    of_image, of_text = task.target[rows], task.target[swapped.partner["text"][rows]]
    conflict = of_image != of_text
    return {
        "joint": task.scores(model, loader, rows)["accuracy"].value,
        "image": (answer == of_image)[conflict].float().mean().item(),
        "text": (answer == of_text)[conflict].float().mean().item(),
    }

# %% loop
def train_together(task, count=epochs[0], hidden=None):
    """Equation (1) by AdamW. hidden(step, steps): the modality to blank, for the exercises."""
    model, loader = build(task)
    rows, drawn = strategies.pairs(task, pairs, seed), stream(seed, "texts")
    steps = count * (pairs // min(batch, pairs))
    measured = {round(steps * (k + 1) / checks) for k in range(checks)}
    optimizer = torch.optim.AdamW(parameter_groups(model, [Group("*")], lr))
    log = {0: inside(task, model, loader)}
    for step, part in zip(range(steps), batches(rows, batch, stream(seed, "order"))):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_cosine(step, steps)
        blank = hidden(step, steps) if hidden else None
        seen = loader.blanked(blank) if blank else loader
        cross_entropy(model.train(), seen(part, drawn)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in measured:
            log[step + 1] = inside(task, model, loader)
    return model.eval(), loader, log

# %% train
budgets = [strategies.Budget(pairs=pairs, epochs=count) for count in passes]


def each_alone(task, budget):
    """Validation accuracy of each modality trained alone, with its last weights, as `inside`."""
    options = {"budget": budget, "seed": seed, "lr": lr, "batch": batch, "evaluate": ("val",)}
    runs = {side: strategies.fit(f"{side}_only", task, **options) for side in ("image", "text")}
    return {side: run.history[-1]["validation"] for side, run in runs.items()}


trained = [train_together(task, count) for task, count in zip(tasks, passes)]
controls = [each_alone(task, budget) for task, budget in zip(tasks, budgets)]
ends = [log[max(log)] for _, _, log in trained]
suffices = min(controls[-1].values()) > 0.9  # then exercises 2 and 3 can be checked
told = []
for name, end, alone in zip(names, ends, controls):
    told.append(f"{name}: joint {end['joint']:.2f}")
    for side in ("image", "text"):
        told[-1] += f", {side} inside {end[side]:.2f} (alone {alone[side]:.2f})"
    print(told[-1])

# %% looks
looks = {
    "joint": {"color": plots.BLACK, "marker": "o", "linewidth": 4, "label": "joint model"},
    "image": {"color": plots.VERMILION, "marker": "s", "label": "gives the image's answer"},
    "text": {"color": plots.BLUE, "marker": "^", "label": "gives the text's answer"},
}


def draw_world(axis, name, log, alone):
    """One world: the joint model, its two shares along the training, each modality alone."""
    last = max(log)
    for key, look in looks.items():
        axis.plot(list(log), [100 * point[key] for point in log.values()], markersize=4, **look)
    for place, side in ((1.06, "image"), (1.12, "text")):
        look = looks[side] | {"label": f"{side} trained alone", "markerfacecolor": "none"}
        axis.plot(place * last, 100 * alone[side], linestyle="none", markersize=8, **look)
    axis.axhline(100 * chance, color=plots.GREY, linestyle="--", linewidth=1, label="chance")
    axis.set(title=name, xlabel="training steps", ylim=(0, 104))

# %% contribution-figure
with plots.figure(
    1,
    len(names),
    width=9.0,
    height=3.8,
    sharey=True,
    squeeze=False,
    alt=f"Validation accuracy against training steps, one panel a world. {'. '.join(told)}.",
    caption="Lines: the joint model, and how often it gives the image's or the text's answer in "
    f"conflicts, equation (3). Hollow: each modality trained alone. {'. '.join(told)}.",
) as axes:
    for axis, name, (_, _, log), alone in zip(axes[0], names, trained, controls):
        draw_world(axis, name, log, alone)
    axes[0][0].set_ylabel("share of validation items (%)")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)

# %% probe
def probe(task, encoder, loader, modality, penalty=10.0):
    """Validation accuracy of a ridge regression from an encoder's summaries to the answers."""
    rows, held = strategies.pairs(task, pairs, seed), task.rows("val")
    with torch.inference_mode():
        train, test = (encoder(loader.input(modality, part)).summary for part in (rows, held))
    mean, scale = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / scale, (test - mean) / scale
    onehot = F.one_hot(task.target[rows], len(task.classes)).float()
    prior = onehot.mean(0)
    ridge = train.T @ train + penalty * torch.eye(train.shape[1])
    weights = torch.linalg.solve(ridge, train.T @ (onehot - prior))
    return ((test @ weights + prior).argmax(1) == task.target[held]).float().mean().item()

# %% instruments-table
columns = ["world", "modality", "alone", "inside: conflicts (3)", "inside: other blanked"]
columns += ["probe, trained", "probe, untrained"]
lines = [columns, ["---"] * len(columns)]
for name, task, (model, loader, log), alone in zip(names, tasks, trained, controls):
    untrained = build(task)[0].eval()
    for side, hide in (("image", "text"), ("text", "image")):
        blanked = task.scores(model, loader.blanked(hide), task.rows("val"))["accuracy"].value
        shares = [alone[side], log[max(log)][side], blanked]
        for each in (model, untrained):
            shares.append(probe(task, getattr(each, side), loader, side))
        lines.append([name, side, *(f"{share:.2f}" for share in shares)])
display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))

# %% fit
run = strategies.fit("scratch", tasks[0], budget=budgets[0], seed=seed, lr=lr, batch=batch)
by_hand = trained[0][2]
apart = max(abs(by_hand[c["step"]]["joint"] - c["validation"]) for c in run.history)
assert apart < 0.05 or torch.cuda.is_available(), f"the loop and fit differ by {apart:.3f}"
print(f"{len(run.history)} checks: the loop on the CPU and fit within 5 points: {apart < 0.05}")
print(f"{run.cost.parameters_trained:,} parameters trained, ", end="")
print(f"{run.cost.phases['joint'].steps} steps, {run.cost.flops / 1e9:.0f} GFLOP")
record = mmkit.record(run, **knobs[0])

# %% flip
follower = min(("image", "text"), key=ends[-1].get)  # the modality that is not followed


def hidden_to_flip(step, steps):
    """The modality to blank in this step, or None, so that `follower` is followed."""
    winner = {"image": "text", "text": "image"}[follower]
    return winner if step < steps / 2 else None

# %% flip-check
assert hidden_to_flip(999, 1000) is None, "both modalities must be seen in the second half"
before, log = ends[-1], train_together(tasks[-1], passes[-1], hidden_to_flip)[2]
flipped = log[max(log)]
winner = "text" if follower == "image" else "image"
text = f"{follower} is followed in {flipped[follower]:.0%} of conflicts, before in "
text += f"{before[follower]:.0%}; accuracy {flipped['joint']:.0%}, before {before['joint']:.0%}"
won = flipped[follower] > flipped[winner]
assert not suffices or won, f"{text}: keep the other from being learnt first"
print(text)

# %% both-usable
def hidden_for_both(step, steps):
    """The modality to blank in this step, or None, so that either one suffices in the end."""
    return (None, "image", "text")[step % 3]

# %% both-usable-check
model, loader, log = train_together(tasks[-1], passes[-1], hidden_for_both)
shown = tasks[-1].blank_scores(model, loader, tasks[-1].rows("val"))
without = {side: shown[f"blank_{side}/accuracy"].value for side in ("image", "text")}
even = log[max(log)]
assert not suffices or min(without.values()) > 2 * chance, f"accuracy without one: {without}"
print(f"accuracy without the image {without['image']:.2f}, without the text {without['text']:.2f};")
print(f"in conflicts the image's answer {even['image']:.2f}, the text's {even['text']:.2f}")

# %% findings
first, second, low, high = ends[0], ends[-1], controls[0], controls[-1]
hid = "image" if follower == "text" else "text"
display(
    Markdown(f"""
* **{names[0]}**: the joint model reaches **{first["joint"]:.2f}** where the better single modality
  has **{max(low.values()):.2f}** and chance is {chance:.2f}. On the test split `fit` scores
  {run.scores["accuracy"].value:.2f}.
* **{names[-1]}**: the joint model reaches **{second["joint"]:.2f}**, each modality alone
  {high["image"]:.2f} (image) and {high["text"]:.2f} (text). Inside the joint model, conflicts go to
  the image in **{second["image"]:.0%}** and to the text in **{second["text"]:.0%}**; your guess for
  the text was {guess:.0%}.
* Blanking the {hid} in the first half of the steps moves {follower} from {before[follower]:.0%} to
  **{flipped[follower]:.0%}** of conflicts, at an accuracy of {flipped["joint"]:.2f}: validation
  accuracy does not show which modality a model uses.
* One seed, {pairs} pairs: an illustration of which modality is followed.
  [06](06_head_to_head.ipynb) compares the arms' accuracy over seeds.
""")
)
