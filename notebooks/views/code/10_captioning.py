# What does a caption decoder look at, and does tuning its encoder pay?
# The code of 10_captioning.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import re
import textwrap

import numpy as np
import pandas as pd
import torch
from IPython.display import display

import mmkit
from mmkit.models.captioner import END, START
from mmkit.repro import paths, recorded, records
from mmkit.repro.report import arm_points
from mmkit.strategies import Budget, Encoders, fit
from mmkit.tasks import task
from mmkit.tasks.captioning import FACTS, facts
from mmkit.teach import plots, widgets
from mmkit.training import Inputs

# %% parameters
data: str = "scenes"  # data set: scenes, flickr8k, or one of your own (pictures with captions)
arms: list[str] = ["holistic", "frozen"]  # strategies; the first is looked at in detail
decoders: list[str] = ["gru", "gru_without_attention"]  # the first for every arm, the others for the first arm; also transformer
pairs: int = 1024  # labelled pictures; 0 takes all
epochs: int = 8  # passes over them, one caption of each at a time
dim: int = 96  # width of the decoder
beams: int = 1  # captions that beam search keeps; 1 is greedy
size: int = 192  # photos: pixels a side that a given encoder sees
mirror: bool = True  # photos: a given encoder sees each photo and its mirror image
limit: int = 120  # score only the first so many pictures of each split; 0 scores all
seed: int = 0  # decides pictures, order, first weights and drawn captions
published: str = "captioning"  # plan whose published records are shown beside this run; empty: this run alone

# %% data
photos = data != "scenes"
big = {"dropout": 0.4, "norm": "batch", "label_smoothing": 0.1, "captions": 3, "length": 16, "min_count": 4} if photos else {}
dataset = mmkit.load(data)
options = {"dim": dim, "beams": beams, "limit": limit or None, **big}
problems = {name: task("captioning", dataset, decoder=name, **options) for name in decoders}
problem = problems[decoders[0]]
test = problem.rows("test")
references = problem.references(test)
print("\n".join(references[0]))
print(facts(references[0][0]) if not photos else "photos have no list of facts")
left_out = {name: problem.settings()[name] for name in ("vocabulary", "captions_cut", "words_unknown")}
print(f"{len(references[0])} captions a picture, {left_out['vocabulary']} words and marks, {left_out['captions_cut']} training captions cut at {problem.length} words")
print(f"words outside the vocabulary: {100 * left_out['words_unknown']:.1f} % (read as unknown, never a target, never said)")
if not photos:
    print("both captions of a scene tell the same facts:", all(facts(a) == facts(b) for a, b in references))

# %% by-hand
torch.manual_seed(0)
encoder = mmkit.models.CNN()
model = task("captioning", dataset, decoder="gru", dim=32).build(encoder, mmkit.models.captioner.DECODERS["gru"](len(problem.words), dim=32), seed=0).eval()
head = model.head
with torch.no_grad():
    tokens, keys, mask, mean = model.memory(dataset.pixels(test[:1].numpy()))
    step = head(torch.tensor([[START]]), [tokens, keys, mask, mean])
    state = step.state[0][0]
    energy = torch.tanh(keys[0] + head.query(state)) @ head.energy.weight[0]  # (1), keys = K v
    alpha = energy.exp() / energy.exp().sum()  # (2)
    found = alpha @ tokens[0]  # (3)
    said = head.out(step.hidden)[0, 0].softmax(0)
    chances = torch.softmax(head.out.weight @ (state + found) + head.out.bias, 0)  # (4)
print(f"{len(alpha)} tokens; attention sums to {alpha.sum():.4f}; same as the module: {torch.allclose(alpha, step.attention[0, 0], atol=1e-5)}")
print(f"{len(chances)} words; probabilities sum to {chances.sum():.4f}; same: {torch.allclose(chances, said, atol=1e-5)}")

# %% guess
guess = ["holistic", "without attention", "frozen"]

