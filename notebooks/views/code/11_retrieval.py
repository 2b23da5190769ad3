# Lock it, tune it, or mix the two?
# The code of 11_retrieval.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import base64
import html
import io
from dataclasses import replace

import ipywidgets as widgets
import pandas as pd
import torch
from IPython.display import display
from matplotlib import pyplot as plt

import mmkit
from mmkit.core import retrieval_ranks, topk
from mmkit.repro import paths, recorded, records, report
from mmkit.strategies import Budget, Encoders, fit, interpolate
from mmkit.strategies.encoders import tokenizer
from mmkit.tasks.retrieval import Retrieval, hinge_loss
from mmkit.teach import plots
from mmkit.training import Inputs, device

# %% parameters
data: str = "scenes"  # data set: scenes, openmoji, flickr8k, or one of your own with captions
arms: list[str] = ["scratch", "holistic", "frozen", "lit_Lu", "lp_ft", "wise_ft"]  # strategies; lit_Lu: image encoder locked, text encoder from scratch
narrow: list[str] = []  # strategies to run again with encoders pretrained on pools without the shifted style (scenes)
objectives: list[str] = ["infonce", "hardest"]  # losses to compare: infonce, sigmoid, hinge, hardest
batches: list[int] = [64]  # batch sizes each loss is tried at; strategies take the last
temperatures: list[float] = []  # fixed temperatures to try InfoNCE with, beside the learnt one
compare: str = "scratch"  # the strategy that losses, batch sizes and temperatures are compared on
pairs: int = 256  # labelled pairs; 0 takes all
epochs: int = 10  # passes over the pairs
alphas: list[float] = [0.0, 0.25, 0.5, 0.75, 1.0]  # places on the line from locked (0) to tuned (1)
gallery: int = 100  # pictures in the search box
limit: int = 200  # score only the first so many items of each split; 0 scores all
seed: int = 0  # decides pairs, order, first weights and masks
published: str = "retrieval"  # plan whose published records the figure reads; empty: this run alone

# %% guess
guess = {"best out of domain": "tuned", "halfway in domain": "below"}

# %% guess-check
assert set(guess) == {"best out of domain", "halfway in domain"}, f"answer both, got {guess}"
assert guess["best out of domain"] in ("locked", "between", "tuned") and guess["halfway in domain"] in ("above", "below"), f"use the words of the question, got {guess}"
print(f"noted: {guess}")

# %% one-run
def problem(pools="broad", objective="infonce", temperature=None):
    knobs = {"broad": pools == "broad"} if data == "scenes" else {}
    dataset = mmkit.load(data, **knobs)
    photos = {"dim": 512, "hidden": 1024, "dropout": 0.2, "norm": "batch"} if dataset.images.shape[1] >= 96 else {}
    return Retrieval(dataset, objective=objective, temperature=temperature, limit=limit or None, **photos)


def run(arm, *, batch=batches[-1], **options):
    task = problem(**options)
    encoders, budget = Encoders.suited(task.dataset, arm), Budget(pairs or task.dataset.splits["train"], epochs)
    result = fit(arm, task, budget=budget, seed=seed, encoders=encoders, batch=batch)
    about = {"pools": "broad", "objective": "infonce", "temperature": "learnt", "batch": batch, "epochs": epochs} | {key: value for key, value in options.items() if value is not None}
    if result.ends:
        walk(result, task, encoders, about)
    else:
        mmkit.record(result, **about)
    return result

# %% the-walk
def view(task, encoders):
    """The data as the task's models read it, before any encoder."""
    words = tokenizer(task.dataset, encoders, language=task.language)
    return Inputs.of(task.dataset, words, role=task.role, language=task.language, device=device()[0])


