"""Figures: every arm has a look of its own, told apart by colour-blind readers too; alt text, the stamp, odd names."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mmkit import strategies
from mmkit.teach import plots

# Machado, Oliveira & Fernandes 2009 (doi:10.1109/TVCG.2009.113): what linear RGB becomes without one kind of cone.
SIGHT = {
    "all cones": np.eye(3),
    "no L cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no M cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no S cones": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, sight):
    """CIELAB of a colour as a reader with this sight sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(SIGHT[sight]) @ linear, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def look(name):
    return plots.arm(name)["color"], plots.arm(name)["marker"]


def test_every_arm_has_a_look_and_a_label_of_its_own():
    names = [*strategies.ARMS, *strategies.DERIVED]
    assert set(names) <= set(plots.ARMS), "give the new arm a colour, a marker and a plain label in plots.ARMS"
    looks, labels = {look(name) for name in plots.ARMS}, {plots.arm(name)["label"] for name in plots.ARMS}
    assert len(looks) == len(labels) == len(plots.ARMS) and not any("_" in label for label in labels)


@pytest.mark.parametrize("sight", SIGHT)
def test_arms_that_share_a_marker_differ_in_colour_for_every_reader(sight):
    for one, other in itertools.combinations(plots.ARMS, 2):
        if look(one)[1] == look(other)[1]:
            distance = np.linalg.norm(lab(look(one)[0], sight) - lab(look(other)[0], sight))
            assert distance > 15, f"{one} and {other} look alike with {sight}: {distance:.0f}"


def test_a_students_own_strategy_has_a_stable_look_that_no_arm_has():
    names = ["my_idea", "holistic2", "自己的", "", "_", "$x", "a" * 1000]
    assert not {look(name) for name in plots.ARMS} & {look(name) for name in names}
    assert plots.arm("my_idea") == plots.arm("my_idea") and look("my_idea") == (plots.VERMILION, "$⚑$")
    assert len({look(f"idea_{number}") for number in range(200)}) == len(plots.FREE)


@pytest.mark.parametrize("name", ["cost $x", "$x^$", "_hidden", r"\frac", "<script>", "a_b", "\x1b[31mred"])
def test_any_name_can_be_drawn(name):
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots()
        axes.plot([0, 1], **plots.arm(name))
        assert [text.get_text() for text in axes.legend().get_texts()] == [plots.arm(name)["label"]]
        assert plots.arm(name)["label"].isprintable()
        figure.canvas.draw()
        plt.close(figure)


def test_a_tag_in_a_caption_is_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data))
    with plots.figure(alt="A line that rises.", caption="<script>alert(1)</script> leads; a < b, x <- y.") as axes:
        axes.plot([0, 1])
    assert shown[1].data == "*&lt;script>alert(1)&lt;/script> leads; a < b, x <- y.*"


def test_all_arms_in_one_figure(monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *data, **options: None)
    points = {name: {"flops": 1e9 + at, "mean": 0.5, "low": 0.4, "high": 0.6} for at, name in enumerate(plots.ARMS)}
    with plots.figure(width=10, height=9, alt="Every arm of the table at one height.") as axes:
        plots.cost_quality(axes, points, score="accuracy")
        assert len(axes.get_legend().get_texts()) == len(plots.ARMS)
