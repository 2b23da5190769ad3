"""A number in prose is one that a run gives: what counts as one, what supports it; a stale or typed one fails."""

import pytest

from conftest import ROOT
from mmkit.published import pages
from mmkit.teach import prose


def notebook(markdown, code="share = 0.25", shown="accuracy 0.81\n", tags=("nbval-check-output",)):
    cell = {
        "cell_type": "code",
        "id": "result",
        "metadata": {"tags": list(tags)},
        "source": code,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": shown}],
    }
    return {"cells": [{"cell_type": "markdown", "id": "meaning", "metadata": {}, "source": markdown}, cell]}


def numbers(markdown, **options):
    return [
        text.split(" is typed")[0].removeprefix("the number ") for _, text in prose.check(notebook(markdown, **options))
    ]


TYPED = {
    "It reaches 0.83.": ["0.83"],
    "It reaches **0.83**, before 0.81.": ["0.83"],
    "up to 43 % and 43% of them": ["43 %", "43%"],
    "$r = 0.83$, or $83\\%$": ["0.83", "83%"],
    "| recall | 1,234.5 |": ["1,234.5"],
    "0.83 here.\n\nQuoted in arXiv:1707.05612.": ["0.83"],
    "* 0.83 is ours\n* 0.79 is theirs (Faghri, 2018)": ["0.83"],
    "**Time and memory** 10 s and 1 GB on 2 cores, of which 3.5 s are imports.": ["3.5"],
}
FREE = [
    "It reaches 0.81, or 81 %, with a share of 0.25 (25 %).",
    "Ten seeds gave 41.9 to 47.0 (VSE++, arXiv:1707.05612).",
    "They report 44.4 (2018).",
    "In 2018, with 4 encoders, 512 pairs and 1,000 images, `lr = 0.003`, R@1, 16x16, v2.",
    "§4.1 and §2.3.1; Python 3.11 to 3.14; [0.83](figure_0.83.png) is a file".replace("[0.83]", "[it]"),
    "```\nx = 1\n\ny = 0.83\n```\n\n    mmkit run 00 -p true_gap=0.77",
    "a 95 % interval and 90 % confidence intervals",
    "**Time and memory** 10 s and 1.5 GB on 2 cores.",
]


@pytest.mark.parametrize("text", TYPED)
def test_a_typed_number_is_caught(text):
    assert numbers(text) == TYPED[text]


@pytest.mark.parametrize("text", FREE)
def test_settings_results_quotations_and_names_are_free(text):
    assert numbers(text) == []


def test_a_stale_number_is_caught():
    """The same prose, after the run gave something else."""
    assert numbers("It reaches 0.81.") == [] and numbers("It reaches 0.81.", shown="accuracy 0.79\n") == ["0.81"]


def test_only_what_nbval_compares_is_evidence():
    assert numbers("It reaches 0.81.", tags=()) == ["0.81"]


def test_a_number_typed_into_a_printed_text_is_caught():
    assert (
        numbers("Fine.", code="print('it reaches 0.83')")
        == numbers("Fine.", code="Markdown(f'{name} reaches 0.83')")
        == ["0.83"]
    )
    assert numbers("Fine.", code="table = read('B-LOC 0.926')") == []
    assert numbers("Fine.", code="print(f'{share:4.0%}')", shown=" 81%\n") == [], "the width of a number is none"


def test_a_number_typed_under_a_figure_is_caught():
    for code in (
        "with plots.figure(alt='it reaches 0.83'): draw()",
        "plots.show(fig, alt=text, caption=f'{name} reaches 0.83')",
    ):
        assert numbers("Fine.", code=code) == ["0.83"]


@pytest.mark.parametrize(
    "code",
    [
        "print('it reaches 0.83')",
        "with plots.figure(alt='it reaches 0.83'): draw()",
        "plots.show(fig, alt=text, caption='it reaches 0.83')",
    ],
)
def test_showing_a_typed_number_makes_it_no_result(code):
    assert numbers("It reaches 0.83.", code=code, shown="[figure: it reaches 0.83]") == ["0.83", "0.83"]
    assert numbers("It reaches 0.83.", code=f"{code}; print(f'{{recall:.2f}}')", shown="0.81") == ["0.83", "0.83"]
    assert (
        numbers(
            "It reaches 0.83.",
            code="plots.show(fig, alt=f'it reaches {recall:.2f}')",
            shown="[figure: it reaches 0.83]",
        )
        == []
    )


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_documents_type_no_result(name):
    """Results are in the notebooks and their records, which the documents point to."""
    before, _, rest = (ROOT / name).read_text().partition(pages.START)  # what is written from records comes after it
    assert prose.unsupported(before + rest.partition(pages.END)[2], ()) == []
