"""Diagnosis and its metrics: against scikit-learn, brute force and resampling, and what the task reads and refuses."""

import numpy as np
import pytest
from sklearn import metrics as sklearn

from mmkit.data import Recipe, load
from mmkit.errors import MmkitError
from mmkit.metrics import at_threshold, auroc, average_precision, brier, calibration_error, threshold
from mmkit.models import CNN, TextTransformer, WordTokenizer
from mmkit import stats
from mmkit.strategies import Budget, fit
from mmkit.tasks import Diagnosis, resplit, reworded
from mmkit.training import seeded

SMALL = {"train": 60, "val": 20, "test": 30, "ood": 10, "pool": 20}


def example(count=300, *, skill=1.0, ties=False, seed=0):
    """Scores of `skill` standard deviations between the classes, targets (30 % positive), patients of three items."""
    rng = np.random.default_rng(seed)
    target = (rng.random(count) < 0.3).astype(int)
    score = rng.normal(size=count) + skill * target
    return (np.round(score) if ties else score), target, np.arange(count) // 3


def brute_auroc(score, target):
    return np.mean([(p > n) + 0.5 * (p == n) for p in score[target == 1] for n in score[target == 0]])


# ---------------------------------------------------------------------------------------------- ranking


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_ranking_metrics_equal_scikit_learn_and_brute_force(ties, seed):
    score, target, patients = example(ties=ties, seed=seed)
    value = auroc(score, target, patients).value
    assert value == pytest.approx(sklearn.roc_auc_score(target, score)) == pytest.approx(brute_auroc(score, target))
    value = average_precision(score, target, patients).value
    assert value == pytest.approx(sklearn.average_precision_score(target, score))


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
@pytest.mark.parametrize("ties", [False, True])
def test_items_are_the_value_plus_n_times_the_derivative_by_the_items_weight(name, ties):
    score, target, patients = example(40, ties=ties)
    metric, oracle = auroc, sklearn.roc_auc_score
    if name == "average_precision":
        metric, oracle = average_precision, sklearn.average_precision_score
    items, value, step = metric(score, target, patients).items, oracle(target, score), 1e-6
    for item in range(40):
        weight = np.ones(40)
        weight[item] += step
        slope = (oracle(target, score, sample_weight=weight) - value) / step
        assert items[item] == pytest.approx(value + 40 * slope, abs=1e-3)


def test_the_variance_of_the_items_is_delongs():
    score, target, patients = example()
    p, n = score[target == 1], score[target == 0]
    wins = (p[:, None] > n) + 0.5 * (p[:, None] == n)
    delong = wins.mean(1).var(ddof=1) / len(p) + wins.mean(0).var(ddof=1) / len(n)
    items = auroc(score, target, patients).items
    assert items.var() / len(items) == pytest.approx(delong, rel=0.02)


def test_resampling_items_by_patient_gives_the_interval_of_resampling_patients():
    """The bootstrap of the statistic itself, patient by patient, spreads as the items' mean does; items taken for
    independent spread less."""
    rng = np.random.default_rng(1)
    sick = rng.random(120) < 0.4
    patients, target = np.repeat(np.arange(120), 3), np.repeat(sick, 3).astype(int)
    score = np.repeat(rng.normal(size=120) + sick, 3) + 0.3 * rng.normal(size=360)
    made = auroc(score, target, patients)
    total = np.bincount(patients, made.items)[None]
    spread = stats.crossed_draws([stats.Term(total, np.full_like(total, 3.0), 1.0, "patients")], draws=2000).std()
    drawn = [rng.integers(0, 120, 120) for _ in range(400)]
    target, score = target.reshape(120, 3), score.reshape(120, 3)
    direct = np.std([sklearn.roc_auc_score(target[d].ravel(), score[d].ravel()) for d in drawn])
    assert spread == pytest.approx(direct, rel=0.12)
    assert made.items.std() / np.sqrt(360) < 0.75 * direct


IGNORANT = {
    "zero": np.zeros_like,
    "constant": np.ones_like,
    "random": lambda score: np.random.default_rng(2).normal(size=score.shape),
    "shuffled": np.random.default_rng(3).permutation,
}


@pytest.mark.parametrize("name", IGNORANT)
def test_scores_that_know_nothing_are_at_chance(name):
    score, target, patients = example(1500, skill=3.0)
    assert auroc(score, target, patients).value > 0.97 and average_precision(score, target, patients).value > 0.95
    score = IGNORANT[name](score)
    assert auroc(score, target, patients).value == pytest.approx(0.5, abs=0.05)
    assert average_precision(score, target, patients).value == pytest.approx(target.mean(), abs=0.05)


# ---------------------------------------------------------------------------------------------- calibration