# %% guess-check
assert sorted(guess) == ["frozen", "holistic", "without attention"], f"put the three in order, best first; got {guess}"
print("noted:", " > ".join(guess))

# %% runs
REAL = Encoders(image="efficientnet_lite0", text="minilm", size=size, flip=mirror)
count = min(pairs or dataset.splits["train"], dataset.splits["train"])


def run(arm, decoder):
    own = arm in ("scratch", "component", "shuffled_pairs", "blank_image")  # these train small encoders of their own
    encoders = Encoders() if not photos else Encoders(size=64) if own else REAL
    done = fit(arm, problems[decoder], budget=Budget(count, epochs), seed=seed, encoders=encoders, batch=32)
    mmkit.record(done, decoder=decoder, epochs=epochs)
    return done


asked = [(arm, decoders[0]) for arm in arms] + [(arms[0], decoder) for decoder in decoders[1:]]
runs = {(arm, decoder): run(arm, decoder) for arm, decoder in asked}
best = runs[asked[0]]

# %% table
def line(done):
    value = {name: score.value for name, score in done.scores.items()}
    shown = {name: value.get(name) for name in ("bleu_4", "rouge_l", "cider_d", "facts", "exact")}
    extra = {"exact, ood": value.get("ood_composition/exact"), "cider_d, blank": value["blank_image/cider_d"]}
    return {name: score for name, score in {**shown, **extra, "GFLOPs": done.cost.flops / 1e9}.items() if score is not None}


table = pd.DataFrame({f"{arm}, {decoder}": line(done) for (arm, decoder), done in runs.items()}).T
display(table.round(2))

# %% attention-figure
def show_attention(axes, pixels, words, attention):
    """One panel a word: the picture, lit where the decoder looked, dark where it did not."""
    side, high = int(attention.shape[1] ** 0.5), pixels.shape[0]
    for axis, word, weights in zip(axes.flat, words, attention):
        light = torch.nn.functional.interpolate(weights.view(1, 1, side, side), size=(high, high), mode="bilinear")[0, 0]
        axis.imshow((pixels * (0.3 + 0.7 * light / light.max())[..., None]).to(torch.uint8))
        axis.set_title(word, fontsize=9, loc="center")
    for axis in axes.flat:
        axis.axis("off")


