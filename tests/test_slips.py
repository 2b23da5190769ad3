"""The ledger of slips: what is written down, what a printed line stops with, and what the figure shows of it."""

import matplotlib.pyplot as plt
import pytest
import torch

from mmkit.errors import MmkitError
from mmkit.explain.slips import Slips, captions, draw_captions, draw_silent, draw_stopped, error_of, from_folders

COLOURS = {"wrong": "red", "right": "blue", "grey": "grey"}


@pytest.fixture
def found(capsys):
    slips = Slips()
    slips.add("A §1", "turned sign", "accuracy", 0.25, 1, losses=[0.5, 7.0, -2.0])
    slips.add("B §2", "no shape", "accuracy", "TypeError: not this", 0.5)
    slips.add("C §3", "late stop", "accuracy", [0.5, 0.75, 0.25], [0.75, 0.5, 0.75], losses=[1.0, 0.5, 1.5])
    slips.add("D §4", "another gap", "R²", -3.5, 1.0)
    capsys.readouterr()
    return slips


def test_a_slip_says_both_numbers_and_what_the_printed_loss_did(capsys):
    Slips().add("A §1", "turned sign", "accuracy", 0.25, 1, losses=[0.5, 7.0, -2.0])
    said = "A §1, turned sign: accuracy as printed 0.25, made right 1.00; printed loss 0.50 to -2.00"
    assert capsys.readouterr().out == said + "\n", "the first and the last loss, none between"


def test_slips_that_stop_and_slips_that_run_are_told_apart(found):
    assert [slip.what for slip in found.stopped] == ["no shape"]
    assert [slip.what for slip in found.silent] == ["turned sign", "late stop", "another gap"]
    assert str(found[1]) == "B §2, no shape: stops, TypeError: not this; made right, accuracy 0.50"
    assert str(found).count(". ") == 3 and str(found).endswith("made right 1.00.")


def test_a_loss_fell_when_it_ends_below_its_start(found):
    assert [slip.fell for slip in found] == [True, False, False, False]
    assert found.fell() == (1, 2), "one of the two that were trained"


def test_seeds_are_averaged_and_compared_one_by_one(found):
    text = str(found[2])
    assert "as printed 0.50, made right 0.67" in text
    assert text.endswith("made right higher with 2 of 3 seeds"), "pairs of one seed, not sorted values"


def test_the_error_of_a_line_is_its_type_and_first_line():
    assert error_of("x + 'a'", {"x": 1}) == "TypeError: unsupported operand type(s) for +: 'int' and 'str'"
    assert error_of("raise ValueError('first\\nsecond')", {}) == "ValueError: first"
    assert error_of("torch.zeros(1)", {}) == "NameError: name 'torch' is not defined", "it knows what it is given alone"


def test_a_line_leaves_the_names_as_they_were():
    names = {"x": 1}
    error_of("x = 2; y = 3; z", names)
    assert names == {"x": 1}


def test_a_line_that_runs_is_no_slip():
    with pytest.raises(MmkitError, match="'x = 1' .* ran to its end"):
        error_of("x = 1", {})


def test_images_come_back_from_folders_as_they_were_sorted_by_label():
    pixels = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 11, 2, 0, 0, 11, 2, 2, 0, 2, 0])
    found, numbers = from_folders(pixels, labels)
    order = labels.argsort(stable=True)
    assert torch.equal(found, pixels[order])
    expected = torch.searchsorted(torch.tensor([0, 2, 11]), labels[order])
    assert torch.equal(numbers, expected), "a folder's number, not its name: 11 comes after 2"


def test_the_figure_shows_each_number_where_it_is(found):
    figure, axes = plt.subplots()
    draw_silent(axes, found.silent, **COLOURS)
    dots = [
        (line.get_marker(), line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if len(line.get_xdata()) == 1
    ]
    assert dots == [("x", 0.25, 0), ("o", 1, 0), ("x", 0.5, 1), ("o", 2 / 3, 1), ("<", 0, 2), ("o", 1.0, 2)]
    assert [text.get_text() for text in axes.texts] == [
        "0.25 → 1.00  accuracy, loss fell",
        "0.50 → 0.67  accuracy",
        "−3.50 → 1.00  R²",
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "turned sign  (A §1)",
        "late stop  (C §3)",
        "another gap  (D §4)",
    ]
    low, high = axes.get_ylim()
    assert low > high, "the first slip is at the top"
    plt.close(figure)


def test_the_figure_shows_the_error_and_cuts_a_long_one(found):
    found.add("E §5", "long", "accuracy", "RuntimeError: " + "much to say " * 20, 1.0)
    figure, axes = plt.subplots()
    draw_stopped(axes, found.stopped, wrong="red")
    short, long = (text.get_text() for text in axes.texts)
    assert short == "TypeError: not this"
    assert long.startswith("RuntimeError: much") and long.endswith("...") and len(long) <= 68
    assert axes.get_title() == "2 stop with an error"
    plt.close(figure)


def test_photos_stand_upright_beside_both_captions():
    pixels = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    pixels[1, 0, 1, 5] = 255
    photos = [(pixels[0], "one", "two"), (pixels[1], "word " * 12, "short")]
    assert captions(photos)[0] == "written: one\nreal: two"
    figure, axes = plt.subplots(1, 2)
    draw_captions(axes, photos)
    (image,) = axes[1].images
    assert image.get_array().shape == (4, 6, 3) and image.get_array()[1, 5].tolist() == [255, 0, 0]
    lines = axes[1].texts[0].get_text().splitlines()
    assert lines[0].startswith("written: word") and lines[1].startswith("    word") and lines[-1] == "real: short"
    assert max(map(len, lines)) <= 30
    plt.close(figure)
