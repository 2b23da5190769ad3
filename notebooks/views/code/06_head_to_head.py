# Which strategy wins, and when?
# The code of 06_head_to_head.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import ipywidgets as widgets
import pandas as pd
from IPython.display import Markdown, display

import mmkit
from mmkit.repro import chooser, paths, recorded, records, stats
from mmkit.repro.claims import aligned_terms
from mmkit.repro.report import arm_points
from mmkit.strategies import Budget, Encoders, fit
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
published: str = "head_to_head"  # plan whose published records the figure and the chooser read; empty: this run alone

# %% cases
MAIN = ["scratch", "holistic", "frozen", "component"]
CASES = {  # name: task, pairs, arms, knobs of the data
    "base": ("answering", 256, [*MAIN, "lp_ft", "joint_plus_unimodal", "ensemble_single"], {"both": 0.5}),
    "simple": ("answering", 256, [*MAIN, "ensemble_single"], {"both": 0.0}),
    "simple, few labels": ("answering", 64, [*MAIN, "ensemble_single"], {"both": 0.0}),
    "complex": ("answering", 512, [*MAIN, "ensemble_single"], {"both": 1.0}),
    "image-heavy": ("answering", 256, [*MAIN, "joint_plus_unimodal", "ensemble_single"], {"both": 0.0, "image_share": 0.9}),
    "retrieval": ("retrieval", 256, MAIN, {}),
    "controls": ("answering", 256, ["best_single", "shuffled_pairs", "blank_image", "blank_text"], {"both": 0.5}),
    "broad pools": ("answering", 256, [*MAIN[1:], "lp_ft"], {"both": 0.0}),
    "narrow pools": ("answering", 256, [*MAIN[1:], "lp_ft"], {"both": 0.0, "broad": False}),
}
SHARES = {f"share {both:g}": both for both in (0.0, 0.25, 0.5, 0.75, 1.0)}
CASES |= {name: ("answering", 512, ["scratch", "joint_plus_unimodal", "ensemble_single"], {"both": both}) for name, both in SHARES.items()}
chosen = list(cases)
if data != "scenes":
    CASES, chosen = {"retrieval": ("retrieval", 10**9, MAIN, {})}, ["retrieval"]
if set(chosen) - set(CASES):
    raise mmkit.MmkitError(f"no case {sorted(set(chosen) - set(CASES))}: there are {', '.join(CASES)}")
print(f"{len(chosen)} of {len(CASES)} cases on {data}: {'; '.join(chosen)}")

# %% guess
guess = {"same pairs": "component", "same compute": "scratch"}

# %% guess-check
assert set(guess) == {"same pairs", "same compute"} and set(guess.values()) <= set(MAIN), f"name one of {MAIN} for each, got {guess}"
print(f"noted: {guess}")

# %% compare
def open_case(name):
    kind, count, members, knobs = CASES[name]
    dataset = mmkit.load(data, **knobs)
    photos = {"dim": 512, "hidden": 1024, "dropout": 0.2, "norm": "batch"} if dataset.images.shape[1] >= 96 else {}
    about = {"case": name, "both": knobs.get("both", 0.5), "image_share": knobs.get("image_share", 0.5)} if data == "scenes" else {"case": name}
    joined = {"fusion": fusion} if kind == "answering" else {}
    return task(kind, dataset, limit=limit or None, **photos, **joined), pairs or min(count, dataset.splits["train"]), arms or members, about | joined


def run(arm, problem, budget, **about):
    encoders = Encoders.suited(problem.dataset, arm)
    result = fit(arm, problem, budget=budget, seed=seed, encoders=encoders, lr=lr or None, batch=512 if encoders.flip else 64)
    mmkit.record(result, epochs=budget.epochs, **about)
    return result

# %% runs
for name in chosen:
    problem, count, members, about = open_case(name)
    done = {arm: run(arm, problem, Budget(count, epochs), compute="own", **about) for arm in members}
    if name == "complex" and {"scratch", "component"} <= set(done):
        equal = Budget(count, epochs, flops=done["component"].cost.flops)
        run("scratch", problem, equal, compute="as component", **about)
mine = recorded()
print(f"{len(mine)} runs recorded")

# %% table
METRIC = {"answering": "accuracy", "retrieval": "recall@1"}


def line(result):
    row, metric = result.row, METRIC[result.row["task"]]
    shifted = {split: row["scores"][f"{split}/{metric}"] for split in ("ood_composition", "ood_style") if f"{split}/{metric}" in row["scores"]}
    where = {"case": row["condition"]["case"], "arm": row["arm"], "compute": row["condition"]["compute"]}
    return {**where, "test": row["scores"][metric], **shifted, "GFLOPs": row["cost"]["flops"] / 1e9}


table = pd.DataFrame(map(line, mine)).set_index(["case", "arm", "compute"])
display(table.round({"test": 2, "ood_composition": 2, "ood_style": 2, "GFLOPs": 0}))

