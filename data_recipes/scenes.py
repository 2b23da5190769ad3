"""`scenes`: captioned scenes whose answer needs the image, the text, or both, by a knob.

A scene holds an arrow, a landmark beside it, and a textured ground. Two captions describe it (role `caption`). A
third text is a question (role `question`): it tells the arrow how to turn. The answer is where the arrow ends up
pointing (`label_answer`):

* kind `both`: the answer is the arrow's heading (image only) turned as the text says (text only), a sum modulo four,
  so that either modality alone is exactly at chance;
* kind `image`: a beacon on one side of the image tells the answer, whatever the text says;
* kind `text`: the text names the side itself, whatever the image shows;
* kind `either`: both cues are there and agree.

Only integer arithmetic and numpy's frozen legacy stream are used, so the bytes are the same on every platform.
"""

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
AXES = {"heading": 4, "arrow": 6, "shape": 4, "landmark": 6, "size": 2, "relation": 4, "ground": 4}
PIXELS, BLOCK = 32, 256
LARGEST_SEED = 2**32 - 3  # numpy's legacy stream takes 32 bits, and streams seed + 1 and seed + 2 are used

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


def _shape_mask(shape: np.ndarray, dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    ax, ay = np.abs(dx), np.abs(dy)
    masks = (
        dx * dx + dy * dy <= r * r,
        np.maximum(ax, ay) <= r - 1,
        (np.minimum(ax, ay) <= 1) & (np.maximum(ax, ay) <= r),
        ax + ay <= r,
    )
    return np.choose(shape, masks)


def _draw(rng: np.random.RandomState, scene: dict, styled: np.ndarray, beacon: np.ndarray, count: int) -> np.ndarray:
    """Images (count, 32, 32, 3) uint8 of the first `count` scenes, a few at a time so that they stay in cache.

    beacon: (N,) side index, or -1 for none; styled: (N,) a dark, noisy ground.
    """
    jitter = rng.randint(-1, 2, size=(4, len(styled)), dtype=np.int64).astype(np.int32)
    images = np.empty((count, PIXELS, PIXELS, 3), dtype=np.uint8)
    for start in range(0, count, BLOCK):
        some = slice(start, min(start + BLOCK, count))
        noise = rng.randint(-8, 9, size=(some.stop - start, PIXELS, PIXELS), dtype=np.int64)
        images[some] = _pixels(
            {axis: value[some] for axis, value in scene.items()}, jitter[:, some], noise, styled[some], beacon[some]
        )
    return images


def _pixels(scene: dict, jitter: np.ndarray, noise: np.ndarray, styled: np.ndarray, beacon: np.ndarray) -> np.ndarray:
    column = (slice(None), None, None)
    y, x = np.mgrid[:PIXELS, :PIXELS][:, None].astype(np.int32)
    away = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]], dtype=np.int32)[
        scene["relation"]
    ]  # where the arrow lies, seen from the landmark
    ax, ay = 16 + jitter[0], 16 + jitter[1]
    lx, ly = 16 - 11 * away[:, 0] + jitter[2], 16 - 11 * away[:, 1] + jitter[3]

    texture = np.concatenate([0 * x + 0 * y, (x // 2) % 2 + 0 * y, (x % 4 < 2) & (y % 4 < 2), (x // 4 + y // 4) % 2])
    ground = np.where(styled[column], 140, 225) - 40 * texture[scene["ground"]]
    image = np.repeat((ground + noise * np.where(styled, 3, 1)[column]).astype(np.int16)[..., None], 3, axis=3)

    dx, dy = x - ax[column], y - ay[column]
    hx, hy = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]], dtype=np.int32)[scene["heading"]].T
    forward = dx * hx[column] + dy * hy[column]
    sideways = np.abs(dx * hy[column] - dy * hx[column])
    arrow = ((forward >= 0) & (forward <= 5) & (sideways <= 5 - forward)) | (
        (forward < 0) & (forward >= -5) & (sideways <= 1)
    )
    radius = np.where(scene["size"] == 1, 4, 2)[column]
    landmark = _shape_mask(scene["shape"][column], x - lx[column], y - ly[column], radius)
    palette = np.array(list(COLOURS.values()), dtype=np.int16)
    for mask, colour in ((landmark, scene["landmark"]), (arrow, scene["arrow"])):
        image = np.where(mask[..., None], palette[colour][:, None, None, :], image)
    strips = np.stack(np.broadcast_arrays(y[0] < 2, x[0] >= PIXELS - 2, y[0] >= PIXELS - 2, x[0] < 2))
    strip = strips[beacon] & (beacon >= 0)[column]
    return np.where(strip[..., None], np.array((255, 140, 0), dtype=np.int16), image).clip(0, 255).astype(np.uint8)


