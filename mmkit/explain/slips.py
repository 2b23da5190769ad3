"""Slips in printed formulas and code: each runs as it stands, beside the same number made right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from textwrap import fill, shorten

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from mmkit.errors import MmkitError, printable

Values = float | Sequence[float]  # a number, or one a seed


@dataclass(frozen=True)
class Slip:
    """where: source and section. what: the slip in a few words. measure: which number `wrong` and `right` are.

    wrong, right: that number as printed and made right, one value a seed. error: what stops the printed line; then
    there is no `wrong`. losses: the printed loss at the first and the last step, where the printed line was trained."""

    where: str
    what: str
    measure: str
    wrong: tuple[float, ...]
    right: tuple[float, ...]
    error: str = ""
    losses: tuple[float, ...] = ()

    @property
    def fell(self) -> bool:
        """Whether the printed loss fell in training."""
        return bool(self.losses) and self.losses[-1] < self.losses[0]

    def __str__(self) -> str:
        if self.error:
            return f"{self.where}, {self.what}: stops, {self.error}; made right, {self.measure} {mean(self.right):.2f}"
        numbers = f"{self.measure} as printed {mean(self.wrong):.2f}, made right {mean(self.right):.2f}"
        if self.losses:
            numbers += f"; printed loss {self.losses[0]:.2f} to {self.losses[-1]:.2f}"
        if len(self.wrong) > 1:
            higher = sum(a < b for a, b in zip(self.wrong, self.right, strict=True))
            numbers += f"; made right higher with {higher} of {len(self.wrong)} seeds"
        return f"{self.where}, {self.what}: {numbers}"


class Slips(list[Slip]):
    """The slips that were measured, in order; `add` prints each."""

    def add(
        self, where: str, what: str, measure: str, printed: Values | str, right: Values, losses: Sequence[float] = ()
    ) -> None:
        """Write down one slip. printed: the number that the printed line gives, or the error that stops it, as text.

        losses: the printed loss at each step of a training."""
        error, wrong = (printed, ()) if isinstance(printed, str) else ("", _values(printed))
        ends = (losses[0], losses[-1]) if losses else ()
        self.append(Slip(where, what, measure, wrong, _values(right), error, ends))
        print(self[-1])

    def __str__(self) -> str:
        return ". ".join(map(str, self)) + "."

    @property
    def silent(self) -> list[Slip]:
        """Those that run to their end."""
        return [slip for slip in self if not slip.error]

    @property
    def stopped(self) -> list[Slip]:
        """Those that stop with an error."""
        return [slip for slip in self if slip.error]

    def fell(self) -> tuple[int, int]:
        """How many silent slips were trained as printed to a lower loss, and how many were trained."""
        trained = [slip for slip in self.silent if slip.losses]
        return sum(slip.fell for slip in trained), len(trained)


def _values(value: Values) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


def error_of(line: str, names: Mapping[str, object]) -> str:
    """The type and the first line of the error that a quoted line of code stops with, where `names` are known.

    The line is executed: quote only what you trust. Raises MmkitError when it runs to its end."""
    try:
        exec(line, dict(names))
    except Exception as error:  # whatever it is, it is the finding
        first = str(error).strip().split("\n")[0]
        return printable(f"{type(error).__name__}: {first}", 120)
    raise MmkitError(f"{line!r} was expected to stop with an error and ran to its end: it is no slip here")


def from_folders(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What torchvision's `ImageFolder` reads of images sorted into a folder a label: pixels and folder numbers, in its
    order.

    pixels: (N, 3, H, W) uint8. labels: (N,) whole numbers from 0, the folders' names."""
    with TemporaryDirectory() as root:
        for place, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            folder = Path(root, f"{label:04d}")  # folders are numbered in the order of their names
            folder.mkdir(exist_ok=True)
            to_pil_image(image).save(folder / f"{place:06d}.png")
        found = ImageFolder(root)
        return torch.stack([pil_to_tensor(image) for image, _ in found]), torch.tensor(found.targets)


def draw_silent(axes: Axes, slips: Sequence[Slip], *, wrong: str, right: str, grey: str) -> None:
    """A line a slip, from the number as printed (cross) to the number made right (dot), on an axis from 0 to 1.

    A number below the axis is an arrow at its edge. Small marks are single seeds. wrong, right, grey: colours."""
    for place, slip in enumerate(slips):
        printed, mended = mean(slip.wrong), mean(slip.right)
        axes.plot([max(printed, 0), mended], [place, place], color=grey, linewidth=1.5)
        for values, marker, colour in ((slip.wrong, "x", wrong), (slip.right, "o", right)):
            if len(values) > 1:
                axes.plot(values, [place] * len(values), marker, color=colour, markersize=4, alpha=0.5)
        axes.plot(max(printed, 0), place, "x" if printed >= 0 else "<", color=wrong, ms=10, mew=2.5, clip_on=False)
        axes.plot(mended, place, "o", color=right, markersize=9, clip_on=False)
        said = f"{printed:.2f} → {mended:.2f}  {slip.measure}{', loss fell' if slip.fell else ''}".replace("-", "−")
        axes.annotate(said, (1.04, place), va="center", color=grey, annotation_clip=False)
    axes.set(xlim=(0, 1), xlabel="the number named at the right; small marks are single seeds, an arrow lies below 0")
    _label(axes, slips, f"{len(slips)} run to the end with a wrong number (cross); made right (dot)")


def draw_stopped(axes: Axes, slips: Sequence[Slip], *, wrong: str) -> None:
    """A line a slip with the error that stops it. wrong: a colour."""
    for place, slip in enumerate(slips):
        said = shorten(slip.error, 68, placeholder=" ...")
        axes.annotate(said, (0.01, place), va="center", color=wrong, annotation_clip=False)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    _label(axes, slips, f"{len(slips)} stop with an error")


def captions(photos: Sequence[tuple[Tensor, str, str]]) -> list[str]:
    """What was written of each photo beside its real caption. photos: pixels (3, H, W), written, real."""
    return [f"written: {written}\nreal: {real}" for _, written, real in photos]


def draw_captions(axes: Sequence[Axes], photos: Sequence[tuple[Tensor, str, str]]) -> None:
    """Each photo beside its two captions, on axes of its own. photos: as for `captions`."""
    for axis, (pixels, *_), text in zip(axes, photos, captions(photos), strict=True):
        axis.imshow(pixels.permute(1, 2, 0).numpy())
        axis.set_axis_off()
        lines = [fill(line, 30, subsequent_indent="    ") for line in text.splitlines()]
        axis.annotate("\n".join(lines), (1.05, 0.5), xycoords="axes fraction", va="center")


def _label(axes: Axes, slips: Sequence[Slip], title: str) -> None:
    axes.set_yticks(range(len(slips)), [f"{slip.what}  ({slip.where})" for slip in slips])
    axes.set(title=title, ylim=(len(slips) - 0.4, -0.6))
