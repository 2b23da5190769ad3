# Which strategy wins, and when?
# The code of 06_head_to_head.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import ipywidgets as widgets
import pandas as pd
from IPython.display import Markdown, display

import mmkit
from mmkit import stats
from mmkit.repro import chooser, paths, recorded, records
from mmkit.repro.matching import aligned_terms
from mmkit.strategies import ARMS, Budget, Encoders, fit, suited
from mmkit.tasks import task
from mmkit.teach import plots
from mmkit.tuning import nested

# %% parameters
data: str = "scenes"  # data set: scenes, flickr8k, or one of your own (photos with captions)
cases: list[str] = ["complex"]  # which cases to run, by name; other data has one, "retrieval"
arms: list[str] = []  # strategies to compare; empty takes each case's own
pretraining: str = "labels"  # what pretrained encoders learn from: see the table below
pool: int = 0  # how many entries of a modality's pool they learn from; 0 takes all
pretraining_steps: int = 0  # their steps; 0 takes the table's
pairs: int = 0  # labelled pairs; 0 takes each case's own (other data: all of them)
epochs: int = 0  # passes over the pairs; 0 takes each case's own
fusion: str = "concat"  # how answering joins the modalities: concat, product or cross_attention
lr: float = 0.004  # learning rate of every arm; 0 searches it in every run, as the plans do
limit: int = 0  # score only the first so many items of each split; 0 scores all
seed: int = 0  # decides pairs, order, first weights and masks
published: str = "head_to_head"  # plan whose published records are read; empty: this run alone

# %% cases
MAIN, LATE = ["scratch", "holistic", "frozen", "component"], ["ensemble_single"]
OWN = ["joint_plus_unimodal"]
CONTROLS = ["best_single", "shuffled_pairs", "blank_image", "blank_text"]
CASES = {  # name: task, pairs, passes over them, arms, knobs of the data
    "complex": ("answering", 512, 20, MAIN, {"both": 1.0}),
    "simple": ("answering", 256, 20, [*MAIN, *LATE], {"both": 0.0}),
    "simple, few labels": ("answering", 64, 80, MAIN, {"both": 0.0}),
    "base": ("answering", 256, 20, [*MAIN, "lp_ft", *OWN, *LATE], {"both": 0.5}),
    "image-heavy": ("answering", 256, 20, [*MAIN, *OWN, *LATE], {"both": 0.0, "image_share": 0.9}),
    "retrieval": ("retrieval", 256, 20, MAIN, {}),
    "complex, 80 passes": ("answering", 512, 80, ["scratch"], {"both": 1.0}),
    "complex, more pairs": ("answering", 2012, 20, ["scratch"], {"both": 1.0}),
    "controls": ("answering", 256, 20, CONTROLS, {"both": 0.5}),
    "broad pools": ("answering", 256, 20, [*MAIN[1:], "lp_ft"], {"both": 0.0}),
    "narrow pools": ("answering", 256, 20, [*MAIN[1:], "lp_ft"], {"both": 0.0, "broad": False}),
}
SHARES = {f"share {both:g}": both for both in (0.0, 0.25, 0.5, 0.75, 1.0)}
for name, both in SHARES.items():
    CASES[name] = ("answering", 512, 80, ["scratch", *OWN, *LATE], {"both": both})

# %% chosen
SEEN = {"image": ("label_shape", "label_landmark", "label_ground")}
TOLD = ("heading", "arrow", "shape", "landmark", "size", "relation", "ground")
TOLD = tuple(f"label_{name}" for name in TOLD)
BY_LABELS = {"objective": {"image": "supervised", "text": "supervised"}, "steps": 400}
PRETRAINING = {  # name: options of `Encoders`
    "labels": BY_LABELS,
    "other labels": {**BY_LABELS, "labels": SEEN},
    "all labels": {**BY_LABELS, "labels": {"image": TOLD, "text": TOLD}},
    "reconstruction": {"steps": 600},
    "contrast": {"objective": {"image": "contrast"}, "steps": 600},
}
SPLITS = {"": "test", "ood_composition/": "new compositions", "ood_style/": "shifted style"}
chosen = list(cases)
if data != "scenes":
    CASES, chosen = {"retrieval": ("retrieval", 10**9, 20, MAIN, {})}, ["retrieval"]
