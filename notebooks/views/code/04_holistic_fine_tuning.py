# What does training everything together buy, and which modality does it starve?
# The code of 04_holistic_fine_tuning.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
from dataclasses import replace

import torch
from IPython.display import Markdown, display
from torch.nn import functional as F

import mmkit
from mmkit import strategies
from mmkit.models import CNN, ConcatFusion, FusionClassifier, TextTransformer
from mmkit.strategies.encoders import tokenizer
from mmkit.tasks import Answering
from mmkit.teach import plots
from mmkit.training import Inputs, batches, seeded, stream, warmup_cosine

# %% parameters
data: str = "scenes"  # data set: a recipe or one of your own
label: str = "label_answer"  # column of items that holds the answer
role: str = "question"  # kind of text that goes with the image
both: list[float] = [1.0, 0.0]  # scenes only: share of answers that need both modalities, one world each
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
world = {(1.0, either): "each answer needs both", (0.0, 1.0): "either one tells"}
names = [f"{world.get((knob['both'], either), 'mixed')} (both = {knob['both']:g})" if knob else data for knob in knobs]
passes = [(epochs + epochs[-1:] * len(tasks))[place] for place in range(len(tasks))]
chance = 1 / len(tasks[0].classes)
for name, task in zip(names, tasks):
    row = strategies.pairs(task, pairs, seed)[0].item()
    text = task.dataset.texts_of([row], role=role)[0][0]
    print(f"{name}: {pairs} pairs of {task.dataset.splits['train']:,}, {len(task.classes)} answers, chance {chance:.2f}")
    print(f"   first pair: an image with '{text}' -> {task.classes[int(task.target[row])]}")

# %% guess
guess = 0.5

# %% guess-check
assert 0 <= guess <= 1, f"a share lies between 0 and 1, got {guess}"
print(f"noted: {guess:.0%}")

# %% build
def build(task):
    """The joint model of equation (1), and where its batches come from."""
    words = tokenizer(task.dataset, strategies.Encoders(), language=task.language)
    image = seeded(seed, "image", CNN)
    text = seeded(seed, "text", TextTransformer, len(words))
    model = seeded(seed, "head", lambda: FusionClassifier(image, text, ConcatFusion(image, text), len(task.classes)))
    return model, Inputs.of(task.dataset, words, role=task.role)


model, inputs = build(tasks[0])
for name, part in model.named_children():
    print(f"{name:7} {sum(p.numel() for p in part.parameters()):8,} parameters")

# %% gradients
task, rows = tasks[0], strategies.pairs(tasks[0], pairs, seed)[:batch]
x, y, w = inputs.image(rows), task.target[rows], inputs.text(inputs.one_text(rows))
v, t = (task.build_single(side, getattr(model, side), seed=seed) for side in ("image", "text"))
other = w.roll(1, 0)  # every image meets the text of another pair


