"""A course with the assignment of a small notebook, and hand-ins to it."""

import json
import shutil

from mmkit.teach import labs

NAME = "07_made"
ANSWER = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
RIGHT, WRONG = "def double(x):\n    return 2 * x", "def double(x):\n    return x * x"
CHECK = "assert np.allclose(double(2), 4)\n### BEGIN HIDDEN TESTS\nassert double(-1) == -2\n### END HIDDEN TESTS"


def code(identity, source, *tags):
    cell = {"cell_type": "code", "id": identity, "source": source, "metadata": {"tags": list(tags)}}
    return cell | {"outputs": [], "execution_count": None}


NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "id": "question", "metadata": {}, "source": "# Twice what?"},
        code("set-up", "import numpy as np"),
        code("parameters", "factor: int = 2  # what for", "parameters"),
        code("early", "### BEGIN SOLUTION\nearly = 1\n### END SOLUTION", "exercise", "prediction"),
        code("early-check", "assert early == 1", "check"),
        code("answer", ANSWER, "exercise"),
        code("answer-check", CHECK, "check"),
    ],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def build(folder):
    """A course with the assignment of the notebook, which names no kernel."""
    (folder / f"{NAME}.ipynb").write_text(json.dumps(NOTEBOOK))
    labs.build(folder / f"{NAME}.ipynb", folder / "course")
    return folder / "course"


class Course:
    """A copy of a course to hand in to: `course.hand_in(student, change)`, then `course.grade()`."""

    def __init__(self, built, root):
        self.root = shutil.copytree(built, root)

    def released(self):
        return json.loads((self.root / "release" / NAME / f"{NAME}.ipynb").read_text())

    def hand_in(self, student, change=None, *, answer=RIGHT, file=f"{NAME}/{NAME}.ipynb"):
        """The released notebook with both answers, then changed by `change(notebook)`."""
        notebook = self.released()
        cell(notebook, "early")["source"] = "early = 1"
        cell(notebook, "answer")["source"] = answer
        if change:
            change(notebook)
        path = self.root / "submitted" / student / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook))
        return path

    def grade(self, **options):
        graded = labs.grade(NAME, self.root, **options)
        points = {student: _points(checks) for student, checks in graded.scores.items()}
        return points, graded.problems, graded.notes


def _points(checks):
    return [points for points, _ in checks.values()]


def cell(notebook, identity):
    return next(cell for cell in notebook["cells"] if cell["id"] == identity)


def place(notebook, identity):
    return notebook["cells"].index(cell(notebook, identity))
