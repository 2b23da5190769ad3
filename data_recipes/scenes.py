"""`scenes`: captioned scenes whose answer needs the image, the text, or both, by a knob.

A scene holds an arrow, a landmark beside it, and a textured ground. Two captions describe it (role `caption`). A
third text is a question (role `question`): it tells the arrow how to turn. The answer is where the arrow ends up
pointing (`label_answer`):

* kind `both`: the answer is the arrow's heading (image only) turned as the text says (text only), a sum modulo four,
  so that either modality alone is exactly at chance;
* kind `image`: a beacon on one side of the image tells the answer, whatever the text says;
* kind `text`: the text names the side itself, whatever the image shows;
* kind `either`: both cues are there and agree.

What a caption tells can be read from its picture: no part lies over another, and each shape has pixels of its own at
each size. `facts` is all that is drawn and told, without pixels; `draw` makes pictures of it, of 32 x 32 pixels for a
model or larger for a slide; `masks` says where the parts of a prepared set lie. `label_heading` and `label_beacon` can
be read from the image alone, `label_turn` and `label_path` from the question alone, and the four decide the answer.

Edges are smooth by the share of a pixel's samples that lie inside, a whole number. Only integer arithmetic and numpy's
frozen legacy stream are used, so the bytes are the same on every platform.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from mmkit.data import Recipe, Writer
from mmkit.errors import MmkitError

SIDES = ("up", "right", "down", "left")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 80, 200),
    "yellow": (235, 205, 30),
    "purple": (140, 60, 190),
    "cyan": (30, 190, 200),
}
SHAPES = ("circle", "square", "cross", "diamond")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
GROUNDS = ("plain", "striped", "dotted", "checked")
TURN_NAMES = ("straight", "right", "around", "left")
KINDS = ("both", "image", "text", "either")
NAMES = {"heading": SIDES, "arrow": tuple(COLOURS), "shape": SHAPES, "landmark": tuple(COLOURS)}
NAMES |= {"size": SIZES, "relation": RELATIONS, "ground": GROUNDS}  # of an axis: what captions call its values
LABELS = NAMES | {"kind": KINDS, "turn": TURN_NAMES, "beacon": (*SIDES, "none"), "path": (*SIDES, "none")}  # -1: none
AXES = {axis: len(names) for axis, names in NAMES.items()}
LARGEST_SEED = 2**32 - 3  # numpy's legacy stream takes 32 bits, and streams seed + 1 and seed + 2 are used

# The plane is 32 units wide, a pixel of the set. No part reaches over another, wherever the two are moved to.
UNITS, REACH = 32, {"landmark": 4, "arrow": 6}  # REACH: no part is wider than that from its centre
ARROW, LANDMARK = 1, -10  # from the middle, in the direction in which the arrow lies
EXTENT = (6, 8)  # of a small and a large shape from its centre, in half units
AWAY = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # by relation: where the arrow lies, seen from the landmark
BEACON, STRIP = (255, 140, 0), 2
SAMPLES = 8  # on each side of a pixel
FULL = SAMPLES**2
BLOCK = 256  # images at a time, so that they stay in the cache

# Two wordings of each turn. Of the frames, the first pair is used in training, the second only in `ood_style` and in
# broad pools.
TURNS = (
    ("go straight on", "keep straight ahead"),
    ("turn right", "take a right turn"),
    ("turn around", "make a half turn around"),
    ("turn left", "take a left turn"),
)
TURN_FRAMES = (
    ("now {turn} .", "first {turn} , then walk on ."),
    ("my friend , please {turn} before you leave .", "at this point you should {turn} and walk away ."),
)
PATH_FRAMES = (
    ("the path leads {side} .", "the exit is {side} ."),
    ("everyone says that the exit must be {side} .", "the old path still leads {side} today ."),
)
CAPTION_FRAMES = (
    (
        "a {arrow} arrow pointing {heading} , {relation} a {size} {landmark} {shape} on {ground} ground .",
        "on {ground} ground a {size} {landmark} {shape} has a {arrow} arrow {relation} it , pointing {heading} .",
    ),
    (
        "look , here points a {arrow} arrow {heading} and it stands {relation} one {size} {landmark} {shape} , "
        "the ground is {ground} .",
        "this ground is {ground} , with one {size} {landmark} {shape} and {relation} that an arrow in {arrow}"
        " which points {heading} .",
    ),
)


def _held_out(scene: dict) -> np.ndarray:
    """Compositions never seen in training: four (colour, heading) arrows and four (colour, shape) landmarks.

    There is one for each value of either.
    """
    return ((scene["arrow"] + scene["heading"]) % 6 == 0) | ((scene["landmark"] + 2 * scene["shape"]) % 6 == 1)


def _unravel(codes: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(AXES, np.unravel_index(codes, tuple(AXES.values()))))


def _draw_ids(
    rng: np.random.RandomState, sizes: dict[str, int], pool: int, broad: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scene codes and their split. Labelled splits never share a scene; pools never hold an evaluation scene."""
    order = np.argsort(rng.random_sample(int(np.prod(list(AXES.values())))), kind="stable")
    held = _held_out(_unravel(order))
    known, novel = order[~held], order[held]
    wanted = sizes["train"] + sizes["val"] + sizes["test"] + sizes["ood_style"]
    if wanted > len(known) or sizes["ood_composition"] > len(novel):
        raise MmkitError(
            f"scenes has {len(known)} seen and {len(novel)} held-out compositions, "
            f"not the {wanted} and {sizes['ood_composition']} asked for; lower train, val, test or ood"
        )
    codes, splits, at = [], [], 0
    for split, size in sizes.items():
        source = novel if split == "ood_composition" else known[at:]
        codes.append(source[:size])
        splits += [split] * size
        at += size if split != "ood_composition" else 0
    free = np.concatenate(
        [known[: sizes["train"]], known[at:]] + ([novel[sizes["ood_composition"] :]] if broad else [])
    )
    for split in ("pool_image", "pool_text"):
        codes.append(free[rng.randint(0, len(free), size=pool, dtype=np.int64)])
        splits += [split] * pool
    return np.concatenate(codes), np.array(splits)


