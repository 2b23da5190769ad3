"""One look for every figure: a colour and a marker for each arm, alt text, and a stamp on what is no evidence."""

import base64
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mmkit.errors import printable

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), made for colour-blind readers, its yellow darkened for
# white paper. Green, purple and grey are still alike to some readers, so no two arms in these share a marker.
BLACK, ORANGE, SKY, GREEN, YELLOW = "#000000", "#E69F00", "#56B4E9", "#009E73", "#C9B800"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"

# A colour is a family of arms: black starts from scratch, vermilion trains all at once, blue goes in stages, sky keeps
# the encoders frozen, green treats the two encoders differently, purple has losses of each modality, orange sees one
# modality only, grey is a control that something is hidden from. The marker tells the members apart.
ARMS = {
    "scratch": (BLACK, "o", "from scratch"),
    "hard_negatives": (BLACK, "X", "from scratch, then hard negatives"),
    "holistic": (VERMILION, "s", "pretrained, all trained at once"),
    "component": (BLUE, "^", "pretrained, trained in stages"),
    "lp_ft": (BLUE, "v", "pretrained, head first, then all"),
    "frozen_then_all": (BLUE, ">", "encoders frozen, all at the end"),
    "wise_ft": (BLUE, "h", "in stages, weights averaged"),
    "frozen": (SKY, "D", "encoders frozen"),
    "lit_Lu": (GREEN, "<", "image frozen, text from scratch"),
    "lit_uL": (GREEN, ">", "image from scratch, text frozen"),
    "lit_LU": (GREEN, "^", "image frozen, text fine-tuned"),
    "lit_UL": (GREEN, "v", "image fine-tuned, text frozen"),
    "lit_Uu": (GREEN, "P", "image fine-tuned, text from scratch"),
    "lit_uU": (GREEN, "X", "image from scratch, text fine-tuned"),
    "joint_plus_unimodal": (PURPLE, "D", "from scratch, own losses added"),
    "grad_blend": (PURPLE, "s", "from scratch, own losses blended"),
    "ogm_ge": (PURPLE, "p", "from scratch, gradients balanced"),
    "image_only": (ORANGE, "<", "image alone"),
    "text_only": (ORANGE, ">", "text alone"),
    "best_single": (ORANGE, "D", "better single modality"),
    "ensemble_single": (ORANGE, "h", "image alone + text alone, averaged"),
    "frozen_image": (SKY, "<", "encoders frozen, texts blank"),
    "frozen_text": (SKY, ">", "encoders frozen, images blank"),
    "blank_image": (GREY, "h", "from scratch, images blank"),
    "blank_text": (GREY, "d", "from scratch, texts blank"),
    "shuffled_pairs": (GREY, "*", "from scratch, pairs shuffled"),
}
"""name -> colour, marker, label"""
# For strategies that a student writes: markers that no arm of the table has.
FREE = [(colour, f"${sign}$") for sign in "♠♣⚑☂▬◗" for colour in (BLACK, VERMILION, BLUE, SKY, GREEN, PURPLE, ORANGE)]

VERDICTS = {  # colour, sign: the sign carries the verdict where colour does not
    "supported": (BLUE, "✔"), "direction only": (BLUE, "↗"), "equivalent": (GREEN, "≈"), "excluded": (VERMILION, "⊘"),
    "contradicted": (VERMILION, "✘"), "inconclusive": (GREY, "?"), "unstable": (GREY, "↯"),
    "nothing learned to compare": (GREY, "⊥"), "nothing left to tell apart": (GREY, "⊤"),
    "not tuned alike": (GREY, "≠"), "not evidence": (GREY, "–"),
}  # fmt: skip
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
STAMP = "smoke run, not evidence"
WIDE = 12  # from so many times the smallest effect on, an axis is logarithmic


def arm(name: str) -> dict[str, str]:
    """The colour, marker and label of an arm, the same in every figure: `axes.plot(x, y, **plots.arm("holistic"))`.

    A name that is not in the table gets a look that follows from its letters alone: it, too, is the same everywhere.
    """
    if name in ARMS:
        colour, marker, label = ARMS[name]
    else:
        colour, marker = FREE[zlib.crc32(name.encode("utf-8", "replace")) % len(FREE)]
        label = printable(name).replace("_", " ").strip().replace("$", r"\$")  # a dollar would begin a formula
    return {"color": colour, "marker": marker, "label": label}