# %% published-records
folder = paths.notebooks() / "records" / published
evidence = records.read(folder) if published and data == "scenes" and folder.exists() else []
source = evidence or mine
seeds = sorted({result.row["seed"] for result in source})
print(f"{'published records' if evidence else 'no published records, so this run alone'}: {len(source)} results, {len(seeds)} seeds")

# %% figure-helpers
def case_points(results, name, split):
    """arm -> mean, low, high of one case on one split; `scratch+` is scratch with component's compute."""
    points = {}
    for condition in {str(r.condition): r.condition for r in results if r.condition.get("case") == name}.values():
        found = arm_points(results, split + METRIC[condition["task"]], condition)
        points |= {arm + ("" if condition["compute"] == "own" else "+"): value for arm, value in found.items()}
    return points


ORDER = ["shuffled_pairs", "blank_image", "blank_text", "best_single", "ensemble_single", "joint_plus_unimodal", "frozen", "component", "holistic", "scratch+", "scratch"]
there = {result.row["arm"] + ("" if result.condition["compute"] == "own" else "+") for result in source}
SHOWN = [arm for arm in ORDER if arm in there]
known = {result.condition.get("case") for result in source}
columns = [name for name in CASES if name in known]
means = {name: {arm: p["mean"] for arm, p in case_points(source, name, "").items() if arm in SHOWN} for name in columns}

# %% figure
across = min(3, len(columns))
down = -(-len(columns) // across)
alt = f"A panel for each of {', '.join(columns)}: accuracy or R@1 of each arm with 95 % intervals over {len(seeds)} seed(s), in domain as dark marks{', under a shift of style as pale ones' if data == 'scenes' else ''}."
rows_said = "An empty row was not run in that case; `scratch+` has the FLOPs of component. Dark: test split. Pale: shifted style. Ring: this run."
caption = f"Highest mean: {'; '.join(f'{name}, {max(found, key=found.get)} ({max(found.values()):.2f})' for name, found in means.items())}. {rows_said}"
with plots.figure(down, across, width=3.2 * across + 1, height=0.5 + 2.9 * down, alt=alt, squeeze=False, sharey=True, caption=caption) as axes:
    for axis in axes.flat[len(columns):]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, columns):
        for split, alpha in (("", 1.0), ("ood_style/", 0.35)):
            points, ring = case_points(source, name, split), case_points(mine, name, split)
            for y, arm in enumerate(SHOWN):
                look = plots.arm(arm.rstrip("+"))
                if arm in points:
                    p = points[arm]
                    error = [[p["mean"] - p["low"]], [p["high"] - p["mean"]]] if len(seeds) > 1 else None
                    axis.errorbar(p["mean"], y, xerr=error, color=look["color"], marker=look["marker"], alpha=alpha)
                if arm in ring:
                    axis.plot(ring[arm]["mean"], y, marker="o", markersize=10, fillstyle="none", color="0.4", alpha=alpha)
        axis.set(title=name, xlim=(0, 1.03), xlabel="R@1" if name == "retrieval" else "accuracy", yticks=range(len(SHOWN)), yticklabels=SHOWN)

# %% lead
def lead(results, arm, behind="ensemble_single"):
    """The paired difference of two arms' accuracies over the seeds that both have, with its 95 % interval."""
    first, second = ({r.row["seed"]: r for r in results if r.row["arm"] == name} for name in (arm, behind))
    common = sorted(first.keys() & second.keys())
    terms = [(1.0, "accuracy", None, [first[s] for s in common]), (-1.0, "accuracy", None, [second[s] for s in common])]
    return stats.paired_bootstrap(aligned_terms(terms)) if len(common) > 1 else None

# %% shares
place = paths.notebooks() / "records" / "shares"
turned = records.read(place) if published and data == "scenes" and place.exists() else mine
at = {both: [r for r in turned if r.condition.get("case") == name] for name, both in SHARES.items()}
leads = {arm: {both: found for both, results in at.items() if (found := lead(results, arm))} for arm in ("scratch", "joint_plus_unimodal")}
if not any(leads.values()):
    print("No records of the knob over several seeds: run `mmkit reproduce shares` and publish them.")

