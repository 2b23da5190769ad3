"""Whatever `scenes` tells can be read: an oracle reads pictures and texts and finds them, and the labels, equal."""

from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scene_reader import Reader, answer_of, caption_facts, question_facts

from data_recipes import scenes
from mmkit.data import load
from mmkit.errors import MmkitError

SETS = {
    "default": {},
    "either": {"both": 0.4, "either": 0.5, "broad": False, "seed": 5, "pool": 300},
    "image": {"both": 0.2, "image_share": 0.9, "seed": 2**32 - 3, "pool": 300},
}


@cache
def generate(**knobs):
    return scenes.generate(**scenes.RECIPE.knobs | knobs)


def of_role(texts, role):
    return texts[texts["role"] == role]


@cache
def reader():
    """Learns from a set of its own, from training pictures alone."""
    images, items, texts = generate(seed=77, pool=0, val=0, test=0, ood=0)
    told = of_role(texts, "caption").drop_duplicates("item")
    assert told["item"].tolist() == items.index.tolist()
    return Reader(images[items["image"]], [caption_facts(text) for text in told["text"]])


@cache
def read(name):
    """What is read from each picture of a set, by item."""
    images, items, _ = generate(**SETS[name])
    return {row: reader().read(images[entry]) for row, entry in zip(items.index, items["image"]) if entry >= 0}


# ---------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("name", SETS)
def test_every_fact_of_every_text_is_read_from_its_picture(name):
    _, items, texts = generate(**SETS[name])
    seen = read(name)
    captions, paired = of_role(texts, "caption"), 0
    for row, text in zip(captions["item"], captions["text"]):
        told = caption_facts(text)
        assert told == {axis: items.at[row, f"label_{axis}"] for axis in told}, f"labels of item {row}"
        if row in seen:
            assert told.items() <= seen[row].items(), f"item {row}: {told}, read {seen[row]}"
            paired += 1
    for row, facts in seen.items():
        assert facts == {axis: items.at[row, f"label_{axis}"] for axis in facts}, f"labels of item {row}"
    styles = set(items["split"][items.index.isin(seen)])
    assert paired == 2 * (2048 + 400 + 800 + 2 * 400) and "pool_image" in styles and "pool_text" not in styles


@pytest.mark.parametrize("name", SETS)
def test_the_answer_follows_from_what_is_read(name):
    _, items, texts = generate(**SETS[name])
    seen, kinds = read(name), set()
    for row, text in zip(*(of_role(texts, "question")[column] for column in ("item", "text"))):
        item, told = items.loc[row], question_facts(text)
        assert told == {"turn": item["label_turn"], "path": item["label_path"]}
        unseen = {"heading": item["label_heading"], "beacon": item["label_beacon"]}  # pool_text has no pictures
        facts = seen.get(row, unseen) | told
        assert answer_of(facts) == (item["label_kind"], item["label_answer"]), f"item {row}: {facts}"
        kinds.add(item["label_kind"])
    assert kinds == ({"both", "image", "text", "either"} if name == "either" else {"both", "image", "text"})


def test_noise_of_labels_is_noise_alone():
    """Every label but the answer is of the scene, whatever the knob."""
    clean, noisy = generate(pool=50)[1], generate(pool=50, label_noise=0.5)[1]
    pd.testing.assert_frame_equal(clean.drop(columns="label_answer"), noisy.drop(columns="label_answer"))


def test_the_card_says_what_one_modality_tells():
    ds = load("scenes", train=64, val=16, test=32, ood=16, pool=48)
    assert ds.facts == {"image": ("label_heading", "label_beacon"), "text": ("label_turn", "label_path")}
    expected = {"label_answer", "label_kind"} | {name for names in ds.facts.values() for name in names}
    assert expected | {f"label_{axis}" for axis in scenes.AXES} == set(ds.label_columns)
    assert ds.classes("label_beacon") == ds.classes("label_path") == ["down", "left", "none", "right", "up"]
    assert (ds.labels(np.arange(len(ds)), "label_size") >= 0).all(), "items of the pools have labels too"


# ---------------------------------------------------------------------------------------------- pictures


def crossed(**axes):
    """A plain scene for every combination of values, the others at 0."""
    table = pd.DataFrame([dict.fromkeys(scenes.facts(**scenes.RECIPE.knobs | {"pool": 0}).columns, 0)])
    for name, values in axes.items():
        table = table.drop(columns=name).merge(pd.DataFrame({name: values}), how="cross")
    return table.assign(**{name: -1 for name in ("beacon", "path") if name not in axes})