for kind, asked, known in (("case", chosen, CASES), ("pretraining", [pretraining], PRETRAINING)):
    if strangers := ", ".join(sorted(set(asked) - set(known))):
        raise mmkit.MmkitError(f"no {kind} {strangers}: there are {', '.join(known)}")
print(f"{len(chosen)} of {len(CASES)} cases on {data}: {'; '.join(chosen)}")

# %% guess
guess = {"test": "component", "shifted style": "frozen"}

# %% guess-check
assert set(guess) == {"test", "shifted style"}, f"answer both questions, got {guess}"
assert set(guess.values()) <= set(MAIN), f"name one of {MAIN} for each, got {guess}"
print(f"noted: {guess}")

# %% open-case
PHOTOS = {"dim": 512, "hidden": 1024, "dropout": 0.2, "norm": "batch"}  # for given features


def open_case(name):
    """The task of a case, its budget, its arms, and what its records say of it."""
    kind, count, passes, members, knobs = CASES[name]
    dataset = mmkit.load(data, **knobs)
    about, options = {"case": name}, PHOTOS if dataset.images.shape[1] >= 96 else {}
    if data == "scenes":
        about |= {"both": knobs.get("both", 0.5), "image_share": knobs.get("image_share", 0.5)}
    if kind == "answering":
        about["fusion"], options = fusion, {"fusion": fusion}
    count = pairs or min(count, dataset.splits["train"])
    problem = task(kind, dataset, limit=limit or None, **options)
    return problem, Budget(count, epochs or passes), arms or members, about


def levels(problem, both):
    """What guessing, and a model that never joins the modalities, and an oracle reach."""
    if problem.name != "answering":
        return {}
    known = {"chance": 1 / len(problem.classes), "oracle": 1.0}
    known |= {"alone": 1 - 0.75 * both} if both else {}
    return {split + "accuracy": known for split in SPLITS}

# %% compare
def run(arm, problem, budget, **about):
    """Train one arm with the encoders that suit the data, and keep its scores and cost."""
    encoders, how = suited(problem.dataset, arm), "none"
    if getattr(ARMS.get(arm), "start", "random") != "random" and not encoders.real:
        kind = PRETRAINING[pretraining]
        encoders, how = Encoders(size=encoders.size, pool=pool or None, **kind), pretraining
        if pretraining_steps:
            encoders = Encoders(**encoders.settings() | {"steps": pretraining_steps})
        about |= {"pool": pool, "pretraining_steps": encoders.steps}
    options = {"encoders": encoders, "batch": 512 if encoders.flip else 64, "seed": seed}
    search = nested if lr == 0 else fit
    options |= {} if lr == 0 else {"lr": lr}
    result = search(arm, problem, budget=budget, **options)
    known = levels(problem, about.get("both"))
    mmkit.record(result, levels=known, epochs=budget.epochs, pretraining=how, **about)
    return result

# %% runs
for name in chosen:
    problem, budget, members, about = open_case(name)
    done = {}
    for arm in members:
        done[arm] = run(arm, problem, budget, compute="own", **about)
    if name == "complex" and {"scratch", "component"} <= set(done):
        equal = Budget(budget.pairs, budget.epochs, flops=done["component"].cost.flops)
        run("scratch", problem, equal, compute="as component", **about)
mine = recorded()
print(f"{len(mine)} runs recorded")

# %% table
METRIC = {"answering": "accuracy", "retrieval": "recall@1"}
SHIFTS = ("ood_composition", "ood_style")


