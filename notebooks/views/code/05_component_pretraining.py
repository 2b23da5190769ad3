# How much does an encoder learn before it ever sees a pair?
# The code of 05_component_pretraining.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import pandas as pd
import torch
from IPython.display import Markdown, display
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

import mmkit
from mmkit import strategies
from mmkit.models import CNN, TextTransformer
from mmkit.models.text import MASK, PAD, vocabulary
from mmkit.models.vision import scaled
from mmkit.teach import plots
from mmkit.training import Batch, Batches, batches, choose, encode_all, parameter_groups
from mmkit.training import seeded, stream, train
from mmkit.training.views import cut

# %% parameters
data: str = "scenes"  # data set: a recipe or one of your own
both: float = 1.0  # scenes only: share of answers that need both modalities
pool: int = 1500  # scenes only: images without texts, and as many items with texts and no image
label: str = "label_answer"  # column of items that holds the answer
role: str = "question"  # kind of text that goes with the image
image_label: str = "label_heading"  # what the image alone shows, to probe for
text_label: str = "label_turn"  # what the text alone says, to probe for
shown: list[str] = ["arrow colour", "landmark colour", "landmark size"]  # more to probe images for
cues: list[str] = ["(\\w+) arrow", "(?:small|large) (\\w+)", "(small|large)"]  # as captions say it
labels: int = 256  # labelled items a probe is fitted on
pretrain_epochs: int = 3  # passes over the pools
pretrain_batch: int = 32  # items of a step there
pretrain_lr: float = 0.004  # highest learning rate there
pairs: int = 512  # labelled pairs for fusion and everything
epochs: int = 30  # passes over them
lr: float = 0.003  # highest learning rate on pairs
seed: int = 0  # one seed for pairs, order, masks and first weights, each from its own stream

# %% load
dataset = mmkit.load(data, **({"both": both, "pool": pool} if data == "scenes" else {}))
task = mmkit.tasks.Answering(dataset, label=label, role=role)
words = vocabulary(dataset, task.language)
loader = task.loader(words)


def new_encoders():
    """Both encoders with their first weights, which depend on the seed alone."""
    image, text = seeded(seed, "image", CNN), seeded(seed, "text", TextTransformer, len(words))
    return {"image": image, "text": text}


pools = [name if name in dataset.splits else "train" for name in ("pool_image", "pool_text")]
pixels, texts = dataset.pixels(dataset.rows(pools[0])), []
for kind in sorted(dataset.texts["role"].unique()):
    texts += dataset.texts_of(dataset.rows(pools[1]), role=kind)[0]
encoders, ids = new_encoders(), words(texts)
asked = [image_label.removeprefix("label_"), *shown]
print(f"{len(pixels):,} images, {len(texts):,} texts; properties: {', '.join(asked)}")

# %% guess
guess = asked[0]

# %% guess-check
assert guess in asked, f"{guess!r} is not one of {', '.join(asked)}"
print(f"noted: {guess}")

# %% loop
class Losses(list):
    """A hook of the loop: it notes the loss of each step."""

    def after_step(self, state):
        self.append(state.loss.item())


def pretrain(modality, parts, objective, inputs):
    """`pretrain_epochs` passes over a pool: what they cost, and the losses."""
    order = stream(seed, f"pretraining the {modality} encoder/order")
    rows = batches(torch.arange(len(inputs)), pretrain_batch, order)
    fed = (Batch(part, {modality: inputs[part]}) for part in rows)
    steps, losses = pretrain_epochs * (len(inputs) // rows.size), Losses()
    phase, _ = train(parts, objective, fed, steps=steps, lr=pretrain_lr, hooks=[losses])
    return phase, losses

# %% pretrain-image
def hide(pixels, noise):
    """A quarter of the 8 x 8 patches turned grey."""
    hidden = torch.rand(len(pixels), 1, 8, 8, generator=noise) < 0.25
    hidden = F.interpolate(hidden.float(), size=pixels.shape[2:], mode="nearest")
    return pixels.masked_fill(hidden.bool(), 127)


def image_loss(parts, batch, noise=stream(seed, "pretraining the image encoder/mask")):
    """Equation (1)."""
    whole = batch.inputs["image"]
    drawn = parts["decoder"](parts["encoder"](hide(whole, noise)).summary)
    return F.mse_loss(drawn, scaled(whole, 16).flatten(1))


decoder = lambda: nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 3 * 16**2))
drawing = {"encoder": encoders["image"], "decoder": seeded(seed, "image pretext", decoder)}
phases = {"image": pretrain("image", nn.ModuleDict(drawing), image_loss, pixels)}

