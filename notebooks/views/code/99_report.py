# Which strategy wins, by how much, how surely, and at what cost?
# The code of 99_report.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import itertools
import textwrap

import numpy as np
from IPython.display import HTML, Markdown, display

from mmkit.repro import claims, report, stats
from mmkit.teach import plots

# %% parameters
plan: str = "head_to_head"  # the plan whose records are read
runs_dir: str = ""  # the folder of its runs; empty for the runs made here, else the published records

# %% open-records
batch, folder = report.open_batch(plan, runs_dir)
found = report.verdicts(batch)
smoke = any(result.row["profile"] == "smoke" for result in batch.results) or None
arms, seeds = ({result.row[name] for result in batch.results} for name in ("arm", "seed"))
print(f"{len(batch.results)} results of {len(batch.headers)} runs: {len(arms)} arms, {len(seeds)} seeds, {len(report.conditions(batch.results))} conditions")
print("every run of the plan finished" if batch.complete else f"{len(batch.failures)} runs failed and {len(batch.missing)} were not made: see Failures")

# %% verdict-table
display(HTML(report.table_html(report.claims_table(found))) if found else Markdown("The plan names no claims."))

# %% forest-figure
rows = report.forest_rows(found)
names = [verdict.verdict for verdict in found]
caption = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
if rows:
    alt = "Forest plot of the effect of each claim with its 95 % interval. " + "; ".join(f"{row['label']}: {row['text']}" for row in rows)
    caption = f"The word at the right is the verdict: {caption}. A bar inside the grey band is too small to matter, one that crosses 0 decides nothing."
    with plots.figure(alt=alt, caption=caption, width=11, height=1.1 + 0.45 * len(rows), smoke=smoke) as axes:
        plots.forest(axes, rows)

# %% claim-cards
display(HTML(report.claim_cards(found, batch.manifest)))
display(HTML(report.waiting_claims(batch.manifest)))

