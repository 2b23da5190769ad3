"""A reader of `phantoms`: of all chests without noise, the one from which a picture differs least.

It knows how chests are drawn, and of the noise no more than how large it is. First come view, position, heart and
effusion, then opacity and nodule together. Differences are counted in units of the noise, so that what the smooth noise
can explain counts for little.
"""

from itertools import product

import numpy as np
import pandas as pd

from data_recipes import phantoms
from data_recipes.phantoms import FINDINGS, SEVERITIES, SIDES

GRADED = [("", ""), *product(SIDES, SEVERITIES)]  # none, or side and severity
HARDLY = 30.0  # what a lesion must explain, in squared units of noise: there are thousands of them to choose from
KEEP = 8  # opacities, and nodules, of a side and severity that are tried with each other
BASES = 3  # of the chests without them that are tried
VIEWS = {"PA": 1, "AP": 2}  # how large the noise is


class Quiet:
    """A stream whose numbers are all 0."""

    @staticmethod
    def randint(low, high, size, dtype):
        return np.zeros(size, dtype)


def chests(**columns) -> pd.DataFrame:
    """Items as `phantoms` draws them, without findings but for the columns given."""
    count = len(next(iter(columns.values())))
    plain = {name: [0] * count for name in ("shift_x", "shift_y", "dx", "dy", "size")} | {"label_view": ["PA"] * count}
    plain |= {f"{what}_{name}": [""] * count for what in ("side", "severity") for name in FINDINGS}
    table = pd.DataFrame(plain | columns)
    return table.assign(**{f"label_{name}": (table[f"severity_{name}"] != "").astype(int) for name in FINDINGS})


def drawn(table: pd.DataFrame, other: bool, noise=Quiet) -> np.ndarray:
    """Chests, (N, 64, 64), without noise unless a stream is given."""
    return phantoms._draw(noise, table, phantoms._places(table), other)[..., 0].astype(np.float32)


def bases() -> pd.DataFrame:
    """Every view, position, heart and effusion."""
    rows = product(("PA", "AP"), range(-2, 3), range(-2, 3), ("", *SEVERITIES), GRADED)
    names = ("label_view", "shift_x", "shift_y", "severity_cardiomegaly")
    table = pd.DataFrame([(*rest, *graded) for *rest, graded in rows])
    table.columns = [*names, "side_effusion", "severity_effusion"]
    return chests(**{name: values.tolist() for name, values in table.items()})


def lesions(finding: str) -> pd.DataFrame:
    """A chest without other findings with each opacity, or each nodule, that it could have; the first has none."""
    places = product(GRADED[1:], range(7), range(19), range(3) if finding == "opacity" else [0])
    rows = [("", "", 0, 0, 0), *((*graded, *place) for graded, *place in places)]
    names = (f"side_{finding}", f"severity_{finding}", "dx", "dy", "size")
    return chests(**dict(zip(names, zip(*rows))))


