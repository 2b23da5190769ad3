# Freeze it, fine-tune it, or mix the two?
# The code of 11_retrieval.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import textwrap
from dataclasses import replace

import ipywidgets as widgets
import pandas as pd
import torch
from IPython.display import HTML, display

import mmkit
from mmkit.core import retrieval_ranks, topk
from mmkit.repro import paths, recorded, records, report
from mmkit.strategies import Budget, fit, interpolate, suited
from mmkit.strategies.encoders import tokenizer
from mmkit.strategies.scoring import loader_of, scores_of, splits_of
from mmkit.tasks.retrieval import Retrieval, hinge_loss
from mmkit.teach import plots

# %% parameters
data: str = "scenes"  # data set: scenes, openmoji, flickr8k, or one of your own with captions
arms: list[str] = ["scratch", "holistic", "frozen", "lit_Lu", "lp_ft", "wise_ft"]  # strategies
narrow: list[str] = []  # strategies to run again, pretrained without the shifted style (scenes)
objectives: list[str] = ["infonce", "hardest"]  # losses: infonce, sigmoid, hinge, hardest
batches: list[int] = [64]  # batch sizes each loss is tried at; strategies take the last
temperatures: list[float] = []  # fixed temperatures for InfoNCE, beside the learnt one
compare: str = "scratch"  # the strategy that losses, batches and temperatures are compared on
pairs: int = 256  # labelled pairs; 0 takes all
epochs: int = 10  # passes over the pairs
alphas: list[float] = [0.0, 0.25, 0.5, 0.75, 1.0]  # from frozen (0) to fine-tuned (1)
gallery: int = 100  # pictures in the search box
limit: int = 200  # score only the first so many items of each split; 0 scores all
seed: int = 0  # decides pairs, order, first weights and masks
published: str = "retrieval"  # plan whose published records are read; empty: this run alone

# %% guess
guess = {"best out of domain": "fine-tuned", "halfway in domain": "below"}

# %% guess-check
assert set(guess) == {"best out of domain", "halfway in domain"}, f"answer both, got {guess}"
assert guess["best out of domain"] in ("frozen", "between", "fine-tuned"), "one of the three"
assert guess["halfway in domain"] in ("above", "below"), "above or below"

# %% one-run
PHOTOS = {"dim": 512, "hidden": 1024, "dropout": 0.2, "norm": "batch"}  # for given features


def problem(pools="broad", **options):
    """Retrieval with one loss, on scenes whose pools have the shifted style (broad) or lack it."""
    dataset = mmkit.load(data, **({"broad": pools == "broad"} if data == "scenes" else {}))
    options |= PHOTOS if dataset.images.shape[1] >= 96 else {}
    return Retrieval(dataset, limit=limit or None, **options)


def keep(result, task, encoders, **about):
    """Record a run; one with two ends at each place on their line, equation (1)."""
    if not result.ends:
        return mmkit.record(result, **about)
    loader, splits = loader_of(task, encoders), splits_of(task, None)
    for share in alphas:
        result.model.load_state_dict(interpolate(*result.ends, share))
        scores = scores_of(task, result.model, loader, splits, blank=False)
        mmkit.record(replace(result, scores=scores), alpha=share, **about)
    result.model.load_state_dict(interpolate(*result.ends, 0.5))

# %% runs
def run(arm, pools="broad", objective="infonce", batch=batches[-1], temperature=None):
    """Train one arm with the encoders that suit the data, and record its scores."""
    task = problem(pools, loss=objective, temperature=temperature)
    encoders, count = suited(task.dataset, arm), pairs or task.dataset.splits["train"]
    result = fit(arm, task, budget=Budget(count, epochs), seed=seed, encoders=encoders, batch=batch)
    about = {"pools": pools, "objective": objective, "batch": batch, "epochs": epochs}
    about["temperature"] = temperature or "learnt"
    keep(result, task, encoders, **about)
    return result

# %% loss-runs
done = {arm: run(arm) for arm in arms}
for arm in narrow:
    run(arm, pools="narrow")
for temperature in temperatures:
    run(compare, temperature=temperature)
