# How much of the headline is in the words?
# The code of 12_medical_imaging.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from IPython.display import display

import mmkit
from data_recipes.phantoms import DIAGNOSES, FINDINGS, masks
from mmkit.explain import occlusion, probe, some_of_each, standardised
from mmkit.metrics import Score, auroc
from mmkit.models import CNN
from mmkit.repro import paths, records, report
from mmkit.stats import score_interval
from mmkit.strategies import Budget, Encoders, fit
from mmkit.tasks import Diagnosis, Retrieval, resplit, reworded
from mmkit.tasks.reports import finding_f1, written
from mmkit.teach import plots

# %% parameters
data: str = "phantoms"  # data set: phantoms or covid_cxr
pairs: int = 512  # labelled images to train on (covid_cxr: all, when there are fewer)
epochs: int = 10  # passes over them
extra_arms: list[str] = []  # more strategies for image and text together, for example component
hide: list[str] = []  # words to take out of the notes, regular expressions; empty: the set's list
shares: list[float] = [0.01, 0.1, 1.0]  # shares of the labels for the study of label efficiency
looked_at: int = 24  # images whose attribution is computed
seed: int = 0  # decides first weights, order, which pairs; covid_cxr: also who is in which split
published: str = "medical"  # plan whose published records are read; empty: this run alone

# %% load
REAL = data == "covid_cxr"
LABEL = "label_covid" if REAL else "label_pneumonia"
LEAKS = r"""covid\S* sars\S* \S*corona\s?virus\S* wuhan pandemic rt-?pcr|pcr influenza\S* hiv|aids
    pneumocystis|jirovec\S*|pcp|pjp \S*bacteri\S* strep\S* legionel\S* klebsiel\S* mycoplas\S*
    varicella|chicken\s?pox lipoid e\.?\s?coli chlamyd\S*""".split()
dataset = resplit(mmkit.load(data), LABEL, seed) if REAL else mmkit.load(data)
print(dataset)

# %% hide-words
words = "|".join(hide or (LEAKS if REAL else DIAGNOSES))
named = re.compile(rf"\b(?:{words})(?!\w)", re.IGNORECASE)


def without_words(note):
    return named.sub("___", note)


def without_sentences(note):
    sentences = re.split(r"(?<=\.)\s+", note)
    return " ".join(part for part in sentences if not named.search(part)) or "___"


VARIANTS = {"note": "as written", "hidden": "words hidden"}
dataset = reworded(dataset, "note", "hidden", without_words)
if REAL:
    VARIANTS["cut"] = "sentences cut"
    dataset = reworded(dataset, "note", "cut", without_sentences)
rows = {split: dataset.rows(split) for split in ("train", "val", "test")}
notes = {split: dataset.texts_of(part, role="note")[0] for split, part in rows.items()}
told = next(filter(named.search, notes["test"]), "no note")
print("as written:  ", told[:160], "\nwords hidden:", without_words(told)[:160])

# %% counts
for split, part in rows.items():
    items, told = dataset.items.iloc[part], sum(map(bool, map(named.search, notes[split])))
    print(f"{split}: {items['group'].nunique()} patients, {len(part)} images,", end=" ")
    print(f"{(items[LABEL] == 1).sum()} positive, {told} whose note names a diagnosis")

# %% guess
guess = {"lead as written": 0.2, "lead with words hidden": 0.05}

# %% guess-check
assert set(guess) == {"lead as written", "lead with words hidden"}, "keep both names"
assert all(0 <= value <= 0.5 for value in guess.values()), "two AUROCs differ by at most 0.5"

# %% measure
def shown(value, low, high):
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


truth, patient = np.repeat([0, 1, 1, 0] * 10, 3), np.arange(120) // 3
noisy = truth + np.random.default_rng(0).normal(size=40)[patient]  # an error of each patient
print("by patient:", shown(*score_interval(auroc(noisy, truth, patient))))
print("as if independent:", shown(*score_interval(auroc(noisy, truth, np.arange(120)))))

