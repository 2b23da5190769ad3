"""The generated set: what it promises about its answers, its splits and its bytes."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency

from data_recipes import scenes
from data_recipes.scenes import AXES, SIDES
from mmkit.data import load
from mmkit.errors import MmkitError

DEFAULT = "91f21bf62ac34789e5c16787fc7a83bded3936ae38b7a453cc39a76f519f83a2"
SMALL = "239034003119e1331bba7b0c9bfa5a5bbef283ce332d36407a3b84518eba8b4f"
TURNS = ("straight", "right", "around", "left")
STYLED = ("look ,", "this ground is", "my friend", "at this point", "everyone says", "the old path")
BEACON = np.array((255, 140, 0), np.uint8)


@cache
def generate(**knobs):
    """Images, items and texts, with each labelled item's scene code in `items.code`; small unless told otherwise.

    Not to be changed by a test.
    """
    images, items, texts = fresh(**knobs)
    labelled = items["group"].str.startswith("scene-")
    items["code"] = np.where(labelled, items["group"].str.extract(r"(\d+)$")[0].astype(int), -1)
    return images, items, texts


def fresh(**knobs):
    return scenes.generate(
        **scenes.RECIPE.knobs | {"train": 400, "val": 50, "test": 100, "ood": 80, "pool": 200} | knobs
    )


def texts_of(items, texts, role):
    """(item, text) of a role, one row a text, with the item's own columns beside it."""
    return texts[texts["role"] == role].join(items, on="item")


def axes(codes):
    return scenes._unravel(np.asarray(codes))


# ---------------------------------------------------------------------------------------------- bytes


def test_content_is_frozen():
    """A change here changes every record made with the set: raise the recipe's version and say so."""
    assert load("scenes").content == DEFAULT
    assert (
        load(
            "scenes",
            train=64,
            val=16,
            test=32,
            ood=16,
            pool=48,
            both=0.25,
            either=0.5,
            label_noise=0.1,
            broad=False,
            seed=3,
        ).content
        == SMALL
    )


def test_the_same_knobs_give_the_same_bytes_and_another_seed_does_not():
    first, again, other = fresh(), fresh(), fresh(seed=1)
    assert first[0].tobytes() == again[0].tobytes()
    for one, two in zip(first[1:], again[1:]):
        pd.testing.assert_frame_equal(one, two)
    assert first[0].tobytes() != other[0].tobytes() and not first[2].equals(other[2])


def test_the_global_generator_is_not_touched():
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    fresh(train=8, val=8, test=8, ood=8, pool=8)
    assert np.random.random() == expected


def test_pools_are_the_same_whatever_the_answers_need():
    (images, items, texts), (images_0, items_0, texts_0) = (
        generate(both=1.0, label_noise=0.5),
        generate(both=0.0, image_share=1.0),
    )
    pool = items["image"][items["split"] == "pool_image"].to_numpy()
    assert (images[pool] == images_0[pool]).all() and len(pool) == 200
    told, told_0 = (
        t[t["item"].isin(i.index[i["split"] == "pool_text"])] for i, t in ((items, texts), (items_0, texts_0))
    )
    assert told["text"].tolist() == told_0["text"].tolist() and len(told) == 600


# ---------------------------------------------------------------------------------------------- answers


def test_kind_both_needs_both():
    items = generate(both=1.0, train=1200, pool=0)[1]
    assert set(items["label_kind"]) == {"both"}
    sides, turns = ({word: k for k, word in enumerate(SIDES)}), ({word: k for k, word in enumerate(TURNS)})
    heading, answer, turn = (
        items["label_heading"].map(sides),
        items["label_answer"].map(sides),
        items["label_turn"].map(turns),
    )
    assert ((heading + turn) % 4 == answer).all()
    for alone in (heading, turn):
        table = pd.crosstab(alone, answer)
        assert chi2_contingency(table).pvalue > 1e-3
        assert table.max(axis=1).sum() / len(items) < 0.32, "the best guess from one modality is near chance"
    dependent = pd.crosstab(heading, (heading + (turn > 0)) % 4)
    assert chi2_contingency(dependent).pvalue < 1e-3, "the test would see a dependence"