def walk(result, task, encoders, about):
    """Score and record the weights along equation (1); the model ends halfway, where it was."""
    inputs, shifts = view(task, encoders), [split for split, size in task.dataset.splits.items() if split.startswith("ood_") and size]
    for share in alphas:
        result.model.load_state_dict(interpolate(*result.ends, share))
        scores = {}
        for split, prefix in {"test": "", **{split: f"{split}/" for split in shifts}}.items():
            scores |= {prefix + name: score for name, score in task.scores(result.model, inputs, task.rows(split)).items()}
        mmkit.record(replace(result, scores=scores), alpha=share, **about)
    result.model.load_state_dict(interpolate(*result.ends, 0.5))

# %% runs
done = {arm: run(arm) for arm in arms}
for arm in narrow:
    run(arm, pools="narrow")
for objective in objectives:
    for batch in batches:
        if (objective, batch) != ("infonce", batches[-1]) or compare not in arms:
            done[f"{objective}, batch {batch}"] = run(compare, objective=objective, batch=batch)
for temperature in temperatures:
    run(compare, temperature=temperature)
mine = recorded()
print(f"{len(mine)} results recorded on {data}")

# %% table
def line(result):
    row, condition = result.row, result.condition
    shifted = {split: row["scores"][f"{split}/recall@1"] for split in ("ood_composition", "ood_style") if f"{split}/recall@1" in row["scores"]}
    found = {} if data == "scenes" else {"encoder": f"{row['settings']['image']}, {row['settings']['size']} px"}  # on photos arms differ in it
    found |= {"R@1": row["scores"]["recall@1"], "median rank": row["scores"]["t2i/median_rank"], "mAP": row["scores"]["i2t/map"]}
    return {"arm": f"{row['arm']} {condition.get('alpha', '')}".strip(), **{key: condition[key] for key in ("objective", "batch", "temperature", "pools")}, **found, **shifted, "GFLOPs": row["cost"]["flops"] / 1e9}


table = pd.DataFrame(map(line, mine))
display(table.round({"R@1": 3, "mAP": 3, "ood_composition": 3, "ood_style": 3, "GFLOPs": 0}))

# %% published-records
folder = paths.notebooks() / "records" / published
every = records.read(folder) if published and folder.exists() else []
evidence = [result for result in every if result.row["data"] == data == "scenes"]
source = evidence or mine
seeds = {result.row["seed"] for result in source}
print(f"{'published records' if evidence else 'no published records of this data, so this run alone'}: {len(source)} results, {len(seeds)} seeds")

# %% points
def points(score):
    """(arm, alpha) -> mean, low, high of a score of the strategies, which share objective and pools."""
    wanted = {"objective": "infonce", "pools": "broad", "temperature": "learnt", "batch": 64 if evidence else batches[-1]}
    found = {}
    for condition in report.conditions(source):
        if wanted.items() <= condition.items():
            found |= {(arm, condition.get("alpha")): point for arm, point in report.arm_points(source, score, condition).items()}
    return found


inside = points("recall@1")
shifted = [split for split in ("ood_composition", "ood_style") if any(f"{split}/recall@1" in result.row["scores"] for result in source)]
panels = {split.replace("ood_", "new "): points(f"{split}/recall@1") for split in shifted} or {"several captions": points("i2t/map")}
across_line = [key for key in sorted(inside, key=str) if key[0] == "wise_ft"]
heights = {name: [across[key]["mean"] for key in across_line] for name, across in panels.items()}

