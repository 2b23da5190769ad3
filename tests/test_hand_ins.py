"""Hand-ins: honest accidents are mended or named, and a grader is told where to look."""

import json
import textwrap

import pytest

import answers
import small_course
from conftest import NOTEBOOKS
from mmkit import notebooks
from mmkit.errors import MmkitError
from mmkit.teach import hand_ins, labs, sandbox, views
from small_course import ANSWER, NAME, NOTEBOOK, RIGHT, WRONG, cell, code, place


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return small_course.build(tmp_path_factory.mktemp("course"))


@pytest.fixture
def course(built, tmp_path):
    return small_course.Course(built, tmp_path / "course")


# --- honest accidents -------------------------------------------------------------------------------------------------


def duplicated(notebook, identity="answer", first=None, second=None):
    """As JupyterLab does it: the copy has the metadata and an id of its own."""
    original = cell(notebook, identity)
    copy = original | {"id": "1f3a-copy", "source": second or original["source"]}
    original["source"] = first or original["source"]
    notebook["cells"].insert(place(notebook, identity) + 1, copy)


def without_metadata(notebook):
    for each in notebook["cells"]:
        each["metadata"] = {}


def moved(notebook):
    notebook["cells"].append(notebook["cells"].pop(place(notebook, "answer")))


def helped(notebook):
    helper = {"cell_type": "code", "id": "mine", "metadata": {}, "source": "two = 2", "outputs": []}
    notebook["cells"].insert(place(notebook, "answer"), helper | {"execution_count": 3})
    cell(notebook, "answer")["source"] = "double = lambda x: two * x"


def as_markdown(notebook):
    each = cell(notebook, "answer")
    del each["outputs"], each["execution_count"]
    each["cell_type"] = "markdown"


def deleted(notebook):
    notebook["cells"] = [each for each in notebook["cells"] if each["id"] not in ("answer", "answer-check")]


STUB = views.student_source(ANSWER)
HONEST = {  # what happened: change, points, what is said about it
    "nothing": (None, [1, 3], ""),
    "duplicated": (duplicated, [1, 3], "answer answer is in 2 cells"),
    "kept the stub": (lambda n: duplicated(n, first=STUB), [1, 3], ""),
    "wrote it twice": (lambda n: duplicated(n, first=WRONG), [1, 3], "answer answer is in 2 cells"),
    "split": (lambda n: duplicated(n, first="def double(x):", second="    return 2 * x"), [1, 3], "is in 2 cells"),
    "split the check": (lambda n: duplicated(n, "answer-check", "assert double(2)", " == 4"), [1, 3], ""),
    "copied the set-up": (lambda n: duplicated(n, "set-up"), [1, 3], ""),
    "lost metadata": (without_metadata, [1, 3], ""),
    "moved": (moved, [1, 3], ""),
    "helped": (helped, [1, 3], ""),
    "as Markdown": (as_markdown, [1, 3], "answer answer was no code cell"),
    "deleted": (deleted, [1, 0], "answer cell answer is missing"),
}


def said_of(student, notes):
    about = [note for note in notes if note.startswith(f"{student}: ")]
    said = HONEST[student][2]
    return bool(about) == bool(said) and said in "".join(about)


@pytest.mark.parametrize("student", HONEST)
def test_honest_accidents_are_mended(student):
    """The cells run here, on after errors as in nbgrader; a check that raises nothing earns its points."""
    source, space, points = labs.assignment(NOTEBOOK), {}, []
    notebook = json.loads(json.dumps(source))
    for identity, answer in (("early", "early = 1"), ("answer", RIGHT)):
        cell(notebook, identity)["source"] = answer
    change, wanted, _ = HONEST[student]
    if change:
        change(notebook)
    whole, notes = hand_ins.assemble(notebook["cells"], source)
    for each in notebooks.code_cells(whole):
        role, right = each["metadata"].get("nbgrader", {}), True
        try:
            exec(each["source"], space)
        except Exception:
            right = False
        points += [right * role["points"]] if role.get("grade") else []
    assert points == wanted and said_of(student, [f"{student}: {note}" for note in notes])


