"""One look for every figure: a colour and a marker per arm, alt text on each, and a stamp on what is no evidence."""

import base64
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's palette, made for colour-blind readers; markers repeat the distinction without colour.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = "#000000", "#E69F00", "#56B4E9", "#009E73", "#C9B800", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#7F7F7F"
ARMS = {
    "scratch": (BLACK, "o"),
    "holistic": (VERMILION, "s"),
    "component": (BLUE, "^"),
    "frozen": (SKY, "D"),
    "lp_ft": (GREEN, "v"),
    "joint_plus_unimodal": (PURPLE, "P"),
    "grad_blend": (ORANGE, "X"),
    "ogm_ge": (YELLOW, "p"),
    "wise_ft": (ORANGE, "h"),
    "best_single": (GREY, "<"),
    "ensemble": (GREY, ">"),
    "shuffled": (GREY, "x"),
    "blank": (GREY, "+"),
}
VERDICTS = {  # colour, sign: the sign carries the verdict where colour does not
    "supported": (BLUE, "✔"),
    "contradicted": (VERMILION, "✘"),
    "equivalent": (GREEN, "≈"),
    "inconclusive": (GREY, "?"),
    "not evidence": (GREY, "–"),
}
STAMP = "smoke run, not evidence"
STYLE = {
    "figure.dpi": 144,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": plt.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "legend.frameon": False,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
}


def arm(name: str) -> dict[str, str]:
    """The colour, marker and label of an arm, the same in every figure: `axes.plot(x, y, **plots.arm("holistic"))`."""
    colour, marker = ARMS.get(name, (GREY, "*"))
    return {"color": colour, "marker": marker, "label": name.replace("_", " ")}


@contextmanager
def figure(rows: int = 1, columns: int = 1, *, alt: str, caption: str = "", width: float = 7.0, height: float = 3.6, smoke: bool | None = None, **options) -> Iterator:
    """A figure in the kit's style, shown with its alt text at the end of the block.

    Yields the axes as `plt.subplots(rows, columns, **options)` gives them. width, height: inches of the whole figure.
    alt: what a reader who cannot see it needs to know. caption: the finding, printed under the figure.
    smoke: stamp it; by default when `MMKIT_PROFILE` is `smoke`.
    """
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(rows, columns, figsize=(width, height), **options)
        try:
            yield axes
            show(fig, alt=alt, caption=caption, smoke=smoke)
        finally:
            plt.close(fig)


def show(fig: Figure, *, alt: str, caption: str = "", smoke: bool | None = None) -> None:
    """Display a figure as PNG whose output carries `alt` in its metadata and as its text form, then the caption.

    Raises: ValueError for an empty alt text.
    """
    from IPython.display import Markdown, display

    alt = " ".join(alt.split())
    if not alt:
        raise ValueError("a figure needs alt text: say what it shows to a reader who cannot see it")
    if os.environ.get("MMKIT_PROFILE") == "smoke" if smoke is None else smoke:
        fig.text(0.5, 0.5, STAMP, ha="center", va="center", rotation=18, fontsize=26, color=VERMILION, alpha=0.35, zorder=10)
    png = io.BytesIO()
    fig.savefig(png, format="png", metadata={"Software": None})
    across, down = (round(float(inches) * 100) for inches in fig.get_size_inches())
    data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": f"[figure: {alt}]"}
    display(data, metadata={"image/png": {"alt": alt, "width": across, "height": down}}, raw=True)
    if caption:
        display(Markdown(f"*{' '.join(caption.split())}*"))


def forest(axes: Axes, rows: Iterable[Mapping]) -> None:
    """Effects with their intervals, one line a claim, read from the left: no effect is 0, what matters starts at 1.

    rows: mappings of label, effect, low, high, smallest_effect (> 0), sign (+1 or -1: the claimed direction), verdict, text.
    The axis is the effect in the claimed direction divided by the smallest effect that matters, so that claims in
    different units share it; the shaded band is "too small to matter". Wide ranges get a symmetric logarithmic axis.
    """
    rows = list(rows)
    far = 2.0
    for place, row in enumerate(reversed(rows)):
        colour, sign = VERDICTS[row["verdict"]]
        unit = row["sign"] / row["smallest_effect"]
        effect, low, high = row["effect"] * unit, *sorted((row["low"] * unit, row["high"] * unit))
        far = max(far, abs(low), abs(high))
        axes.plot([low, high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(effect, place, "o", color=colour, markersize=8, markeredgecolor="white")
        axes.annotate(f"{sign} {row['text']}", (1.01, place), xycoords=("axes fraction", "data"), va="center", color=colour, fontsize=9)
    axes.axvspan(-1, 1, color="#EFEFEF", zorder=0)
    axes.axvline(0, color="black", linewidth=1)
    if far > 12:
        axes.set_xscale("symlog", linthresh=1)
        ticks = [sign * size for size in (1, 10, 100, 1000) if size <= far * 1.3 for sign in (-1, 1)]
        axes.set_xticks(sorted([0, *ticks]), [f"{tick:+d}" if tick else "0" for tick in sorted([0, *ticks])])
    room = far * (1.6 if far > 12 else 1.15)
    axes.set_xlim(-room, room)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("← against the claim     effect ÷ smallest effect that matters     for the claim →")


def cost_quality(axes: Axes, points: Mapping[str, Mapping], *, score: str, legend: bool = True) -> None:
    """Quality against compute: one marker an arm, with its interval; up and to the left is better.

    points: arm -> mapping of flops (pretraining included), mean, low, high. Arms that no other beats in both get a ring.
    """
    points = {name: point for name, point in points.items() if point["flops"] > 0}  # a logarithmic axis has no zero
    for name, point in sorted(points.items(), key=lambda pair: -pair[1]["mean"]):
        look = arm(name)
        around = [[point["mean"] - point["low"]], [point["high"] - point["mean"]]]
        axes.errorbar(point["flops"], point["mean"], yerr=np.maximum(around, 0), linestyle="none", capsize=3, **look)
        beaten = any(other["flops"] <= point["flops"] and other["mean"] > point["mean"] for other in points.values())
        if not beaten:
            axes.plot(point["flops"], point["mean"], "o", markersize=14, markerfacecolor="none", markeredgecolor=look["color"], markeredgewidth=0.9)
    axes.set_xscale("log")
    spent = [point["flops"] for point in points.values()]
    axes.set_xlim(min(spent) / 1.6, max(spent) * 1.6)
    narrow = max(spent) < 20 * min(spent)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training compute, pretraining included (FLOPs)")
    axes.set_ylabel(score)
    if legend:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