# %% figure
bars = lambda point: [[max(point["mean"] - point["low"], 0)], [max(point["high"] - point["mean"], 0)]]
told = "; ".join(f"{name}: along the line from locked to tuned R@1 is {', '.join(f'{height:.2f}' for height in line)}" for name, line in heights.items() if line)
with plots.figure(1, len(panels), width=4.8 * len(panels), height=4.2, alt=f"R@1 in domain against R@1 out of domain of {len(inside)} models, {len(seeds)} seeds. {told}", caption=told, squeeze=False) as axes:
    for axis, (name, across) in zip(axes[0], panels.items()):
        axis.plot([inside[key]["mean"] for key in across_line], heights[name], "-", color=plots.ORANGE, zorder=1)
        for key, x in inside.items():
            y, look = across[key], plots.arm(key[0]) | {"lit_Lu": {"marker": "P"}, "lit_Uu": {"marker": "X"}}.get(key[0], {})
            look["label"] = look["label"] if key[1] is None or key == across_line[0] else None
            error = {"xerr": bars(x), "yerr": bars(y)} if len(seeds) > 1 else {}
            axis.errorbar(x["mean"], y["mean"], linestyle="none", elinewidth=1, **look, **error)
            axis.annotate("" if key[1] is None else f"{key[1]:g}", (x["mean"], y["mean"]), xytext=(6, 5), textcoords="offset points", fontsize=8)
        top = 1.15 * max((point["mean"] for point in [*inside.values(), *across.values()]), default=1)
        axis.plot([0, top], [0, top], ":", color="0.6", zorder=0)
        axis.set(title=name, xlabel="R@1 in domain", ylabel="R@1 out of domain" if shifted else "mAP", xlim=(0, top), ylim=(0, 1.25 * max((p["mean"] for p in across.values()), default=1)))
    axes[0][0].legend(loc="upper left", fontsize=8)

# %% verdicts
plans = (published, f"{published}_budget") if evidence else ()
verdicts = [verdict for name in plans if (folder.parent / name).exists() for verdict in report.verdicts(report.open_batch(name, str(folder.parent))[0])]
if verdicts:
    with pd.option_context("display.max_colwidth", None):
        display(report.claims_table(verdicts)[["verdict", "claim", "effect [95 % interval]", "seeds"]])
short = [verdict for verdict in verdicts if verdict.claim.id == "LP-FT-short"]
if short and {"lp_ft", "holistic"} <= done.keys():
    print(f"lp_ft ahead of holistic at {epochs} passes: this seed {done['lp_ft'].scores['recall@1'].value - done['holistic'].scores['recall@1'].value:+.3f}; ten seeds at 10 passes {report.effect_text(short[0])}")

# %% collapse
noise = [torch.nn.functional.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(side)), dim=1) for side in (0, 1)]
for name, (images, texts) in {"at random": noise, "in one point": [torch.ones(64, 16) / 4] * 2}.items():
    print(f"{name}: hardest {hinge_loss(images, texts, hardest=True):.1f}, sum {hinge_loss(images, texts):.0f}")

# %% collapse-seen
for name, result in done.items():
    losses = [entry["loss"] for entry in result.history]
    print(f"{name:24} training loss {losses[0]:7.3f} -> {losses[-1]:6.3f}   validation R@1 {result.settings['validation']:.3f}")

# %% gallery
best = max(done.values(), key=lambda result: result.settings["validation"])
task = problem()
encoders, rows = Encoders.suited(task.dataset, best.arm), task.rows("test")[:gallery]
inputs, words = view(task, encoders), tokenizer(task.dataset, encoders, language=task.language)
image, text, owner = task.embeddings(best.model, inputs, rows)
captions = task.dataset.texts_of(rows.numpy(), role=task.role, language=task.language)[0]


def pictures(typed, k=5):
    """The k pictures nearest to some words."""
    with torch.inference_mode():
        query = best.model.embed_text(words([typed]).to(inputs.device)).cpu()
    return topk(query, image, min(k, len(image)))[1][0].tolist()


def nearest(picture, k=4):
    """The k captions nearest to a picture, each with whether it is its own."""
    return [(captions[j], int(owner[j]) == picture) for j in topk(image[[picture]], text, k)[1][0].tolist()]