def test_the_image_and_the_text_do_not_tell_the_kind_both_answer_away():
    """Beyond heading and turn, no other axis of the scene tells the answer."""
    items = generate(both=1.0, train=1200, pool=0)[1]
    for axis, values in axes(items["code"]).items():
        assert chi2_contingency(pd.crosstab(values, items["label_answer"])).pvalue > 1e-3, axis


def strip_side(image):
    """Which edge holds a beacon, read from the pixels; None without one."""
    edges = {"up": image[:2], "right": image[:, -2:], "down": image[-2:], "left": image[:, :2]}
    lit = [side for side, edge in edges.items() if (edge == BEACON).all()]
    assert len(lit) <= 1
    return lit[0] if lit else None


def test_cues_are_where_the_kind_says_and_tell_the_answer():
    images, items, texts = generate(both=0.4, either=0.3)
    questions = texts_of(items, texts, "question")
    questions = questions[questions["split"] != "pool_text"]
    told = questions["text"].str.extract(r"(?:path leads|exit is|must be|still leads) (\w+)")[0]
    assert set(questions["label_kind"]) == {"both", "image", "text", "either"}
    for row, side in zip(questions.itertuples(), told):
        seen = strip_side(images[row.image])
        assert seen == (row.label_answer if row.label_kind in ("image", "either") else None)
        assert (side if isinstance(side, str) else None) == (
            row.label_answer if row.label_kind in ("text", "either") else None
        )


def test_questions_tell_the_turn():
    _, items, texts = generate()
    words = {
        turn: pattern
        for turn, pattern in zip(TURNS, ("straight", "right turn|turn right", "around", "left turn|turn left"))
    }
    questions = texts_of(items, texts, "question")
    for turn, pattern in words.items():
        assert (questions["text"].str.contains(pattern) == (questions["label_turn"] == turn)).all()


@pytest.mark.parametrize(
    "knobs, shares",
    [
        ({"both": 0.3}, {"both": 0.3, "image": 0.35, "text": 0.35}),
        ({"both": 0.0, "image_share": 0.2}, {"image": 0.2, "text": 0.8}),
        ({"both": 0.5, "either": 0.5}, {"both": 0.5, "either": 0.25, "image": 0.125, "text": 0.125}),
        ({"both": 1.0, "either": 1.0}, {"both": 1.0}),
    ],
)
def test_the_knobs_set_the_shares_of_kinds(knobs, shares):
    items = generate(train=1000, pool=0, **knobs)[1]
    assert items["label_kind"].value_counts(normalize=True).to_dict() == pytest.approx(shares, abs=0.05)


def test_label_noise_is_in_training_alone():
    clean, noisy = generate()[1], generate(label_noise=0.4)[1]
    differs = clean["label_answer"] != noisy["label_answer"]
    assert set(clean["split"][differs]) == {"train"}
    assert differs[clean["split"] == "train"].mean() == pytest.approx(0.4 * 3 / 4, abs=0.07)
    pd.testing.assert_frame_equal(clean.drop(columns="label_answer"), noisy.drop(columns="label_answer"))


# ---------------------------------------------------------------------------------------------- pixels


def test_images_are_small_bytes_in_range():
    images = generate()[0]
    assert images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and images.min() < 60 and images.max() > 220


# ---------------------------------------------------------------------------------------------- splits and pools


def test_splits_have_the_sizes_asked_for_and_share_no_scene():
    items = generate()[1]
    assert items["split"].value_counts().to_dict() == {
        "train": 400,
        "val": 50,
        "test": 100,
        "ood_composition": 80,
        "ood_style": 80,
        "pool_image": 200,
        "pool_text": 200,
    }
    labelled = items[items["code"] >= 0]
    assert labelled["code"].is_unique and items["id"].is_unique


