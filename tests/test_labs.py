"""Labs: the reference earns full marks, an empty hand-in none, plausible wrong answers fail.

The graders are tested by mutation: tests/mutants/NN.yaml holds wrong answers, at least two an exercise, as whole cells.
"""

import json
import shutil
import sys

import pytest

import answers
from conftest import NOTEBOOKS
from mmkit import notebooks
from mmkit.errors import MmkitError
from mmkit.teach import labs, views

EXERCISES = [
    pytest.param(path, name, id=f"{path.stem[:2]}-{name}") for path in NOTEBOOKS for name in answers.exercises(path)
]
WRONG = [
    pytest.param(path, name, wrong["code"], id=f"{path.stem[:2]}-{name}: {wrong['why']}")
    for path in NOTEBOOKS
    for name, wrong in answers.wrong(path)
]


@pytest.fixture(autouse=True)
def _no_window(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_has_two_wrong_answers(path):
    listed = answers.mutants(path)
    form = "exercise -> at least two wrong answers, each `why` and `code`, the whole cell"
    assert listed, f"write tests/mutants/{path.stem[:2]}.yaml: {form}"
    parameters = listed.pop("parameters", {})
    assert set(listed) == set(answers.exercises(path)) >= set(parameters)
    for name, wrong in listed.items():
        enough = len({answer["code"] for answer in wrong}) >= 2 and all(answer["why"] for answer in wrong)
        assert enough, f"{path.stem}: {name} needs two different wrong answers or more, each with a reason"


@pytest.mark.notebooks
@pytest.mark.parametrize(("path", "name"), EXERCISES)
def test_the_reference_passes_and_an_empty_answer_does_not(path, name):
    cell, check = answers.exercises(path)[name]
    bench = answers.bench(path, name)
    bench.answer(cell, cell["source"])
    bench.verdict(check)
    try:
        bench.answer(cell, views.student_source(cell["source"]))
    except NotImplementedError:
        pass  # nbgrader goes on with the next cell
    with pytest.raises((NotImplementedError, NameError)):
        bench.verdict(check)


@pytest.mark.notebooks
@pytest.mark.parametrize(("path", "name", "code"), WRONG)
def test_a_plausible_wrong_answer_fails(path, name, code):
    cell, check = answers.exercises(path)[name]
    bench = answers.bench(path, name)
    bench.answer(cell, code)
    with pytest.raises(Exception) as failure:
        bench.verdict(check)
    assert not isinstance(failure.value, NameError), f"a wrong answer is the whole cell: {failure.value}"


# --- nbgrader ---------------------------------------------------------------------------------------------------------


def edited(path, **sources):
    """The text of a notebook with the sources of some cells replaced."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["source"] = sources.get(cell["id"], cell["source"])
    return json.dumps(notebook)


@pytest.mark.notebooks
def test_nbgrader_grades_a_lab(mmkit, tmp_path):
    """From the command line, as a lecturer would. The last student also edits a check and changes a parameter."""
    path = next(path for path in NOTEBOOKS if path.stem == "00_start_here")
    [*_, wrong] = answers.mutants(path)["seeds-needed"]
    built = mmkit("labs", "build", "00", "--course", tmp_path, check=0)
    release, source = (tmp_path / kind / path.stem / path.name for kind in ("release", "source"))
    assert str(release) in built.stdout
    hand_ins = {
        "empty": release.read_text(),
        "reference": source.read_text(),
        "wrong": edited(
            source,
            **{
                "seeds-needed": wrong["code"],
                "seeds-needed-check": "print('fine')",
                "parameters": "repeats: int = 1  # few",
            },
        ),
    }
    for student, text in hand_ins.items():
        place = tmp_path / "submitted" / student / path.stem / path.name
        place.parent.mkdir(parents=True)
        place.write_text(text)
    (tmp_path / "submitted" / "garbled" / path.stem).mkdir(parents=True)
    (tmp_path / "submitted" / "garbled" / path.stem / path.name).write_text("not a notebook")
    done = mmkit("labs", "grade", "00", "--course", tmp_path, check=1)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["student", "guess-check", "seeds-needed-check", "total"],
        ["empty", "0", "0", "0", "of", "4"],
        ["garbled", "-", "-", "not", "graded"],
        ["reference", "1", "3", "4", "of", "4"],
        ["wrong", "1", "0", "1", "of", "4"],
    ]
    assert "garbled was not graded: 00_start_here.ipynb is cut off or no notebook" in done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lab_holds_back_what_it_must(path):
    """nbgrader's own steps and the student view make the same text; exercises are answers, checks have points."""
    import nbformat
    from nbgrader.preprocessors import CheckCellMetadata, ClearHiddenTests, ClearSolutions

    made = nbformat.from_dict(labs.assignment(notebooks.read(path)))
    for step in (ClearSolutions, CheckCellMetadata, ClearHiddenTests):
        made, _ = step().preprocess(made, {})
    student = json.loads(views.render(path)[f"student/{path.name}"])
    assert [cell["source"].rstrip("\n") for cell in made.cells] == [
        "".join(cell["source"]) for cell in student["cells"]
    ]
    roles = {cell["id"]: cell["metadata"]["nbgrader"] for cell in made.cells if cell["cell_type"] == "code"}
    for name, (_, check) in answers.exercises(path).items():
        assert roles[name]["solution"] and not roles[name]["locked"] and roles[check["id"]]["points"] > 0
    assert (
        sum(role["solution"] for role in roles.values())
        == sum(role["grade"] for role in roles.values())
        == len(answers.exercises(path))
    )


def test_an_exercise_without_a_check_makes_no_lab():
    cells = [
        {"cell_type": "code", "id": name, "source": "", "metadata": {"tags": tags}}
        for name, tags in (("answer", ["exercise"]), ("other", []))
    ]
    with pytest.raises(MmkitError, match="exercise answer has no check behind it"):
        labs.assignment({"cells": cells, "metadata": {"kernelspec": {}}})


def test_grading_nothing_says_where_hand_ins_go(tmp_path):
    name = "00_start_here"
    with pytest.raises(
        MmkitError, match=f"nothing was handed in for {name}: put .*submitted/STUDENT/{name}/{name}.ipynb"
    ):
        labs.grade(name, tmp_path)


def test_labs_without_nbgrader_say_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    with pytest.raises(MmkitError, match=r"labs need nbgrader .*pip install -e '\.\[labs\]'"):
        labs.build(shutil.copy(NOTEBOOKS[0], tmp_path), tmp_path)