for objective in objectives:
    for batch in batches:
        if (objective, batch) != ("infonce", batches[-1]) or compare not in arms:
            done[f"{objective}, batch {batch}"] = run(compare, objective=objective, batch=batch)
mine = recorded()
print(f"{len(mine)} results recorded on {data}")

# %% table
SHIFTS = ("ood_composition", "ood_style")


def line(result):
    """One result as a line of the table."""
    condition, scores = result.condition, result.row["scores"]
    found = {"arm": f"{result.row['arm']} {condition.get('alpha', '')}"}
    found |= {key: condition[key] for key in ("objective", "batch", "temperature", "pools")}
    found |= {"encoder": result.row["settings"]["image"], "R@1": scores["recall@1"]}
    found |= {"median rank": scores["t2i/median_rank"], "mAP": scores["i2t/map"]}
    found |= {name: scores.get(f"{name}/recall@1") for name in SHIFTS}
    return found | {"GFLOPs": result.row["cost"]["flops"] / 1e9}


table = pd.DataFrame(map(line, mine))
display(table.round({"R@1": 3, "mAP": 3, "ood_composition": 3, "ood_style": 3, "GFLOPs": 0}))

# %% published-records
folder = paths.notebooks() / "records" / published
every = records.read(folder) if published and folder.exists() else []
evidence = [result for result in every if result.row["data"] == data == "scenes"]
source = evidence or mine
seeds = {result.row["seed"] for result in source}
print(f"published records: {len(evidence)}; shown: {len(source)} results of {len(seeds)} seeds")

# %% points
WANTED = {"objective": "infonce", "pools": "broad", "temperature": "learnt"}
WANTED["batch"] = 64 if evidence else batches[-1]


def points(score):
    """(arm, alpha) -> mean, low, high of a score of the strategies, which share their loss."""
    found = {}
    for condition in report.conditions(source):
        if WANTED.items() <= condition.items():
            for arm, point in report.arm_points(source, score, condition).items():
                found[arm, condition.get("alpha")] = point
    return found


inside = points("recall@1")
panels = {split.replace("ood_", "new "): points(f"{split}/recall@1") for split in SHIFTS}
if not any(panels.values()):
    panels = {"mAP, several captions": points("i2t/map")}
on_line = [key for key in sorted(inside, key=str) if key[0] == "wise_ft"]
heights = {name: [across[key]["mean"] for key in on_line] for name, across in panels.items()}

# %% figure-panel
def bars(point):
    return [[point["mean"] - point["low"]], [point["high"] - point["mean"]]]


def panel(axis, name, across):
    """One shift: a point an arm, the line of equation (1), the diagonal."""
    axis.plot([inside[key]["mean"] for key in on_line], heights[name], color=plots.BLUE, zorder=1)
    for (arm, alpha), x in inside.items():
        y, look = across[arm, alpha], plots.arm(arm)
        if alpha is not None:
            axis.annotate(f"  {alpha:g}", (x["mean"], y["mean"]), va="bottom", fontsize=8)
            look["label"] = None if alpha else look["label"]  # once in the legend
        error = {"xerr": bars(x), "yerr": bars(y)} if len(seeds) > 1 else {}
        axis.errorbar(x["mean"], y["mean"], linestyle="none", elinewidth=1, **look, **error)
    axis.axline((0, 0), slope=1, color="0.6", linestyle=":", zorder=0)
    axis.set(xlabel="R@1 in domain", ylabel=f"R@1, {name}", xlim=(0, None), ylim=(0, None))

# %% figure
wide = {"width": 4 * len(panels) + 2.6, "height": 4, "squeeze": False}
with plots.figure(1, len(panels), alt="R@1 in and out of domain, a point an arm", **wide) as axes:
    for axis, (name, across) in zip(axes[0], panels.items()):
        panel(axis, name, across)
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)

# %% verdicts
verdicts = []
for name in (published, f"{published}_budget") if evidence else ():
    if (folder.parent / name).exists():
        verdicts += report.verdicts(report.open_batch(name, str(folder.parent))[0])