@pytest.mark.slow
def test_what_was_mended_is_graded_by_nbgrader(course):
    chosen = ("split", "split the check", "as Markdown", "deleted")
    for student in chosen:
        course.hand_in(student, HONEST[student][0])
    points, problems, notes = course.grade()
    assert points == {student: HONEST[student][1] for student in chosen} and problems == []
    assert all(said_of(student, notes) for student in chosen), notes


def test_an_answer_in_pieces_runs_in_the_students_order():
    source = labs.assignment(NOTEBOOK)
    notebook = json.loads(json.dumps(source))
    duplicated(notebook, first="a = 1", second="b = 2")
    duplicated(notebook, "parameters", second="factor: int = 3  # more")
    duplicated(notebook, "set-up", second="import math")
    notebook["cells"].insert(place(notebook, "answer") + 1, code("between", "c = 3"))
    whole, _ = hand_ins.assemble(notebook["cells"], source)
    ran = [each["source"] for each in whole["cells"] if each["cell_type"] == "code"]
    early, check = cell(source, "early"), cell(source, "answer-check")
    wanted = ["import numpy as np", "import math", "factor: int = 2  # what for", early["source"], "assert early == 1"]
    assert ran == [*wanted, "a = 1", "c = 3", "b = 2", check["source"]]
    assert len({each["id"] for each in whole["cells"]}) == len(whole["cells"])


FOUND = [f"{NAME}/{NAME} (1).ipynb", f"{NAME}/mine.ipynb", f"{NAME}/{NAME}.ipynb.txt", f"{NAME}-Copy1.ipynb"]


@pytest.mark.parametrize("file", FOUND)
def test_a_renamed_notebook_is_found(tmp_path, file):
    for path in (f"ada/{file}", ".git/07_made/x.ipynb", "bob/08_another/08_another.ipynb"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("{}")
    [folder] = hand_ins.folders(tmp_path, NAME)
    assert hand_ins.choose(folder, NAME) == (tmp_path / "ada" / file, f"{file} was taken for {NAME}.ipynb")


UNCLEAR = {  # the files of a student: what is said
    (
        f"{NAME}/{NAME} (1).ipynb",
        f"{NAME}/{NAME} (2).ipynb",
    ): "there are several notebooks (07_made/07_made (1).ipynb, ",
    (f"{NAME}/{NAME}.html",): "there is no notebook, but 07_made/07_made.html: ask for 07_made.ipynb",
    (f"{NAME}/.keep/x",): "there is no notebook, but an empty folder",
}


@pytest.mark.parametrize("files", UNCLEAR)
def test_what_cannot_be_chosen_is_named(tmp_path, files):
    for file in files:
        (tmp_path / "ada" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ada" / file).write_text("{}")
    with pytest.raises(MmkitError) as error:
        hand_ins.choose(tmp_path / "ada", NAME)
    assert str(error.value).startswith(UNCLEAR[files])


def test_of_two_the_one_with_the_name_is_taken_and_said(tmp_path):
    for name in (NAME, f"{NAME} (1)"):
        (tmp_path / NAME).mkdir(exist_ok=True)
        (tmp_path / NAME / f"{name}.ipynb").write_text("{}")
    chosen, note = hand_ins.choose(tmp_path, NAME)
    assert chosen.name == f"{NAME}.ipynb" and note == f"{NAME}.ipynb was taken, not {NAME}/{NAME} (1).ipynb"


def test_a_link_to_the_source_and_a_name_that_is_a_pattern_are_refused(tmp_path):
    (tmp_path / "secret.ipynb").write_text("{}")
    for student in ("mal", "[x]*"):
        (tmp_path / student / NAME).mkdir(parents=True)
    (tmp_path / "mal" / NAME / f"{NAME}.ipynb").symlink_to(tmp_path / "secret.ipynb")
    with pytest.raises(MmkitError, match="is a link to .*secret.ipynb: ask for the file itself"):
        hand_ins.choose(tmp_path / "mal", NAME)
    with pytest.raises(MmkitError, match="rename the folder"):
        hand_ins.choose(tmp_path / "[x]*", NAME)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: ask for the notebook again"),
        (json.dumps(NOTEBOOK).encode()[:300], "is cut off or no notebook (Unterminated string"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"\n<!DOCTYPE html>", "is a web page"),
        (b"[" * 100_000, "is cut off or no notebook"),
        (b"[]", "is a damaged notebook"),
        (b'{"cells": [{"cell_type": "code"}]}', "is a damaged notebook (KeyError: 'source')"),
        (b'{"cells": [{"cell_type": "code", "source": {"a": 1}, "metadata": 3}]}', "is a damaged notebook"),
        (b"\xff\xfe\x00", "is cut off or no notebook"),
        (b'{"worksheets": [], "nbformat": 3}', "is a damaged notebook (KeyError: 'cells')"),
    ],
)
def test_a_damaged_hand_in_is_named(tmp_path, content, said):
    (tmp_path / "x.ipynb").write_bytes(content)
    with pytest.raises(MmkitError) as error:
        hand_ins.read(tmp_path / "x.ipynb")
    assert f"x.ipynb {said}" in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_notebook_saved_by_an_odd_editor_is_read(tmp_path, encoding):
    (tmp_path / "x.ipynb").write_bytes(json.dumps(NOTEBOOK).encode(encoding))
    assert [each["id"] for each in hand_ins.read(tmp_path / "x.ipynb")] == [each["id"] for each in NOTEBOOK["cells"]]