# %% fits
ARMS = {"image": "image_only", "note": "text_only", "both": "scratch"}
options = {"budget": Budget(min(pairs, len(rows["train"])), epochs), "seed": seed}
if REAL:
    ARMS = {"image": "frozen_image", "note": "frozen_text", "both": "frozen"}
    options["batch"] = 16
    options["encoders"] = Encoders("efficientnet_lite0", "minilm", size=160, length=128)
asked = [("image", "note")]
for role in VARIANTS:
    asked += [(given, role) for given in ("note", "both", *extra_arms)]
runs = {}
for given, role in asked:
    problem = Diagnosis(dataset, label=LABEL, positive=1, role=role)
    runs[given, role] = fit(ARMS.get(given, given), problem, **options)
    mmkit.record(runs[given, role], words="" if given == "image" else VARIANTS[role])

# %% points
folder, found = paths.notebooks() / "records" / published, []
if published and (folder / "results.jsonl").exists():
    asked = data, "diagnosis"
    found = [r for r in records.read(folder) if (r.row["data"], r.row["task"]) == asked]
source = f"{len({r.row['seed'] for r in found})} seeds" if found else "this seed"


def point(given, role):
    """Mean, low and high of the AUROC, from the published seeds or, without them, this run."""
    words, arm = "" if given == "image" else VARIANTS[role], ARMS[given]
    of = [r for r in found if (r.condition.get("words"), r.row["arm"]) == (words, arm)]
    if not of:
        return score_interval(runs[given, role].scores["auroc"])
    p = report.arm_points(of, "auroc", None)[arm]
    return p["mean"], p["low"], p["high"]


points = {key: point(*key) for key in runs if key[0] in ARMS}
lines = {f"{given}, {VARIANTS[role]}": shown(*p) for (given, role), p in points.items()}
display(pd.DataFrame({f"AUROC, {source}": lines}))

# %% figure
drop = points["both", "note"][0] - points["both", "hidden"][0]
lead = points["both", "note"][0] - points["image", "note"][0]
caption = f"Image and note lead the image by {lead:.2f} AUROC; hiding the words takes {drop:.2f}."
MARKS = {"note": "o", "hidden": "s", "cut": "^"}
with plots.figure(alt=f"AUROCs. {caption}", caption=caption, width=6.4, height=2.7) as axis:
    for (given, role), (mean, low, high) in points.items():
        y = [*ARMS].index(given) + 0.16 * [*MARKS].index(role)
        look = plots.arm(ARMS[given]) | {"marker": MARKS[role], "label": None}
        fill, error = None if role == "note" else "white", [[mean - low], [high - mean]]
        axis.errorbar(mean, y, xerr=error, ms=9, capsize=3, markerfacecolor=fill, **look)
        said = "" if given == "image" else VARIANTS[role]
        axis.text(high + 0.01, y, said, fontsize=8, color=look["color"], va="center")
    axis.set(yticks=range(3), yticklabels=ARMS, ylim=(2.6, -0.4), xlim=(0.45, 1.12))
    axis.set(xlabel=f"AUROC of {LABEL[6:]}, test patients", xticks=np.arange(5, 11) / 10)

# %% controls
NAMES = ["auroc", "blank_image/auroc", "blank_text/auroc", "shuffled_text/auroc"]
NAMES += ["average_precision", "sensitivity", "specificity", "brier", "calibration_error"]
table = pd.DataFrame(index=[name.replace("_", " ") for name in NAMES])
for role, words in VARIANTS.items():
    scores = runs["both", role].scores
    table[f"both, {words}"] = [shown(*score_interval(scores[name])) for name in NAMES]
display(table)