def _facts(
    rng: np.random.RandomState, codes: np.ndarray, styled: np.ndarray, *, both: float, image_share: float, either: float
) -> pd.DataFrame:
    """What is drawn and told of some scenes, with the given mix of kinds; see `facts`."""
    n, scene = len(codes), _unravel(codes)
    u = rng.random_sample((3, n))
    kind = np.where(u[0] < both, 0, np.where(u[1] < either, 3, np.where(u[2] < image_share, 1, 2)))
    turn, drawn = rng.randint(0, 4, size=(2, n), dtype=np.int64)
    answer = np.where(kind == 0, (scene["heading"] + turn) % 4, drawn)
    told = {
        "kind": kind,
        "turn": turn,
        "answer": answer,
        "beacon": np.where((kind == 1) | (kind == 3), answer, -1),
        "path": np.where((kind == 2) | (kind == 3), answer, -1),
        "styled": styled.astype(np.int64),
    }
    wording = rng.randint(0, 2, size=(3, n), dtype=np.int64)
    moved = rng.randint(-1, 2, size=(4, n), dtype=np.int64)
    return pd.DataFrame(
        {"code": codes, **scene, **told}
        | dict(zip(("turn_frame", "turn_words", "path_frame"), wording))
        | dict(zip(("arrow_x", "arrow_y", "landmark_x", "landmark_y"), moved))
    )


def _noise(rng: np.random.RandomState, count: int) -> np.ndarray:
    """Noise of the ground, (count, 32, 32) int8 from -8 to 8."""
    noise = np.empty((count, UNITS, UNITS), dtype=np.int8)
    for start in range(0, count, BLOCK):
        some = noise[start : start + BLOCK]
        some[:] = rng.randint(-8, 9, size=some.shape, dtype=np.int64)
    return noise