# %% pretrain-text
def text_loss(parts, batch, noise=stream(seed, "pretraining the text encoder/mask")):
    """Equation (2)."""
    given = cut(batch.inputs["text"])
    hidden = (torch.rand(given.shape, generator=noise) < 0.25) & (given != PAD)
    hidden[:, 0] |= ~hidden.any(1)  # at least one word a text
    tokens = parts["encoder"](given.masked_fill(hidden, MASK)).tokens
    return F.cross_entropy(parts["to_word"](tokens[hidden]), given[hidden])


text, to_word = encoders["text"], seeded(seed, "text pretext", nn.Linear, 64, len(words))
filling = nn.ModuleDict({"encoder": text, "to_word": to_word})
phases["text"] = pretrain("text", filling, text_loss, ids)
for name, (phase, losses) in phases.items():
    gigaflops = f"{phase.flops / 1e9:.1f} GFLOP"
    print(f"{name}: loss {losses[0]:.2f} -> {losses[-1]:.2f} in {phase.steps} steps, {gigaflops}")

# %% reconstruction-figure
whole = dataset.pixels(dataset.rows("val")[:5])
masked = hide(whole, stream(seed, "shown"))
with torch.inference_mode():
    drawn = drawing["decoder"](encoders["image"](masked).summary).view(-1, 3, 16, 16)
lines = {"image": whole, "masked": masked, "drawn": drawn.add(1).div(2).clamp(0, 1)}
caption = "Validation images; what the encoder sees; what the decoder draws from its summary."
with plots.figure(3, len(whole), width=5.6, height=3.7, alt=caption, caption=caption) as axes:
    for line, name in zip(axes, lines):
        line[0].set_ylabel(name)
        for axis, picture in zip(line, lines[name]):
            axis.imshow(picture.permute(1, 2, 0))
            axis.set(xticks=[], yticks=[])

# %% masked-words
@torch.inference_mode()
def guesses(sentence, count=3):
    """The likeliest words in the place of a sentence's one `[mask]`: [(word, probability)]."""
    before, after = (words([part])[0] if part.strip() else [] for part in sentence.split("[mask]"))
    given = torch.tensor([[*before, MASK, *after]])
    chances, found = to_word(text(given).tokens[0, len(before)]).softmax(0).topk(count)
    return list(zip(words.words(found), chances.tolist()))


for sentence in (texts[0], texts[-1]):
    hidden = sentence.split()[len(sentence.split()) // 2]
    broken = f" {sentence} ".replace(f" {hidden} ", " [mask] ", 1).strip()
    likeliest = ", ".join(f"{word} {chance:.2f}" for word, chance in guesses(broken))
    print(f"{broken}   ({hidden})\n   {likeliest}")

# %% probe
used = torch.cat([task.rows("train"), task.rows("val")])
in_train = torch.arange(len(used)) < len(task.rows("train"))


def probe(summaries, codes, draws=5):
    """Equation (3): validation accuracy, mean over draws of the labelled items.
    summaries (N, S) and codes (N,), class numbers or -1 for unknown, of the items of `used`."""
    learnt, held = (((codes >= 0) & part).nonzero()[:, 0] for part in (in_train, ~in_train))
    right = 0.0
    for draw in range(draws):
        part = choose(learnt, labels, stream(seed, f"probe/{draw}"))
        reader = make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0))
        reader.fit(summaries[part], codes[part])
        right += reader.score(summaries[held], codes[held])
    return right / draws

