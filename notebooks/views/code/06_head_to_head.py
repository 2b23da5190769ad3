# Which strategy wins, and when?
# The code of 06_head_to_head.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import ipywidgets as widgets
import pandas as pd
from IPython.display import Markdown, display

import mmkit
from mmkit import stats
from mmkit.repro import chooser, paths, recorded, records
from mmkit.repro.claims import aligned_terms
from mmkit.repro.report import arm_points, conditions
from mmkit.strategies import Budget, fit, suited
from mmkit.tasks import task
from mmkit.teach import plots

# %% parameters
data: str = "scenes"  # data set: scenes, flickr8k, or one of your own (photos with captions)
cases: list[str] = ["complex"]  # which cases to run, by name; other data has one, "retrieval"
arms: list[str] = []  # strategies to compare; empty takes each case's own
pairs: int = 0  # labelled pairs; 0 takes each case's own (other data: all of them)
epochs: int = 20  # passes over the pairs
fusion: str = "concat"  # how answering joins the modalities: concat, product or cross_attention
lr: float = 0.0  # learning rate of every arm; 0 takes each arm's tuned one
limit: int = 0  # score only the first so many items of each split; 0 scores all
seed: int = 0  # decides pairs, order, first weights and masks
published: str = "head_to_head"  # plan whose published records are read; empty: this run alone

# %% cases
MAIN, LATE = ["scratch", "holistic", "frozen", "component"], ["ensemble_single"]
OWN = ["joint_plus_unimodal"]
CONTROLS = ["best_single", "shuffled_pairs", "blank_image", "blank_text"]
IMAGE_HEAVY, NARROW = {"both": 0.0, "image_share": 0.9}, {"both": 0.0, "broad": False}
CASES = {  # name: task, pairs, arms, knobs of the data
    "base": ("answering", 256, [*MAIN, "lp_ft", *OWN, *LATE], {"both": 0.5}),
    "simple": ("answering", 256, [*MAIN, *LATE], {"both": 0.0}),
    "simple, few labels": ("answering", 64, [*MAIN, *LATE], {"both": 0.0}),
    "complex": ("answering", 512, [*MAIN, *LATE], {"both": 1.0}),
    "image-heavy": ("answering", 256, [*MAIN, *OWN, *LATE], IMAGE_HEAVY),
    "retrieval": ("retrieval", 256, MAIN, {}),
    "controls": ("answering", 256, CONTROLS, {"both": 0.5}),
    "broad pools": ("answering", 256, [*MAIN[1:], "lp_ft"], {"both": 0.0}),
    "narrow pools": ("answering", 256, [*MAIN[1:], "lp_ft"], NARROW),
}
SHARES = {f"share {both:g}": both for both in (0.0, 0.25, 0.5, 0.75, 1.0)}
for name, both in SHARES.items():
    CASES[name] = ("answering", 512, ["scratch", *OWN, *LATE], {"both": both})

# %% chosen
chosen = list(cases)
if data != "scenes":
    CASES, chosen = {"retrieval": ("retrieval", 10**9, MAIN, {})}, ["retrieval"]
if set(chosen) - set(CASES):
    strangers = ", ".join(sorted(set(chosen) - set(CASES)))
    raise mmkit.MmkitError(f"no case {strangers}: there are {', '.join(CASES)}")
print(f"{len(chosen)} of {len(CASES)} cases on {data}: {'; '.join(chosen)}")

# %% guess
guess = {"same pairs": "component", "same compute": "scratch"}

# %% guess-check
assert set(guess) == {"same pairs", "same compute"}, f"answer both questions, got {guess}"
assert set(guess.values()) <= set(MAIN), f"name one of {MAIN} for each, got {guess}"
print(f"noted: {guess}")

# %% open-case
PHOTOS = {"dim": 512, "hidden": 1024, "dropout": 0.2, "norm": "batch"}  # for given features


def open_case(name):
    """The task of a case, how many pairs it has, its arms, and what its records say of it."""
    kind, count, members, knobs = CASES[name]
    dataset = mmkit.load(data, **knobs)
    about, options = {"case": name}, PHOTOS if dataset.images.shape[1] >= 96 else {}
    if data == "scenes":
        about |= {"both": knobs.get("both", 0.5), "image_share": knobs.get("image_share", 0.5)}
    if kind == "answering":
        about["fusion"], options = fusion, {"fusion": fusion}
    count = pairs or min(count, dataset.splits["train"])
    return task(kind, dataset, limit=limit or None, **options), count, arms or members, about