def test_brier_and_calibration_error():
    score, target, patients = example(400)
    probability = 1 / (1 + np.exp(-score))
    made = brier(probability, target, patients)
    assert made.value == pytest.approx(sklearn.brier_score_loss(target, probability)) and not made.higher_is_better
    edges = np.linspace(0, 1, 11)
    expected = 0.0
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (probability >= low) & (probability < high)
        if inside.any():
            expected += inside.mean() * abs(probability[inside].mean() - target[inside].mean())
    made = calibration_error(probability, target, patients)
    assert made.value == pytest.approx(expected) and expected > 0.05 and not made.higher_is_better
    assert calibration_error(np.array([1.0, 0.0, 1.0]), np.array([1, 0, 0]), np.arange(3)).value == pytest.approx(1 / 3)
    rng = np.random.default_rng(0)
    honest = rng.random(20_000)
    assert calibration_error(honest, rng.random(20_000) < honest, np.arange(20_000)).value < 0.02


def test_probabilities_outside_0_to_1_are_refused():
    for bad in (1.2, -0.1, np.nan):
        with pytest.raises(MmkitError, match="probabilities must lie between 0 and 1"):
            brier(np.array([bad]), np.array([1]), np.arange(1))


# ---------------------------------------------------------------------------------------------- operating points


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("goal", [0.5, 0.9, 1.0])
def test_operating_points_are_the_best_of_the_roc_curve(ties, goal):
    score, target, patients = example(ties=ties)
    false, true, _ = sklearn.roc_curve(target, score, drop_intermediate=False)
    at = at_threshold(score, target, patients, threshold=threshold(score, target, specificity=goal))
    assert at["specificity"].value >= goal
    assert at["sensitivity"].value == pytest.approx(true[1 - false >= goal - 1e-9].max())
    at = at_threshold(score, target, patients, threshold=threshold(score, target, sensitivity=goal))
    assert at["sensitivity"].value >= goal
    assert at["specificity"].value == pytest.approx((1 - false)[true >= goal - 1e-9].max())


def test_a_share_of_positives_belongs_to_the_patients_that_are_positive():
    at = at_threshold([0.2, 0.8, 0.5, 0.4], [1, 1, 0, 0], [7, 8, 9, 6], threshold=0.5)
    assert at["sensitivity"].items.tolist() == [0, 1] and at["sensitivity"].clusters.tolist() == [7, 8]
    assert at["specificity"].items.tolist() == [0, 1] and at["specificity"].clusters.tolist() == [9, 6]


def test_what_ranking_metrics_refuse():
    for message, call in {
        "0 of 3 items are positive: ranking metrics need both classes": lambda: auroc(
            [1.0, 2, 3], [0, 0, 0], np.arange(3)
        ),
        "3 of 3 items are positive": lambda: average_precision([1.0, 2, 3], [1, 1, 1], np.arange(3)),
        "scores are not finite, first at item 1": lambda: auroc([1.0, np.nan, 3], [0, 1, 0], np.arange(3)),
        "a threshold needs specificity= or sensitivity=, one of them": lambda: threshold([1.0, 2], [0, 1]),
    }.items():
        with pytest.raises(MmkitError, match=message):
            call()


# ---------------------------------------------------------------------------------------------- the task


@pytest.fixture(scope="module")
def phantoms():
    return load("phantoms", **SMALL)


def prepared(task):
    words = WordTokenizer(task.dataset.texts["text"])
    encoders = {"image": seeded(0, "image", CNN), "text": seeded(0, "text", TextTransformer, len(words))}
    return task.loader(words), task.build(encoders, seed=0)


def test_scores_are_of_the_positive_class_by_patient_with_a_threshold_from_validation(phantoms):
    task = Diagnosis(phantoms)
    loader, model = prepared(task)
    rows, held = task.rows("test"), task.rows("val")
    finding, probability, truth = phantoms.items["label_pneumonia"].to_numpy(), {}, {}
    for name, part in (("test", rows), ("val", held)):
        probability[name] = task.logits(model, loader, part).softmax(1)[:, 1].double().numpy()
        truth[name] = (finding[part] == 1).astype(int)
    scores = task.scores(model, loader, rows)
    assert scores["auroc"].value == pytest.approx(sklearn.roc_auc_score(truth["test"], probability["test"]), abs=1e-3)
    expected = sklearn.brier_score_loss(truth["test"], probability["test"])
    assert scores["brier"].value == pytest.approx(expected, abs=1e-5)
    cut = threshold(probability["val"], truth["val"], specificity=0.9)
    at = at_threshold(probability["test"], truth["test"], rows, threshold=cut)
    assert scores["specificity"].value == pytest.approx(at["specificity"].value)
    patients, clusters = phantoms.items["group"].to_numpy()[rows], scores["auroc"].clusters
    first = patients[clusters == clusters.min()]
    assert set(first) == {patients[0]} and len(first) == (patients == patients[0]).sum()
    assert len(np.unique(scores["auroc"].clusters)) == SMALL["test"]


def test_controls_blank_a_modality_or_deal_the_texts_out_anew(phantoms):
    task = Diagnosis(phantoms)
    loader, model = prepared(task)
    rows = task.rows("test")
    plain, controls = task.scores(model, loader, rows)["auroc"], task.blank_scores(model, loader, rows)
    assert set(controls) == {"blank_image/auroc", "blank_text/auroc", "shuffled_text/auroc"}
    assert all(score.items.tolist() != plain.items.tolist() for score in controls.values())


