"""The student, solution and code-only copies say what their notebook says, hide what they must, and are not stale."""

import ast
import json
import re

import pytest

from conftest import NOTEBOOKS, ROOT
from mmkit import notebooks
from mmkit.teach import views

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
ANSWER = "def f(x):\n    ### BEGIN SOLUTION\n    y = 2 * x\n    return y\n    ### END SOLUTION\n\n\nz = 3"
CHECK = "assert f(1) == 2\n### BEGIN HIDDEN TESTS\nassert f(-1) == -2\n### END HIDDEN TESTS\nprint('passed')"


def sources(text):
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(text)["cells"]}


@pytest.fixture
def made(tmp_path):
    """A notebook of three cells, one with output, in a folder of its own."""
    cells = [
        {"cell_type": "markdown", "id": "question", "metadata": {}, "source": "# Twice what?\n"},
        {
            "cell_type": "code",
            "id": "answer",
            "metadata": {"tags": ["exercise"]},
            "execution_count": 1,
            "outputs": [],
            "source": ANSWER,
        },
        {
            "cell_type": "code",
            "id": "answer-check",
            "metadata": {"tags": ["check"]},
            "execution_count": 2,
            "outputs": [{"output_type": "stream", "name": "stdout", "text": "passed\n"}],
            "source": CHECK,
        },
    ]
    path = tmp_path / "07_made.ipynb"
    path.write_text(
        json.dumps(
            {"cells": cells, "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}
        )
    )
    return path


def test_what_each_view_shows_and_hides(made):
    texts = views.render(made)
    student, solution = sources(texts["student/07_made.ipynb"]), sources(texts["solution/07_made.ipynb"])
    assert student["answer"] == "def f(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()\n\n\nz = 3"
    assert student["answer-check"] == "assert f(1) == 2\nprint('passed')"
    assert (
        solution["answer"] == "def f(x):\n    y = 2 * x\n    return y\n\n\nz = 3"
        and "f(-1) == -2" in solution["answer-check"]
    )
    assert (
        texts["code/07_made.py"].startswith("# Twice what?\n# The code of 07_made.ipynb")
        and "# %% answer\ndef f(x):\n    y = 2 * x\n" in texts["code/07_made.py"]
    )
    assert "passed\\n" not in texts["student/07_made.ipynb"], "outputs stay in the source"
    for text in texts.values():
        assert "### BEGIN" not in text and "### END" not in text


def test_several_regions_in_a_cell_and_one_at_its_end():
    two = "### BEGIN SOLUTION\na = 1\n### END SOLUTION\nb = 2\n"
    two += "if b:\n    ### BEGIN SOLUTION\n    c = 3\n    ### END SOLUTION"
    assert (
        views.student_source(two)
        == f"{views.STUB}\nb = 2\nif b:\n    # YOUR CODE HERE\n    raise NotImplementedError()"
    )


def test_a_stale_or_missing_copy_is_found_and_written_again(made):
    assert len(views.stale(made)) == 3
    assert (
        sorted(file.parent.name for file in views.write(made)) == ["code", "solution", "student"]
        and views.stale(made) == views.write(made) == []
    )
    made.write_text(made.read_text().replace("Twice what?", "Three times what?"))
    assert len(views.stale(made)) == 3
    views.write(made)
    made.write_text(made.read_text().replace("f(-1) == -2", "f(-3) == -6"))
    assert sorted(file.parent.name for file in views.stale(made)) == ["code", "solution"], (
        "students never saw the hidden test"
    )
    made.write_text(made.read_text().replace("passed\\n", "passed again\\n"))
    assert len(views.write(made)) == 2 and views.stale(made) == []


def test_a_copy_whose_notebook_is_gone_is_found(made):
    views.write(made)
    assert views.orphans(made.parent) == []
    made.rename(made.with_name("08_made.ipynb"))
    for stranger in (
        "student/.ipynb_checkpoints/07_made-checkpoint.ipynb",
        "student/07_folder/notes.txt",
        "solution/my notes.txt",
    ):
        (views.folder(made) / stranger).parent.mkdir(exist_ok=True)
        (views.folder(made) / stranger).touch()
    assert sorted(file.name for file in views.orphans(made.parent)) == ["07_made.ipynb", "07_made.ipynb", "07_made.py"]


# --- the notebooks of the kit -----------------------------------------------------------------------------------------


@each_notebook
def test_no_copy_is_stale(path):
    assert not [file.relative_to(ROOT) for file in views.stale(path)], "run `mmkit labs views`"


def test_no_copy_is_left_over():
    assert views.orphans(ROOT / "notebooks") == [], "run `mmkit labs views`"


@each_notebook
def test_solution_and_code_are_the_code_that_the_tests_run(path):
    """Markers are comments: with the same syntax trees, what nbval shows of a notebook holds for its copies."""
    texts = views.render(path)
    code = [cell["source"] for cell in notebooks.code_cells(notebooks.read(path))]
    copied = [
        cell["source"] for cell in json.loads(texts[f"solution/{path.name}"])["cells"] if cell["cell_type"] == "code"
    ]
    trees = [ast.dump(ast.parse(source)) for source in code]
    assert [ast.dump(ast.parse("".join(source))) for source in copied] == trees
    assert ast.dump(ast.parse(texts[f"code/{path.stem}.py"])) == ast.dump(ast.parse("\n".join(code)))


@each_notebook
def test_the_student_copy_is_code_and_holds_no_solution(path):
    student = sources(views.render(path)[f"student/{path.name}"])
    for cell in notebooks.code_cells(notebooks.read(path)):
        ast.parse(student[cell["id"]])
        for kind in (views.SOLUTION, views.HIDDEN):
            regions = re.findall(rf"### BEGIN {kind}\n(.*?)### END {kind}", cell["source"], re.S)
            for line in (line.strip() for region in regions for line in region.splitlines() if len(line.strip()) > 20):
                assert line not in student[cell["id"]], f"{path.stem}: {cell['id']} shows {line!r}"


@each_notebook
def test_links_in_a_copy_lead_somewhere(path):
    for cell in notebooks.read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", cell["source"]):
                for folder in (path.parent, path.parent / "views" / "student", path.parent / "views" / "solution"):
                    assert (folder / link).exists(), (
                        f"{path.stem}: {cell['id']}: {link} leads nowhere from {folder.relative_to(ROOT)}"
                    )


def test_the_command_brings_copies_up_to_date(mmkit, made):
    done = mmkit("labs", "views", made, check=0)
    assert done.stdout == "3 copies changed in notebooks/views/\n" and views.stale(made) == []


@pytest.mark.notebooks
def test_refresh_brings_them_up_to_date_too(mmkit, made):
    mmkit("notebook", "refresh", made, check=0)
    assert (made.parent / "views" / "student" / made.name).is_file() and views.stale(made) == []