class Reader:
    """Reads the pictures of one hospital, (64, 64) each."""

    def __init__(self, other: bool):
        self.other = other
        knot = np.maximum(0, 1 - np.abs(np.arange(64)[:, None] / 8 - np.arange(9)))
        smooth = np.einsum("ya,xb->abyx", knot, knot).reshape(81, 64, 64) * (0.5 if other else 1)
        self.basis, mixed = np.linalg.qr(self.flat(smooth).T)
        self.bases = bases()
        self.drawn = self.flat(drawn(self.bases, other))
        self.lesions = {finding: lesions(finding) for finding in ("opacity", "nodule")}
        empty = drawn(chests(dx=[0]), other)
        self.stamps = {name: self.flat(drawn(table, other) - empty) for name, table in self.lesions.items()}
        self.squares = {
            name: (part / np.linalg.norm(part, axis=1, keepdims=True).clip(1)) ** 2
            for name, part in self.stamps.items()
        }
        noisy = {view: drawn(chests(label_view=[view]), other, np.random.RandomState(0))[0] for view in VIEWS}
        self.usual = {view: self.rough(picture) for view, picture in noisy.items()}
        self.whites = {}
        for view, times in VIEWS.items():
            fine = times * np.sqrt((15**2 - 1) / 12) * (0.5 if other else 1)  # halved twice, doubled once
            soft = np.linalg.eigh(fine**2 * np.eye(81) + (29**2 - 1) / 12 * mixed @ mixed.T)
            root = soft.eigenvectors / np.sqrt(soft.eigenvalues) @ soft.eigenvectors.T
            self.whites[view] = fine, self.basis @ (root - np.eye(81) / fine)
        self.worth, self.expected, self.length, self.first = {}, {}, {}, {}
        for view in VIEWS:
            rows = np.flatnonzero(self.bases["label_view"] == view)
            self.first[view], self.expected[view] = rows[0], self.white(self.drawn[rows], view)
            self.length[view] = (self.expected[view] ** 2).sum(1)
            for name, stamps in self.stamps.items():
                self.worth[name, view] = (self.white(stamps, view) ** 2).sum(1)

    def flat(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures as rows, each pixel once: the other hospital's come in blocks of two by two."""
        pictures = pictures.reshape(-1, 32, 2, 32, 2).mean((2, 4)) if self.other else pictures
        return pictures.reshape(len(pictures), -1)

    def white(self, rows: np.ndarray, view: str) -> np.ndarray:
        """Differences in units of noise, so that the sum of squares says how unlikely they are."""
        fine, bend = self.whites[view]
        return rows / fine + rows @ self.basis @ bend.T

    def view(self, picture: np.ndarray) -> str:
        """The view, by how rough the picture is."""
        rough = self.rough(picture)
        return min(VIEWS, key=lambda view: abs(np.log(rough / self.usual[view])))

    def rough(self, picture: np.ndarray) -> float:
        """Mean of the smaller half of differences between differences: slopes do not matter, edges are rare."""
        pixels = picture[:: 1 + self.other, :: 1 + self.other].astype(float)
        steps = np.sort(np.abs(np.diff(np.diff(pixels, axis=0), axis=1)), axis=None)
        return steps[: len(steps) // 2].mean()

    def read(self, picture: np.ndarray) -> dict[str, tuple[str, str]]:
        """Side and severity of each finding, ("", "") of one that is not there; the heart has no side."""
        view, picture = self.view(picture), picture.astype(np.float32)
        flat = self.flat(picture[None])
        white = self.white(flat, view)[0]
        rows = np.argsort(self.length[view] - 2 * self.expected[view] @ white)[:BASES] + self.first[view]
        found = [self._with_lesions(self.bases.iloc[row], flat[0] - self.drawn[row], view) for row in rows]
        return min(found, key=lambda one: one[0])[1]

    def _with_lesions(self, base: pd.Series, gone: np.ndarray, view: str) -> tuple[float, dict]:
        """What the best opacity and nodule leave unexplained of a base, and all findings then."""
        tried, white = {}, {}
        plain = base.to_frame().T.infer_objects()
        for finding, table in self.lesions.items():
            likely = self._likely(finding, gone, base, view)
            tried[finding] = table.iloc[likely].reset_index(drop=True)
            for name in ("label_view", "shift_x", "shift_y", "side_effusion", "severity_effusion", "label_effusion"):
                tried[finding][name] = base[name]
            for name in ("severity_cardiomegaly", "label_cardiomegaly"):
                tried[finding][name] = base[name]
            added = drawn(tried[finding], self.other) - drawn(plain, self.other)
            white[finding] = self.white(self.flat(added), view)
        one, two = white["opacity"], white["nodule"]
        rest = self.white(gone[None], view)[0]
        cost = {
            name: (part**2).sum(1) - 2 * part @ rest + HARDLY * (np.arange(len(part)) > 0)
            for name, part in white.items()
        }
        joint = cost["opacity"][:, None] + cost["nodule"] + 2 * one @ two.T
        best = dict(zip(white, np.unravel_index(joint.argmin(), joint.shape)))
        found = {name: (base[f"side_{name}"], base[f"severity_{name}"]) for name in ("effusion", "cardiomegaly")}
        for name, at in best.items():
            found[name] = tuple(tried[name].loc[at, [f"side_{name}", f"severity_{name}"]])
        return (rest**2).sum() + joint.min(), found

    def _likely(self, finding: str, gone: np.ndarray, base: pd.Series, view: str) -> np.ndarray:
        """Rows of the lesions that may explain what is left over, the first of them none."""
        side = int(len(gone) ** 0.5)
        fine, bend = self.whites[view]
        pulled = gone / fine + bend @ (self.basis.T @ gone)
        pulled = pulled / fine + self.basis @ (bend.T @ pulled)
        moved = (-base["shift_y"] * side // 64, -base["shift_x"] * side // 64)
        pulled = np.roll(pulled.reshape(side, side), moved, (0, 1)).reshape(-1)
        stamps = self.stamps[finding]
        effusion = phantoms._places(base.to_frame().T.infer_objects())["effusion"]
        dry = self.flat(phantoms._ellipse(effusion) == 0).reshape(side, side)
        shown = self.squares[finding] @ np.roll(dry, moved, (0, 1)).reshape(-1)
        worth = 2 * stamps @ pulled - self.worth[finding, view] * shown
        alike = 1 + np.arange(len(worth) - 1).reshape(len(GRADED) - 1, -1)  # one row a side and severity
        best = np.argsort(-worth[alike], axis=1)[:, :KEEP]
        return np.concatenate([[0], np.take_along_axis(alike, best, axis=1).reshape(-1)])
