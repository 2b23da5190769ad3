# Which strategy should you bet on, and how would you know?
# The code of 00_start_here.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
from math import ceil, sqrt
from statistics import NormalDist
from textwrap import fill

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

import mmkit
from mmkit import doctor
from mmkit.repro import paths, records
from mmkit.teach import plots

# %% parameters
data: str = "scenes"  # data set to look at: a recipe or one of your own
true_gap: float = 1.0  # points of recall@1 by which strategy A truly is better
seed_sd: float = 1.4  # standard deviation of either strategy's score over seeds, in points
shared: float = 0.5  # correlation of the two scores of one seed, when split and order are shared
most_seeds: int = 16  # largest number of seeds to simulate
repeats: int = 20000  # simulated comparisons
seed: int = 0  # seed of the simulation

# %% guess
guess = 0.25

# %% guess-check
assert 0 <= guess <= 1, f"a share lies between 0 and 1, got {guess}"
print(f"noted: {guess:.0%}")

# %% simulation
rng = np.random.default_rng(seed)
seeds = np.arange(1, most_seeds + 1)


def share_wrong(correlation):
    """Share of comparisons with a negative mean difference after 1, 2, ... seeds."""
    luck, own_a, own_b = rng.standard_normal((3, repeats, most_seeds))
    a = true_gap + seed_sd * (sqrt(correlation) * luck + sqrt(1 - correlation) * own_a)
    b = seed_sd * (sqrt(correlation) * luck + sqrt(1 - correlation) * own_b)
    return ((a - b).cumsum(axis=1) / seeds < 0).mean(axis=0)


simulated = {"separate seeds": share_wrong(0.0), "paired seeds": share_wrong(shared)}
for name, wrong in simulated.items():
    print(f"{name}: the worse strategy is ahead in {wrong[0]:.0%} of comparisons with one seed")
print(f"your guess: {guess:.0%}")

# %% formula
def p_wrong(gap, sd, count, correlation=0.0):
    """Equation (1): probability that the mean difference over `count` seeds has the wrong sign."""
    return NormalDist().cdf(-gap * sqrt(count) / (sd * sqrt(2 * (1 - correlation))))


def curve(correlation):
    """Equation (1) for 1, 2, ... seeds."""
    return np.array([p_wrong(true_gap, seed_sd, count, correlation) for count in seeds])


exact = {"separate seeds": curve(0.0), "paired seeds": curve(shared)}
worst = max(abs(simulated[name] - exact[name]).max() for name in exact)
allowed = 4 * sqrt(0.25 / repeats)  # four standard errors of a simulated share
separate, paired = (wrong[0] for wrong in exact.values())
print(f"one seed each, by (1): {separate:.1%} separate, {paired:.1%} paired")
print(f"simulation and formula agree within their sampling error: {worst < allowed}")

# %% wrong-sign-figure
few = min(6, most_seeds)
text = "; ".join(
    f"{name}: {p[0]:.0%} with 1 seed, {p[few - 1]:.0%} with {few}" for name, p in exact.items()
)
caption = f"True gap {true_gap:.1f} points, seed SD {seed_sd:g}. {text}."
with plots.figure(
    alt=f"Wrong signs against the number of seeds, falling. {caption} Points lie on the lines.",
    caption=f"How often the worse strategy wins. {caption} Points: simulated. Lines: equation (1).",
) as axes:
    for name, colour, marker in zip(exact, (plots.VERMILION, plots.BLUE), "so"):
        axes.plot(seeds, 100 * exact[name], color=colour)
        axes.plot(seeds, 100 * simulated[name], marker, color=colour, label=name)
    axes.axhline(5, color=plots.GREY, linestyle="--", linewidth=1)
    axes.annotate("5 %", (seeds[-1] + 0.4, 5.6), ha="right", color=plots.GREY)
    axes.set(xlabel="seeds for each strategy", ylabel="wrong sign (% of comparisons)")
    axes.set(xlim=(0.5, most_seeds + 0.5), ylim=(0, 50))
    axes.legend()

# %% own-runs
published = records.table(records.read(paths.notebooks() / "records" / "head_to_head"))
kept = (published["compute"] == "own") & published["score"].isin(["accuracy", "recall@1"])
own = {}
for case, runs in published[kept].groupby("case"):
    scores = 100 * runs.pivot(index="seed", columns="arm", values="value")
    scores = scores[["component", "holistic", "scratch"]]
    with_component = scores.corr().loc["component"]
    own[case] = [*scores.std(), with_component["holistic"], with_component["scratch"]]
columns = ["SD component", "SD holistic", "SD scratch", "corr. holistic", "corr. scratch"]
own = pd.DataFrame(own, index=columns).T
print(own.round(2).to_string())
sds, rhos = own.iloc[:, :3].to_numpy(), own.iloc[:, 3:].to_numpy()
print(f"SD over seeds from {sds.min():.1f} to {sds.max():.1f} points")
print(f"correlation from {rhos.min():.2f} to {rhos.max():.2f}")

# %% environment
print(doctor.table(doctor.diagnose()))

# %% pictures
dataset = mmkit.load(data)
print(f"{dataset.name}, content {dataset.content[:12]}")
print(", ".join(f"{split} {count:,}" for split, count in dataset.splits.items()))
rows = dataset.rows("train")[:4]
captions = [dataset.texts_of([row])[0][0] for row in rows]
with plots.figure(
    1,
    len(rows),
    height=2.6,
    squeeze=False,
    smoke=False,
    alt=f"Training images of {data} with their captions: " + "; ".join(captions),
    caption=f"The first training items of {data}, each with its first caption.",
) as axes:
    for axis, pixels, caption in zip(axes[0], dataset.pixels(rows), captions):
        axis.imshow(pixels.permute(1, 2, 0))
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(fill(caption, 24), fontsize=8)

# %% seeds-needed
def seeds_needed(gap, sd, error, correlation=0.0):
    """The least number of seeds with p_wrong(gap, sd, seeds, correlation) <= error."""
    quantile = -NormalDist().inv_cdf(error)
    return ceil(2 * (1 - correlation) * (quantile * sd / gap) ** 2)

# %% seeds-needed-check
for case in [
    (1.0, 1.4, 0.05, 0.0),
    (1.0, 1.4, 0.05, 0.5),
    (0.5, 1.4, 0.05, 0.0),
    (2, 0.5, 0.2, 0.3),
]:
    gap, sd, error, correlation = case
    answer = seeds_needed(*case)
    wrong = p_wrong(gap, sd, answer, correlation)
    assert wrong <= error, f"{answer} seeds are too few for {case}"
    one_less = p_wrong(gap, sd, answer - 1, correlation)
    assert answer == 1 or one_less > error, f"fewer than {answer} seeds are enough for {case}"
print("both sides hold: enough, and no fewer would be")

# %% findings
separate, paired = (seeds_needed(true_gap, seed_sd, 0.05, rho) for rho in (0.0, shared))
exact_share, simulated_share = exact["separate seeds"][0], simulated["separate seeds"][0]
display(
    Markdown(
        f"With a true gap of {true_gap:.1f} points and a seed SD of {seed_sd:g}, one seed of each "
        f"strategy names the worse one in **{exact_share:.0%}** of comparisons (simulated: "
        f"{simulated_share:.0%}; your guess: {guess:.0%}). To be wrong in at most 5 % it takes "
        f"**{separate}** separate seeds, or **{paired}** paired at a correlation of {shared:g}."
    )
)
