"""`phantoms`: radiograph-like phantoms of a chest, with clinical notes, reports and exact lesion masks.

Nothing here is a real patient.

A patient has one to three images, which share everything but view, position and noise; the patient is the group. What
is drawn, and what is only said:

* four findings (`label_opacity`, `label_effusion`, `label_nodule`, `label_cardiomegaly`), each with `side_`,
  `severity_` and `at_`, from which `masks` draws the exact lesion. As on a radiograph, the patient's right is on the
  left of the image;
* the diagnosis `label_pneumonia`, which no pixel states: opacities are common with it and rare without, and so are
  fever and cough;
* the note (role `note`), written before the image: age, sex and symptoms. With probability `leak` it also names the
  diagnosis (`label_named`), in the same words for everyone, so that hiding `DIAGNOSES` takes the leak away and
  nothing else;
* the report (role `report`), written from the image: findings affirmed, denied ("no effusion") or hedged ("possible",
  "cannot exclude"), as `said_` keeps it. What is hedged is there or not; `hedge` is how often a mild finding is.

`ood_hospital` has less contrast, more noise, half the resolution, and other wordings. Only integer arithmetic and
numpy's frozen legacy stream are used, so the bytes are the same on every platform.
"""

import numpy as np
import pandas as pd

from mmkit.data import Recipe, Writer
from mmkit.errors import MmkitError

PIXELS = 64
LARGEST_SEED = 2**32 - 1  # numpy's legacy stream takes 32 bits
FINDINGS = ("opacity", "effusion", "nodule", "cardiomegaly")
SIDES = ("right", "left")  # the patient's; the right lung is on the left of the image
SEVERITIES = ("mild", "moderate", "severe")
SIZES = {
    "": "",
    "mild": "small",
    "moderate": "moderate",
    "severe": "large",
}  # what a report calls a severity in the lungs
DIAGNOSES = ("pneumonia", "heart failure", "asthma", "rib fracture")
SHARE = {
    "opacity": (0.15, 0.85),
    "effusion": (0.2, 0.35),
    "nodule": (0.15, 0.15),
    "cardiomegaly": (0.2, 0.2),
}  # without and with pneumonia
SYMPTOMS = {"fever": (0.3, 0.7), "cough": (0.4, 0.7)}
LUNGS = ((19, 32, 11, 22), (45, 32, 11, 22))  # x, y and radii, by side

# The first wording of each pair is of the home hospital, the second of the other one.
NOTES = ("{age} year old {sex} with {told} .", "{sex} , {age} years . presents with {told} .")
COMPLAINTS = ("chest pain", "fatigue", "shortness of breath", "weight loss")
NAMED = (
    ("treated for {d} .", "known {d} .", "sent in with {d} ."),
    ("working diagnosis {d} .", "on treatment for {d} .", "{d} was found elsewhere ."),
)
PRESENT = ("{size} {finding} in the {side} lung .", "the {side} lung shows {size} {finding} .")
HEART = ("{severity} cardiomegaly .", "the heart shows {severity} cardiomegaly .")
ABSENT = ("no {finding} .", "{finding} is not seen .")
UNCERTAIN = (
    ("possible {finding} on the {side} .", "cannot exclude {finding} on the {side} ."),
    ("there may be {finding} on the {side} .", "{finding} on the {side} is not excluded ."),
)
CLEAR = ("the lungs are clear .", "normal chest .")