if verdicts:
    display(HTML(report.table_html(report.claims_table(verdicts))))

# %% collapse
drawn = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))
places = {"at random": torch.nn.functional.normalize(drawn, dim=2)}
places["in one point"] = torch.ones(2, 64, 16) / 4
for name, (images, texts) in places.items():
    hardest = hinge_loss(images, texts, hardest=True)
    print(f"{name}: hardest {hardest:.1f}, sum {hinge_loss(images, texts):.0f}")

# %% collapse-seen
for name, result in done.items():
    first, last = result.history[0]["loss"], result.history[-1]["loss"]
    print(f"{name:20} {first:6.3f} -> {last:5.3f}, R@1 {result.settings['validation']:.3f}")

# %% gallery
best = max(done.values(), key=lambda result: result.settings["validation"])
task = problem()
encoders, rows = suited(task.dataset, best.arm), task.rows("test")[:gallery]
loader, words = loader_of(task, encoders), tokenizer(task, encoders)
image, text, owner = task.embeddings(best.model, loader, rows)
captions = task.dataset.texts_of(rows.numpy(), role=task.role, language=task.language)[0]


def pictures(typed, k=5):
    """The k pictures nearest to some words."""
    query = best.model.embed("text", words([typed]).to(loader.device)).detach().cpu()
    return topk(query, image, min(k, len(image)))[1][0].tolist()


def nearest(picture, k=2):
    """The k captions nearest to a picture, its own with a tick."""
    found = topk(image[[picture]], text, k)[1][0].tolist()
    return [f"{'✓ ' * (int(owner[j]) == picture)}{captions[j]}" for j in found]

# %% ranks
ranks = retrieval_ranks(text, image, owner, torch.arange(len(image)))
scores = text.double() @ image.double().T
right = scores.gather(1, owner[:, None])
by_hand = 1 + (scores.scatter(1, owner[:, None], -torch.inf) >= right).sum(1)
print("same ranks as the whole matrix:", bool((ranks == by_hand).all()))
flat = retrieval_ranks(torch.ones(9, 4), torch.ones(5, 4), torch.arange(9) // 2, torch.arange(5))
print(f"a constant model on 5 pictures: rank {int(flat.max())}")

# %% found-pictures
def pixels(picture):
    """A picture of the gallery as (height, width, 3)."""
    return task.dataset.pixels(rows[[picture]].numpy())[0].permute(1, 2, 0)


asked = captions[:: max(1, len(captions) // 3)][:3]
with plots.figure(len(asked), 5, width=7, height=5.2, alt="Pictures found for captions") as axes:
    for row, typed in zip(axes, asked):
        row[0].text(0, 1.06, typed, size=8, transform=row[0].transAxes).set_in_layout(False)
        for axis, picture in zip(row, pictures(typed)):
            own = picture == int(owner[captions.index(typed)])
            axis.imshow(pixels(picture))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=own, color=plots.VERMILION, linewidth=3)

# %% box
def search(typed):
    """The pictures nearest to what was typed, each over the captions nearest to it."""
    strangers = [word for word in typed.lower().split() if words([word])[0, 0] == 1]
    said = f"not in the vocabulary: {', '.join(strangers)}" if strangers else "all words known"
    with plots.figure(1, 5, width=9, height=3.6, alt=f"found for: {typed}", caption=said) as axes:
        for axis, picture in zip(axes, pictures(typed.strip() or "?")):
            under = "\n\n".join(textwrap.fill(line, 26) for line in nearest(picture))
            axis.imshow(pixels(picture))
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(under, fontsize=7, loc="left")


typed = widgets.Text(asked[0], continuous_update=False, layout={"width": "36em"})
display(typed, widgets.interactive_output(search, {"typed": typed}))

# %% hinge
def hardest_hinge(scores, margin):
    """scores (N, N): row i is image i against every caption, and caption i is its own."""
    own, right = torch.eye(len(scores), dtype=torch.bool), scores.diagonal()
    by_image = (margin - right[:, None] + scores).clamp(min=0).masked_fill(own, 0).amax(1)
    by_caption = (margin - right[None] + scores).clamp(min=0).masked_fill(own, 0).amax(0)
    return (by_image + by_caption).mean()

# %% hinge-check
cosines = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.5, 0.6], [0.0, 0.3, 0.4]])
assert abs(hardest_hinge(cosines, 0.2) - 1.4 / 3) < 1e-6, "the hardest wrong ones, both ways, mean"
assert hardest_hinge(torch.eye(4), 0.5) == 0, "pairs told apart by the margin cost nothing"
wanted = hinge_loss(cosines, torch.eye(3), margin=0.3, hardest=True)
assert torch.isclose(hardest_hinge(cosines, 0.3), wanted)