# %% ranks
ranks = retrieval_ranks(text, image, owner, torch.arange(len(image)))
scores = text.double() @ image.double().T
right = scores.gather(1, owner[:, None])
by_hand = 1 + (scores.scatter(1, owner[:, None], -torch.inf) >= right).sum(1)
flat = retrieval_ranks(torch.ones(10, 4), torch.ones(5, 4), torch.arange(10) // 2, torch.arange(5))
print(f"same ranks as the whole matrix: {bool((ranks == by_hand).all())}; a constant model on 5 pictures: rank {int(flat.max())}")

# %% found-pictures
asked = captions[:: max(1, len(captions) // 3)][:3]
drawn = {typed: pictures(typed) for typed in asked}
alt = "Three captions, the five pictures found for each, the caption's own in a frame. " + " ".join(f"{typed}" for typed in asked)
with plots.figure(len(asked), 5, width=7, height=1.75 * len(asked), alt=alt, caption="Five best pictures for three captions; the caption's own picture has a frame, where it is among them.") as axes:
    for line_of_axes, (typed, found) in zip(axes, drawn.items()):
        for axis, picture in zip(line_of_axes, found):
            axis.imshow(task.dataset.pixels(rows[[picture]].numpy())[0].permute(1, 2, 0))
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set(visible=picture == int(owner[captions.index(typed)]), color=plots.VERMILION, linewidth=3)
        line_of_axes[0].text(0, 1.06, typed, transform=line_of_axes[0].transAxes, fontsize=8).set_in_layout(False)

# %% box
def picture_style(place, picture):
    """CSS that makes a button show a picture of the gallery."""
    file = io.BytesIO()
    plt.imsave(file, task.dataset.pixels(rows[[picture]].numpy())[0].permute(1, 2, 0).numpy())
    address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f".mmkit-found-{place} {{background: url({address}) center/100% 100%; image-rendering: pixelated;}}"


def search(_change=None):
    """Show the pictures found for what stands in the box, and forget the captions."""
    shown[:] = pictures(typed.value.strip() or "?", len(buttons))
    style.value = "<style>" + "".join(picture_style(*pair) for pair in enumerate(shown)) + "</style>"
    strangers = [word for word in typed.value.lower().split() if words([word])[0, 0] == 1]
    answer.value = html.escape(f"not in the vocabulary: {', '.join(strangers)}") if strangers else "click a picture"


def describe(button):
    """Show the captions nearest to the picture that was clicked."""
    answer.value = "<br>".join(f"<b>{html.escape(caption)}</b>" if own else html.escape(caption) for caption, own in nearest(shown[buttons.index(button)]))

# %% box-shown
shown = []
typed = widgets.Text(value=asked[0], description="search", continuous_update=False, layout={"width": "36em"})
buttons = [widgets.Button(tooltip=f"picture {place + 1}", layout={"width": "96px", "height": "96px"}) for place in range(5)]
style, answer = widgets.HTML(), widgets.HTML()
for place, button in enumerate(buttons):
    button.add_class(f"mmkit-found-{place}")
    button.on_click(describe)
typed.observe(search, "value")
search()
display(widgets.VBox([style, typed, widgets.HBox(buttons), answer]))

# %% hinge
def hardest_hinge(scores, margin):
    """scores (N, N): row i is image i against every caption, and caption i is its own. One number."""
    own, right = torch.eye(len(scores), dtype=torch.bool), scores.diagonal()
    by_image = (margin - right[:, None] + scores).clamp(min=0).masked_fill(own, 0).amax(1)
    by_caption = (margin - right[None] + scores).clamp(min=0).masked_fill(own, 0).amax(0)
    return (by_image + by_caption).mean()

# %% hinge-check
table_of_scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.5, 0.6], [0.0, 0.3, 0.4]])
assert torch.isclose(hardest_hinge(table_of_scores, 0.2), torch.tensor((0.1 + 0.3 + 0.1 + 0.0 + 0.5 + 0.4) / 3)), "captions and images, only wrong ones, the hardest of each, the mean over pairs"
assert hardest_hinge(torch.eye(4), 0.5) == 0, "pairs told apart by more than the margin cost nothing"
drawn_scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
assert torch.isclose(hardest_hinge(drawn_scores, 0.3), hinge_loss(drawn_scores, torch.eye(7), margin=0.3, hardest=True))