# %% encoders
own_task, bodies, passes = Diagnosis(dataset, label=LABEL, positive=1), {}, max(1, epochs // 2)
torch.manual_seed(seed)
if not REAL:
    train, given = len(rows["train"]), {"seed": seed, "evaluate": ("val",)}
    alike = max(1, round(passes * train / dataset.splits["pool_image"]))  # as many images shown
    own = fit("frozen", own_task, budget=Budget(8, 1), encoders=Encoders(epochs=alike), **given)
    reports = Retrieval(dataset, role="report")
    paired = fit("scratch", reports, budget=Budget(train, passes), **given)
    bodies = {"random": CNN(), "own": own.model.image, "paired": paired.model.image}
    origin = {"random": own, "own": own, "paired": paired}
loader, known = own_task.loader(), {}
target = {split: own_task.target[part].numpy() for split, part in rows.items()}
for name, body in bodies.items():
    summaries = {}
    for split, part in rows.items():
        with torch.inference_mode():
            encoded = body.eval()(loader.input("image", torch.from_numpy(part)))
        summaries[split] = encoded.summary.numpy()
    known[name] = standardised(summaries)

# %% probes
def probed(name, share):
    """AUROC of a probe that saw a share of the labels: the mean of five draws of them."""
    drawn, clusters = [], dataset.clusters(rows["test"])
    for again in range(5):
        chosen = some_of_each(target["train"], share, [seed, again])
        model = probe(known[name]["train"][chosen], target["train"][chosen])
        drawn.append(auroc(model.decision_function(known[name]["test"]), target["test"], clusters))
    return Score(np.mean([score.items for score in drawn], axis=0), clusters)


efficiency = pd.DataFrame(index=bodies)
for share in shares if bodies else ():
    column = {name: probed(name, share) for name in bodies}
    intervals = map(score_interval, column.values())
    efficiency[f"{share:.0%} of the labels"] = [shown(*interval) for interval in intervals]
    for name, score in column.items():
        of = {"arm": f"probe_{name}", "task": "diagnosis", "scores": {"auroc": score}}
        mmkit.record(replace(origin[name], **of), labels=share)
display(efficiency)

# %% pointing
def log_odds(images):
    logits = runs["image", "note"].model({"image": images})
    return logits[:, 1] - logits[:, 0]


items, average = dataset.items.iloc[rows["test"]], dataset.pixels(rows["train"]).float().mean(0)
if not REAL:
    seen = items[(items["label_opacity"] == 1) & (items[LABEL] == 1)].drop_duplicates("group")
    seen = seen[:looked_at]
    heats = [occlusion(log_odds, dataset.pixels([row]), average) for row in seen.index]
    peaks, true = [divmod(int(heat.argmax()), 64) for heat in heats], masks(seen, "opacity")
    hits = {"pointing": [mask[peak] for mask, peak in zip(true, peaks)]}
    hits["pointing_random"] = true.mean(axis=(1, 2))
    hits["pointing_other"] = [mask[peak] for mask, peak in zip(np.roll(true, 1, axis=0), peaks)]
    of = dataset.clusters(seen.index)
    pointing = {name: Score(np.array(hit, float), of) for name, hit in hits.items()}
    mmkit.record(replace(runs["image", "note"], scores=pointing), study="pointing")
    for name, score in pointing.items():
        print(f"{name:16} {shown(*score_interval(score))}")

# %% heat
if not REAL:
    with plots.figure(1, 4, width=7.2, height=2.1, alt="Four images, lesion and heat") as axes:
        for axis, row, heat, peak, mask in zip(axes, seen.index, heats, peaks, true):
            axis.imshow(dataset.pixels([row])[0, 0], cmap="gray")
            axis.contour(heat, [0.6 * heat.max()], colors=plots.SKY, linewidths=1, linestyles="--")
            axis.contour(mask, levels=[0.5], colors=plots.ORANGE, linewidths=1.5)
            axis.plot(*peak[::-1], "x", color=plots.SKY, markersize=9)
            axis.set_title("inside" if mask[peak] else "outside", fontsize=9)
            axis.axis("off")

# %% reports
def generated(x):
    """A plain report from the features of each image."""
    chances = np.stack([head.predict_proba(x)[:, 1] for head in heads], axis=1)
    return [written(row, FINDINGS, low=0.35, high=0.65) for row in chances]


if not REAL:
    columns = [f"label_{finding}" for finding in FINDINGS]
    labels = {split: dataset.items.iloc[part][columns].to_numpy() for split, part in rows.items()}
    heads = [probe(known["paired"]["train"], label) for label in labels["train"].T]
    x, human = known["paired"]["test"], dataset.texts_of(rows["test"], role="report")[0]
    MADE = {"from the image": generated(x), "from a blank image": generated(0 * x)}
    MADE |= {"of another patient": generated(np.roll(x, 7, axis=0)), "the written reports": human}
    for name, told in MADE.items():
        print(f"F1, {name}: {finding_f1(told, labels['test'], FINDINGS):.2f}; the first: {told[0]}")

# %% subgroups
whole, brier = (runs["both", "hidden"].scores[name] for name in ("auroc", "brier"))
chance = np.abs(target["test"] - np.sqrt(brier.items))  # a Brier item is a square
ages = np.where(items["label_age"] < 50, "under 50", "50 and over")
groups = {"sex": items["label_sex"], "age": ages, "view": items["label_view"].str[:2]}
lines = {}
for name, values in groups.items():
    for value in sorted(set(values) - {""}):
        part = np.asarray(values) == value
        if np.bincount(target["test"][part], minlength=2).min() >= 2:
            made = auroc(chance[part], target["test"][part], whole.clusters[part])
            lines[f"{name}: {value}"] = len(set(made.clusters)), shown(*score_interval(made))
display(pd.DataFrame(lines, index=["patients", "AUROC"]).T)
spread = np.ptp(score_interval(whole)[1:]) / 3.92 * len(set(whole.clusters)) ** 0.5
for n in (100, 200, 1000, 5000):
    print(f"{n:5d} patients in two groups: a gap of {2.8 * 2 * spread / n**0.5:.2f} AUROC is found")

# %% patient-error
def patient_error(a, patients):
    """Standard error of the mean of `a`, patients as units."""
    sums = pd.Series(a - a.mean()).groupby(np.asarray(patients)).sum().to_numpy()
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(a))

