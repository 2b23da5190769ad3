# How much of the headline is in the words?
# The code of 12_medical_imaging.ipynb with its answers, made by `mmkit labs views`; the text is in the notebook.

# %% set-up
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from sklearn.linear_model import LogisticRegression

import mmkit
from data_recipes.phantoms import DIAGNOSES, FINDINGS, masks
from mmkit.metrics import Score, auroc
from mmkit.models import CNN
from mmkit.repro import paths, records, report, stats
from mmkit.strategies import Budget, Encoders, fit
from mmkit.tasks import Diagnosis, Retrieval, reworded
from mmkit.teach import plots

# %% parameters
data: str = "phantoms"  # data set: phantoms or covid_cxr
pairs: int = 512  # labelled images that a model may train on (covid_cxr: all, when there are fewer)
epochs: int = 10  # passes over them
extra_arms: list[str] = []  # more strategies for image and text together, for example component
hide: list[str] = []  # words to take out of the notes, as regular expressions; empty takes the set's list
shares: list[float] = [0.01, 0.1, 1.0]  # shares of the labels for the study of label efficiency
looked_at: int = 24  # images whose attribution is computed
seed: int = 0  # decides first weights, order, which pairs; with covid_cxr also who is in which split
published: str = "medical"  # plan whose published records the figure reads; empty: this run alone

# %% load
REAL = data == "covid_cxr"
WORDS = {
    "phantoms": list(DIAGNOSES),
    "covid_cxr": [r"covid\S*", r"sars\S*", r"\S*corona\s?virus\S*", r"wuhan", r"pandemic", r"rt-?pcr|pcr", r"influenza\S*", r"pneumocystis|jirovec\S*|pcp|pjp",
                  r"hiv|aids", r"\S*bacteri\S*", r"strep\S*", r"legionel\S*", r"klebsiel\S*", r"mycoplas\S*", r"varicella|chicken ?pox", r"lipoid", r"e\.? ?coli", r"chlamyd\S*"],
}  # fmt: skip
dataset = mmkit.load(data)
LABEL = "label_covid" if REAL else "label_pneumonia"
if REAL:  # splits drawn anew by patient, as the recipe's knob fold does
    paired = (items := dataset.items)["split"].isin(["train", "val", "test"])
    sick = items["group"].isin(items["group"][paired & (items[LABEL] == 1)])
    for part in (paired & sick, paired & ~sick):
        items.loc[part, "split"] = mmkit.data.split_by_hash([f"{seed}/{group}" for group in items["group"][part]], val=0.15, test=0.35)
    held = items["group"].isin(items["group"][items["split"].isin(["val", "test"])])
    items.loc[held & items["split"].str.startswith("pool"), "split"] = "left_out"  # nothing of these patients is pretrained on

print(dataset)

# %% hide-words
named = re.compile(rf"\b(?:{'|'.join(hide or WORDS.get(data, []))})(?!\w)", re.IGNORECASE)


def without_sentences(note):
    return " ".join(part for part in re.split(r"(?<=\.)\s+", note) if not named.search(part)) or "___"


VARIANTS = {"note": "as written", "hidden": "words hidden"} | ({"cut": "sentences cut"} if REAL else {})
dataset = reworded(dataset, "note", "hidden", lambda note: named.sub("___", note))
dataset = reworded(dataset, "note", "cut", without_sentences) if REAL else dataset
rows = {split: dataset.rows(split) for split in ("train", "val", "test")}
notes = dataset.texts_of(rows["test"], role="note")[0]
for note in list(filter(named.search, notes))[:1]:
    print("as written:  ", note[:160], "\nwords hidden:", named.sub("___", note)[:160])

# %% counts
for split, part in rows.items():
    items = dataset.items.iloc[part]
    told = sum(map(bool, map(named.search, dataset.texts_of(part, role="note")[0])))
    print(f"{split}: {items['group'].nunique()} patients, {len(part)} images, {int((items[LABEL] == 1).sum())} positive; the note of {told} images names a diagnosis")

# %% guess
guess = {"lead as written": 0.2, "lead with words hidden": 0.05}