# %% codes
def cue_codes(cue):
    """(N,) what a pattern finds in the first caption of each item, as class numbers."""
    captions, owner = dataset.texts_of(range(len(dataset)))
    said = pd.Series(captions, owner).groupby(level=0).first().str.extract(cue)[0]
    return torch.tensor(pd.Categorical(said.reindex(range(len(dataset)))).codes).long()


def summaries(encoder, side):
    """(N, S): what a frozen encoder makes of the items of `used`."""
    take = lambda part: loader.input(side, used[part])
    return encode_all(encoder, len(used), take, tokens=False).summary

# %% probes
properties = {asked[0]: ("image", dataset.labels(range(len(dataset)), image_label))}
properties |= {name: ("image", cue_codes(cue)) for name, cue in zip(shown, cues)}
name = f"{text_label.removeprefix('label_')} (text)"
properties[name] = "text", dataset.labels(range(len(dataset)), text_label)
seen = {}
for side, encoder in new_encoders().items():
    seen[side] = [summaries(each, side) for each in (encoder, encoders[side])]
known = {}
for name, (side, codes) in properties.items():
    known[name] = before, after = [probe(z, codes[used]) for z in seen[side]]
    usual = codes[codes >= 0].bincount().max() / (codes >= 0).sum()
    print(f"{name}: untrained {before:.2f}, pretrained {after:.2f}, always the same {usual:.2f}")