@contextmanager
def figure(
    rows: int = 1,
    columns: int = 1,
    *,
    alt: str,
    caption: str = "",
    width: float = 7.0,
    height: float = 3.6,
    smoke: bool | None = None,
    **options,
) -> Iterator:
    """A figure in the kit's style, shown with its alt text at the end of the block.

    Yields the axes as `plt.subplots(rows, columns, **options)` gives them. width, height: inches of the whole figure.
    alt: what a reader who cannot see it needs to know. caption: the finding, printed under the figure.
    smoke: whether to stamp it; by default when `MMKIT_PROFILE` is `smoke`.
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
        middle = {"ha": "center", "va": "center", "rotation": 18, "zorder": 10}
        fig.text(0.5, 0.5, STAMP, fontsize=26, color=VERMILION, alpha=0.35, **middle)
    png = io.BytesIO()
    fig.savefig(png, format="png", metadata={"Software": None})
    across, down = (round(float(inches) * 100) for inches in fig.get_size_inches())
    data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": f"[figure: {alt}]"}
    display(data, metadata={"image/png": {"alt": alt, "width": across, "height": down}}, raw=True)
    if caption:
        # Names of data, arms and students are text: a tag in one is shown, not obeyed.
        text = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", " ".join(caption.split()))
        display(Markdown(f"*{text}*"))


def forest(axes: Axes, rows: Iterable[Mapping]) -> None:
    """Effects with their intervals, one line a claim. No effect is at 0; what matters starts at 1.

    rows: mappings of label, effect, low, high, smallest_effect (> 0), sign (+1 or -1: the claimed direction), verdict,
    text. The axis is the effect in the claimed direction divided by the smallest effect that matters, so that claims in
    different units share it; the shaded band is "too small to matter". Wide ranges get a symmetric logarithmic axis.
    """
    rows = list(rows)
    far = 2.0
    for place, row in enumerate(reversed(rows)):
        colour, sign = VERDICTS[row["verdict"]]
        unit = row["sign"] / row["smallest_effect"]
        low, high = sorted((row["low"] * unit, row["high"] * unit))
        far = max(far, abs(low), abs(high))
        axes.plot([low, high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(row["effect"] * unit, place, "o", color=colour, markersize=8, markeredgecolor="white")
        beside = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 9}
        axes.annotate(f"{sign} {row['text']}", (1.01, place), color=colour, **beside)
    axes.axvspan(-1, 1, color="#EFEFEF", zorder=0)
    axes.axvline(0, color="black", linewidth=1)
    room = far * 1.15
    if far > WIDE:
        room = far * 1.6
        sizes = [size for size in (1, 10, 100, 1000) if size <= far * 1.3]
        ticks = [*(-size for size in reversed(sizes)), 0, *sizes]
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_xlim(-room, room)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("← against the claim     effect ÷ smallest effect that matters     for the claim →")


def cost_quality(axes: Axes, points: Mapping[str, Mapping], *, score: str, legend: bool = True) -> None:
    """Quality against compute: one marker an arm, with its interval. Up and to the left is better.

    points: arm -> mapping of flops (pretraining included), mean, low, high. An arm without flops is left out: a
    logarithmic axis has no zero. An arm gets a ring when no other arm is better at the same compute or less.
    """
    points = {name: point for name, point in points.items() if point["flops"] > 0}
    ring = {"markersize": 14, "markerfacecolor": "none", "markeredgewidth": 0.9}
    for name, point in sorted(points.items(), key=lambda pair: -pair[1]["mean"]):
        look, flops, mean = arm(name), point["flops"], point["mean"]
        around = np.maximum([[mean - point["low"]], [point["high"] - mean]], 0)
        axes.errorbar(flops, mean, yerr=around, linestyle="none", markersize=8, capsize=3, **look)
        if not any(other["flops"] <= flops and other["mean"] > mean for other in points.values()):
            axes.plot(flops, mean, "o", markeredgecolor=look["color"], **ring)
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