def test_a_class_against_the_rest(phantoms):
    sexes = Diagnosis(phantoms, label="label_sex", positive="man")
    assert sexes.classes == ["not man", "man"]
    assert sexes.target.tolist() == (phantoms.items["label_sex"] == "man").astype(int).tolist()
    assert Diagnosis(phantoms).classes == ["not 1", 1] and Diagnosis(phantoms).settings()["positive"] == 1
    with pytest.raises(MmkitError, match="unknown class of 'label_sex' 'men': did you mean 'man'"):
        Diagnosis(phantoms, label="label_sex", positive="men")


def toy(positives, split_of_few="test"):
    """Six patients a split, of which so many in one of them have the finding."""

    def prepare(writer, sources):
        for split, sick in ({"train": 3, "val": 3, "test": 3} | {split_of_few: positives}).items():
            for n in range(6):
                name, image = f"{split}-{n}", writer.image(np.zeros((16, 16, 3), np.uint8))
                row = writer.item(name, split=split, image=image, group=name, label_pneumonia=int(n < sick))
                writer.text(row, "a note .", role="note")

    name = f"toy_{'diagnosis' if split_of_few == 'test' else split_of_few}_{positives}"
    return load(Recipe(name=name, title="", task="", licence="", terms="", citation="", version=1, prepare=prepare))


def test_a_label_that_occurs_once_is_refused():
    assert len(Diagnosis(toy(2)).rows("test")) == 6
    for count in (0, 1):
        message = f"'label_pneumonia' of 'toy_diagnosis_{count}' is 1 for {count} patients of split 'test': at least 2"
        with pytest.raises(MmkitError, match=message):
            Diagnosis(toy(count))
    with pytest.raises(MmkitError, match="is 1 for 1 patients of split 'ood_clinic'"):
        Diagnosis(toy(1, "ood_clinic"))


def test_reworded_texts_are_one_more_role_of_the_same_patients(phantoms):
    hidden = reworded(phantoms, "note", "hidden", lambda text: text.replace("pneumonia", "___"))
    rows = phantoms.rows("test")
    notes = phantoms.texts_of(rows, role="note")[0]
    assert hidden.texts_of(rows, role="hidden")[0] == [text.replace("pneumonia", "___") for text in notes]
    assert hidden.texts_of(rows, role="note")[0] == phantoms.texts_of(rows, role="note")[0]
    assert hidden.content != phantoms.content != reworded(phantoms, "note", "hidden", str.upper).content
    assert not hidden.texts_of(phantoms.rows("pool_text"), role="hidden")[0], "what encoders are pretrained on stays"
    assert hidden.clusters(rows).tolist() == phantoms.clusters(rows).tolist()


@pytest.mark.parametrize("arm", ["scratch", "frozen_image", "frozen_text", "image_only"])
def test_every_arm_takes_the_task(phantoms, arm):
    run = fit(arm, Diagnosis(phantoms), budget=Budget(32, 1), seed=0, evaluate=("test",))
    expected = {"auroc", "average_precision", "brier", "calibration_error", "sensitivity", "specificity"}
    assert expected <= set(run.scores) and run.task == "diagnosis"


def test_a_frozen_arm_of_the_image_does_not_read(phantoms):
    runs = []
    for role in ("note", "report"):
        task = Diagnosis(phantoms, role=role)
        runs.append(fit("frozen_image", task, budget=Budget(32, 1), seed=0, evaluate=("test",)))
    one, two = (run.scores["brier"].items for run in runs)
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert "blank_image/auroc" not in runs[0].scores


def test_patients_split_anew_lie_in_one_split_each_and_are_not_pretrained_on():
    dataset = load("phantoms", **SMALL)
    other, again = (resplit(dataset, "label_pneumonia", seed) for seed in (0, 0))
    assert other.items["split"].equals(again.items["split"]), "a seed decides"
    assert not other.items["split"].equals(resplit(dataset, "label_pneumonia", 1).items["split"])
    evaluated = other.items[other.items["split"].isin(["val", "test"])]
    rest = other.items[~other.items["split"].isin(["val", "test", "left_out"]) & (other.items["group"] != "")]
    assert not set(evaluated["group"]) & set(rest["group"])
    assert set(dataset.items["split"]) - set(other.items["split"]) == set() and len(other) == len(dataset)
    assert dataset.items["split"].equals(load("phantoms", **SMALL).items["split"]), "the set given stays as it was"
    assert other.content == again.content != dataset.content, "caches and checkpoints know one from the other"
    assert other.content != resplit(dataset, "label_pneumonia", 1).content


def test_the_interval_of_a_score_is_that_of_its_patients():
    score, target, patients = example()
    first, second = auroc(score, target, patients), auroc(-score, target, patients)
    effect, low, high = stats.score_interval(first)
    assert low < effect < high and effect == pytest.approx(first.value)
    assert stats.score_interval(first, first) == pytest.approx((0, 0, 0), abs=1e-12), "paired: no difference at all"
    assert stats.score_interval(first, second)[0] == pytest.approx(first.value - second.value)