# %% shares-figure
joint = leads["scratch"]
heights = {both: case_points(turned, name, "") for name, both in SHARES.items()} if joint else {}
never = {both: 1 - 0.75 * both for both in heights}
said = [f"{plots.arm(arm)['label']} against late fusion: " + ", ".join(f"{e.effect:+.2f} [{e.low:+.2f}, {e.high:+.2f}] at {b:g}" for b, e in found.items()) for arm, found in leads.items()]
above = ", ".join(f"{b:g}" for b in heights if heights[b]["scratch"]["low"] > never[b])
if joint:
    points = "; ".join(f"at {b:g} " + ", ".join(f"{plots.arm(arm)['label']} {p['mean']:.2f}" for arm, p in found.items()) for b, found in heights.items())
    alt = f"Accuracy against the share of answers that need both modalities: {points}. A model that never turns falls from 1 to 0.25."
    caption = f"The lead of {'; of '.join(said)}. Joint training (`scratch`) lies above the line of a model that never turns at a share of: {above or 'none'}."
    with plots.figure(width=6.5, height=3.6, alt=alt, caption=caption) as axes:
        for arm, shift in (("ensemble_single", -0.012), ("scratch", 0.0), ("joint_plus_unimodal", 0.012)):
            found = [heights[b][arm] for b in joint]
            errors = [[p["mean"] - p["low"] for p in found], [p["high"] - p["mean"] for p in found]]
            axes.errorbar([b + shift for b in joint], [p["mean"] for p in found], yerr=errors, color=plots.arm(arm)["color"], marker=plots.arm(arm)["marker"], label=plots.arm(arm)["label"], linestyle="-")
        axes.plot(list(never), list(never.values()), color="black", linestyle="--", linewidth=1, label="never turns")
        axes.set(xlabel="share of answers that need both modalities", ylabel="accuracy", xticks=list(joint), ylim=(0, 1.03))
        axes.legend(loc="lower left")

# %% chooser
def advise(pairs=256, both=0.5, image_share=0.5, shifted=False):
    """The advice for one case, as a line of text."""
    score = "ood_style/accuracy" if shifted else "accuracy"
    return str(chooser.choose(source, score=score, pairs=pairs, both=both, image_share=image_share))


if any(result.row["task"] == "answering" for result in source) and len(seeds) > 1:
    sliders = {
        "pairs": widgets.SelectionSlider(options=[32, 64, 128, 256, 512, 1024], value=256, description="pairs"),
        "both": widgets.FloatSlider(0.5, min=0, max=1, step=0.25, description="need both"),
        "image_share": widgets.FloatSlider(0.5, min=0.1, max=0.9, step=0.1, description="image share"),
        "shifted": widgets.Checkbox(False, description="judge under shift"),
    }
    answer = widgets.interactive_output(lambda **case: display(Markdown(advise(**case))), sliders)
    display(widgets.VBox([*sliders.values(), answer]))

# %% chooser-static
if len(seeds) > 1 and any(result.row["task"] == "answering" for result in source):
    for case in chooser.cases(source, task="answering"):
        print(advise(**case))
    regret = pd.DataFrame(chooser.regrets(source))
    display(regret.round(3))
else:
    regret = None
    print("The chooser needs records of several seeds: run `mmkit reproduce`, or keep the published ones.")

# %% pays-off
def pays_off(pretraining, with_it, without):
    """Smallest number of tasks n with pretraining + n * with_it < n * without, or None."""
    if with_it >= without:
        return None
    return int(pretraining // (without - with_it)) + 1

# %% pays-off-check
assert pays_off(10.0, 1.0, 2.0) == 11, "at ten tasks the two only tie"
assert pays_off(10.5, 1.0, 2.0) == 11 and pays_off(0.5, 1.0, 2.0) == 1, "count whole tasks, from the first that is cheaper"
assert pays_off(1.0, 2.0, 2.0) is None and pays_off(1.0, 3.0, 2.0) is None, "without a saving a task it never pays"
if {"component", "scratch"} <= set(done):
    phases, without = done["component"].cost.phases, done["scratch"].cost.flops
    once = sum(phases[part].flops for part in phases if part.startswith("pretrain_"))
    print(f"this run: {once / 1e9:.0f} GFLOPs once, then {(done['component'].cost.flops - once) / 1e9:.0f} a task instead of {without / 1e9:.0f}: cheaper from task {pays_off(once, done['component'].cost.flops - once, without)} on")

# %% findings
for name, points in means.items():
    under = {arm: p["mean"] for arm, p in case_points(source, name, "ood_style/").items() if arm in SHOWN}
    shifted = f"; under shifted style {max(under, key=under.get)}" if under else ""
    print(f"{name}: highest mean {max(points, key=points.get)} ({max(points.values()):.2f}), lowest {min(points, key=points.get)} ({min(points.values()):.2f}){shifted}")
if regret is not None and len(regret):
    print(f"chooser, each case left out once: mean regret {regret['regret'].mean():.3f}, worst {regret['regret'].max():.3f}")

# %% findings-exact
table_ok = table["test"].between(0, 1).all() and len(table) == len(mine)
ranked = table.xs("own", level="compute")["test"]
print(f"runs of this notebook: {len(table)}; every score a share: {bool(table_ok)}")
if "complex" in chosen and not arms:
    print("one model a modality, averaged, cannot answer the complex case:", bool(ranked["complex", "ensemble_single"] < 0.35))
    print("joint training can:", bool(ranked["complex", "scratch"] > 0.4))