# %% cost-quality-figure
panels = report.panels(found, batch.results)
points = [report.arm_points(batch.results, *panel) for panel in panels]
titles = [f"{report.condition_text(condition, [other for _, other in panels])}: {score}" for score, condition in panels]
best = [max(point, key=lambda arm: point[arm]["mean"]) for point in points]
cheap = [min(point, key=lambda arm: point[arm]["flops"]) for point in points]
tops = [f"{t}: {b} is highest with {p[b]['mean']:.3f} for {p[b]['flops']:.1e} FLOPs, {c} cheapest with {p[c]['mean']:.3f} for {p[c]['flops']:.1e}" for t, b, c, p in zip(titles, best, cheap, points)]
shape = {"rows": -(-len(panels) // 2) or 1, "columns": min(2, len(panels)) or 1}
with plots.figure(**shape, squeeze=False, width=9.5, height=3.3 * shape["rows"], alt="Score against compute. " + ". ".join(tops), caption=". ".join(tops) + ".", smoke=smoke) as axes:
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    for place, point, title, (score, _) in zip(axes.flat, points, titles, panels):
        plots.cost_quality(place, point, score=score, legend=False)
        place.set_title(textwrap.fill(title, 46), fontsize=9)
    known = {label: handle for place in axes.flat for handle, label in zip(*place.get_legend_handles_labels())}
    axes[0, -1].legend(known.values(), known, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)

# %% arm-tables
display(HTML(report.arm_tables(batch.results)))

# %% across-figure
own, together = report.across(batch.results)
if together:
    middle = {arm: (stats.interquartile_mean(scores), *stats.stratified_interval(scores, stats.interquartile_mean)) for arm, scores in together.items()}
    cases = len(next(iter(together.values())))
    said = "; ".join(f"{arm} {mean:.3f} [{low:.3f}, {high:.3f}]" for arm, (mean, low, high) in middle.items())
    levels = np.linspace(0, 1, 201)
    caption = f"Interquartile mean of {own} over {cases} cases: {said}. Each interval is an arm's own; which arm wins where, the paired claims say."
    with plots.figure(alt=f"Share of runs above each {own}, one line an arm. {caption}", caption=caption, width=7.5, height=3.4, smoke=smoke) as axes:
        for arm, scores in together.items():
            axes.plot(levels, stats.performance_profile(scores, levels), color=plots.arm(arm)["color"], label=f"{arm} {middle[arm][0]:.2f}", drawstyle="steps-post")
        axes.set(xlabel=own, ylabel="share of runs above it", ylim=(0, 1.02))
        axes.legend(title="interquartile mean", loc="lower left", fontsize=9)
else:
    print("This plan has no two cases with the same arms, so nothing is taken together.")

# %% rule
display(Markdown(claims.RULE))

# %% null-comparison
def null_comparison(rng, image_spread, seeds=6, images=100, captions=5):
    """Paired differences of two equal arms, (seeds, images, captions); image_spread: how much single images favour one arm."""
    by_image = rng.normal(0, image_spread, (1, images, 1))
    return by_image + rng.normal(0, 0.02, (seeds, 1, 1)) + rng.normal(0, 1, (seeds, images, captions))


def naive_excludes_zero(differences):
    return abs(differences.mean()) > 1.96 * differences.std() / np.sqrt(differences.size)


def two_level_excludes_zero(differences):
    totals = differences.sum(axis=2)
    estimate = stats.paired_bootstrap([stats.Term(totals, np.full(totals.shape, differences.shape[2]), 1.0, "test")], draws=1000)
    return not estimate.low <= 0 <= estimate.high

# %% false-alarm-rates
spreads, repeats = [0.0, 0.25, 0.5, 1.0], 150
rates = {"every caption a witness": [], "seeds and images": []}
for spread in spreads:
    rng = np.random.default_rng(0)
    made = [null_comparison(rng, spread) for _ in range(repeats)]
    rates["every caption a witness"].append(np.mean([naive_excludes_zero(differences) for differences in made]))
    rates["seeds and images"].append(np.mean([two_level_excludes_zero(differences) for differences in made]))
for name, values in rates.items():
    print(f"{name:24}", " ".join(f"{value:4.0%}" for value in values))

# %% false-alarm-figure
last = {name: values[-1] for name, values in rates.items()}
alt = f"False alarms against how much single images favour one arm. Counting captions they rise to {last['every caption a witness']:.0%}; resampling seeds and images they stay near 5 %."
caption = f"Two equal arms: counted caption by caption, up to {last['every caption a witness']:.0%} of comparisons look significant; with seeds and images resampled, {min(rates['seeds and images']):.0%} to {max(rates['seeds and images']):.0%}."
with plots.figure(alt=alt, caption=caption, width=6.5, height=3) as axes:
    for (name, values), marker in zip(rates.items(), "os"):
        axes.plot(spreads, values, marker=marker, label=name)
    axes.axhline(0.05, color="black", linewidth=1, linestyle=":", label="what 95 % promises")
    axes.set(xlabel="spread of the images' own effect (in caption noise)", ylabel="share of false alarms", ylim=(0, 1))
    axes.legend()

# %% failures
failed = report.failures_table(batch)
display(HTML(report.table_html(failed)) if len(failed) else Markdown("None: every run of the plan finished."))

# %% provenance
display(HTML(report.table_html(report.provenance(batch))))

# %% exercise-sign-flip
def sign_flip_p(effects):
    """Two-sided p-value over all 2 ** len(effects) patterns of signs."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(effects))))
    return np.mean(abs(signs @ effects) >= abs(np.sum(effects)) * (1 - 1e-12))

# %% check-sign-flip
example = np.array([3, 1, 4, -1, 5, 2]) / 64  # exact in binary, so that sums in any order are equal
assert abs(sign_flip_p(example) - stats.sign_flip(example)) < 1e-12, "count every pattern, the observed one too, and compare absolute sums"
assert sign_flip_p(np.ones(5)) == 2 / 32 > 0.05, "five seeds that all agree: only two of 32 patterns are as far out"
print(f"six seeds, five in favour: p = {sign_flip_p(example):.3f}; five seeds at best: p = {sign_flip_p(np.ones(5)):.4f}")

# %% exercise-standard-error
def standard_error(images, captions, image_spread):
    return np.sqrt(image_spread**2 / images + 1 / (images * captions))

# %% check-standard-error
drawn = np.random.default_rng(1).normal(0, 0.5, (4000, 100, 1)) + np.random.default_rng(2).normal(0, 1, (4000, 100, 5))
assert abs(standard_error(100, 5, 0.5) / drawn.mean(axis=(1, 2)).std() - 1) < 0.05, "the image part is shared by all captions of an image"
print(f"twice the images: {standard_error(200, 5, 0.5):.3f}, twice the captions: {standard_error(100, 10, 0.5):.3f}, as it was: {standard_error(100, 5, 0.5):.3f}")

# %% findings
print(f"{len(found)} claims: {', '.join(f'{names.count(name)} {name}' for name in dict.fromkeys(names))}")
highest = dict.fromkeys(best)
print(f"highest means of the figure above: {', '.join(highest)}" + ("; no arm wins everywhere" if len(highest) > 1 else ""))
for verdict in found:
    print(f"{verdict.claim.id} {verdict.verdict}: {verdict.claim.statement}")
    print(f"   {report.effect_text(verdict)}; {verdict.reason}")