# %% compare
def run(arm, problem, budget, **about):
    """Train one arm with the encoders that suit the data, and keep its scores and cost."""
    encoders = suited(problem.dataset, arm)
    options = {"lr": lr or None, "batch": 512 if encoders.flip else 64}
    result = fit(arm, problem, budget=budget, seed=seed, encoders=encoders, **options)
    mmkit.record(result, epochs=budget.epochs, **about)
    return result

# %% runs
for name in chosen:
    problem, count, members, about = open_case(name)
    done = {}
    for arm in members:
        done[arm] = run(arm, problem, Budget(count, epochs), compute="own", **about)
    if name == "complex" and {"scratch", "component"} <= set(done):
        equal = Budget(count, epochs, flops=done["component"].cost.flops)
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
def row_of(arm, compute):
    """The name of a figure's row: `scratch+` is scratch with component's compute."""
    return arm if compute == "own" else f"{arm}+"


def case_points(results, name, split):
    """Row -> mean, low, high of one case on one split."""
    points = {}
    for condition in conditions(results):
        if condition.get("case") == name:
            found = arm_points(results, split + METRIC[condition["task"]], condition)
            points |= {row_of(arm, condition["compute"]): point for arm, point in found.items()}
    return points


def label(row):
    """What the figure calls a row."""
    return "from scratch, the FLOPs of stages" if row == "scratch+" else plots.arm(row)["label"]

# %% figure-data
ORDER = [*CONTROLS[1:], "best_single", *LATE, *OWN, "frozen", "lp_ft", "component", "holistic"]
ORDER += ["scratch+", "scratch"]
there = {row_of(result.row["arm"], result.condition["compute"]) for result in source}
SHOWN = [row for row in ORDER if row in there]
known = {result.condition.get("case") for result in source}
columns = [name for name in CASES if name in known]
means = {}
for name in columns:
    found = case_points(source, name, "")
    means[name] = {row: found[row]["mean"] for row in SHOWN if row in found}
highest = {name: max(found, key=found.get) for name, found in means.items()}

# %% figure-panel
def panel(axis, name, split, alpha):
    """One case on one split: a mark and its interval for each row, a ring for this run."""
    points, ring = case_points(source, name, split), case_points(mine, name, split)
    for y, row in enumerate(SHOWN):
        look = plots.arm(row.rstrip("+")) | {"label": None, "alpha": alpha}
        if row in points:
            p = points[row]
            error = [[p["mean"] - p["low"]], [p["high"] - p["mean"]]] if len(seeds) > 1 else None
            axis.errorbar(p["mean"], y, xerr=error, **look)
        if row in ring:
            axis.plot(ring[row]["mean"], y, "o", ms=10, fillstyle="none", color="0.4", alpha=alpha)
    axis.set(title=name, xlim=(0, 1.03), xlabel="R@1" if name == "retrieval" else "accuracy")
    axis.set_yticks(range(len(SHOWN)), map(label, SHOWN))

