# What does a caption decoder look at, and does tuning its encoder pay?
# The code of 10_captioning.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import re
import textwrap
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from IPython.display import display

import mmkit
from mmkit.models.captioner import END, START
from mmkit.repro import paths, records, report
from mmkit.strategies import Budget, fit, suited
from mmkit.tasks import task
from mmkit.tasks.captioning import FACTS, facts
from mmkit.teach import plots, widgets

# %% parameters
data: str = "scenes"  # data set: scenes, flickr8k, or one of your own (pictures with captions)
arms: list[str] = ["holistic", "frozen"]  # strategies; the first is looked at in detail
decoders: list[str] = ["gru", "gru_without_attention"]  # first: every arm; also transformer
pairs: int = 1024  # labelled pictures; 0 takes all
epochs: int = 8  # passes over them, one caption of each at a time
dim: int = 96  # width of the decoder
beams: int = 1  # captions that beam search keeps; 1 is greedy
size: int = 192  # photos: pixels a side that a given encoder sees
mirror: bool = True  # photos: a given encoder sees each photo and its mirror image
limit: int = 120  # score only the first so many pictures of each split; 0 scores all
seed: int = 0  # decides pictures, order, first weights and drawn captions
published: str = "captioning"  # plan whose published records are shown; empty: this run alone

# %% data
photos = data != "scenes"
options = {"dim": dim, "beams": beams, "limit": limit or None}
if photos:
    options |= {"dropout": 0.4, "norm": "batch", "label_smoothing": 0.1, "captions": 3}
    options |= {"length": 16, "min_count": 4}
dataset = mmkit.load(data)
problems = {name: task("captioning", dataset, decoder=name, **options) for name in decoders}
problem = problems[decoders[0]]
test = problem.rows("test")
references = problem.references(test)
print("\n".join(references[0]))
for name in ("vocabulary", "captions_cut", "words_unknown"):
    print(f"{name}: {problem.settings()[name]:g}")
if not photos:
    print(facts(references[0][0]))
    print("both captions tell the same facts:", all(facts(a) == facts(b) for a, b in references))

# %% by-hand
torch.manual_seed(0)
small = task("captioning", dataset, decoder="gru", dim=32)
parts = {"image": mmkit.models.CNN(), "text": small.own_parts(small.words)["text"].build()}
model = small.build(parts, seed=0).eval()
decoder, loader = model.head, small.loader()
batch = loader(test[:1])
with torch.no_grad():
    tokens, keys, mask, mean = memory = model.memory(batch.inputs)
    step = decoder(torch.tensor([[START]]), memory)
    state = step.state[0][0]
    energy = torch.tanh(keys[0] + decoder.query(state)) @ decoder.energy.weight[0]  # (1)
    alpha = energy.exp() / energy.exp().sum()  # (2)
    context = alpha @ tokens[0]  # (3)
    chances = torch.softmax(decoder.out(state + context), dim=0)  # (4)
    given = decoder.out(step.hidden)[0, 0].softmax(0)
print(len(alpha), "tokens, as module's:", torch.allclose(alpha, step.attention[0, 0], atol=1e-5))
print(len(chances), "words, as module's:", torch.allclose(chances, given, atol=1e-5))

# %% guess
guess = ["holistic", "without attention", "frozen"]

# %% guess-check
assert sorted(guess) == ["frozen", "holistic", "without attention"], f"order the three, got {guess}"

# %% runs
count = min(pairs or dataset.splits["train"], dataset.splits["train"])


def run(arm, decoder):
    """Train one arm with the encoders that suit the data, and keep its scores and cost."""
    encoders = suited(dataset, arm)
    if encoders.real:
        encoders = replace(encoders, size=size, flip=mirror)
    options = {"budget": Budget(count, epochs), "seed": seed, "encoders": encoders, "batch": 32}
    done = fit(arm, problems[decoder], **options)
    mmkit.record(done, decoder=decoder, epochs=epochs)
    return done


asked = [(arm, decoders[0]) for arm in arms] + [(arms[0], decoder) for decoder in decoders[1:]]
runs = {(arm, decoder): run(arm, decoder) for arm, decoder in asked}
best, loader = runs[asked[0]], problem.loader()