# %% guess-check
assert set(guess) == {"lead as written", "lead with words hidden"}, "keep both names"
assert all(0 <= value <= 0.5 for value in guess.values()), "an AUROC better than chance leads another such by at most 0.5"

# %% measure
def interval(score, minus=None):
    """Value, low and high (95 %) of a score, or of the paired difference of two, over patients."""
    terms = []
    for part, weight in ((score, 1.0), (minus, -1.0)):
        if part is not None:
            patients = np.unique(part.clusters, return_inverse=True)[1]
            total, count = np.bincount(patients, part.items)[None], np.bincount(patients)[None].astype(float)
            terms.append(stats.Term(total, count, weight, "patients"))
    found = stats.paired_bootstrap(terms, draws=2000)
    return found.effect, found.low, found.high


def shown(value, low, high):
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


truth = np.repeat([0, 1, 1, 0] * 10, 3)
noisy = truth + np.repeat(np.random.default_rng(0).normal(size=40), 3)  # 40 patients, three images each, all with the patient's error
print("by patient:", shown(*interval(auroc(noisy, truth, np.arange(120) // 3))))
print("as if images were independent:", shown(*interval(auroc(noisy, truth, np.arange(120)))))

# %% fits
real = {"encoders": Encoders("efficientnet_lite0", "minilm", size=160, length=128), "batch": 16}
ARMS = {"image": "frozen_image", "note": "frozen_text", "both": "frozen"} if REAL else {"image": "image_only", "note": "text_only", "both": "scratch"}
budget = Budget(min(pairs, len(rows["train"])), epochs)
runs = {}
for given, role in [("image", "note"), *((given, role) for role in VARIANTS for given in ("note", "both", *extra_arms))]:
    arm = ARMS.get(given, given)
    runs[given, role] = fit(arm, Diagnosis(dataset, label=LABEL, positive=1, role=role), budget=budget, seed=seed, **(real if arm.startswith("frozen") and REAL else {}))
    mmkit.record(runs[given, role], words="" if given == "image" else VARIANTS[role])

# %% points
folder = paths.notebooks() / "records" / published
found = [r for r in records.read(folder) if r.row["data"] == data and r.row["task"] == "diagnosis"] if published and (folder / "results.jsonl").exists() else []
seeds = len({r.row["seed"] for r in found})


def point(given, role):
    """Mean, low and high of the AUROC, from the published seeds or, without them, from this run."""
    words = "" if given == "image" else VARIANTS[role]
    of = [r for r in found if r.condition.get("words") == words and r.row["arm"] == ARMS[given]]
    if not of:
        return interval(runs[given, role].scores["auroc"])
    return tuple(report.arm_points(of, "auroc", None)[ARMS[given]][name] for name in ("mean", "low", "high"))


points = {key: point(*key) for key in runs if key[0] in ARMS}
source = f"{seeds} seeds" if seeds else "this run, patients alone"
display(pd.DataFrame({f"{given}, {VARIANTS[role]}" if given != "image" else "image": [shown(*value)] for (given, role), value in points.items()}, index=[f"AUROC, {source}"]).T)

# %% figure
drop = points["both", "note"][0] - points["both", "hidden"][0]
alt = f"AUROC of image, note and both with intervals ({source}): filled marks for notes as written, open ones for hidden words; the note and both fall, both by {drop:.2f}, the image stays."
caption = f"Of the lead of image and note together over the image alone, {points['both', 'note'][0] - points['image', 'note'][0]:.2f} AUROC, hiding the words takes {drop:.2f}."
with plots.figure(alt=alt, caption=caption, width=6.4, height=2.7) as axis:
    for (given, role), (mean, low, high) in points.items():
        y = list(ARMS)[::-1].index(given) - 0.16 * (list(VARIANTS).index(role) if given != "image" else 0)
        look = {"color": {"image": plots.BLACK, "note": plots.BLUE, "both": plots.VERMILION}[given], "marker": {"note": "o", "hidden": "s", "cut": "^"}[role]}
        axis.errorbar(mean, y, xerr=[[mean - low], [high - mean]], markersize=9, capsize=3, markerfacecolor=None if role == "note" else "white", **look)
        axis.annotate(VARIANTS[role] if given != "image" else "", (high, y), xytext=(6, -3), textcoords="offset points", fontsize=8, color=look["color"])
    axis.set(yticks=range(3), yticklabels=list(ARMS)[::-1], ylim=(-0.6, 2.4), xlim=(0.45, 1.12), xticks=np.arange(5, 11) / 10, xlabel=f"AUROC of {LABEL.removeprefix('label_')}, test patients")

# %% controls
NAMES = {"auroc": "AUROC", "blank_image/auroc": "AUROC, image blank", "blank_text/auroc": "AUROC, note blank", "shuffled_text/auroc": "AUROC, another's note"}
NAMES |= {name: name.replace("_", " ") for name in ("average_precision", "sensitivity", "specificity", "brier", "calibration_error")}
display(pd.DataFrame({f"both, {VARIANTS[role]}": {text: shown(*interval(runs["both", role].scores[name])) for name, text in NAMES.items()} for role in VARIANTS}))

# %% encoders
own_task = Diagnosis(dataset, label=LABEL, positive=1)
torch.manual_seed(seed)
bodies = {}
if not REAL:
    passes = max(1, epochs // 2)
    alike = max(1, round(passes * len(rows["train"]) / dataset.splits["pool_image"]))  # passes over the larger, unpaired pool
    own = fit("frozen", own_task, budget=Budget(8, 1), seed=seed, encoders=Encoders(epochs=alike), evaluate=("val",))
    paired = fit("scratch", Retrieval(dataset, role="report"), budget=Budget(len(rows["train"]), passes), seed=seed, evaluate=("val",))
    bodies = {"random": (CNN(), own), "own": (own.model.image, own), "paired": (paired.model.image, paired)}


@torch.inference_mode()
def features(encoder, part):
    """Summaries (B, S) of some rows' images."""
    return torch.cat([encoder(dataset.pixels(chunk)).summary for chunk in np.array_split(part, max(1, len(part) // 256))]).numpy()

# %% probes
known = {name: {split: features(body.eval(), part) for split, part in rows.items()} for name, (body, _) in bodies.items()}
known = {name: {split: (x - of["train"].mean(0)) / (of["train"].std(0) + 1e-6) for split, x in of.items()} for name, of in known.items()}
target = {split: own_task.target[part].numpy() for split, part in rows.items()}


def probe(name, chosen, labels=target["train"]):
    return LogisticRegression(C=0.01, max_iter=500).fit(known[name]["train"][chosen], labels[chosen])


def drawn(share, again):
    """Rows of the training split: at least four of each class, and the same ones for every encoder."""
    rng = np.random.default_rng([seed, again])
    return np.concatenate([rng.permutation(np.flatnonzero(target["train"] == k))[: max(4, round(share * (target["train"] == k).sum()))] for k in (0, 1)])
def probed(name, share):
    made = [auroc(probe(name, drawn(share, again)).decision_function(known[name]["test"]), target["test"], dataset.clusters(rows["test"])) for again in range(5)]
    return Score(np.mean([m.items for m in made], axis=0), made[0].clusters)


efficiency = {(name, share): probed(name, share) for name in known for share in shares}
for (name, share), score in efficiency.items():
    mmkit.record(replace(bodies[name][1], arm=f"probe_{name}", task="diagnosis", scores={"auroc": score}), labels=share)
display(pd.DataFrame({f"{share:.0%} of the labels": {name: shown(*interval(efficiency[name, share])) for name in known} for share in shares}))

# %% occlusion
average = dataset.pixels(rows["train"]).float().mean(0)


@torch.inference_mode()
def occluded(model, image, window=12, step=4):
    """(64, 64) log-odds lost, summed over the squares that hide a pixel; image (1, 3, 64, 64) uint8."""
    places = [(y, x) for y in range(0, 65 - window, step) for x in range(0, 65 - window, step)]
    squares = torch.zeros(len(places), 1, 64, 64)
    for one, (y, x) in zip(squares, places):
        one[:, y : y + window, x : x + window] = 1
    logits = model(torch.cat([image, torch.where(squares > 0, average, image).to(torch.uint8)]), None)
    margin = logits[:, 1] - logits[:, 0]
    return ((margin[0] - margin[1:])[:, None, None] * squares[:, 0]).sum(0)

# %% pointing
items = dataset.items.iloc[rows["test"]]
if not REAL:
    seen = items[(items["label_opacity"] == 1) & (items[LABEL] == 1)].drop_duplicates("group").iloc[:looked_at]
    heats = [occluded(runs["image", "note"].model, dataset.pixels([row])) for row in seen.index]
    peaks, true = [divmod(int(heat.argmax()), 64) for heat in heats], masks(seen, "opacity")
    hits = {"pointing": [m[p] for m, p in zip(true, peaks)], "pointing_random": true.mean(axis=(1, 2)), "pointing_other": [m[p] for m, p in zip(np.roll(true, 1, axis=0), peaks)]}
    pointing = {name: Score(np.array(value, dtype=float), dataset.clusters(seen.index)) for name, value in hits.items()}
    mmkit.record(replace(runs["image", "note"], scores=pointing), study="pointing")
    for name, score in pointing.items():
        print(f"{name:16s} {shown(*interval(score))}")

# %% heat
if not REAL:
    alt = "Four test images: the outline of the true opacity, a dashed line around where occlusion costs most, and a cross on its peak."
    with plots.figure(1, 4, width=7.2, height=2.1, alt=alt, caption="Orange: the true opacity. Blue: where hiding costs most; the cross is its peak.") as axes:
        for axis, row, heat, peak, mask in zip(axes, seen.index, heats, peaks, true):
            axis.imshow(dataset.pixels([row])[0, 0], cmap="gray")
            axis.contour(heat, levels=[0.6 * heat.max()], colors=plots.SKY, linewidths=1, linestyles="--")
            axis.contour(mask, levels=[0.5], colors=plots.ORANGE, linewidths=1.5)
            axis.plot(peak[1], peak[0], "x", color=plots.SKY, markersize=9)
            axis.set_title("inside" if mask[peak] else "outside", fontsize=9)
            axis.axis("off")

# %% read-reports
DOUBT, DENIAL = re.compile(r"possible|cannot exclude|may be|not excluded"), re.compile(r"\bno\b|\bnot\b|without|clear|normal")


def said(report):
    """finding -> present, absent or uncertain, for the findings that a report mentions."""
    found = {}
    for sentence in report.lower().split("."):
        for finding in (f for f in FINDINGS if f in sentence):
            found[finding] = "uncertain" if DOUBT.search(sentence) else "absent" if DENIAL.search(sentence) else "present"
    return found


def written(chances):
    return " ".join(f"{f} ." if p > 0.65 else f"possible {f} ." if p > 0.35 else f"no {f} ." for f, p in zip(FINDINGS, chances))


def f1(reports, truth):
    """Finding-level F1 of affirmed findings; truth (N, 4) of 0 and 1."""
    told = np.array([[said(report).get(f) == "present" for f in FINDINGS] for report in reports])
    return 2 * (told & (truth == 1)).sum() / max(told.sum() + truth.sum(), 1)

# %% reports
if not REAL:
    labels = {split: dataset.items.iloc[part][[f"label_{f}" for f in FINDINGS]].to_numpy() for split, part in rows.items()}
    heads = [probe("paired", slice(None), labels["train"][:, k]) for k in range(4)]
    chances = lambda x: np.stack([head.predict_proba(x)[:, 1] for head in heads], axis=1)  # noqa: E731
    x = known["paired"]["test"]
    generated = [written(row) for row in chances(x)]
    human = dataset.texts_of(rows["test"], role="report")[0]
    f1s = {"from the image": f1(generated, labels["test"]), "from a blank image": f1([written(row) for row in chances(0 * x)], labels["test"]),
           "of another patient": f1([written(row) for row in chances(np.roll(x, 7, axis=0))], labels["test"]), "the written reports": f1(human, labels["test"])}  # fmt: skip
    for name, value in f1s.items():
        print(f"finding-level F1, {name}: {value:.2f}")
    print("generated:", generated[0], "\nwritten:  ", human[0])

# %% subgroups
score = runs["both", "hidden"].scores
chance = np.abs(target["test"] - np.sqrt(score["brier"].items))  # a Brier item is (chance - target) squared
groups = {"sex": items["label_sex"], "age": np.where(items["label_age"] < 50, "under 50", "50 and over"), "view": items["label_view"].str[:2]}
lines = []
for name, values in groups.items():
    for value in sorted(set(values) - {""}):
        part = np.asarray(values) == value
        if min(target["test"][part].sum(), (1 - target["test"][part]).sum()) >= 2:
            made = auroc(chance[part], target["test"][part], score["auroc"].clusters[part])
            lines.append({"": f"{name}: {value}", "patients": len(set(made.clusters)), "AUROC": shown(*interval(made))})
display(pd.DataFrame(lines).set_index(""))
error, patients = np.ptp(interval(score["auroc"])[1:]) / 3.92, len(set(score["auroc"].clusters))
for n in (100, 200, 1000, 5000):
    print(f"{n:5d} test patients in two equal groups: an AUROC gap below {2.8 * 2 * error * (patients / n) ** 0.5:.2f} is missed more than one time in five")

# %% patient-error
def patient_error(a, patients):
    """Standard error of the mean of `a`, patients as units."""
    sums = pd.Series(a - a.mean()).groupby(np.asarray(patients)).sum().to_numpy()
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(a))

# %% patient-error-check
a = np.array([1.0, 1, 0, 0, 0.5, 1])
assert abs(patient_error(a, np.arange(6)) - a.std(ddof=1) / 6**0.5) < 1e-12, "one image a patient: the usual standard error"
twice = patient_error(np.repeat(a, 2), np.repeat(np.arange(6), 2))
assert abs(twice - patient_error(a, np.arange(6))) < 1e-12, "showing every image twice adds no knowledge"
uneven = patient_error(a, np.array([0, 0, 0, 1, 1, 2]))
assert abs(uneven - 0.16839383) < 1e-6, "patients with more images weigh more: sum the deviations from the mean of all images"

# %% negation
def findings_in(sentence):
    """finding -> present or absent. A denial reaches over 'or' and commas, up to 'but', 'however' or the end."""
    found = {}
    for part in re.split(r"\bbut\b|\bhowever\b", sentence.lower()):
        for finding in (f for f in FINDINGS if f in part):
            denied = re.search(rf"\b(no|without)\b.*{finding}|{finding}.*\bnot\b", part)
            found[finding] = "absent" if denied else "present"
    return found

# %% negation-check
assert findings_in("no effusion or nodule") == {"effusion": "absent", "nodule": "absent"}, "the denial reaches over 'or'"
assert findings_in("large opacity") == {"opacity": "present"} and findings_in("the chest is clear") == {}
assert findings_in("no effusion , but a large opacity") == {"effusion": "absent", "opacity": "present"}, "'but' ends the denial"
assert findings_in("Nodule is not seen") == {"nodule": "absent"}, "a denial may follow"
assert findings_in("no effusion , nodule or opacity") == {"effusion": "absent", "nodule": "absent", "opacity": "absent"}, "a comma does not end the denial"
assert findings_in("no effusion however a nodule") == {"effusion": "absent", "nodule": "present"}, "'however' ends it"
assert findings_in("opacity without effusion") == {"opacity": "present", "effusion": "absent"}, "a denial does not reach back"
assert findings_in("nodules are noted") == {"nodule": "present"}, "'noted' is no 'no'"

# %% findings
verdicts = report.verdicts(report.open_batch(published, str(folder.parent))[0]) if found else []
for verdict in verdicts:
    print(f"{verdict.claim.id:8} {verdict.verdict:12} {report.effect_text(verdict):36} {verdict.claim.statement}")
leads = {words: points["both", role][0] - points["image", "note"][0] for role, words in VARIANTS.items()}
print("lead of both over the image:", ", ".join(f"{words} {lead:.2f}" for words, lead in leads.items()), f"(your guess: {guess['lead as written']:.2f} and {guess['lead with words hidden']:.2f})")
if not REAL:
    print(f"pointing game {pointing['pointing'].value:.2f}, against another's mask {pointing['pointing_other'].value:.2f}, at random {pointing['pointing_random'].value:.2f}")