# %% figure
across = min(3, len(columns))
down = -(-len(columns) // across)
alt = f"A panel for each of {', '.join(columns)}: test score of each arm, {len(seeds)} seed(s)."
best = [f"{name}: {label(row)} ({means[name][row]:.2f})" for name, row in highest.items()]
caption = f"Highest mean, which need not be told apart from the next: {'; '.join(best)}."
shape = {"squeeze": False, "sharey": True, "width": 3 * across + 2.4, "height": 0.5 + 2.8 * down}
with plots.figure(down, across, alt=alt, caption=caption, **shape) as axes:
    for axis, name in zip(axes.flat, columns):
        panel(axis, name, "", 1.0)
        if data == "scenes":
            panel(axis, name, "ood_style/", 0.35)
    for axis in axes.flat[len(columns) :]:
        axis.set_axis_off()

# %% lead
def lead(results, arm, behind="ensemble_single"):
    """The paired difference of two arms' accuracies over common seeds, with its interval."""
    first, second = {}, {}
    for result in results:
        for name, found in ((arm, first), (behind, second)):
            if result.row["arm"] == name:
                found[result.row["seed"]] = result
    common = sorted(first.keys() & second.keys())
    if len(common) < 2:
        return None
    terms = [(1.0, "accuracy", None, [first[s] for s in common])]
    terms += [(-1.0, "accuracy", None, [second[s] for s in common])]
    return stats.paired_bootstrap(aligned_terms(terms))

# %% shares
place = paths.notebooks() / "records" / "shares"
turned = records.read(place) if published and data == "scenes" and place.exists() else mine
leads, heights = {arm: {} for arm in ("scratch", *OWN)}, {}
for name, both in SHARES.items():
    results = [result for result in turned if result.condition.get("case") == name]
    for arm, found in leads.items():
        if estimate := lead(results, arm):
            found[both], heights[both] = estimate, case_points(turned, name, "")
if not heights:
    print("No records of the knob over several seeds: run `mmkit reproduce shares`.")

# %% shares-figure
never = {both: 1 - 0.75 * both for both in heights}
above = [f"{both:g}" for both in heights if heights[both]["scratch"]["low"] > never[both]]
alt = "Accuracy of late fusion and of joint training against the share of answers that need both."
caption = f"Training from scratch lies above the dashed line at a share of {', '.join(above)}."
if heights:
    with plots.figure(width=6.5, height=3.6, alt=alt, caption=caption) as axes:
        for arm, shift in ((*LATE, -0.012), ("scratch", 0.0), (*OWN, 0.012)):
            found = [heights[both][arm] for both in heights]
            errors = [[p["mean"] - p["low"] for p in found], [p["high"] - p["mean"] for p in found]]
            x, y = [both + shift for both in heights], [p["mean"] for p in found]
            axes.errorbar(x, y, yerr=errors, linestyle="-", **plots.arm(arm))
        axes.plot(list(never), list(never.values()), "k--", linewidth=1, label="never turns")
        axes.set(xlabel="share of answers that need both modalities", ylabel="accuracy")
        axes.set(xticks=list(heights), ylim=(0, 1.03))
        axes.legend(loc="lower left", fontsize=8)
    for arm, found in leads.items():
        for both, e in found.items():
            lead_said = f"{e.effect:+.2f} [{e.low:+.2f}, {e.high:+.2f}]"
            print(f"{plots.arm(arm)['label']}, lead over late fusion at {both:g}: {lead_said}")

# %% chooser
def advise(pairs=256, both=0.5, image_share=0.5, shifted=False):
    """The advice for one case, as a line of text."""
    score = "ood_style/accuracy" if shifted else "accuracy"
    case = {"pairs": pairs, "both": both, "image_share": image_share}
    return str(chooser.choose(source, score=score, **case))


def show_advice(**case):
    display(Markdown(advise(**case)))


can_advise = len(seeds) > 1 and any(result.row["task"] == "answering" for result in source)
if can_advise:
    sliders = {
        "pairs": widgets.SelectionSlider(options=[32, 64, 128, 256, 512, 1024], value=256),
        "both": widgets.FloatSlider(0.5, min=0, max=1, step=0.25),
        "image_share": widgets.FloatSlider(0.5, min=0.1, max=0.9, step=0.1),
        "shifted": widgets.Checkbox(False),
    }
    for name, slider in sliders.items():
        slider.description = name
    display(widgets.VBox([*sliders.values(), widgets.interactive_output(show_advice, sliders)]))

# %% chooser-static
regret = None
if can_advise:
    for case in chooser.cases(source, task="answering"):
        print(advise(**case))
    regret = pd.DataFrame(chooser.regrets(source))
    display(regret.round(3))
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
for name, found in means.items():
    low, top = min(found, key=found.get), highest[name]
    said = f"highest “{label(top)}” ({found[top]:.2f}), lowest “{label(low)}” ({found[low]:.2f})"
    under = case_points(source, name, "ood_style/")
    if under:
        said += f"; under shifted style “{label(max(under, key=lambda row: under[row]['mean']))}”"
    print(f"{name}: {said}")
ranked = table.xs("own", level="compute")["test"]
if "complex" in chosen and not arms:
    late, joint = ranked["complex", "ensemble_single"], ranked["complex", "scratch"]
    print(f"complex, this run: late fusion {late:.2f}, from scratch {joint:.2f}; a guess 0.25")
if regret is not None and len(regret):
    mean, worst = regret["regret"].mean(), regret["regret"].max()
    print(f"chooser, each case left out once: mean regret {mean:.3f}, worst {worst:.3f}")

# %% findings-exact
shares_only = bool(table["test"].between(0, 1).all())
print(f"runs of this notebook: {len(table)}; every score a share: {shares_only}")