def held_out(codes):
    """The recipe's text written down again: four (arrow, heading) and four (landmark, shape) pairs never trained on."""
    pairs = {(0, 0), (5, 1), (4, 2), (3, 3)}, {(1, 0), (5, 1), (3, 2), (1, 3)}
    scene = axes(codes)
    return np.array(
        [
            (a, h) in pairs[0] or (c, s) in pairs[1]
            for a, h, c, s in zip(scene["arrow"], scene["heading"], scene["landmark"], scene["shape"])
        ]
    )


def test_held_out_compositions_are_in_their_own_split_alone():
    items = generate(train=1200, pool=0)[1]
    labelled = items[items["code"] >= 0]
    novel = held_out(labelled["code"])
    assert ((labelled["split"] == "ood_composition") == novel).all() and novel.sum() == 80
    seen = axes(labelled["code"][labelled["split"] == "train"])
    for axis, size in AXES.items():
        assert set(seen[axis]) == set(range(size)), "each value alone is seen in training"


@pytest.mark.parametrize("broad", [True, False])
def test_pools_hold_no_evaluation_scene(broad):
    sizes = {"train": 400, "val": 50, "test": 100, "ood_composition": 80, "ood_style": 80}
    codes, split = scenes._draw_ids(np.random.RandomState(0), sizes, 20_000, broad)
    pool = set(codes[np.char.startswith(split, "pool_")])
    evaluation = set(codes[np.isin(split, ["val", "test", "ood_composition", "ood_style"])])
    assert len(evaluation) == 310 and not pool & evaluation
    assert pool & set(codes[split == "train"])
    assert held_out(sorted(pool)).any() == broad


def test_only_a_broad_pool_is_styled():
    for broad in (True, False):
        images, items, texts = generate(broad=broad)
        styled = texts["text"].str.contains("|".join(STYLED))
        share = styled.groupby(items["split"].reindex(texts["item"]).to_numpy()).mean()
        dark = (
            pd.Series(np.median(images, axis=(1, 2, 3)) < 160)
            .groupby(items["split"][items["image"] >= 0].to_numpy())
            .mean()
        )
        assert share["pool_text"] == pytest.approx(0.5 if broad else 0.0, abs=0.1)
        assert dark["pool_image"] == pytest.approx(0.5 if broad else 0.0, abs=0.1)
        for split in ("train", "val", "test", "ood_composition"):
            assert share[split] == dark[split] == 0
        assert share["ood_style"] == dark["ood_style"] == 1


def test_pools_are_not_paired():
    images, items, texts = generate()
    assert (items["image"][items["split"] == "pool_text"] == -1).all() and not texts["item"].isin(
        items.index[items["split"] == "pool_image"]
    ).any()
    assert (items["image"][items["image"] >= 0] == np.arange(len(images))).all()
    assert items["group"].is_unique


# ---------------------------------------------------------------------------------------------- what is refused

REFUSED = {
    "both=1.5 is a share: give a number from 0 to 1": {"both": 1.5},
    "label_noise=-0.1 is a share: give a number from 0 to 1": {"label_noise": -0.1},
    "train=-1 is negative: give a whole number from 0 on": {"train": -1},
    "seed=-3 is negative": {"seed": -3},
    "seed=4294967294 is too large: give a whole number up to 4294967293": {"seed": 2**32 - 2},
    "not the 900350 and 40 asked for; lower train, val, test or ood": {
        "train": 900_000,
        "val": 10,
        "test": 300,
        "ood": 40,
    },
    "unknown knob of 'scenes' 'boths': did you mean 'both'?": {"boths": 1.0},
    "broad='yes' is not true or false": {"broad": "yes"},
}


def test_the_largest_seed_draws():
    assert len(load("scenes", train=8, val=1, test=1, ood=1, pool=1, seed=2**32 - 3)) == 14


@pytest.mark.parametrize("message", REFUSED)
def test_bad_knobs_are_refused(message):
    with pytest.raises(MmkitError) as error:
        load("scenes", **REFUSED[message])
    assert message in str(error.value)