def gradient(loss):
    """The gradient of the image encoder's parameters, as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.image.parameters()))])


alone = gradient(F.cross_entropy(v(x, None), y))
summed = [gradient(F.cross_entropy(v(x, None), y) + F.cross_entropy(t(None, words), y)) for words in (w, other)]
joint = [gradient(F.cross_entropy(model(x, words), y)) for words in (w, other)]
print(f"(2) the sum's gradient equals that of training apart: {torch.equal(summed[0], alone)}")
print(f"(2) it moves with other texts:                        {not torch.equal(summed[0], summed[1])}")
moved = ((joint[0] - joint[1]).norm() / joint[0].norm()).item()
print(f"(1) the joint gradient moves with other texts:        {moved > 0.01}")

# %% inside
def inside(task, model, inputs):
    """Validation accuracy, and the two shares of equation (3)."""
    rows = torch.from_numpy(task.dataset.rows("val"))
    swapped = inputs.shuffled(rows, stream(seed, "swap"))
    answer = task.logits(model, swapped, rows).argmax(1)
    of_image, of_text = task.target[rows], task.target[swapped.partner[rows]]
    image, text = (float((answer == own)[of_image != of_text].float().mean()) for own in (of_image, of_text))
    return {"joint": task.scores(model, inputs, rows)["accuracy"].value, "image": image, "text": text}

# %% loop
def train_together(task, count=epochs[0], hidden=lambda step, steps: None):
    """Equation (1) by AdamW. hidden: the modality to blank in this step, for the exercises."""
    model, inputs = build(task)
    rows = strategies.pairs(task, pairs, seed)
    steps, order, drawn = count * (pairs // min(batch, pairs)), batches(rows, batch, stream(seed, "order")), stream(seed, "texts")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    log = {0: inside(task, model, inputs)}
    for step, rows in zip(range(steps), order):
        model.train()
        optimizer.param_groups[0]["lr"] = lr * warmup_cosine(step, steps)
        seen = replace(inputs, blank=hidden(step, steps))
        loss = F.cross_entropy(model(seen.image(rows), seen.text(seen.one_text(rows, drawn))), task.target[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in {round(steps * (k + 1) / checks) for k in range(checks)}:
            log[step + 1] = inside(task, model, inputs)
    return model.eval(), inputs, log

# %% train
trained = [train_together(task, count) for task, count in zip(tasks, passes)]
budgets = [strategies.Budget(pairs=pairs, epochs=count) for count in passes]
options = {"seed": seed, "lr": lr, "batch": batch, "evaluate": ("val",)}
controls = [
    {side: strategies.fit(f"{side}_only", task, budget=budget, **options).history[-1]["validation"] for side in ("image", "text")}  # the last weights, as inside
    for task, budget in zip(tasks, budgets)
]
suffices = min(controls[-1].values()) > 0.9  # each modality alone: then exercises 2 and 3 can be checked
for name, (_, _, log), alone in zip(names, trained, controls):
    last = log[max(log)]
    print(f"{name}: joint {last['joint']:.2f}; inside it image {last['image']:.2f}, text {last['text']:.2f}; each alone: image {alone['image']:.2f}, text {alone['text']:.2f}")

# %% contribution-figure
ends = [f"{name}: joint {log[max(log)]['joint']:.2f}, image inside {log[max(log)]['image']:.2f} (alone {alone['image']:.2f}), text inside {log[max(log)]['text']:.2f} (alone {alone['text']:.2f})"
        for name, (_, _, log), alone in zip(names, trained, controls)]
looks = {"joint": (plots.BLACK, "o", "joint model"), "image": (plots.VERMILION, "s", "gives the image's answer"), "text": (plots.BLUE, "^", "gives the text's answer")}
with plots.figure(
    1, len(names), width=9.0, height=3.8, sharey=True, squeeze=False,
    alt=f"Validation accuracy against training steps, one panel a world. {'. '.join(ends)}. Chance {chance:.2f}.",
    caption=f"Lines: the joint model, and how often it gives the image's or the text's answer in conflicts, equation (3). Hollow: each modality trained alone. {'. '.join(ends)}.",
) as axes:
    for axis, name, (_, _, log), alone in zip(axes[0], names, trained, controls):
        steps = list(log)
        for key, (colour, marker, words) in looks.items():
            axis.plot(steps, [100 * log[step][key] for step in steps], color=colour, marker=marker, markersize=5 - 1.5 * (key != "joint"), linewidth=4 if key == "joint" else 1.8, label=words)
        for place, side in ((1.06, "image"), (1.12, "text")):
            axis.plot(place * steps[-1], 100 * alone[side], looks[side][1], color=looks[side][0], markerfacecolor="none", markersize=8, label=f"{side} trained alone")
        axis.axhline(100 * chance, color=plots.GREY, linestyle="--", linewidth=1, label="chance")
        axis.set(title=name, xlabel="training steps", ylim=(0, 104))
    axes[0][0].set_ylabel("share of validation items (%)")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)

# %% instruments-table
def probe(task, encode, penalty=10.0):
    """Validation accuracy of a ridge regression from an encoder's summaries to the answers."""
    rows, held = strategies.pairs(task, pairs, seed), torch.from_numpy(task.dataset.rows("val"))
    with torch.inference_mode():
        train, test = (encode(part).summary for part in (rows, held))
    mean, scale = train.mean(0), train.std(0) + 1e-6
    train, test = ((part - mean) / scale for part in (train, test))
    onehot = F.one_hot(task.target[rows], len(task.classes)).float()
    weights = torch.linalg.solve(train.T @ train + penalty * torch.eye(train.shape[1]), train.T @ (onehot - onehot.mean(0)))
    return float(((test @ weights + onehot.mean(0)).argmax(1) == task.target[held]).float().mean())