inputs = Inputs.of(dataset, problem.words, role="caption")
chosen = int(np.argsort(best.scores["cider_d"].items)[-len(test) // 4])
said, found = problem.say(best.model, inputs, test[chosen : chosen + 1])
words, attention, pixels = said[0].split(), found.attention[0, 0], dataset.pixels(test[chosen : chosen + 1].numpy())[0].permute(1, 2, 0)
rows = -(-max(len(words), 1) // 8)
alt = f"The picture once for each word of the caption '{said[0]}', with the cells that the decoder looked at lit up; the lit cells move from word to word."
with plots.figure(rows, 8, width=9, height=1.4 * rows, alt=alt, squeeze=False, caption="The look moves with the word: lit is where the attention lies when the word above is chosen.") as axes:
    show_attention(axes, pixels, words, attention[: len(words)])

# %% where
LANDMARK = {"left of": [7, 11], "right of": [4, 8], "above": [13, 14], "below": [1, 2]}  # cells of the 4 x 4 grid, by where the arrow lies
KINDS = {"arrow's colour": r"\w+(?= arrow)", "heading": r"(?<=pointing )\w+", "landmark's size": "small|large", "landmark's colour": r"(?<=small )\w+|(?<=large )\w+",
         "landmark's shape": FACTS["shape"], "relation": r"left(?= of)|right(?= of)|above|below", "ground": FACTS["ground"]}  # fmt: skip


def shares(captions, attention):
    """Mean attention on the arrow, the landmark and the rest, for each kind of word."""
    rows = []
    for text, weights, texts in zip(captions, attention, references):
        landmark = LANDMARK[facts(texts[0])["relation"]]
        for kind, pattern in KINDS.items():
            for match in re.finditer(pattern, text):
                at = weights[text[: match.start()].count(" ")]
                arrow, land = float(at[[5, 6, 9, 10]].sum()), float(at[landmark].sum())
                rows.append((kind, arrow, land, 1 - arrow - land))
    return pd.DataFrame(rows, columns=["word", "arrow", "landmark", "elsewhere"]).groupby("word", sort=False).mean()

# %% where-table
looks = None
if not photos and best.settings["decoder"] != "gru_without_attention":
    captions, found = problem.say(best.model, inputs, test, batch=len(test))
    looks = shares(captions, found.attention[:, 0])
    display(pd.concat([looks, pd.DataFrame([[4 / 16, 2 / 16, 10 / 16]], columns=looks.columns, index=["spread evenly"])]).round(2))
else:
    print("Only scenes say where their things are.")

# %% gallery
order = np.argsort(best.scores["cider_d"].items)
shown = {"worst": order[:2], "median": order[len(order) // 2 :][:2], "best": order[-2:]}
captions = problem.say(best.model, inputs, test)[0]
with plots.figure(2, 3, width=8, height=5.6, alt="Six test pictures with what the captioner said and a reference: two of the worst, two around the median, two of the best by CIDEr-D.", caption="Upright: said. Slanted: a reference. An orange bar in a scene is the beacon of notebook 04; no caption tells it, and it may hide part of a landmark.") as axes:
    for column, (name, members) in zip(axes.T, shown.items()):
        for axis, item in zip(column, members):
            axis.imshow(dataset.pixels(test[item : item + 1].numpy())[0].permute(1, 2, 0))
            axis.set_title(f"{name}: {best.scores['cider_d'].items[item]:.1f}", fontsize=9)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            lines = [textwrap.fill(text, 34) for text in (captions[item], references[item][0].rstrip(' .'))]
            axis.set_xlabel(lines[0], fontsize=7.5, loc="left")
            axis.text(0, -0.36, lines[1], fontsize=7.5, style="italic", transform=axis.transAxes, va="top")

# %% facts-table
SPLITS = {"test": "", "new combinations": "ood_composition/", "new style": "ood_style/"}
if not photos:
    told = pd.DataFrame({name: {fact: best.scores[f"{prefix}fact/{fact}"].value for fact in FACTS} for name, prefix in SPLITS.items()})
    guessing = float(np.mean([1 / len({facts(texts[0])[fact] for texts in references}) for fact in FACTS]))
    display(pd.concat([told, pd.DataFrame({name: {"all facts": told[name].mean(), "guessing": guessing} for name in SPLITS})]).round(2))
else:
    told = None
    print("Photos have no list of facts.")

# %% beam-explorer
def explore(picture=0, beams=3, length_penalty=0.5):
    """The captions that beam search keeps for one picture, with their scores."""
    found = problem.say(best.model, inputs, test[picture : picture + 1], beams=beams, length_penalty=length_penalty)[1]
    texts = [textwrap.fill(problem.text(ids), 60) or "(empty)" for ids in found.ids[0]]
    with plots.figure(1, 2, width=8, height=3.2, alt=f"Picture {picture} and the {beams} captions of its beam with their scores; the best is '{texts[0]}'.", width_ratios=[1, 2.4]) as (left, right):
        left.imshow(dataset.pixels(test[picture : picture + 1].numpy())[0].permute(1, 2, 0))
        left.set(xticks=[], yticks=[], title=f"picture {picture}")
        chance = (found.score[0] - found.score[0, 0]).exp()
        right.barh(range(beams), chance, color=plots.SKY)
        for place, (text, score) in enumerate(zip(texts, found.score[0])):
            right.text(0.02, place, f"{score:.2f}  {text}", va="center", fontsize=7.5)
        right.set(yticks=[], xlim=(0, 1.02), ylim=(beams - 0.5, -0.5), xlabel="score relative to the best (exponential)")


widgets.live(explore, picture=range(min(12, len(test))), beams=[1, 2, 3, 5], length_penalty=[0.0, 0.5, 1.0, 2.0]);

# %% evidence
folder = paths.notebooks() / "records" / published
evidence = records.read(folder) if published and folder.exists() and not photos else []
mine = recorded()
points = {}
for condition in {str(result.condition): result.condition for result in evidence}.values():
    for split, prefix in SPLITS.items():
        for arm, point in arm_points(evidence, f"{prefix}facts", condition).items():
            points.setdefault(f"{arm}, {condition['decoder']}", {})[split] = point
if points:
    spread = pd.DataFrame({name: {split: f"{p['mean']:.2f} ({p['low']:.2f} to {p['high']:.2f})" for split, p in row.items()} for name, row in points.items()}).T
    display(spread.assign(seeds=[row["test"]["seeds"] for row in points.values()]))
else:
    print(f"no published records: this run alone, {len(mine)} results of one seed")

# %% photos
folder = paths.notebooks() / "records" / f"flickr8k_{published}"
real = records.read(folder) if published and folder.exists() else []
METRICS = ("bleu_1", "bleu_4", "rouge_l", "cider_d", "blank_image/cider_d")


def told_as(result, name):
    """A score with its 95 % interval over the photos."""
    items = result.items_of(name)[0]
    half = 1.96 * items.std(ddof=1) / len(items) ** 0.5
    return f"{items.mean():.3f} ({items.mean() - half:.3f} to {items.mean() + half:.3f})" if name in ("bleu_4", "cider_d") else f"{items.mean():.3f}"


def about(result):
    """One result as a line of the table."""
    settings, cost = result.row["settings"], result.row["cost"]
    return {"arm": result.row["arm"], **{name: settings[name] for name in ("dim", "epochs", "size")}, **{name: told_as(result, name) for name in METRICS}, "TFLOPs": round(cost["flops"] / 1e12, 1)}


if real:
    display(pd.DataFrame(map(about, real)).set_index("arm"))
else:
    print("no published records of photographs")

# %% masked-attention
def masked_attention(energy, mask):
    """(T,) weights: a softmax over the tokens where mask is True, and 0 elsewhere."""
    return energy.masked_fill(~mask, -torch.inf).softmax(0)

# %% masked-attention-check
given, there = torch.tensor([1.0, 2.0, 3.0, 40.0]), torch.tensor([True, True, False, True])
weights = masked_attention(given, there)
assert weights[2] == 0, "what is not real gets nothing"
assert torch.isclose(weights.sum(), torch.tensor(1.0)), "the rest sums to one"
assert torch.allclose(masked_attention(given[:3], there[:3]), torch.tensor([0.2689, 0.7311, 0.0]), atol=1e-4), "a softmax over the real tokens alone"
assert torch.allclose(masked_attention(torch.tensor([-5.0, -6.0, 0.0]), torch.tensor([True, True, False])), torch.tensor([0.7311, 0.2689, 0.0]), atol=1e-4)
assert torch.isfinite(masked_attention(torch.tensor([500.0, 0.0]), torch.tensor([True, True]))).all()
assert torch.isfinite(masked_attention(torch.tensor([1.0, 2.0, 300.0]), torch.tensor([True, True, False]))).all()
print("attention with padding:", [round(float(w), 2) for w in weights])

# %% beam-step
def beam_step(totals, chances, ended, beams):
    """Scores (K,), log-probabilities (K, V), ended (K,) bool -> the best continuations as a list of (score, beginning, word), best first."""
    chances = chances.clone()
    chances[ended] = -torch.inf
    chances[ended, END] = 0.0
    scores, places = (totals[:, None] + chances).flatten().topk(beams)
    return [(float(s), int(p) // chances.shape[1], int(p) % chances.shape[1]) for s, p in zip(scores, places)]

# %% beam-step-check
likely = torch.log(torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.4, 0.1]]))
open_, one_over = torch.tensor([False, False]), torch.tensor([False, True])
kept = beam_step(torch.tensor([-1.0, -0.2]), likely, open_, 2)
assert [(b, w) for _, b, w in kept] == [(1, 0), (1, 1)], "both of the best may come from one beginning"
assert abs(kept[0][0] - (-0.2 + float(likely[1, 0]))) < 1e-5, "scores add up"
kept = beam_step(torch.tensor([-1.0, -1.4]), likely, one_over, 2)
assert [(b, w) for _, b, w in kept] == [(1, END), (0, 1)], "what has ended stays, once"
assert abs(kept[0][0] + 1.4) < 1e-6, "and costs nothing more"
kept = beam_step(torch.tensor([-9.0, -0.1]), likely, one_over, 2)
assert [(b, w) for _, b, w in kept] == [(1, END), (0, 1)], "an ended beginning has one continuation only"
print("kept:", [(round(s, 2), b, w) for s, b, w in kept])

# %% brevity
def brevity_penalty(said, wanted):
    """said, wanted: lists of lengths in words, one a picture -> BLEU's brevity penalty of the corpus."""
    c, r = sum(said), sum(wanted)
    return 0.0 if c == 0 else min(1.0, float(np.exp(1 - r / c)))

# %% brevity-check
assert brevity_penalty([10, 10], [10, 10]) == 1 and brevity_penalty([12, 12], [10, 10]) == 1, "long captions are not rewarded"
assert abs(brevity_penalty([5, 5], [10, 10]) - np.exp(-1)) < 1e-9, "half as long"
assert brevity_penalty([5, 15], [10, 10]) == 1, "lengths are summed over the corpus before they are compared"
assert brevity_penalty([0, 0], [10, 10]) == 0, "nothing said earns nothing"
assert abs(brevity_penalty([4], [5]) - np.exp(-0.25)) < 1e-9
halves = [len(texts[0].split()) // 2 for texts in references], [len(texts[0].split()) for texts in references]
print(f"the first half of every reference: {brevity_penalty(*halves):.2f}")

# %% findings
column = "cider_d" if photos else "exact"
print(f"{column}: " + "; ".join(f"{name} {value:.2f}" for name, value in table[column].sort_values(ascending=False).items()))
print(f"on an empty picture, which it never met, CIDEr-D falls from {table['cider_d'].iloc[0]:.2f} to {table['cider_d, blank'].iloc[0]:.2f}")
if looks is not None:
    print(f"most on the arrow: {looks['arrow'].idxmax()} ({looks['arrow'].max():.2f}); most on the landmark: {looks['landmark'].idxmax()} ({looks['landmark'].max():.2f})")
if told is not None:
    print(f"weakest fact: {told['test'].idxmin()} ({told['test'].min():.2f}), with new combinations {told['new combinations'].idxmin()} ({told['new combinations'].min():.2f})")
for result in real:
    print(f"photos, one seed: {result.row['arm']}, {result.row['settings']['dim']} wide, {result.row['settings']['epochs']} passes: CIDEr-D {result.row['scores']['cider_d']:.3f}")
for split in SPLITS if points else ():
    ranked = sorted(points, key=lambda name: -points[name][split]["mean"])
    print(f"over seeds, {split} (guessing {guessing:.2f}): most facts by {ranked[0]} ({points[ranked[0]][split]['mean']:.2f}), fewest by {ranked[-1]} ({points[ranked[-1]][split]['mean']:.2f})")

# %% findings-exact
print(f"{len(runs)} captioners; scores are shares: {bool(table[['bleu_4', 'rouge_l']].stack().between(0, 1).all())}")
print("the picture matters to the first one:", bool(table["cider_d"].iloc[0] > 2 * table["cider_d, blank"].iloc[0]))
if not photos and {("holistic", "gru"), ("frozen", "gru")} <= runs.keys() and count >= 1000:
    print("tuning the encoder pays on scenes:", bool(runs["holistic", "gru"].scores["facts"].value > runs["frozen", "gru"].scores["facts"].value))