# %% patient-error-check
a = np.array([1.0, 1, 0, 0, 0.5, 1])
usual, one_each = a.std(ddof=1) / 6**0.5, patient_error(a, np.arange(6))
assert abs(one_each - usual) < 1e-12, "one image a patient: the usual standard error"
twice = patient_error(np.repeat(a, 2), np.repeat(np.arange(6), 2))
assert abs(twice - one_each) < 1e-12, "showing every image twice adds no knowledge"
uneven = patient_error(a, np.array([0, 0, 0, 1, 1, 2]))
assert abs(uneven - 0.16839383) < 1e-6, "patients with more images weigh more"

# %% negation
def findings_in(sentence):
    """finding -> present or absent. A denial reaches over 'or' and commas, up to 'but'."""
    found = {}
    for part in re.split(r"\bbut\b|\bhowever\b", sentence.lower()):
        for finding in (f for f in FINDINGS if f in part):
            denied = re.search(rf"\b(no|without)\b.*{finding}|{finding}.*\bnot\b", part)
            found[finding] = "absent" if denied else "present"
    return found

# %% negation-check
def read(sentence):
    """The findings, each that is denied with a minus."""
    return {f"{'-' * (said == 'absent')}{f}" for f, said in findings_in(sentence).items()}


assert read("no effusion or nodule") == {"-effusion", "-nodule"}, "it reaches over 'or'"
assert read("large opacity") == {"opacity"} and read("the chest is clear") == set()
assert read("no effusion , but a large opacity") == {"-effusion", "opacity"}, "'but' ends it"
assert read("Nodule is not seen") == {"-nodule"}, "a denial may follow"
assert read("no effusion , nodule or opacity") == {"-effusion", "-nodule", "-opacity"}
assert read("no effusion however a nodule") == {"-effusion", "nodule"}, "'however' ends it"
assert read("opacity without effusion") == {"opacity", "-effusion"}, "it does not reach back"
assert read("nodules are noted") == {"nodule"}, "'noted' is no 'no'"

# %% findings
verdicts = report.verdicts(report.open_batch(published, str(folder.parent))[0]) if found else []
for verdict in verdicts:
    effect = report.effect_text(verdict)
    print(f"{verdict.claim.id:8} {verdict.verdict:12} {effect:36} {verdict.claim.statement}")
print(f"lead of both over the image as written {lead:.2f}, words hidden {lead - drop:.2f}; {guess}")
if not REAL:
    print("; ".join(f"{name} {score.value:.2f}" for name, score in pointing.items()))