lines = ["| world | modality | alone | inside: conflicts (3) | inside: other blanked | probe, trained | probe, untrained |", "|---|---|---|---|---|---|---|"]
for name, task, (model, inputs, log), alone in zip(names, tasks, trained, controls):
    rows, fresh = torch.from_numpy(task.dataset.rows("val")), build(task)[0].eval()
    takes = {"image": inputs.image, "text": lambda part, inputs=inputs: inputs.text(inputs.one_text(part))}
    for side, hide in (("image", "text"), ("text", "image")):
        blanked = task.scores(model, replace(inputs, blank=hide), rows)["accuracy"].value
        probes = [probe(task, lambda part, m=m, side=side: getattr(m, side)(takes[side](part))) for m in (model, fresh)]
        lines.append(f"| {name} | {side} | {alone[side]:.2f} | {log[max(log)][side]:.2f} | {blanked:.2f} | {probes[0]:.2f} | {probes[1]:.2f} |")
display(Markdown("\n".join(lines)))

# %% fit
run = strategies.fit("scratch", tasks[0], budget=budgets[0], seed=seed, lr=lr, batch=batch)
mine = trained[0][2]
apart = max(abs(mine[check["step"]]["joint"] - check["validation"]) for check in run.history)
assert apart < 0.05 or torch.cuda.is_available(), f"the loop and fit differ by {apart:.3f}"
print(f"{len(run.history)} checks compared; the loop (on the CPU) and fit agree within 5 points: {apart < 0.05}")
print(f"{run.cost.parameters_trained:,} parameters trained, {run.cost.phases['joint'].steps} steps, {run.cost.flops / 1e9:.0f} GFLOP")
record = mmkit.record(run, **knobs[0])

# %% flip
follower = min(("image", "text"), key=lambda side: trained[-1][2][max(trained[-1][2])][side])  # the modality that is not followed


def hidden_to_flip(step, steps):
    """The modality to blank in this step, or None, so that `follower` is followed."""
    winner = {"image": "text", "text": "image"}[follower]
    return winner if step < steps / 2 else None

# %% flip-check
assert hidden_to_flip(999, 1000) is None, "both modalities must be seen in the second half: a model that never saw one has not changed the race"
before, flipped = trained[-1][2], train_together(tasks[-1], passes[-1], hidden_to_flip)[2]
before, flipped = before[max(before)], flipped[max(flipped)]
winner = "text" if follower == "image" else "image"
assert not suffices or flipped[follower] > flipped[winner], f"{follower} is followed in {flipped[follower]:.0%} of conflicts, before in {before[follower]:.0%}: keep the other from being learnt first"
print(f"{follower} is followed in {flipped[follower]:.0%} of conflicts, before in {before[follower]:.0%}; accuracy {flipped['joint']:.0%}, before {before['joint']:.0%}")

# %% both-usable
def hidden_for_both(step, steps):
    """The modality to blank in this step, or None, so that either one suffices in the end."""
    return (None, "image", "text")[step % 3]

# %% both-usable-check
model, inputs, log = train_together(tasks[-1], passes[-1], hidden_for_both)
usable = {m.removeprefix("blank_").removesuffix("/accuracy"): score.value for m, score in tasks[-1].blank_scores(model, inputs, torch.from_numpy(tasks[-1].dataset.rows("val"))).items()}
even = log[max(log)]
assert not suffices or min(usable.values()) > 2 * chance, f"accuracy without one of them: {usable}"
print(f"accuracy without the image {usable['image']:.2f}, without the text {usable['text']:.2f}; in conflicts image {even['image']:.2f}, text {even['text']:.2f}")

# %% findings
(first, second), (low, high) = ([log[max(log)] for _, _, log in (trained[0], trained[-1])], (controls[0], controls[-1]))
display(Markdown(
    f"* **{names[0]}**: the joint model reaches **{first['joint']:.2f}** where the better single modality has **{max(low.values()):.2f}** and chance is {chance:.2f}. "
    f"On the test split `fit` scores {run.scores['accuracy'].value:.2f}.\n"
    f"* **{names[-1]}**: the joint model reaches **{second['joint']:.2f}**, each modality alone {high['image']:.2f} (image) and {high['text']:.2f} (text). Inside the joint model, "
    f"conflicts go to the image in **{second['image']:.0%}** and to the text in **{second['text']:.0%}**; your guess for the text was {guess:.0%}.\n"
    f"* Blanking the {'image' if follower == 'text' else 'text'} in the first half of the steps moves {follower} from {before[follower]:.0%} to **{flipped[follower]:.0%}** of conflicts, at an accuracy of {flipped['joint']:.2f}: "
    f"validation accuracy does not show which modality a model uses.\n"
    f"* One seed, {pairs} pairs: an illustration of which modality is followed. [06](06_head_to_head.ipynb) compares the arms' accuracy over seeds."
))