MOVED = (-1, 0, 1)  # a landmark keeps its distance from the arrow and moves across


@pytest.mark.parametrize("relation", range(4))
def test_every_shape_has_pixels_of_its_own_at_every_size_and_place(relation):
    across = "landmark_y" if relation < 2 else "landmark_x"
    table = crossed(shape=range(4), size=range(2), **{across: MOVED}).assign(relation=relation, landmark=2)
    images = scenes.draw(table).astype(int)
    assert len(table) == 4 * 2 * 3
    for one, two in combinations(range(len(table)), 2):
        differ = (np.abs(images[one] - images[two]).max(-1) > 64).sum()  # a quarter of the way to the colour
        assert differ >= 8, table.iloc[[one, two]][["shape", "size", across]]


def test_no_part_touches_another():
    table = crossed(
        shape=range(4), size=[1], relation=range(4), heading=range(4), beacon=range(4),
        arrow_x=(-1, 1), arrow_y=(-1, 1), landmark_x=(-1, 1), landmark_y=(-1, 1),
    )  # fmt: skip
    planes = [cover[rows] > 0 for _, cover, rows in scenes._parts(table, 32).values()]
    assert np.sum(planes, axis=0).max() == 1 and all(plane.any((1, 2)).all() for plane in planes)


def test_a_larger_picture_is_the_same_scene():
    table = scenes.facts(**scenes.RECIPE.knobs | {"pool": 0}).iloc[::40]
    noise = np.random.RandomState(0).randint(-8, 9, size=(len(table), 32, 32))
    small, large = (scenes.draw(table, noise=noise, side=side).astype(int) for side in (32, 256))
    gone = np.abs(large.reshape(-1, 32, 8, 32, 8, 3).mean((2, 4)) - small)
    assert gone.max() < 16 and gone.mean() < 0.5  # a pixel's share has 64 steps, and an edge runs through samples
    assert (scenes.draw(table, side=64).shape[1:], large.shape[1:]) == ((64, 64, 3), (256, 256, 3))
    for side in (0, 16, 33, 100):
        with pytest.raises(MmkitError, match=f"side={side} is no size of a scene: give a multiple of 32"):
            scenes.draw(table, side=side)


def test_edges_are_smooth():
    """Between colour and ground lie pixels of neither, in all sizes."""
    images = scenes.draw(crossed(shape=[0], size=range(2), landmark=[2]).assign(arrow=-1))
    for image in images:
        colours = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
        assert len(colours) > 4 and {(31, 80, 200), (225, 225, 225)} < colours


# ---------------------------------------------------------------------------------------------- masks


def test_without_a_part_only_the_pixels_of_its_mask_change():
    knobs = {"train": 200, "val": 16, "test": 32, "ood": 40, "pool": 90, "both": 0.3, "either": 0.3, "seed": 11}
    ds = load("scenes", **knobs)
    rows = np.flatnonzero(ds.items["split"] != "pool_text")[::-1]
    found = scenes.masks(ds.card, rows)
    told = scenes.facts(**ds.card["knobs"]).iloc[rows]
    pictures = ds.images[ds.items["image"].to_numpy()[rows]]
    assert list(found) == ["landmark", "arrow", "beacon"] and {m.shape for m in found.values()} == {(len(rows), 32, 32)}
    drawn = scenes.draw(told)
    for part, mask in found.items():
        changed = (drawn != scenes.draw(told.assign(**{part: -1}))).any(-1)
        assert not (changed & ~mask).any() and (changed | ~mask).mean() > 0.999, part
        assert mask.any((1, 2)).tolist() == (told[part] >= 0).tolist()
    nothing = ~np.any(list(found.values()), axis=0)
    grey = (pictures == pictures[..., :1]).all(-1)
    assert grey[nothing].all(), "the pictures of the set have colour within the masks alone"
    assert not grey[found["arrow"] | found["beacon"]].any()
    assert load("scenes", **knobs).content == ds.content


def test_masks_of_what_was_never_drawn_are_refused():
    ds = load("scenes", train=8, val=1, test=1, ood=1, pool=2)
    with pytest.raises(MmkitError, match="the scenes of pool_text have no image"):
        scenes.masks(ds.card, ds.rows("pool_text"))
    with pytest.raises(MmkitError, match="masks are of sets made by .*: prepare the set again"):
        scenes.masks(ds.card | {"recipe": {"name": "scenes", "version": 2}}, [0])
