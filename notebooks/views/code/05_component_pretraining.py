# How much does an encoder learn before it ever sees a pair?
# The code of 05_component_pretraining.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import re
from contextlib import nullcontext
from copy import deepcopy
from time import perf_counter

import torch
from IPython.display import Markdown, display
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mmkit
from mmkit import strategies
from mmkit.models import CNN, TextTransformer
from mmkit.models.text import MASK, PAD
from mmkit.models.vision import scaled
from mmkit.strategies.encoders import tokenizer
from mmkit.teach import plots
from mmkit.training import Inputs, Phase, batches, choose, seeded, stream, warmup_cosine

# %% parameters
data: str = "scenes"  # data set: a recipe or one of your own
both: float = 1.0  # scenes only: share of answers that need both modalities
pool: int = 1500  # scenes only: images without texts, and as many items with texts and no image
label: str = "label_answer"  # column of items that holds the answer
role: str = "question"  # kind of text that goes with the image
image_label: str = "label_heading"  # what the image alone shows, to probe for
text_label: str = "label_turn"  # what the text alone says, to probe for
cues: list[str] = ["arrow colour=(\\w+) arrow", "landmark colour=(?:small|large) (\\w+)", "landmark size=(small|large)"]  # name=pattern: read from captions, to probe images for
labels: int = 256  # labelled items a probe is fitted on
pretrain_epochs: int = 3  # passes over the pools
pretrain_batch: int = 32  # items of a step there
pretrain_lr: float = 0.004  # highest learning rate there
pairs: int = 512  # labelled pairs for fusion and everything
epochs: int = 30  # passes over them
lr: float = 0.003  # highest learning rate on pairs
seed: int = 0  # one seed for pairs, order, masks and first weights, each from its own stream

# %% load
dataset = mmkit.load(data, both=both, pool=pool) if data == "scenes" else mmkit.load(data)
task = mmkit.tasks.Answering(dataset, label=label, role=role)
encoders = strategies.Encoders(epochs=pretrain_epochs, batch=pretrain_batch, lr=pretrain_lr)
words = tokenizer(dataset, encoders, language=task.language)
images, spoken = (dataset.rows(kind if kind in dataset.splits else "train") for kind in ("pool_image", "pool_text"))
texts = [text for kind in sorted(dataset.texts["role"].unique()) for text in dataset.texts_of(spoken, role=kind)[0]]
ids = words(texts)
image, text = seeded(seed, "image", CNN, size=encoders.size), seeded(seed, "text", TextTransformer, len(words))
untrained = deepcopy(image).eval(), deepcopy(text).eval()
asked = [image_label, *(cue.split("=")[0] for cue in cues)]
print(f"{len(images):,} images, {len(texts):,} texts, items in both pools: {len(set(images) & set(spoken))}")
print(f"image encoder {sum(p.numel() for p in image.parameters()):,} parameters, text encoder {sum(p.numel() for p in text.parameters()):,}, {len(words)} words")
print("properties: " + ", ".join(asked))

# %% guess
guess = image_label

# %% guess-check
assert guess in asked, f"{guess!r} is not one of {', '.join(asked)}"
print(f"noted: {guess}")

# %% loop
def descend(parts, loss_of, order, *, steps, top, check=lambda step: None):
    """Train `parts` by AdamW on loss_of(rows); returns what it cost and the losses."""
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=top, weight_decay=0.01, fused=True)
    losses, counter, started = [], FlopCounterMode(display=False), perf_counter()
    for step, rows in zip(range(steps), order):
        optimizer.param_groups[0]["lr"] = top * warmup_cosine(step, steps)
        with counter if step == 0 else nullcontext():
            loss = loss_of(rows)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        check(step + 1)
    flops, trained = float(counter.get_total_flops()) * steps, sum(p.numel() for p in parameters)
    return Phase(flops=flops, seconds=perf_counter() - started, steps=steps, parameters_trained=trained), losses

# %% pretrain-image
decoder = seeded(seed, "reconstruction", lambda: nn.Sequential(nn.Linear(image.summary_dim, 256), nn.ReLU(), nn.Linear(256, 3 * 16**2)))


def hide(pixels, noise):
    """A quarter of the 8 x 8 patches turned grey."""
    hidden = torch.rand(len(pixels), 1, 8, 8, generator=noise) < 0.25
    return pixels.masked_fill(F.interpolate(hidden.float(), size=pixels.shape[2:], mode="nearest").bool(), 127)


def image_loss(rows, noise=stream(seed, "pretraining the image encoder/mask")):
    """Equation (1)."""
    pixels = dataset.pixels(rows.numpy())
    return F.mse_loss(decoder(image(hide(pixels, noise)).summary), scaled(pixels, 16).flatten(1))