@pytest.mark.slow
def test_a_hand_in_that_ends_its_kernel_is_graded_as_far_as_it_ran(course):
    course.hand_in("killed", answer="import os\nos.kill(os.getpid(), 9)")
    course.hand_in("other", lambda notebook: notebook.update(cells=[code("x", "1")]))
    course.hand_in("cut").write_text(json.dumps(course.released())[:-200])
    points, problems, _ = course.grade()
    assert points == {"killed": [1, 0], "other": [], "cut": []}
    said = {problem.split(" ")[0]: problem for problem in problems}
    assert "killed was graded as far as it ran: its kernel died in cell answer" in said["killed"]
    assert "none of the 6 code cells of the assignment is in it" in said["other"]
    assert "cut was not graded: 07_made.ipynb is cut off or no notebook" in said["cut"]


@pytest.mark.slow
def test_an_endless_loop_ends_and_what_it_prints_is_bounded(monkeypatch):
    monkeypatch.setattr(sandbox, "CELL_SECONDS", 2)
    monkeypatch.setattr(sandbox, "OUTPUT_BYTES", 10_000)
    cells = [code("loop", "while True:\n    print('x' * 1000, flush=True)"), code("after", "print('on it goes')")]
    given, fault = sandbox.execute(NOTEBOOK | {"cells": cells})
    assert fault == "" and "on it goes" in str(given["after"]) and len(str(given["loop"])) < 20_000
    assert any(output["output_type"] == "error" for output in given["loop"]["outputs"])


# --- assignments ------------------------------------------------------------------------------------------------------


def test_a_notebook_without_a_kernel_makes_an_assignment_for_python():
    assert labs.assignment(NOTEBOOK)["metadata"]["kernelspec"]["name"] == "python3"
    assert labs.assignment({"cells": NOTEBOOK["cells"]})["metadata"]["kernelspec"]["name"] == "python3"


def test_half_a_surrogate_pair_makes_no_assignment(tmp_path):
    (tmp_path / f"{NAME}.ipynb").write_text(json.dumps(NOTEBOOK | {"cells": [code("x", "'\ud800'")]}))
    with pytest.raises(MmkitError, match=f"{NAME}.ipynb makes no assignment .'utf-8' codec can't encode"):
        labs.build(tmp_path / f"{NAME}.ipynb", tmp_path / "course")