def _write(scene: dict, turn, answer, told, styled, choice) -> dict[str, list[str]]:
    """The three texts of each scene; `choice` (3, N) picks among wordings."""
    names = {
        "heading": SIDES,
        "arrow": tuple(COLOURS),
        "shape": SHAPES,
        "landmark": tuple(COLOURS),
        "size": SIZES,
        "relation": RELATIONS,
        "ground": GROUNDS,
    }
    texts = {"first": [], "second": [], "question": []}
    for i in range(len(turn)):
        words, style = {axis: names[axis][value[i]] for axis, value in scene.items()}, int(styled[i])
        for key, frame in zip(("first", "second"), CAPTION_FRAMES[style]):
            texts[key].append(frame.format(**words))
        question = TURN_FRAMES[style][choice[0, i]].format(turn=TURNS[turn[i]][choice[1, i]])
        if told[i]:
            question += " " + PATH_FRAMES[style][choice[2, i]].format(side=SIDES[answer[i]])
        texts["question"].append(question)
    return texts


def _part(
    rng: np.random.RandomState,
    codes: np.ndarray,
    split: np.ndarray,
    styled: np.ndarray,
    *,
    both: float,
    image_share: float,
    either: float,
):
    """Images, items and texts of some scenes, with the given mix of kinds."""
    n, scene = len(codes), _unravel(codes)
    u = rng.random_sample((3, n))
    kind = np.where(u[0] < both, 0, np.where(u[1] < either, 3, np.where(u[2] < image_share, 1, 2)))
    turn, drawn = rng.randint(0, 4, size=(2, n), dtype=np.int64)
    answer = np.where(kind == 0, (scene["heading"] + turn) % 4, drawn)
    beacon = np.where((kind == 1) | (kind == 3), answer, -1)
    texts = _write(
        scene, turn, answer, (kind == 2) | (kind == 3), styled, rng.randint(0, 2, size=(3, n), dtype=np.int64)
    )
    images = _draw(rng, scene, styled, beacon, np.count_nonzero(split != "pool_text"))
    items = pd.DataFrame(
        {
            "split": split,
            "group": [f"scene-{code}" for code in codes],
            "label_answer": np.array(SIDES)[answer],
            "label_kind": np.array(["both", "image", "text", "either"])[kind],
            "label_heading": np.array(SIDES)[scene["heading"]],
            "label_turn": np.array(["straight", "right", "around", "left"])[turn],
        }
    )
    return images, items, pd.DataFrame(texts)


def generate(
    *, both: float, image_share: float, either: float, label_noise: float, broad: bool, seed: int, **sizes: int
):
    """Images (N, 32, 32, 3), the table of items and the table of texts; see the module's text for what they mean.

    sizes: train, val, test, ood (of each of the two ood splits) and pool (of each pool). Pools keep the default mix of
    kinds whatever the knobs say, and a stream of their own, so that one pretraining serves every setting.
    """
    shares = {"both": both, "image_share": image_share, "either": either}
    _require_ranges(shares | {"label_noise": label_noise}, {**sizes, "seed": seed}, seed)
    pool, ood = sizes["pool"], sizes["ood"]
    wanted = {name: sizes[name] for name in ("train", "val", "test")} | {"ood_composition": ood, "ood_style": ood}
    codes, split = _draw_ids(np.random.RandomState(seed), wanted, pool, broad)
    labelled = sum(wanted.values())
    rng = np.random.RandomState(seed + 1)
    styled = split[:labelled] == "ood_style"
    images, items, texts = _part(rng, codes[:labelled], split[:labelled], styled, **shares)
    flipped = (items["split"] == "train") & (rng.random_sample(labelled) < label_noise)
    drawn = np.array(SIDES)[rng.randint(0, 4, size=labelled, dtype=np.int64)]
    items["label_answer"] = np.where(flipped, drawn, items["label_answer"])

    rng = np.random.RandomState(seed + 2)
    styled = broad & (rng.random_sample(2 * pool) < 0.5)
    pooled = _part(rng, codes[labelled:], split[labelled:], styled, both=0.5, image_share=0.5, either=0.0)
    pooled[1]["group"] = [f"pool-{i}" for i in range(2 * pool)]
    items = pd.concat([items, pooled[1]], ignore_index=True)
    texts = pd.concat([texts, pooled[2]], ignore_index=True)
    has_image = items["split"] != "pool_text"
    items.insert(0, "id", [f"{s}-{i:05d}" for i, s in enumerate(items["split"])])
    items.insert(1, "image", np.where(has_image, np.cumsum(has_image) - 1, -1))
    return np.concatenate([images, pooled[0]]), items, _by_role(texts[items["split"] != "pool_image"])


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


RECIPE = Recipe(
    name="scenes",
    title="Captioned scenes with a knob for the share of answers that need both modalities",
    task="retrieval, answering",
    licence="CC0-1.0",
    terms="Generated by this recipe; no rights reserved.",
    citation="mmkit, data_recipes/scenes.py",
    version=2,
    files=(),
    knobs={
        "both": 0.5,
        "image_share": 0.5,
        "either": 0.0,
        "label_noise": 0.0,
        "train": 2048,
        "val": 400,
        "test": 800,
        "ood": 400,
        "pool": 3000,
        "broad": True,
        "seed": 0,
    },
    prepare=prepare,
)