def passes(count):
    return pretrain_epochs * (count // min(encoders.batch, count))


order = batches(torch.from_numpy(images), encoders.batch, stream(seed, "pretraining the image encoder/order"))
phases = {"image": descend([image, decoder], image_loss, order, steps=passes(len(images)), top=encoders.lr)}

# %% pretrain-text
to_word = seeded(seed, "masked language model", nn.Linear, text.dim, len(words))


def cut(batch):
    return batch[:, : int((batch != PAD).sum(1).max())]


def text_loss(rows, noise=stream(seed, "pretraining the text encoder/mask")):
    """Equation (2)."""
    given = cut(ids[rows])
    hidden = (torch.rand(given.shape, generator=noise) < 0.25) & (given != PAD)
    hidden[:, 0] |= ~hidden.any(1)  # at least one word a text
    return F.cross_entropy(to_word(text(given.masked_fill(hidden, MASK)).tokens[hidden]), given[hidden])


order = batches(torch.arange(len(ids)), encoders.batch, stream(seed, "pretraining the text encoder/order"))
phases["text"] = descend([text, to_word], text_loss, order, steps=passes(len(ids)), top=encoders.lr)
for name, (phase, losses) in phases.items():
    few = max(1, len(losses) // 10)
    print(f"{name}: loss {sum(losses[:few]) / few:.3f} -> {sum(losses[-few:]) / few:.3f} in {phase.steps} steps, {phase.flops / 1e9:.1f} GFLOP, {phase.seconds:.1f} s")

# %% reconstruction-figure
rows = dataset.rows("val")[:5]
pixels = dataset.pixels(rows)
masked = hide(pixels, stream(seed, "shown"))
with torch.inference_mode():
    drawn = decoder(image(masked).summary).view(-1, 3, 16, 16).add(1).div(2).clamp(0, 1)
with plots.figure(
    3, len(rows), width=5.6, height=3.7, squeeze=False, alt="Validation images in three rows: the image, the image with a quarter of its patches grey, and its reconstruction at 16 by 16 pixels.",
    caption="Validation images; what the encoder sees of them; what the decoder draws from the encoder's summary. Which way does the arrow point?",
) as axes:
    for line, (name, pictures) in zip(axes, {"image": pixels, "masked": masked, "drawn": drawn}.items()):
        line[0].set_ylabel(name)
        for axis, picture in zip(line, pictures):
            axis.imshow(picture.permute(1, 2, 0))
            axis.set(xticks=[], yticks=[])

# %% masked-words
@torch.inference_mode()
def guesses(sentence, count=3):
    """The likeliest words in the place of a sentence's one `[mask]`: [(word, probability)]."""
    parts = [words([part])[0] if part.strip() else ids.new_empty(0) for part in sentence.split("[mask]")]
    given = torch.cat([parts[0], ids.new_tensor([MASK]), parts[1]])[None]
    chances, found = to_word(text(given).tokens[0, len(parts[0])]).softmax(0).topk(count)
    return list(zip(words.words(found), chances.tolist()))


for written in (texts[0], texts[-1]):
    broken = written.split()
    hidden, broken[len(broken) // 2] = broken[len(broken) // 2], "[mask]"
    print(f"{' '.join(broken)}   ({hidden})")
    print("   " + ", ".join(f"{word} {chance:.2f}" for word, chance in guesses(" ".join(broken))))

# %% probe
def probe(summaries, codes, draws=5, penalty=10.0):
    """Equation (3): validation accuracy, mean over draws of the labelled items. codes: (N,), -1 for unknown."""
    known = lambda split: torch.tensor([row for row in dataset.rows(split).tolist() if codes[row] >= 0])
    train, held, right = known("train"), known("val"), []
    for draw in range(draws):
        rows = choose(train, labels, stream(seed, f"probe/{draw}"))
        mean, scale = summaries[rows].mean(0), summaries[rows].std(0) + 1e-6
        z, z_held = ((summaries[part] - mean) / scale for part in (rows, held))
        onehot = F.one_hot(codes[rows], int(codes.max()) + 1).float()
        weights = torch.linalg.solve(z.T @ z + penalty * torch.eye(z.shape[1]), z.T @ (onehot - onehot.mean(0)))
        right.append(((z_held @ weights + onehot.mean(0)).argmax(1) == codes[held]).float().mean().item())
    return sum(right) / draws, codes[held].bincount().max().item() / len(held)


def cue_codes(pattern):
    """What a pattern finds in the first caption of each item, as class numbers."""
    captions, owner = dataset.texts_of(range(len(dataset)), role="caption")
    first = {row: found[1] for row, caption in zip(reversed(owner.tolist()), reversed(captions)) if (found := re.search(pattern, caption))}
    classes = sorted(set(first.values()))
    return torch.tensor([classes.index(first[row]) if row in first else -1 for row in range(len(dataset))])

# %% probes
inputs = Inputs.of(dataset, words, role=role)
rows = torch.cat([torch.from_numpy(dataset.rows(split)) for split in ("train", "val")])


@torch.inference_mode()
def summaries(encoder, take):
    encoder.eval()
    parts = [encoder(take(part)).summary for part in rows.split(256)]
    return torch.zeros(len(dataset), parts[0].shape[1]).index_copy_(0, rows, torch.cat(parts))


reads = {"image": inputs.image, "text": lambda part: inputs.text(inputs.one_text(part))}
seen = {side: [summaries(encoder, reads[side]) for encoder in both_of] for side, both_of in (("image", (untrained[0], image)), ("text", (untrained[1], text)))}
properties = {image_label: ("image", dataset.labels(range(len(dataset)), image_label))}
properties |= {name: ("image", cue_codes(pattern)) for name, pattern in (cue.split("=", 1) for cue in cues)}
properties |= {f"{text_label} (text)": ("text", dataset.labels(range(len(dataset)), text_label))}
known = {name: (*(probe(z, codes)[0] for z in seen[side]), probe(seen[side][0], codes)[1]) for name, (side, codes) in properties.items() if codes.max() > 0}
print("property: untrained -> pretrained (most frequent class)")
for name, (before, after, floor) in known.items():
    print(f"{name}: {before:.2f} -> {after:.2f} ({floor:.2f})")

# %% train-stages
model = task.build(image, text, seed=seed)
rows, validation = strategies.pairs(task, pairs, seed), torch.from_numpy(dataset.rows("val"))
mine, order, drawn = [], batches(rows, 64, stream(seed, "order")), stream(seed, "texts")
for stage in strategies.ARMS["component"].stages:
    for name, part in model.named_children():
        part.requires_grad_(name in stage.parts)
    model.train()
    steps, best = round(stage.share * epochs * (pairs // min(64, pairs))), [-1.0, None]

    def check(step):
        if step in {round(steps * (k + 1) / 5) for k in range(5)}:
            mine.append(task.scores(model, inputs, validation)["accuracy"].value)
            model.train()
            best[:] = max(best, [mine[-1], deepcopy(model.state_dict())], key=lambda pair: pair[0])

    parts = [getattr(model, name) for name in stage.parts]
    phases[stage.name] = descend(parts, lambda rows: task.loss(model, inputs, rows, drawn), order, steps=steps, top=lr, check=check)
    model.load_state_dict(best[1])
    print(f"{stage.name}: {phases[stage.name][0].parameters_trained:,} parameters trained, validation accuracy {best[0]:.2f}")

# %% fit
budget = strategies.Budget(pairs=pairs, epochs=epochs)
runs = {arm: strategies.fit(arm, task, budget=budget, seed=seed, lr=lr, encoders=encoders, evaluate=("test",)) for arm in ("component", "frozen", "scratch")}
apart = sum(abs(one - check["validation"]) for one, check in zip(mine, runs["component"].history, strict=True)) / len(mine)
same = apart < 0.05 or torch.cuda.is_available()  # another number of threads rounds otherwise, and a GPU more so
assert same, f"the steps by hand and fit differ by {apart:.3f}"
print(f"{len(mine)} checks compared; by hand and fit agree within 5 points on average: {same}")
for arm, run in runs.items():
    print(f"{arm}: " + ", ".join(f"{name} {phase.flops / 1e9:.1f}" for name, phase in run.cost.phases.items()) + f"; {run.cost.flops / 1e9:.1f} GFLOP in all")
    mmkit.record(run, both=both)

# %% spent
def spent(run):
    """Compute so far in GFLOP, pretraining included, and validation accuracy in percent, at each check."""
    done, x, y = 0.0, [], []
    for name, phase in run.cost.phases.items():
        checks = [check for check in run.history if check["where"].endswith(f", {name}")]
        x += [(done + phase.flops * check["step"] / phase.steps) / 1e9 for check in checks]
        y += [100 * check["validation"] for check in checks]
        done += phase.flops
    return x, y


pretraining = sum(phase.flops for phase, _ in (phases["image"], phases["text"])) / 1e9
chance = 1 / len(task.classes)
told = "; ".join(f"{name.removeprefix('label_')} {before:.2f} to {after:.2f}" for name, (before, after, _) in known.items())
ends = "; ".join(f"{arm} {run.settings['validation']:.2f} for {run.cost.flops / 1e9:.0f} GFLOP" for arm, run in runs.items())

# %% knowledge-figure
with plots.figure(
    1, 2, width=9.6, height=3.8, alt=f"Left: probe accuracy from untrained to pretrained encoder: {told}. Right: validation accuracy against compute: {ends}. Pretraining is the first {pretraining:.0f} GFLOP of component and frozen.",
    caption=f"Left: what a linear probe with {labels} labels reads from the untrained and from the pretrained encoder: {told}. Right: best validation accuracy on {pairs} pairs, all compute counted: {ends}. One seed.",
) as (left, right):
    for place, (before, after, _) in enumerate(reversed(known.values())):
        left.plot([100 * before, 100 * after], [place, place], color=plots.BLUE)
        left.plot(100 * before, place, "o", color=plots.BLUE, markerfacecolor="white", markersize=9, label=None if place else "untrained")
        left.plot(100 * after, place, "o", color=plots.BLUE, markersize=7, label=None if place else "pretrained")
    left.set(xlim=(0, 104), ylim=(-0.6, len(known) - 0.4), xlabel="linear probe, validation accuracy (%)")
    left.set_yticks(range(len(known)), [name.removeprefix("label_") for name in reversed(known)])
    left.legend(loc="lower left")
    for arm, run in runs.items():
        right.plot(*spent(run), **plots.arm(arm))
    right.axvspan(0, pretraining, color="#EFEFEF", zorder=0)
    right.annotate("pretraining of\ncomponent, frozen", (pretraining / 2, 3), ha="center", fontsize=8)
    right.axhline(100 * chance, color=plots.GREY, linestyle="--", linewidth=1, label="chance")
    right.set(xlabel="training compute so far (GFLOP)", ylabel="validation accuracy (%)", ylim=(0, 104), xlim=(0, None))
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)

# %% masks
certain, open_ended = "a red arrow [mask] up , left of a small green circle on plain ground .", "now turn [mask] ."

# %% masks-check
top = {sentence: guesses(sentence)[0] for sentence in (certain, open_ended)}
for sentence, (word, probability) in top.items():
    print(f"{sentence}  ->  {word} {probability:.2f}")
trained = len(texts) * pretrain_epochs > 10_000 and data == "scenes"  # a smaller run has not learnt enough to ask
assert not trained or top[certain][1] > 0.8 and top[open_ended][1] < 0.5, "one of the sentences is on the wrong side"

# %% break-even
def break_even(pretraining, pairs_cost, scratch_cost):
    """The least n >= 1 with pretraining + n * pairs_cost <= n * scratch_cost, or None."""
    saved = scratch_cost - pairs_cost
    return max(1, -(-pretraining // saved)) if saved > 0 else None

# %% break-even-check
for case in [(100, 10, 35), (101, 10, 30), (7, 3, 3), (0, 1, 2), (5, 9, 3)]:
    paid, each, scratch = case
    right = next((n for n in range(1, 1000) if paid + n * each <= n * scratch), None)
    assert break_even(*case) == right, f"break_even{case} is {right}"
on_pairs = {arm: round(sum(phase.flops for name, phase in run.cost.phases.items() if not name.startswith("pretrain")) / 1e6) for arm, run in runs.items()}
tasks_needed = {arm: break_even(round(1e3 * pretraining), on_pairs[arm], on_pairs["scratch"]) for arm in ("component", "frozen")}
print(f"tasks until the compute is earned back, whatever the accuracy: {tasks_needed}")

# %% findings
gain = {name: after - before for name, (before, after, _) in known.items()}
most, least = (pick(gain, key=gain.get) for pick in (max, min))
change = lambda name: f"{name.removeprefix('label_')} from {known[name][0]:.2f} to {known[name][1]:.2f}"
reached = {arm: run.scores["accuracy"].value for arm, run in runs.items()}
display(Markdown(
    f"* A linear probe gains most on **{change(most)}** and least on **{change(least)}**; what the answer needs moves for the image: {change(image_label)}, for the text: {change(f'{text_label} (text)')}. "
    f"You guessed {guess.removeprefix('label_')}.\n"
    f"* On {pairs} pairs the test accuracy is " + ", ".join(f"**{score:.2f}** ({arm})" for arm, score in reached.items()) + f"; chance is {chance:.2f}.\n"
    f"* What the encoders learnt before the pairs left the component arm **{reached['component'] - reached['scratch']:+.2f}** from training from scratch on the same pairs. "
    f"Exercise 3 counts compute alone, and `frozen` ends at {reached['frozen']:.2f}.\n"
    f"* Pretraining took **{pretraining / (runs['component'].cost.flops / 1e9):.0%}** of the component arm's compute, which in all is {runs['component'].cost.flops / runs['scratch'].cost.flops:.1f} times that of scratch.\n"
    f"* One seed, one small world: an illustration. The evidence, with intervals over seeds, is in [06](06_head_to_head.ipynb)."
))