@pytest.mark.parametrize("identity", ["set-up", ""])
def test_cells_without_an_id_of_their_own_make_none(identity):
    cells = [*NOTEBOOK["cells"], code(identity, "1")]
    with pytest.raises(MmkitError, match=rf"cell 8 has no id of its own \('{identity}'\)"):
        labs.assignment(NOTEBOOK | {"cells": cells})


def test_grading_what_was_never_built_says_so(tmp_path):
    (tmp_path / "submitted" / "ada" / NAME).mkdir(parents=True)
    (tmp_path / "submitted" / "ada" / NAME / f"{NAME}.ipynb").write_text("{}")
    with pytest.raises(MmkitError, match=f"the course has no assignment {NAME}: make it with `mmkit labs build"):
        labs.grade(NAME, tmp_path)


def test_a_name_that_a_terminal_would_obey_is_written_out(tmp_path):
    for name in ("source", "submitted/\x1b[2Jeve"):
        (tmp_path / name / NAME).mkdir(parents=True)
        (tmp_path / name / NAME / f"{NAME}.ipynb").write_text("{}")
    graded = labs.grade(NAME, tmp_path)
    text = labs.table(graded.scores) + "".join(graded.problems)
    assert r"\x1b[2Jeve was not graded: nbgrader takes no such name" in text and "\x1b" not in text


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    (tmp_path / "x.ipynb").write_text(json.dumps(NOTEBOOK | {"cells": [code("x", "text = '\ud800'")]}))
    assert hand_ins.read(tmp_path / "x.ipynb")[0]["source"] == "text = '?'"


REMARKS = {
    "import subprocess as s\ns.run(['x'])": "starts processes (subprocess)",
    "Mine.__eq__ = f": "makes comparisons of its own (__eq__)",
    "setattr(np, 'allclose', f)": "changes a module (setattr)",
    "np.__dict__['allclose'] = f": "changes a module (__dict__)",
    "np.allclose.__code__ = f": "changes a module (__code__)",
    "from unittest import mock": "changes a module (mock)",
    "import sys\nsys.modules['numpy'] = f": "reaches into Python (sys.modules)",
    "globals()['np'] = f": "reaches into Python (globals)",
    "class np:\n    allclose = f": "gives names that checks use another meaning (np)",
    "np = f": "gives names that checks use another meaning (np)",
    "import mine as np": "gives names that checks use another meaning (np)",
    "def mine():\n    global np\n    np = f": "gives names that checks use another meaning (np)",
    "def np():\n    return f": "gives names that checks use another meaning (np)",
    "import gc": "reaches into Python (gc)",
    "text = 'see ../source/x'": "looks at files (open)",
    "%system ls": "starts processes (system)",
    "np.allclose = f": "changes a module (np =)",
    "import torch.nn as nn\nnn.ReLU = f": "changes a module (nn =)",
}


@pytest.mark.parametrize("source", REMARKS)
def test_a_grader_is_told_where_to_look(source):
    cells = [*NOTEBOOK["cells"], code("mine", textwrap.dedent(source))]
    assert hand_ins.remarks(cells, labs.assignment(NOTEBOOK)) == [f"cell 8 {REMARKS[source]}: look at it"]


def test_names_of_a_functions_own_are_no_reason_to_look():
    mine = (
        "def mine(np):\n    np = [np for np in np]\n    import numpy as np\nclass A:\n    np = 1\nb = [np for np in ()]"
    )
    assert hand_ins.remarks([code("mine", mine)], labs.assignment(NOTEBOOK)) == []


def test_the_words_of_a_comment_are_no_reason_to_look():
    cells = [
        code("mine", "# open the system, walk and kill\nmodel.eval()\nrows = model.modules()\nself.x = 'we open it'")
    ]
    assert hand_ins.remarks(cells, labs.assignment(NOTEBOOK)) == []


def test_no_answer_of_the_kit_is_suspect():
    for path in NOTEBOOKS:
        source = labs.assignment(notebooks.read(path))
        cells = [*source["cells"], *(code("wrong", wrong["code"]) for _, wrong in answers.wrong(path))]
        assert hand_ins.remarks(cells, source) == [], path.stem