# %% train-stages
accuracy = lambda model: task.scores(model, loader, task.rows("val"))["accuracy"].value
model = task.build(encoders, seed=seed)
paired = batches(strategies.pairs(task, pairs, seed), 64, stream(seed, "order"))
fed, by_hand = Batches(loader, paired, stream(seed, "texts")), []
for stage in strategies.ARMS["component"].stages:
    trained = parameter_groups(model, stage.groups, lr * stage.lr)  # and the rest is frozen
    count = sum(p.numel() for group in trained for p in group["params"])
    steps = round(stage.share * epochs * (pairs // paired.size))
    options = {"lr": lr * stage.lr, "groups": stage.groups, "validate": accuracy}
    _, log = train(model, task.objective, fed, steps=steps, where=stage.name, **options)
    scores = [check["validation"] for check in log]
    by_hand += scores
    learnt = [group.match for group in stage.groups]
    print(f"{stage.name}: {learnt}, {count:,} parameters, accuracy {max(scores):.2f}")

# %% fit
made = strategies.Encoders(epochs=pretrain_epochs, batch=pretrain_batch, lr=pretrain_lr)
budget = strategies.Budget(pairs=pairs, epochs=epochs)
options = {"budget": budget, "seed": seed, "lr": lr, "encoders": made, "evaluate": ("test",)}
runs = {arm: strategies.fit(arm, task, **options) for arm in ("component", "frozen", "scratch")}
checks = runs["component"].history
apart = sum(abs(a - b["validation"]) for a, b in zip(by_hand, checks, strict=True)) / len(checks)
assert apart < 0.05 or torch.cuda.is_available(), f"{len(checks)} checks differ by {apart:.3f}"
for arm, run in runs.items():
    parts = ", ".join(f"{name} {part.flops / 1e9:.1f}" for name, part in run.cost.phases.items())
    print(f"{arm}: {parts}; {run.cost.flops / 1e9:.1f} GFLOP in all")
    mmkit.record(run, both=both)

# %% spent
def spent(run):
    """At each check: compute so far in GFLOP, pretraining included, and accuracy in percent."""
    done, x, y = 0.0, [], []
    for name, phase in run.cost.phases.items():
        for check in run.history:
            if check["where"].endswith(f", {name}"):
                x.append((done + phase.flops * check["step"] / phase.steps) / 1e9)
                y.append(100 * check["validation"])
        done += phase.flops
    return x, y


pretraining = sum(phase.flops for phase, _ in phases.values()) / 1e9
chance = 1 / len(task.classes)
flops = {arm: run.cost.flops / 1e9 for arm, run in runs.items()}
told = "; ".join(f"{name} {was:.2f} to {now:.2f}" for name, (was, now) in known.items())
best = {arm: f"{run.settings['validation']:.2f}" for arm, run in runs.items()}
ends = "; ".join(f"{arm} {best[arm]} for {flops[arm]:.0f} GFLOP" for arm in runs)

# %% figure-tools
def draw_probes(axis):
    before, after = 100 * torch.tensor([*known.values()]).T
    axis.hlines(range(len(known)), before, after, color=plots.BLUE)
    axis.plot(before, range(len(known)), "o", color=plots.BLUE, mfc="white", label="untrained")
    axis.plot(after, range(len(known)), "o", color=plots.BLUE, label="pretrained")
    axis.set(xlim=(0, 104), xlabel="linear probe, validation accuracy (%)")
    axis.set_yticks(range(len(known)), list(known))
    axis.invert_yaxis()
    axis.legend(loc="lower left")


def draw_costs(axis):
    for arm, run in runs.items():
        axis.plot(*spent(run), **plots.arm(arm))
    axis.axvspan(0, pretraining, color="#EFEFEF", zorder=0, label="pretraining")
    axis.axhline(100 * chance, color=plots.GREY, linestyle="--", linewidth=1, label="chance")
    axis.set(xlabel="training compute so far (GFLOP)", ylabel="validation accuracy (%)")
    axis.set(xlim=(0, None), ylim=(0, 104))
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)

# %% knowledge-figure
caption = f"Left: what a linear probe with {labels} labels reads: {told}. Right: best validation "
caption += f"accuracy on {pairs} pairs and all its compute: {ends}. Grey: pretraining. One seed."
with plots.figure(1, 2, width=9.6, alt=f"Two panels. {caption}", caption=caption) as axes:
    draw_probes(axes[0])
    draw_costs(axes[1])

# %% masks
certain = "a red arrow [mask] up , left of a small green circle on plain ground ."
open_ended = "now turn [mask] ."

# %% masks-check
top = {sentence: guesses(sentence)[0] for sentence in (certain, open_ended)}
for sentence, (word, probability) in top.items():
    print(f"{sentence}  ->  {word} {probability:.2f}")
small = len(texts) * pretrain_epochs <= 10_000 or data != "scenes"  # has not learnt enough to ask
assert small or top[certain][1] > 0.8 and top[open_ended][1] < 0.5, "one is on the wrong side"

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
for arm in ("component", "frozen"):
    cost = [pretraining, flops[arm] - pretraining, flops["scratch"]]
    count = break_even(*(round(1e3 * gigaflops) for gigaflops in cost))
    print(f"{arm}: tasks until the compute is earned back, whatever the accuracy: {count}")

# %% findings
gain = {name: after - before for name, (before, after) in known.items()}
change = {name: f"{name} from {was:.2f} to {now:.2f}" for name, (was, now) in known.items()}
most, least = max(gain, key=gain.get), min(gain, key=gain.get)
score = {arm: run.scores["accuracy"].value for arm, run in runs.items()}
reached = ", ".join(f"**{value:.2f}** ({arm})" for arm, value in score.items())
text = f"""
* A linear probe gains most on **{change[most]}** and least on **{change[least]}**; you guessed
  {guess}. What the answer needs: {change[asked[0]]}, {change[[*known][-1]]}.
* On {pairs} pairs the test accuracy is {reached}; chance is {chance:.2f}. From scratch, on the
  same pairs, the component arm differs by **{score["component"] - score["scratch"]:+.2f}**.
* Pretraining took **{pretraining / flops["component"]:.0%}** of the component arm's compute, which
  in all is {flops["component"] / flops["scratch"]:.1f} times that of scratch.
* One seed, one small world: an illustration. [06](06_head_to_head.ipynb) has intervals."""
display(Markdown(text))