def line(result):
    """One run as a line of the table."""
    scores, metric = result.row["scores"], METRIC[result.row["task"]]
    found = {"case": result.row["condition"]["case"], "arm": result.row["arm"]}
    found |= {"compute": result.row["condition"]["compute"], "test": scores[metric]}
    for split in SHIFTS:
        if f"{split}/{metric}" in scores:
            found[split] = scores[f"{split}/{metric}"]
    return found | {"GFLOPs": result.row["cost"]["flops"] / 1e9}


table = pd.DataFrame(map(line, mine)).set_index(["case", "arm", "compute"])
display(table.round({"test": 2, "ood_composition": 2, "ood_style": 2, "GFLOPs": 0}))

# %% published-records
folder = paths.notebooks() / "records" / published
evidence = records.read(folder) if published and data == "scenes" and folder.exists() else []
source = evidence or mine
seeds = sorted({result.row["seed"] for result in source})
origin = "published records" if evidence else "no published records, so this run alone"
print(f"{origin}: {len(source)} results, {len(seeds)} seeds")

# %% figure-helpers
MATTERS = 0.02  # the smallest difference that matters
BEHIND = ("scratch", "own")


def by_seed(results, case, arm, compute):
    """The results of an arm in a case, by seed."""
    found = {}
    for result in results:
        here = result.condition
        if (here["case"], result.row["arm"], here["compute"]) == (case, arm, compute):
            found[result.row["seed"]] = result
    return found


def lead(results, case, row, score):
    """The paired difference of a row to training from scratch: effect, low and high."""
    first, second = by_seed(results, case, *row), by_seed(results, case, *BEHIND)
    common = sorted(first.keys() & second.keys())
    terms = [(1.0, score, None, [first[s] for s in common])]
    terms += [(-1.0, score, None, [second[s] for s in common])]
    return stats.t_interval(aligned_terms(terms)) if common else None

# %% figure-data
ROWS = [("frozen", "own"), ("component", "own"), ("holistic", "own")]
ROWS += [("ensemble_single", "own"), ("scratch", "as component")]
columns = [name for name in CASES if by_seed(source, name, *BEHIND)]
leads = {}
for name in columns:
    metric = METRIC[CASES[name][0]]
    for row in ROWS:
        for split in SPLITS if data == "scenes" else [""]:
            if by_seed(source, name, *row):
                leads[name, row, split] = lead(source, name, row, split + metric)
there = [row for row in ROWS if any(row == found for _, found, _ in leads)]

# %% figure-panel
def label(row):
    """What the figure calls a row."""
    arm, compute = row
    return plots.arm(arm)["label"] if compute == "own" else "from scratch, equal compute"


LOOKS = {"": ("o", 1.0), "ood_composition/": ("D", 0.55), "ood_style/": ("s", 0.3)}


def panel(axis, name):
    """One case: the lead of each row over training from scratch, a mark for each split."""
    axis.axvspan(-MATTERS, MATTERS, color="0.9", lw=0)
    axis.axvline(0, color="0.5", lw=0.8)
    for height, row in enumerate(there):
        for step, (split, (marker, alpha)) in enumerate(LOOKS.items()):
            if (name, row, split) in leads:
                effect, low, high = leads[name, row, split]
                y, error = height - 0.22 * step + 0.22, [[effect - low], [high - effect]]
                look = {"color": plots.arm(row[0])["color"], "marker": marker, "alpha": alpha}
                axis.errorbar(effect, y, xerr=error if len(seeds) > 1 else None, **look)
    own = by_seed(source, name, *BEHIND).values()
    mean = sum(result.row["scores"][METRIC[CASES[name][0]]] for result in own) / len(own)
    axis.set(title=f"{name}: {CASES[name][1]} pairs\nfrom scratch: {mean:.2f}", xlabel="difference")
    axis.set_yticks(range(len(there)), map(label, there))

# %% figure
said = []
for name in columns:
    shown = [row for row in there if (name, row, "") in leads]
    points = [f"{label(row)} {leads[name, row, ''][0]:+.2f}" for row in shown]
    said.append(f"{name}: {', '.join(points)}")