def _share(inside: np.ndarray) -> np.ndarray:
    """Of samples (..., S * SAMPLES, S * SAMPLES) bool, how many of each pixel's lie inside: (..., S, S), 0 to FULL."""
    *front, height, width = inside.shape
    grouped = inside.reshape(*front, height // SAMPLES, SAMPLES, width // SAMPLES, SAMPLES)
    return grouped.sum(axis=(-3, -1)).astype(np.uint8)


@lru_cache(maxsize=4)
def _stamps(side: int) -> dict[str, np.ndarray]:
    """Shares of pixels: "landmark" (4 shapes x 2 sizes, S, S), "arrow" (4 headings, S, S), "ground" (4, side, side).

    The centre of a landmark or an arrow is in the middle.
    """
    unit = 2 * SAMPLES * side // UNITS  # samples lie at odd numbers, so that none is on an edge between pixels
    line = np.arange(1 - REACH["landmark"] * unit, REACH["landmark"] * unit, 2)
    ax, ay = np.abs(line[None, :]), np.abs(line[:, None])
    inside = {
        "circle": lambda r: ax * ax + ay * ay <= r * r,
        "square": lambda r: np.maximum(ax, ay) <= r,
        "cross": lambda r: (np.minimum(ax, ay) <= r // 3) & (np.maximum(ax, ay) <= r),
        "diamond": lambda r: ax + ay <= r,
    }
    landmark = [inside[shape](half * unit // 2) for shape in SHAPES for half in EXTENT]
    line = np.arange(1 - REACH["arrow"] * unit, REACH["arrow"] * unit, 2)
    ax, y = np.abs(line[None, :]), line[:, None]
    head = (y <= 0) & (y >= -5 * unit) & (ax <= y + 5 * unit)
    up = head | ((y >= 0) & (y <= 5 * unit) & (2 * ax <= 3 * unit))
    line = np.arange(1, UNITS * unit, 2)
    x, y = line[None, :], line[:, None]
    dx, dy = x % (4 * unit) - 2 * unit, y % (4 * unit) - 2 * unit
    ground = (
        0 * x + 0 * y > 0,
        (x // (2 * unit) + 0 * y) % 2 > 0,
        16 * (dx * dx + dy * dy) <= 25 * unit * unit,
        (x // (4 * unit) + y // (4 * unit)) % 2 > 0,
    )
    arrow = [np.rot90(up, -quarter) for quarter in range(4)]  # clockwise, in the order of SIDES
    drawn = {"landmark": landmark, "arrow": arrow, "ground": ground}
    return {name: _share(np.stack(shapes)) for name, shapes in drawn.items()}


def _placed(stamps: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray, side: int):
    """Stamps on planes of their own: the distinct ones (K, side, side) and which of them each row has, (N,).

    which: (N,) the stamp, -1 for none. x, y: (N,) the units of its centre.
    """
    codes, rows = np.unique((which + 1) * UNITS**2 + y * UNITS + x, return_inverse=True)
    planes = np.zeros((len(codes), side, side), dtype=np.uint8)
    size, scale = stamps.shape[-1], side // UNITS
    for plane, code in zip(planes, codes.tolist()):
        (stamp, place), half = divmod(code, UNITS**2), size // 2
        top, left = (at * scale - half for at in divmod(place, UNITS))
        if stamp:
            plane[top : top + size, left : left + size] = stamps[stamp - 1]
    return planes, rows


def _parts(scene: pd.DataFrame, side: int) -> dict[str, tuple]:
    """Where landmark, arrow and beacon lie: by part, its colour (N, 3) and what `_placed` gives."""
    columns = {name: values.to_numpy() for name, values in scene.items()}
    away, stamps = AWAY[columns["relation"]].T, _stamps(side)
    palette = np.array(list(COLOURS.values()), dtype=np.int16)
    found = {}
    shapes = ("landmark", LANDMARK, columns["shape"] * 2 + columns["size"]), ("arrow", ARROW, columns["heading"])
    for part, distance, stamp in shapes:
        free = {"arrow": np.ones_like(away), "landmark": away == 0}[part]  # a landmark keeps its distance
        x, y = (UNITS // 2 + distance * to + columns[f"{part}_{axis}"] * may for axis, to, may in zip("xy", away, free))
        which = np.where(columns[part] < 0, -1, stamp)
        found[part] = palette[columns[part]], *_placed(stamps[part], which, x, y, side)
    strips, wide = np.zeros((5, side, side), dtype=np.uint8), STRIP * side // UNITS
    strips[1, :wide] = strips[2, :, -wide:] = strips[3, -wide:] = strips[4, :, :wide] = FULL
    found["beacon"] = np.tile(np.array(BEACON, dtype=np.int16), (len(scene), 1)), strips, columns["beacon"] + 1
    return found


def draw(scene: pd.DataFrame, *, noise: np.ndarray | None = None, side: int = UNITS) -> np.ndarray:
    """Pictures of scenes, (N, side, side, 3) uint8.

    scene: rows of `facts`; arrow, landmark or beacon -1 leaves that part out. noise: of the ground, (N, 32, 32) from
    -8 to 8; None for a smooth ground. side: pixels, a multiple of 32. Raises MmkitError for another side.
    """
    if side < UNITS or side % UNITS:
        raise MmkitError(f"side={side} is no size of a scene: give a multiple of {UNITS}, for example 256")
    parts, ground = _parts(scene, side), scene["ground"].to_numpy()
    texture = (40 * _stamps(side)["ground"].astype(np.int16) + FULL // 2) // FULL
    light, rough = np.array([[225, 140], [1, 3]], dtype=np.int16)[:, scene["styled"]]
    images = np.empty((len(scene), side, side, 3), dtype=np.uint8)
    step = max(1, BLOCK * UNITS**2 // side**2)
    for start in range(0, len(scene), step):
        some = slice(start, start + step)
        grey = light[some, None, None] - texture[ground[some]]
        if noise is not None:
            rougher = noise[some] * rough[some, None, None]
            grey += rougher.repeat(side // UNITS, axis=1).repeat(side // UNITS, axis=2)
        images[some] = grey[..., None]
        for colour, planes, rows in parts.values():
            cover = planes[rows[some]]
            at = np.nonzero(cover)
            share = cover[at].astype(np.int16)[:, None]
            under = images[some][at]
            images[some][at] = (under * (FULL - share) + colour[some][at[0]] * share + FULL // 2) // FULL
    return images


def masks(card: dict, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """The pixels that arrow, landmark and beacon touch in some images of a prepared set: by part, (B, 32, 32) bool.

    card: the set's, by whose knobs its scenes are placed again. rows: of its items; a scene without beacon has an
    empty mask of it. Raises MmkitError for items without an image and for a set of another version of the recipe.
    """
    made_by = {"name": RECIPE.name, "version": RECIPE.version}
    if card["recipe"] != made_by:
        raise MmkitError(f"masks are of sets made by {made_by}, not by {card['recipe']}: prepare the set again")
    placed = facts(**card["knobs"]).iloc[np.asarray(rows)]
    if (placed["split"] == "pool_text").any():
        raise MmkitError("the scenes of pool_text have no image: leave its rows out")
    parts = _parts(placed, UNITS)
    return {part: planes[which] > 0 for part, (_, planes, which) in parts.items()}


def _write(scene: pd.DataFrame) -> pd.DataFrame:
    """The three texts of each scene: columns first and second, its captions, and question."""
    texts = {"first": [], "second": [], "question": []}
    named = pd.DataFrame({axis: np.array(names)[scene[axis]] for axis, names in NAMES.items()})
    for row, words in zip(scene.to_dict("records"), named.to_dict("records")):
        style = row["styled"]
        for key, frame in zip(("first", "second"), CAPTION_FRAMES[style]):
            texts[key].append(frame.format(**words))
        question = TURN_FRAMES[style][row["turn_frame"]].format(turn=TURNS[row["turn"]][row["turn_words"]])
        if row["path"] >= 0:
            question += " " + PATH_FRAMES[style][row["path_frame"]].format(side=SIDES[row["path"]])
        texts["question"].append(question)
    return pd.DataFrame(texts, index=scene.index)


def _streams(
    *, both: float, image_share: float, either: float, label_noise: float, broad: bool, seed: int, **sizes: int
) -> Iterator[tuple[pd.DataFrame, np.random.RandomState]]:
    """The labelled scenes, then those of the pools; each with the stream that goes on to noise and labels."""
    shares = {"both": both, "image_share": image_share, "either": either}
    _require_ranges(shares | {"label_noise": label_noise}, {**sizes, "seed": seed}, seed)
    pool, ood = sizes["pool"], sizes["ood"]
    wanted = {name: sizes[name] for name in ("train", "val", "test")} | {"ood_composition": ood, "ood_style": ood}
    codes, split = _draw_ids(np.random.RandomState(seed), wanted, pool, broad)
    labelled = sum(wanted.values())
    rng = np.random.RandomState(seed + 1)
    told = _facts(rng, codes[:labelled], split[:labelled] == "ood_style", **shares)
    yield told.assign(split=split[:labelled]), rng
    rng = np.random.RandomState(seed + 2)
    styled = broad & (rng.random_sample(2 * pool) < 0.5)
    told = _facts(rng, codes[labelled:], styled, both=0.5, image_share=0.5, either=0.0)
    yield told.assign(split=split[labelled:]), rng


def facts(**knobs) -> pd.DataFrame:
    """All that is drawn and told, one row an item of the set that has these knobs, in its order.

    Columns hold whole numbers: the place in `LABELS` of what a label of the items tells (-1: none); answer, without
    label noise; which wordings are used; where arrow and landmark are moved to, in units; and split, a name.
    """
    return pd.concat([told for told, _ in _streams(**knobs)], ignore_index=True)


def generate(*, label_noise: float, **knobs):
    """Images (N, 32, 32, 3), the table of items and the table of texts; see the module's text for what they mean.

    knobs: those of the recipe. Pools keep the default mix of kinds whatever the knobs say, and a stream of their own,
    so that one pretraining serves every setting.
    """
    images, parts = [], []
    for told, rng in _streams(label_noise=label_noise, **knobs):
        shown = told[told["split"] != "pool_text"]
        images.append(draw(shown, noise=_noise(rng, len(shown))))
        flipped = (told["split"] == "train") & (rng.random_sample(len(told)) < label_noise)
        drawn = rng.randint(0, 4, size=len(told), dtype=np.int64)
        parts.append(told.assign(label=np.where(flipped, drawn, told["answer"])))
    labelled, pooled = (len(part) for part in parts)
    told = pd.concat(parts, ignore_index=True)
    has_image = told["split"] != "pool_text"
    groups = [f"scene-{code}" for code in told["code"][:labelled]] + [f"pool-{i}" for i in range(pooled)]
    items = {
        "id": [f"{split}-{i:05d}" for i, split in enumerate(told["split"])],
        "image": np.where(has_image, np.cumsum(has_image) - 1, -1),
        "split": told["split"],
        "group": groups,
        "label_answer": np.array(SIDES)[told["label"]],
    }
    labels = {f"label_{name}": np.array(names)[told[name]] for name, names in LABELS.items()}
    texts = _write(told[told["split"] != "pool_image"])
    return np.concatenate(images), pd.DataFrame(items | labels), _by_role(texts)


def _require_ranges(shares: dict[str, float], sizes: dict[str, int], seed: int) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise MmkitError(f"{name}={share} is a share: give a number from 0 to 1")
    for name, size in sizes.items():
        if size < 0:
            raise MmkitError(f"{name}={size} is negative: give a whole number from 0 on")
    if seed > LARGEST_SEED:
        raise MmkitError(f"seed={seed} is too large: give a whole number up to {LARGEST_SEED}")


def _by_role(texts: pd.DataFrame) -> pd.DataFrame:
    """A text a row, with item, text, language and role, from one row a scene with a column for each of its texts."""
    table = texts.melt(ignore_index=False, value_name="text", var_name="role").rename_axis("item").reset_index()
    table["role"] = table["role"].replace({"first": "caption", "second": "caption"})
    table["language"] = "en"
    return table[["item", "text", "language", "role"]].sort_values("item", kind="stable", ignore_index=True)


def prepare(writer: Writer, sources, **knobs) -> None:
    images, items, texts = generate(**knobs)
    writer.images(images)
    writer.items(items)
    writer.texts(texts)
    writer.facts(image=["label_heading", "label_beacon"], text=["label_turn", "label_path"])


RECIPE = Recipe(
    name="scenes",
    title="Captioned scenes with a knob for the share of answers that need both modalities",
    task="retrieval, answering",
    licence="CC0-1.0",
    terms="Generated by this recipe; no rights reserved.",
    citation="mmkit, data_recipes/scenes.py",
    version=3,
    files=(),
    knobs={"both": 0.5, "image_share": 0.5, "either": 0.0, "label_noise": 0.0}
    | {"train": 2048, "val": 400, "test": 800, "ood": 400, "pool": 3000, "broad": True, "seed": 0},
    prepare=prepare,
)
