"""A reader of `scenes` that knows nothing of how they are drawn: it learns what pixels mean from captioned pictures.

It learns by heart, not by training: which pixels of a pure colour are which arrow or landmark, and what the greys of
each ground are on average. A pattern that two captions call by different names is told as an error, since then no
reader can know which it is.
"""

import re

import numpy as np
from scipy.ndimage import center_of_mass, label

COLOURS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 80, 200)}
COLOURS |= {"yellow": (235, 205, 30), "purple": (140, 60, 190), "cyan": (30, 190, 200)}
BEACON = (255, 140, 0)
SIDES = ("up", "right", "down", "left")
RELATION = r"(?P<relation>left of|right of|above|below)"
THING = r"(?P<size>\w+) (?P<landmark>\w+) (?P<shape>\w+)"
CAPTIONS = (
    rf"a (?P<arrow>\w+) arrow pointing (?P<heading>\w+) , {RELATION} a {THING} on (?P<ground>\w+) ground \.",
    rf"on (?P<ground>\w+) ground a {THING} has a (?P<arrow>\w+) arrow {RELATION} it , pointing (?P<heading>\w+) \.",
    rf"look , here points a (?P<arrow>\w+) arrow (?P<heading>\w+) and it stands {RELATION} one {THING} ,"
    r" the ground is (?P<ground>\w+) \.",
    rf"this ground is (?P<ground>\w+) , with one {THING} and {RELATION} that an arrow in (?P<arrow>\w+)"
    r" which points (?P<heading>\w+) \.",
)
TURNS = {
    "straight": "go straight on|keep straight ahead",
    "right": "turn right|take a right turn",
    "around": "turn around|make a half turn around",
    "left": "turn left|take a left turn",
}
TURNING = re.compile("|".join(f"(?P<{name}>{words})" for name, words in TURNS.items()))
PATHS = re.compile(r"(?:the path leads|the exit is|the exit must be|the old path still leads) (\w+)")


def caption_facts(text: str) -> dict[str, str]:
    """All seven facts that a caption tells; a caption of no known wording is an error."""
    found = [match for pattern in CAPTIONS if (match := re.fullmatch(pattern, text))]
    assert len(found) == 1, f"{text!r} is read in {len(found)} ways"
    return found[0].groupdict()


def question_facts(text: str) -> dict[str, str]:
    """The turn and the side of the path, or "none"."""
    turns, paths = list(TURNING.finditer(text)), PATHS.findall(text)
    assert len(turns) == 1 and len(paths) <= 1, f"{text!r} tells {len(turns)} turns and {len(paths)} paths"
    return {"turn": turns[0].lastgroup, "path": paths[0] if paths else "none"}


def answer_of(facts: dict[str, str]) -> tuple[str, str]:
    """Kind and answer that follow from what picture and question tell."""
    cues = {facts["beacon"], facts["path"]} - {"none"}
    assert len(cues) <= 1, f"picture and question contradict each other: {facts}"
    if not cues:
        turned = SIDES.index(facts["heading"]) + list(TURNS).index(facts["turn"])
        return "both", SIDES[turned % 4]
    kind = "image" if facts["path"] == "none" else "text" if facts["beacon"] == "none" else "either"
    return kind, cues.pop()


class Reader:
    """Reads pictures (32, 32, 3) after it has learnt from pictures and the facts of their captions."""

    def __init__(self, images: np.ndarray, captions: list[dict[str, str]]):
        self.patterns: dict[tuple, tuple] = {}
        grounds: dict[str, list] = {}
        for image, told in zip(images, captions):
            grounds.setdefault(told["ground"], []).append(self.ground(image))
            for colour, pattern, _ in self.things(image):
                if told["arrow"] != told["landmark"]:  # which of the two it is cannot be told yet
                    arrow = colour == told["arrow"]
                    self.learn(pattern, ("arrow", told["heading"]) if arrow else (told["shape"], told["size"]))
        self.grounds = {name: np.mean(greys, axis=0) for name, greys in grounds.items()}

    def learn(self, pattern: tuple, name: tuple) -> None:
        known = self.patterns.setdefault(pattern, name)
        assert known == name, f"the same pixels are called {known} and {name}"

    @staticmethod
    def things(image: np.ndarray) -> list[tuple[str, tuple, np.ndarray]]:
        """Pieces of one pure colour: its name, the pattern of pixels, where its middle is (y, x)."""
        found = []
        for name, colour in COLOURS.items():
            pure = (image == colour).all(-1)
            pieces, count = label(pure) if pure.any() else (pure, 0)
            for piece in range(1, count + 1):
                inside = pieces == piece
                ys, xs = np.nonzero(inside)
                box = inside[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
                found.append((name, (box.shape, box.tobytes()), np.array(center_of_mass(inside))))
        return found

    @staticmethod
    def ground(image: np.ndarray) -> np.ndarray:
        """Greys folded to the period of the textures, around their mean: (8, 8)."""
        grey = (image == image[..., :1]).all(-1)
        folded = np.where(grey, image[..., 0], 0).reshape(4, 8, 4, 8).sum((0, 2), dtype=float)
        count = grey.reshape(4, 8, 4, 8).sum((0, 2))
        return folded / count - (folded / count).mean()

    def read(self, image: np.ndarray) -> dict[str, str]:
        """All that the picture tells."""
        edges = dict(zip(SIDES, (image[:2], image[:, -2:], image[-2:], image[:, :2])))
        lit = [side for side, edge in edges.items() if (edge == BEACON).all()]
        assert len(lit) <= 1, f"beacons on {lit}"
        things = [(colour, self.patterns.get(pattern), at) for colour, pattern, at in self.things(image)]
        assert all(name for _, name, _ in things), "a piece has a pattern that no caption named"
        arrows = [thing for thing in things if thing[1][0] == "arrow"]
        landmarks = [thing for thing in things if thing[1][0] != "arrow"]
        assert len(arrows) == len(landmarks) == 1, f"{len(arrows)} arrows and {len(landmarks)} landmarks"
        (arrow, (_, heading), here), (landmark, (shape, size), there) = arrows[0], landmarks[0]
        down, right = here - there
        across = "right of" if right > 0 else "left of"
        greys = self.ground(image)
        return {
            "heading": heading,
            "arrow": arrow,
            "shape": shape,
            "landmark": landmark,
            "size": size,
            "relation": across if abs(right) > abs(down) else "below" if down > 0 else "above",
            "ground": min(self.grounds, key=lambda name: ((greys - self.grounds[name]) ** 2).sum()),
            "beacon": lit[0] if lit else "none",
        }