def _patients(rng: np.random.RandomState, count: int, leak: float, hedge: float) -> pd.DataFrame:
    """One row a patient: diagnosis, findings and what note and report will say of them."""
    u = iter(rng.random_sample((40, count)))
    sick = (next(u) < 0.4).astype(np.int64)
    table = {
        "label_pneumonia": sick,
        "label_sex": np.where(next(u) < 0.5, "woman", "man"),
        "label_age": rng.randint(20, 90, size=count, dtype=np.int64),
    }
    for finding, share in SHARE.items():
        there = next(u) < np.array(share)[sick]
        side, severity = (next(u) < 0.5).astype(np.int64), rng.randint(0, 3, size=count, dtype=np.int64)
        doubt = next(u) < np.where(there, np.where(severity == 0, hedge, 0.0), hedge / 4)
        denied = next(u) < 0.6
        table |= {
            f"label_{finding}": there.astype(np.int64),
            f"side_{finding}": np.where(there | doubt, np.array(SIDES)[side], ""),
            f"severity_{finding}": np.where(there, np.array(SEVERITIES)[severity], ""),
            f"said_{finding}": np.where(doubt, "uncertain", np.where(there, "present", np.where(denied, "absent", ""))),
        }
    for symptom, share in SYMPTOMS.items():
        table[f"label_{symptom}"] = (next(u) < np.array(share)[sick]).astype(np.int64)
    table["label_named"] = (next(u) < leak).astype(np.int64)
    table |= {
        name: rng.randint(0, 60, size=count, dtype=np.int64)
        for name in ("diagnosis", "wording", "complaint", "dx", "dy", "size")
    }
    return pd.DataFrame(table)


def _note(row: dict, other: int) -> str:
    symptoms = [name for name in SYMPTOMS if row[f"label_{name}"]]
    denied = [name for name in SYMPTOMS if not row[f"label_{name}"]][: row["wording"] % 2 + 1]
    told = " and ".join([*symptoms, COMPLAINTS[row["complaint"] % 4]]) + "".join(f" , no {name}" for name in denied)
    note = NOTES[other].format(age=row["label_age"], sex=row["label_sex"], told=told)
    diagnosis = DIAGNOSES[0] if row["label_pneumonia"] else DIAGNOSES[1 + row["diagnosis"] % 3]
    return note + (" " + NAMED[other][row["wording"] % 3].format(d=diagnosis) if row["label_named"] else "")


def _report(row: dict, other: int) -> str:
    said = []
    for place, finding in enumerate(FINDINGS):
        heart = finding == "cardiomegaly"
        frames = {
            "present": HEART[other] if heart else PRESENT[other],
            "absent": ABSENT[other],
            "uncertain": UNCERTAIN[other][(row["wording"] + place) % 2].replace(
                " on the {side}", "" if heart else " on the {side}"
            ),
            "": "",
        }
        severity = row[f"severity_{finding}"]
        said.append(
            frames[row[f"said_{finding}"]].format(
                finding=finding, side=row[f"side_{finding}"], severity=severity, size=SIZES[severity]
            )
        )
    return " ".join(filter(None, said)) or CLEAR[other]


def _grade(items: pd.DataFrame, finding: str) -> np.ndarray:
    """0, 1 or 2 by severity, (N,) int64; 0 where the finding is absent."""
    return items[f"severity_{finding}"].map({"": 0} | dict(zip(SEVERITIES, range(3)))).to_numpy(np.int64)


def _places(items: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each finding's lesion as (N, 5) whole numbers: centre x and y, radii (0: no lesion), and the row it starts at."""
    shift = items[["shift_x", "shift_y"]].to_numpy()
    lungs = np.array(LUNGS)
    wet = (items["label_effusion"] & (items["side_effusion"] == items["side_opacity"])).to_numpy()
    ap = (items["label_view"] == "AP").to_numpy().astype(np.int64)
    places = {}
    for finding in FINDINGS:
        there, side = (
            items[f"label_{finding}"].to_numpy(),
            (items[f"side_{finding}"] == "left").to_numpy().astype(np.int64),
        )
        grade = 1 + _grade(items, finding)
        x, y, rx, ry = lungs[side].T
        top = np.zeros(len(items), np.int64)
        if finding == "cardiomegaly":
            x, y, rx, ry = 34 + 0 * x, 44 + 0 * y, 10 + grade + ap, 10 + 0 * y
        elif finding == "effusion":
            top = y + ry - 5 - 4 * grade + shift[:, 1]
        else:
            radius = 5 + grade if finding == "opacity" else 1 + grade
            low = items["size"].to_numpy() % 3
            x = x - 3 + items["dx"].to_numpy() % 7 + (0 if finding == "opacity" else 2)
            y = y - 9 + items["dy"].to_numpy() % 19 - (0 if finding == "opacity" else 5)
            rx, ry = radius, radius + (low if finding == "opacity" else 0)
            if finding == "opacity":  # half of it stays visible above an effusion
                y = np.minimum(
                    y, np.where(wet, LUNGS[0][1] + LUNGS[0][3] - 6 - 4 * (1 + _grade(items, "effusion")), PIXELS)
                )
        places[finding] = np.stack([x + shift[:, 0], y + shift[:, 1], rx * there, ry * there, top], axis=1)
    return places


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:PIXELS, :PIXELS][:, None].astype(np.int32)
    return y, x