# %% table
SHOWN = ("bleu_4", "rouge_l", "cider_d", "facts", "exact", "ood_composition/exact")


def line(done):
    """One captioner as a line of the table."""
    found = {name: done.scores[name].value for name in SHOWN if name in done.scores}
    found["cider_d, blank"] = done.scores["blank_image/cider_d"].value
    return found | {"GFLOPs": done.cost.flops / 1e9}


table = pd.DataFrame({f"{arm}, {decoder}": line(runs[arm, decoder]) for arm, decoder in runs}).T
display(table.rename(columns={"ood_composition/exact": "exact, ood"}).round(2))

# %% attention-figure
def picture(item):
    """A test picture as (height, width, 3)."""
    return dataset.pixels(test[[item]].numpy())[0].permute(1, 2, 0)


chosen = int(np.argsort(best.scores["cider_d"].items)[-len(test) // 4])
said, found = problem.say(best.model, loader, test[[chosen]])
words, attention, shown = said[0].split(), found.attention[0, 0], picture(chosen)
side, rows = int(attention.shape[1] ** 0.5), -(-max(len(words), 1) // 8)
alt = f"The picture once for each word of '{said[0]}', lit where the decoder looked."
with plots.figure(rows, 8, alt=alt, width=9, height=1.4 * rows, squeeze=False) as axes:
    for axis in axes.flat:
        axis.axis("off")
    for axis, word, weights in zip(axes.flat, words, attention):
        grid, high = weights.view(1, 1, side, side), shown.shape[:2]
        light = torch.nn.functional.interpolate(grid, size=high, mode="bilinear")[0, 0]
        axis.imshow((shown * (0.3 + 0.7 * light / light.max())[..., None]).to(torch.uint8))
        axis.set_title(word, fontsize=9, loc="center")

# %% where
ARROW = [5, 6, 9, 10]  # cells of the grid; the landmark's depend on where the arrow lies
LANDMARK = {"left of": [7, 11], "right of": [4, 8], "above": [13, 14], "below": [1, 2]}
KINDS = {"arrow's colour": r"\w+(?= arrow)", "heading": r"(?<=pointing )\w+"}
KINDS |= {"landmark's size": "small|large", "landmark's shape": FACTS["shape"]}
KINDS |= {"landmark's colour": r"(?<=small )\w+|(?<=large )\w+", "ground": FACTS["ground"]}
KINDS |= {"relation": r"left(?= of)|right(?= of)|above|below"}


def shares(captions, attention):
    """Mean attention on the arrow, the landmark and the rest, for each kind of word."""
    rows = []
    for text, weights, texts in zip(captions, attention, references):
        landmark = LANDMARK[facts(texts[0])["relation"]]
        for kind, pattern in KINDS.items():
            for match in re.finditer(pattern, text):
                at = weights[text[: match.start()].count(" ")]  # attention at this word
                rows.append((kind, float(at[ARROW].sum()), float(at[landmark].sum())))
    table = pd.DataFrame(rows, columns=["word", "arrow", "landmark"]).groupby("word").mean()
    return table.assign(elsewhere=1 - table["arrow"] - table["landmark"])

# %% where-table
looks = None
if not photos and best.settings["decoder"] != "gru_without_attention":
    captions, found = problem.say(best.model, loader, test, batch=len(test))
    looks = shares(captions, found.attention[:, 0])
    looks.loc["spread evenly"] = [4 / 16, 2 / 16, 10 / 16]
    display(looks.round(2))

# %% gallery
scores = best.scores["cider_d"].items
order = np.argsort(scores)
members = {"worst": order[:2], "median": order[len(order) // 2 :][:2], "best": order[-2:]}
captions = problem.say(best.model, loader, test)[0]
alt = "Six test pictures with what was said and a reference: two of the worst, median and best."
with plots.figure(2, 3, width=8, height=5.6, alt=alt) as axes:
    for column, (name, items) in zip(axes.T, members.items()):
        for axis, item in zip(column, items):
            axis.imshow(picture(item))
            axis.set_title(f"{name}: {scores[item]:.1f}", fontsize=9)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_xlabel(textwrap.fill(captions[item], 34), fontsize=7.5, loc="left")
            text = textwrap.fill(references[item][0].rstrip(" ."), 34)
            axis.text(0, -0.36, text, size=7.5, style="italic", transform=axis.transAxes, va="top")

# %% facts-table
SPLITS = {"test": "", "new combinations": "ood_composition/", "new style": "ood_style/"}
told = None
if not photos:
    told = pd.DataFrame(index=[*FACTS, "all facts", "guessing"])
    choices = [len({facts(texts[0])[fact] for texts in references}) for fact in FACTS]
    guessing = float(np.mean([1 / values for values in choices]))
    for name, prefix in SPLITS.items():
        right = [best.scores[f"{prefix}fact/{fact}"].value for fact in FACTS]
        told[name] = [*right, np.mean(right), guessing]
    display(told.round(2))

# %% beam-explorer
def explore(item=0, beams=3, penalty=0.5):
    """The captions that beam search keeps for one picture, with their scores."""
    _, found = problem.say(best.model, loader, test[[item]], beams=beams, length_penalty=penalty)
    alt = f"Picture {item} and the {beams} captions of its beam with their scores, best first."
    with plots.figure(1, 2, width=8, height=3.2, alt=alt, width_ratios=[1, 2.4]) as (left, right):
        left.imshow(picture(item))
        left.set(xticks=[], yticks=[], title=f"picture {item}")
        right.barh(range(beams), (found.score[0] - found.score[0, 0]).exp(), color=plots.SKY)
        for place, (ids, score) in enumerate(zip(found.ids[0], found.score[0])):
            text = textwrap.fill(problem.text(ids), 60) or "(empty)"
            right.text(0.02, place, f"{score:.2f}  {text}", va="center", fontsize=7.5)
        right.set(yticks=[], xlim=(0, 1.02), ylim=(beams - 0.5, -0.5), xlabel="exp(score - best)")


items, penalties = range(min(12, len(test))), [0.0, 0.5, 1.0, 2.0]
widgets.live(explore, item=items, beams=[1, 2, 3, 5], penalty=penalties)

# %% evidence
folder = paths.notebooks() / "records" / published
evidence = records.read(folder) if published and folder.exists() and not photos else []
rows, means = {}, {name: {} for name in SPLITS}
for condition in report.conditions(evidence):
    for split, prefix in SPLITS.items():
        for arm, p in report.arm_points(evidence, f"{prefix}facts", condition).items():
            name = f"{arm}, {condition['decoder']}"
            text = f"{p['mean']:.2f} ({p['low']:.2f} to {p['high']:.2f})"
            rows.setdefault(name, {"seeds": p["seeds"]})[split] = text
            means[split][name] = p["mean"]
if rows:
    display(pd.DataFrame(rows).T)

# %% photos
folder = paths.notebooks() / "records" / f"flickr8k_{published}"
real = records.read(folder) if published and folder.exists() else []
METRICS = ("bleu_1", "bleu_4", "rouge_l", "cider_d", "blank_image/cider_d")


def about(result):
    """One result as a line of the table, scores with 95 % intervals over the photos."""
    found = {name: result.row["settings"][name] for name in ("dim", "epochs", "size")}
    for name in METRICS:
        items = result.items_of(name)[0]
        half = 1.96 * items.std(ddof=1) / len(items) ** 0.5
        found[name] = f"{items.mean():.3f} ± {half:.3f}"
    return {"arm": result.row["arm"], **found, "TFLOPs": result.row["cost"]["flops"] / 1e12}


if real:
    display(pd.DataFrame(map(about, real)).set_index("arm").round(1))

# %% masked-attention
def masked_attention(energy, mask):
    """(T,) weights: a softmax over the tokens where mask is True, and 0 elsewhere."""
    return energy.masked_fill(~mask, -torch.inf).softmax(0)

# %% masked-attention-check
given, there = torch.tensor([1.0, 2.0, 3.0, 40.0]), torch.tensor([True, True, False, True])
weights = masked_attention(given, there)
assert weights[2] == 0, "what is not real gets nothing"
assert torch.isclose(weights.sum(), torch.tensor(1.0)), "the rest sums to one"
third = masked_attention(given[:3], there[:3])
assert torch.allclose(third, torch.tensor([0.2689, 0.7311, 0.0]), atol=1e-4), "a softmax of two"
for low in (torch.tensor([-5.0, -6.0, 0.0]), torch.tensor([2.0, 1.0, 300.0])):
    assert torch.allclose(masked_attention(low, there[:3]), third[[1, 0, 2]], atol=1e-4)
assert torch.isfinite(masked_attention(torch.tensor([500.0, 0.0]), there[:2])).all()

# %% beam-step
def beam_step(totals, chances, ended, beams):
    """(K,), log-probabilities (K, V), (K,) bool -> list of (score, beginning, word), best first."""
    chances = chances.clone()
    chances[ended] = -torch.inf
    chances[ended, END] = 0.0
    scores, places = (totals[:, None] + chances).flatten().topk(beams)
    beginnings, words = places // chances.shape[1], places % chances.shape[1]
    return list(zip(scores.tolist(), beginnings.tolist(), words.tolist()))

# %% beam-step-check
likely = torch.log(torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.4, 0.1]]))
open_, one_over = torch.tensor([False, False]), torch.tensor([False, True])
kept = beam_step(torch.tensor([-1.0, -0.2]), likely, open_, 2)
assert [(b, w) for _, b, w in kept] == [(1, 0), (1, 1)], "both best may have one beginning"
assert abs(kept[0][0] - (-0.2 + float(likely[1, 0]))) < 1e-5, "scores add up"
kept = beam_step(torch.tensor([-1.0, -1.4]), likely, one_over, 2)
assert [(b, w) for _, b, w in kept] == [(1, END), (0, 1)], "what has ended stays, once"
assert abs(kept[0][0] + 1.4) < 1e-6, "and costs nothing more"
kept = beam_step(torch.tensor([-9.0, -0.1]), likely, one_over, 2)
assert [(b, w) for _, b, w in kept] == [(1, END), (0, 1)], "an ended one continues once"

# %% brevity
def brevity_penalty(said, wanted):
    """said, wanted: lists of lengths in words, one a picture. BLEU's penalty of the corpus."""
    c, r = sum(said), sum(wanted)
    return 0.0 if c == 0 else min(1.0, float(np.exp(1 - r / c)))

# %% brevity-check
assert brevity_penalty([9, 9], [9, 9]) == brevity_penalty([12, 12], [9, 9]) == 1, "long enough"
assert abs(brevity_penalty([5, 5], [10, 10]) - np.exp(-1)) < 1e-9, "half as long"
assert brevity_penalty([5, 15], [10, 10]) == 1, "lengths are summed before they are compared"
assert brevity_penalty([0, 0], [10, 10]) == 0, "nothing said earns nothing"
assert abs(brevity_penalty([4], [5]) - np.exp(-0.25)) < 1e-9

# %% findings
column = "cider_d" if photos else "exact"
for name, row in table.sort_values(column, ascending=False).iterrows():
    print(f"{name}: {column} {row[column]:.2f}; CIDEr-D, blank picture {row['cider_d, blank']:.2f}")
for place in ("arrow", "landmark") if looks is not None else ():
    print(f"most on the {place}: {looks[place].idxmax()} ({looks[place].max():.2f})")
for split in SPLITS if told is not None else ():
    print(f"{split}, weakest fact: {told.loc[list(FACTS), split].idxmin()}")
for split, found in means.items():
    for name in sorted(found, key=found.get, reverse=True)[:: max(1, len(found) - 1)]:
        print(f"records, {split}: {name} {found[name]:.2f} (guessing {guessing:.2f})")

# %% findings-exact
in_range = table[["bleu_4", "rouge_l"]].stack().between(0, 1).all()
print(f"{len(runs)} captioners; scores are shares: {bool(in_range)}")