alt = f"Paired difference to training from scratch, {len(seeds)} seed(s). {'; '.join(said)}."
caption = "Circles: test; diamonds: new compositions; squares: shifted style; grey: too small."
shape = {"squeeze": False, "sharey": True, "width": 3.4 * len(columns) + 2.4, "height": 3.6}
if columns:  # training from scratch was run
    with plots.figure(1, len(columns), alt=alt, caption=caption, **shape) as axes:
        for axis, name in zip(axes.flat, columns):
            panel(axis, name)

# %% chooser
more = paths.notebooks() / "records" / "labels"  # the same at other numbers of pairs
advice = [*source, *(records.read(more) if evidence and more.exists() else [])]


def advise(pairs=512, both=1.0, shifted=False):
    """The advice for one case, as a line of text."""
    score = "ood_style/accuracy" if shifted else "accuracy"
    return str(chooser.choose(advice, score=score, pairs=pairs, both=both))


def show_advice(**case):
    display(Markdown(advise(**case)))

# %% chooser-sliders
can_advise = len(seeds) > 1 and any(result.row["task"] == "answering" for result in source)
if can_advise:
    sliders = {
        "pairs": widgets.SelectionSlider(options=[32, 64, 128, 256, 512, 1024], value=512),
        "both": widgets.FloatSlider(1.0, min=0, max=1, step=0.25),
        "shifted": widgets.Checkbox(False),
    }
    for name, slider in sliders.items():
        slider.description = name
    display(widgets.VBox([*sliders.values(), widgets.interactive_output(show_advice, sliders)]))

# %% chooser-static
if can_advise:
    for case in chooser.cases(advice, task="answering"):
        known = {"pairs": case["pairs"], "both": case["both"]}
        print(f"{advise(**known)}\n   under a shifted style: {advise(**known, shifted=True)}")
    display(pd.DataFrame(chooser.regrets(advice)).round(3))
else:
    print("The chooser needs records of several seeds: run `mmkit reproduce`.")

# %% pays-off
def pays_off(pretraining, with_it, without):
    """Smallest number of tasks n with pretraining + n * with_it < n * without, or None."""
    if with_it >= without:
        return None
    return int(pretraining // (without - with_it)) + 1

# %% pays-off-check
assert pays_off(10.0, 1.0, 2.0) == 11, "at ten tasks the two only tie"
assert pays_off(10.5, 1.0, 2.0) == 11 and pays_off(0.5, 1.0, 2.0) == 1, "count whole tasks"
assert pays_off(1.0, 2.0, 2.0) is None and pays_off(1.0, 3.0, 2.0) is None, "it never pays"
if {"component", "scratch"} <= set(done):
    phases, without = done["component"].cost.phases, done["scratch"].cost.flops
    once = sum(phases[part].flops for part in phases if part.startswith("pretrain_"))
    a_task = done["component"].cost.flops - once
    print(f"{once / 1e9:.0f} GFLOPs once, then {a_task / 1e9:.0f} a task, not {without / 1e9:.0f}:")
    print(f"cheaper from task {pays_off(once, a_task, without)} on")

# %% findings
for name in columns:
    for split, words in SPLITS.items():
        ahead, behind, close = [], [], []
        for row in there:
            effect, low, high = leads.get((name, row, split), (0.0, 0.0, 0.0))
            beyond = low > MATTERS or high < -MATTERS
            group = close if not beyond else ahead if low > 0 else behind
            group += [f"{label(row)} ({effect:+.2f})"] if (name, row, split) in leads else []
        lines = [f"ahead of from scratch: {', '.join(ahead) or 'nothing'}"]
        lines += [f"behind it: {', '.join(behind)}"] if behind else []
        lines += [f"no difference that surely matters: {', '.join(close)}"] if close else []
        if len(seeds) > 5:
            print(f"{name}, {words}: {'; '.join(lines)}")
print(f"you guessed {guess}; this run is one seed, {origin}")

# %% findings-exact
shares_only = bool(table["test"].between(0, 1).all())
print(f"runs of this notebook: {len(table)}; every score a share: {shares_only}")