def _ellipse(at: np.ndarray) -> np.ndarray:
    """Ellipses (N, 5) as (N, 64, 64) int32: 256 at the centre down to 0 at the rim and outside; all 0 for radius 0."""
    y, x = _grid()
    cx, cy, rx, ry, top = (column[:, None, None] for column in at.T.astype(np.int32))
    dx, dy = x[:, :1] - cx, y[:, :, :1] - cy
    near = 256 - 256 * dx * dx // np.maximum(rx * rx, 1) - 256 * dy * dy // np.maximum(ry * ry, 1)
    return np.maximum(near, 0) * ((rx > 0) & (y[:, :, :1] >= top))


def masks(items: pd.DataFrame, finding: str) -> np.ndarray:
    """Exactly the pixels a finding was drawn on, (N, 64, 64) bool; none where it is absent.

    An effusion is drawn last, over an opacity.
    """
    at = [list(map(int, text.split())) if text else [0] * 5 for text in items[f"at_{finding}"]]
    return _ellipse(np.array(at, dtype=np.int64).reshape(-1, 5)) > 0


def _draw(rng: np.random.RandomState, items: pd.DataFrame, places: dict[str, np.ndarray], other: bool) -> np.ndarray:
    """Images (N, 64, 64, 3) uint8: body, spine, lungs, ribs, heart, lesions, smooth and fine noise."""
    n, ap = len(items), (items["label_view"] == "AP").to_numpy()
    sx, sy = (items[name].to_numpy().astype(np.int32)[:, None, None] for name in ("shift_x", "shift_y"))
    y, x = (axis - shift for axis, shift in zip(_grid(), (sy, sx)))
    zero = np.zeros(n, np.int32)
    shift = np.stack([sx[:, 0, 0], sy[:, 0, 0], zero, zero, zero], axis=1)

    def at(cx, cy, rx, ry) -> np.ndarray:
        """The pixels of an ellipse that moves with the patient, (N, 64, 64) bool."""
        return _ellipse(np.stack([part + zero for part in (cx, cy, rx, ry, 0)], axis=1) + shift) > 0

    lung = at(*LUNGS[0]) | at(*LUNGS[1])
    image = np.where(at(32, 38, 31, 42), 150, 12).astype(np.int32)
    image[lung] = 62
    image += 20 * (lung & ((y + (x - 32) ** 2 // 40) % 9 < 2))
    np.maximum(image, 165, out=image, where=np.abs(x - 32) + 0 * y < 3)
    image[at(34, 44, 9 + ap, 10) | (_ellipse(places["cardiomegaly"]) > 0)] = 185
    for finding, least, step in (("opacity", 45, 20), ("nodule", 70, 20)):
        grade = _grade(items, finding).astype(np.int32)
        inside = _ellipse(places[finding])
        image += (least + step * grade)[:, None, None] * np.minimum(inside + 64, 256) // 256 * (inside > 0)
    image[_ellipse(places["effusion"]) > 0] = 172

    coarse = rng.randint(-14, 15, size=(n, 10, 10), dtype=np.int64).astype(np.int32)
    place, part = np.divmod(np.arange(PIXELS, dtype=np.int32), 8)
    rows = coarse[:, place] * (8 - part)[:, None] + coarse[:, place + 1] * part[:, None]
    smooth = (rows[:, :, place] * (8 - part) + rows[:, :, place + 1] * part) // 64
    image += smooth
    image += (
        np.where(ap, 2, 1).astype(np.int32)[:, None, None]
        * (1 + other)
        * rng.randint(-7, 8, size=(n, PIXELS, PIXELS), dtype=np.int64).astype(np.int32)
    )
    if other:
        image = 60 + image // 2
        image = (
            image.reshape(n, PIXELS // 2, 2, PIXELS // 2, 2).sum(axis=(2, 4)).repeat(2, axis=1).repeat(2, axis=2) // 4
        )
    return np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)


def _part(rng: np.random.RandomState, split: str, count: int, *, leak: float, hedge: float, views: bool = True):
    """Images, items and texts of the patients of one split."""
    patients, other = _patients(rng, count, leak, hedge), int(split == "ood_hospital")
    rows = patients.to_dict("records")
    texts = pd.DataFrame({"note": [_note(row, other) for row in rows], "report": [_report(row, other) for row in rows]})
    owner = np.repeat(np.arange(count), rng.randint(1, 4, size=count, dtype=np.int64) if views else 1)
    items = patients.iloc[owner].reset_index(drop=True)
    items["label_view"] = np.where(rng.random_sample(len(owner)) < 0.35, "AP", "PA")
    items["shift_x"], items["shift_y"] = rng.randint(-2, 3, size=(2, len(owner)), dtype=np.int64)
    places = _places(items)
    images = _draw(rng, items, places, bool(other))
    for finding, at in places.items():
        items[f"at_{finding}"] = [" ".join(map(str, row)) if row[2] else "" for row in at.tolist()]
    number = np.arange(len(owner)) - np.searchsorted(owner, owner)
    items.insert(0, "id", [f"{split}-{o:04d}-{n}" for o, n in zip(owner, number)])
    items.insert(1, "split", split)
    items.insert(2, "group", [f"{split}-patient-{o:04d}" for o in owner])
    return (
        images,
        items.drop(columns=["diagnosis", "wording", "complaint", "dx", "dy", "size", "shift_x", "shift_y"]),
        texts.iloc[owner],
    )


def generate(*, leak: float, hedge: float, train: int, val: int, test: int, ood: int, pool: int, seed: int):
    """Images (N, 64, 64, 3), the table of items and the table of texts; sizes are patients.

    Splits and pools have streams of their own, so that the size of one changes no other."""
    for name, share in {"leak": leak, "hedge": hedge}.items():
        if not 0 <= share <= 1:
            raise MmkitError(f"{name}={share} is a share: give a number from 0 to 1")
    sizes = {"train": train, "val": val, "test": test, "ood_hospital": ood, "pool_image": pool, "pool_text": pool}
    for name, size in {**sizes, "seed": seed}.items():
        if size < 0:
            raise MmkitError(f"{name}={size} is negative: give a whole number from 0 on")
    if seed > LARGEST_SEED:
        raise MmkitError(f"seed={seed} is too large: give a whole number up to {LARGEST_SEED}")
    images, items, texts = [], [], []
    for stream, (split, size) in enumerate(sizes.items()):
        rng = np.random.RandomState([seed, stream])
        drawn, table, said = _part(rng, split, size, leak=leak, hedge=hedge, views=split != "pool_text")
        table.insert(1, "image", -1 if split == "pool_text" else sum(map(len, images)) + np.arange(len(table)))
        said = said.assign(item=sum(map(len, items)) + np.arange(len(table)))
        images += [drawn] if split != "pool_text" else []
        items.append(table)
        texts += [said] if split != "pool_image" else []
    said = pd.concat(texts, ignore_index=True).melt("item", var_name="role", value_name="text").assign(language="en")
    return (
        np.concatenate(images),
        pd.concat(items, ignore_index=True),
        said[["item", "text", "language", "role"]].sort_values("item", kind="stable", ignore_index=True),
    )


def prepare(writer: Writer, sources, **knobs) -> None:
    images, items, texts = generate(**knobs)
    writer.images(images)
    writer.items(items)
    writer.texts(texts)


RECIPE = Recipe(
    name="phantoms",
    title="Chest phantoms with findings, clinical notes that may name the diagnosis, reports and exact lesion masks",
    task="diagnosis, retrieval",
    licence="CC0-1.0",
    terms="Generated by this recipe; no rights reserved. No real patient, and nothing learnt from it is for diagnosis.",
    citation="mmkit, data_recipes/phantoms.py",
    version=2,
    files=(),
    knobs={"leak": 0.6, "hedge": 0.4, "train": 400, "val": 120, "test": 240, "ood": 120, "pool": 600, "seed": 0},
    prepare=prepare,
)
