# Which strategy wins, by how much, how surely, and at what cost?
# The code of 99_report.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import itertools
import textwrap

import numpy as np
from IPython.display import HTML, Markdown, display

from mmkit import stats
from mmkit.published import held, history
from mmkit.repro import claims, report
from mmkit.teach import plots

# %% parameters
plan: str = "head_to_head"  # the plan whose records are read
runs_dir: str = ""  # folder of its runs; empty: the runs made here, else the published records

# %% open-records
batch, folder = report.open_batch(plan, runs_dir)
found = report.verdicts(batch)
smoke = any(result.row["profile"] == "smoke" for result in batch.results) or None
arms, seeds = ({result.row[name] for result in batch.results} for name in ("arm", "seed"))
conditions = report.conditions(batch.results)
print(f"{len(batch.results)} results of {len(batch.headers)} runs: {len(arms)} arms,", end=" ")
print(f"{len(seeds)} seeds, {len(conditions)} conditions")
if batch.complete:
    print("every run of the plan finished")
else:
    print(f"{len(batch.failures)} runs failed and {len(batch.missing)} were not made: see Failures")

# %% verdict-table
if found:
    display(HTML(report.table_html(report.claims_table(found))))
else:
    display(Markdown("The plan names no claims."))

# %% forest-figure
rows = report.forest_rows(found)
names = [verdict.verdict for verdict in found]
tally = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
effects = "; ".join(f"{row['label']}: {row['text']}" for row in rows)
alt = f"Forest plot of the effect of each claim with its 95 % interval. {effects}"
caption = f"The word at the right is the verdict: {tally}. A bar inside the grey band is too small"
caption += " to matter, one that crosses 0 decides nothing."
if rows:
    size = {"width": 11, "height": 1.1 + 0.45 * len(rows)}
    with plots.figure(alt=alt, caption=caption, smoke=smoke, **size) as axes:
        plots.forest(axes, rows)

# %% claim-cards
given = history.given(history.read(), plan)  # every verdict a claim was ever given
display(HTML(report.claim_cards(found, batch.manifest, given)))
display(HTML(report.waiting_claims(batch.manifest)))

# %% held-table
known = held.places(found, batch, folder)
beside = held.table(known)
if len(beside):
    display(HTML(report.table_html(beside)))
    for place, (made, others) in known.items():
        print(f"{place}: {held.made(made)}")
        if place != "published":
            print(f"  {held.summary(held.hold(known['published'][1], others))}")
else:
    display(Markdown("There is nothing to hold these runs against: one set of records."))

# %% cost-panels
def told(title, points):
    """The best and the cheapest arm of a panel, in words."""
    best = max(points, key=lambda arm: points[arm]["mean"])
    cheap = min(points, key=lambda arm: points[arm]["flops"])
    names = {"highest mean": best, "cheapest": cheap}
    parts = []
    for what, arm in names.items():
        label, at = plots.arm(arm)["label"], points[arm]
        parts.append(f"{what} “{label}”, {at['mean']:.3f} for {at['flops']:.1e} FLOPs")
    return f"{title}: {'; '.join(parts)}"


panels = report.panels(found, batch.results)
shown = [condition for _, condition in panels]
points, titles = [], []
for score, condition in panels:
    points.append(report.arm_points(batch.results, score, condition))
    titles.append(f"{report.condition_text(condition, shown)}: {score}")
best = [max(panel, key=lambda arm: panel[arm]["mean"]) for panel in points]

# %% cost-quality-figure
across, down = min(2, len(panels)) or 1, -(-len(panels) // 2) or 1
tops = ". ".join(map(told, titles, points))
alt = f"Score against compute. {tops}."
size = {"width": 11, "height": 3.3 * down, "squeeze": False, "smoke": smoke}
with plots.figure(down, across, alt=alt, caption=f"{tops}.", **size) as axes:
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    known = {}  # one legend for all panels
    for place, panel, title, (score, _) in zip(axes.flat, points, titles, panels):
        plots.cost_quality(place, panel, score=score, legend=False)
        place.set_title(textwrap.fill(title, 46), fontsize=9)
        known |= {label: mark for mark, label in zip(*place.get_legend_handles_labels())}
    beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "fontsize": 9}
    axes[0, -1].legend(known.values(), known, **beside)

# %% arm-tables
display(HTML(report.arm_tables(batch.results)))

# %% across-scores
own, together = report.across(batch.results)
middle = {}  # arm -> interquartile mean, low, high
for arm, scores in together.items():
    mean = stats.interquartile_mean(scores)
    middle[arm] = mean, *stats.stratified_interval(scores, stats.interquartile_mean)
if not together:
    print("This plan has no two cases with the same arms, so nothing is taken together.")

# %% across-figure
said = []
for arm, (mean, low, high) in middle.items():
    said.append(f"{plots.arm(arm)['label']} {mean:.3f} [{low:.3f}, {high:.3f}]")