# %% recall
def recall_at_k(scores, owner, k):
    """scores (N, M), caption j describes image owner[j]: (image to text, text to image), two shares."""
    own = owner[None] == torch.arange(len(scores))[:, None]
    ways = []
    for matrix, mask in ((scores, own), (scores.T, own.T)):
        best = matrix.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
        ahead = ((matrix >= best) & ~mask).sum(1)
        ways.append((ahead < k).double().mean().item())
    return tuple(ways)

# %% recall-check
uneven = torch.tensor([[0.9, 0.1, 0.8, 0.3], [0.2, 0.3, 0.1, 0.7], [0.1, 0.6, 0.7, 0.5]])
belongs = torch.tensor([0, 1, 0, 2])
near = lambda found, expected: all(abs(float(x) - y) < 1e-6 for x, y in zip(found, expected, strict=True))
assert near(recall_at_k(uneven, belongs, 1), (1 / 3, 0.5)), "image 0 has two captions, 0 and 2: one of them in front is enough"
assert near(recall_at_k(uneven, belongs, 2), (2 / 3, 1.0)), "and a caption looks for its one image"
assert near(recall_at_k(torch.zeros(3, 4), belongs, 1), (0.0, 0.0)), "a model that scores everything the same has found nothing"
from mmkit.metrics import retrieval_scores

many, whose = torch.randn(9, 30, generator=torch.Generator().manual_seed(1)), torch.cat([torch.arange(9), torch.arange(21) % 4])
expected = retrieval_scores(many, torch.eye(30), whose, ks=(1, 5))
assert all(near(recall_at_k(many, whose, k), [expected[f"{way}/recall@{k}"].value for way in ("i2t", "t2i")]) for k in (1, 5))
print("R@1:", tuple(round(share, 2) for share in recall_at_k(uneven, belongs, 1)))

# %% mix
def mix(start, end, share):
    """Two state dicts of one model -> a new one, `share` of the way from start to end."""
    return {name: start[name] + share * (value - start[name]) if value.is_floating_point() else value.clone() for name, value in end.items()}

# %% mix-check
net = torch.nn.BatchNorm1d(2)
locked = {name: value.clone() for name, value in net.state_dict().items()}
net.load_state_dict({**locked, "weight": torch.tensor([3.0, 1.0]), "running_mean": torch.tensor([4.0, -4.0]), "num_batches_tracked": torch.tensor(9)})
tuned = net.state_dict()
half = mix(locked, tuned, 0.25)
assert half["weight"].tolist() == [1.5, 1.0] and half["running_mean"].tolist() == [1.0, -1.0], "a quarter of the way, running statistics too"
assert half["num_batches_tracked"].dtype == torch.int64 and half["num_batches_tracked"] == 9, "a counter is not averaged"
assert locked["weight"].tolist() == [1.0, 1.0] and tuned["running_mean"].tolist() == [4.0, -4.0], "the ends stay as they were"
net.load_state_dict(half)
assert all(torch.equal(mix(locked, tuned, 1.0)[name], value) for name, value in tuned.items()), "at 1 it is the tuned model"

# %% findings
for name, line_heights in heights.items():
    if line_heights:
        top_share, peer = across_line[line_heights.index(max(line_heights))][1], panels[name].get(("frozen", None))
        against = f"; frozen, trained to the end {peer['mean']:.3f}" if peer else ""
        print(f"{name}: along the line R@1 is highest at alpha = {top_share:g} ({max(line_heights):.3f}), {line_heights[0]:.3f} locked, {line_heights[-1]:.3f} tuned{against}")

# %% findings-exact
print(f"runs in the table: {len(table)}; every R@1 and mAP a share: {bool(table[['R@1', 'mAP']].stack().between(0, 1).all())}")