# %% recall
def recall_at_k(scores, owner, k):
    """scores (N, M); caption j describes image owner[j] -> (image to text, text to image)."""
    own = owner[None] == torch.arange(len(scores))[:, None]
    ways = []
    for matrix, mask in ((scores, own), (scores.T, own.T)):
        best = matrix.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
        ahead = ((matrix >= best) & ~mask).sum(1)
        ways.append((ahead < k).double().mean().item())
    return tuple(ways)

# %% recall-check
def near(found, expected):
    return torch.allclose(torch.tensor(found).double(), torch.tensor(expected).double())


uneven = torch.tensor([[0.9, 0.1, 0.8, 0.3], [0.2, 0.3, 0.1, 0.7], [0.1, 0.6, 0.7, 0.5]])
belongs = torch.tensor([0, 1, 0, 2])
assert near(recall_at_k(uneven, belongs, 1), (1 / 3, 0.5)), "one of an image's captions is enough"
assert near(recall_at_k(uneven, belongs, 2), (2 / 3, 1.0)), "a caption looks for its one image"
assert near(recall_at_k(torch.zeros(3, 4), belongs, 1), (0.0, 0.0)), "all alike finds nothing"
many = torch.randn(9, 30, generator=torch.Generator().manual_seed(1))
whose = torch.cat([torch.arange(9), torch.arange(21) % 4])
to_text = retrieval_ranks(torch.eye(9), many.T, torch.arange(9), whose) <= 5
to_image = retrieval_ranks(torch.eye(30), many, whose, torch.arange(9)) <= 5
wanted = to_text.double().mean().item(), to_image.double().mean().item()
assert near(recall_at_k(many, whose, 5), wanted)

# %% mix
def mix(start, end, share):
    """Two state dicts of one model -> a new one, `share` of the way from start to end."""
    mixed = {}
    for name, value in end.items():
        whole = not value.is_floating_point()
        mixed[name] = value.clone() if whole else start[name].lerp(value, share)
    return mixed

# %% mix-check
net = torch.nn.BatchNorm1d(2)
frozen = {name: value.clone() for name, value in net.state_dict().items()}
tuned = {"weight": torch.tensor([3.0, 1.0]), "running_mean": torch.tensor([4.0, -4.0])}
tuned = {**frozen, **tuned, "num_batches_tracked": torch.tensor(9)}
half = mix(frozen, tuned, 0.25)
assert half["weight"].tolist() == [1.5, 1.0], "a quarter of the way"
assert half["running_mean"].tolist() == [1.0, -1.0], "running statistics, too"
assert half["num_batches_tracked"] == 9, "a counter is the fine-tuned model's"
assert frozen["weight"].tolist() == [1, 1] and tuned["running_mean"][1] == -4, "the ends stay"
assert all(torch.equal(mix(frozen, tuned, 1.0)[name], value) for name, value in tuned.items())

# %% findings
for name, line in heights.items():
    for (_, alpha), height in zip(on_line, line):
        print(f"{name}, on the line at alpha {alpha:g}: R@1 {height:.3f}")
    if ("frozen", None) in panels[name]:
        print(f"{name}, frozen to the end: R@1 {panels[name]['frozen', None]['mean']:.3f}")

# %% findings-exact
in_range = table[["R@1", "mAP"]].stack().between(0, 1).all()
print(f"runs in the table: {len(table)}; every R@1 and mAP a share: {bool(in_range)}")