caption = f"Interquartile mean of {own}: {'; '.join(said)}. Each interval is an arm's own;"
caption += " which arm wins where, the paired claims say."
levels = np.linspace(0, 1, 201)
if together:
    alt = f"Share of runs above each {own}, one line an arm. {caption}"
    with plots.figure(alt=alt, caption=caption, width=7.5, height=3.4, smoke=smoke) as axes:
        for arm, scores in together.items():
            look, profile = plots.arm(arm), stats.performance_profile(scores, levels)
            look["label"] += f" {middle[arm][0]:.2f}"
            axes.step(levels, profile, where="post", markevery=20, **look)
        axes.set(xlabel=own, ylabel="share of runs above it", ylim=(0, 1.02))
        axes.legend(title="interquartile mean", loc="lower left", fontsize=9)

# %% rule
display(Markdown(claims.RULE))

# %% null-comparison
def null_comparison(rng, image_spread, seeds=6, images=100, captions=5):
    """Paired differences of two equal arms, (seeds, images, captions).

    image_spread: how much single images favour one arm."""
    by_image = rng.normal(0, image_spread, (1, images, 1))
    by_seed = rng.normal(0, 0.02, (seeds, 1, 1))
    return by_image + by_seed + rng.normal(0, 1, (seeds, images, captions))


def naive_excludes_zero(differences):
    return abs(differences.mean()) > 1.96 * differences.std() / np.sqrt(differences.size)


def two_level_excludes_zero(differences):
    totals = differences.sum(axis=2)
    counts = np.full(totals.shape, differences.shape[2])
    estimate = stats.paired_bootstrap([stats.Term(totals, counts, 1.0, "test")], draws=1000)
    return not estimate.low <= 0 <= estimate.high

# %% false-alarm-rates
WAYS = {
    "every caption a witness": naive_excludes_zero,
    "seeds and images": two_level_excludes_zero,
}
spreads, repeats = [0.0, 0.25, 0.5, 1.0], 150
rates = {name: [] for name in WAYS}
for spread in spreads:
    rng = np.random.default_rng(0)
    made = [null_comparison(rng, spread) for _ in range(repeats)]
    for name, excludes_zero in WAYS.items():
        rates[name].append(np.mean(list(map(excludes_zero, made))))
for name, values in rates.items():
    print(f"{name:24}", " ".join(f"{value:4.0%}" for value in values))

# %% false-alarm-figure
naive, both = rates.values()
alt = "False alarms against how much single images favour one arm. Counting captions they rise to "
alt += f"{naive[-1]:.0%}; resampling seeds and images they stay near 5 %."
caption = f"Two equal arms: counted caption by caption, up to {naive[-1]:.0%} of comparisons look "
caption += f"significant; with seeds and images resampled, {min(both):.0%} to {max(both):.0%}."
with plots.figure(alt=alt, caption=caption, width=6.5, height=3) as axes:
    for (name, values), marker in zip(rates.items(), "os"):
        axes.plot(spreads, values, marker=marker, label=name)
    axes.axhline(0.05, color="black", linewidth=1, linestyle=":", label="what 95 % promises")
    axes.set(xlabel="spread of the images' own effect (in caption noise)")
    axes.set(ylabel="share of false alarms", ylim=(0, 1))
    axes.legend()

# %% failures
failed = report.failures_table(batch)
if len(failed):
    display(HTML(report.table_html(failed)))
else:
    display(Markdown("None: every run of the plan finished."))

# %% provenance
display(HTML(report.table_html(report.provenance(batch))))

# %% exercise-sign-flip
def sign_flip_p(effects):
    """Two-sided p-value over all 2 ** len(effects) patterns of signs."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(effects))))
    return np.mean(abs(signs @ effects) >= abs(np.sum(effects)) * (1 - 1e-12))

# %% check-sign-flip
example = np.array([3, 1, 4, -1, 5, 2]) / 64  # exact in binary: sums in any order are equal
p, five = sign_flip_p(example), sign_flip_p(np.ones(5))
assert abs(p - stats.sign_flip(example)) < 1e-12, "every pattern, both ends, absolute sums"
assert five == 2 / 32 > 0.05, "five seeds that all agree: only two of 32 patterns are as far out"
print(f"six seeds, five in favour: p = {p:.3f}; five seeds at best: p = {five:.4f}")

# %% exercise-standard-error
def standard_error(images, captions, image_spread):
    return np.sqrt(image_spread**2 / images + 1 / (images * captions))

# %% check-standard-error
drawn = np.random.default_rng(1).normal(0, 0.5, (4000, 100, 1))  # each image's own
drawn = drawn + np.random.default_rng(2).normal(0, 1, (4000, 100, 5))  # each caption's own
apart = abs(standard_error(100, 5, 0.5) / drawn.mean(axis=(1, 2)).std() - 1)
assert apart < 0.05, "the image part is shared by all captions of an image"
TRIED = {"as it was": (100, 5), "twice the images": (200, 5), "twice the captions": (100, 10)}
for what, (images, captions) in TRIED.items():
    print(f"{what}: {standard_error(images, captions, 0.5):.3f}")

# %% findings
print(f"{len(found)} claims: {tally}")
highest = dict.fromkeys(plots.arm(arm)["label"] for arm in best)
print(f"highest means of the figure above: {'; '.join(highest)}")
if len(highest) > 1:
    print("no arm wins everywhere")
for verdict in found:
    print(f"{verdict.claim.id} {verdict.verdict}: {verdict.claim.statement}")
    print(f"   {report.effect_text(verdict)}; {verdict.reason}")
