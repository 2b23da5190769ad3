"""nbgrader assignments from the notebooks: `build` makes one, `grade` runs nbgrader's own autograder on what came back.

A cell tagged `exercise` is where an answer goes. The `check` behind it, hidden tests included, earns its points. Every
other code cell is restored before grading. A prediction earns its point for being made in the asked form: a guess is
not marked right or wrong. Submissions are run with the rights of whoever grades them: grade what strangers hand in
inside a container.
"""

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from mmkit import notebooks
from mmkit.errors import MmkitError

PREDICTION_POINTS, ANSWER_POINTS = 1, 3
COURSE = "mmkit"
CELL_SECONDS = 300  # an endless loop ends here; a lab run takes a minute in all

Scores = dict[str, dict[str, tuple[float, float]]]
"""student -> check cell -> (points, most points)"""


def build(path: str | Path, course: str | Path) -> Path:
    """Make the assignment of the notebook at `path` in the folder `course`; returns the notebook to hand out.

    With the answers it is in `source/`, without them in `release/`. Submissions go to
    `submitted/STUDENT/NAME/NAME.ipynb`. Raises MmkitError.
    """
    path = Path(path)
    import nbformat

    notebook = nbformat.from_dict(assignment(notebooks.read(path)))
    source = Path(course) / "source" / path.stem / path.name
    source.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, source)
    _convert("GenerateAssignment", course, path.stem, create_assignment=True)
    return Path(course) / "release" / path.stem / path.name


def assignment(notebook: Mapping) -> dict:
    """`notebook` with nbgrader's metadata and without outputs.

    Raises MmkitError for an exercise that no check follows.
    """
    code, cells = notebooks.code_cells(notebook), []
    for cell in notebook["cells"]:
        fresh = {"cell_type": cell["cell_type"], "id": cell["id"], "source": cell["source"], "metadata": {}}
        if cell["cell_type"] == "code":
            place = next(number for number, other in enumerate(code) if other is cell)
            fresh |= {"outputs": [], "execution_count": None}
            fresh["metadata"]["nbgrader"] = {
                "schema_version": 3,
                "grade_id": cell["id"],
                "task": False,
                **_role(code, place),
            }
        cells.append(fresh)
    return {
        "cells": cells,
        "metadata": {"kernelspec": notebook["metadata"]["kernelspec"]},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _role(code: list[dict], place: int) -> dict:
    tags, before = notebooks.tags(code[place]), notebooks.tags(code[place - 1]) if place else []
    if "exercise" in tags:
        if place + 1 == len(code) or "check" not in notebooks.tags(code[place + 1]):
            raise MmkitError(f"exercise {code[place]['id']} has no check behind it: tag the next code cell 'check'")
        return {"grade": False, "solution": True, "locked": False}
    if "check" in tags and "exercise" in before:
        return {
            "grade": True,
            "solution": False,
            "locked": True,
            "points": PREDICTION_POINTS if "prediction" in before else ANSWER_POINTS,
        }
    return {"grade": False, "solution": False, "locked": True}


def grade(name: str, course: str | Path) -> tuple[Scores, list[str]]:
    """Run nbgrader's autograder on every submission of the assignment `name`.

    Returns the scores, and for each submission that could not be graded a line that says why. Raises MmkitError.
    """
    submitted = sorted({path.parent.parent.name for path in (Path(course) / "submitted").glob(f"*/{name}/*.ipynb")})
    if not submitted:
        place = f"{Path(course) / 'submitted'}/STUDENT/{name}/{name}.ipynb"
        raise MmkitError(f"nothing was handed in for {name}: put notebooks at {place}")
    scores, problems = {}, []
    for student in submitted:
        try:
            _convert("Autograde", course, name, student=student, create_student=True)
            scores[student] = _scores(course, name, student)
        except MmkitError as error:
            scores[student] = {}
            problems.append(f"nbgrader could not grade {student}: {error}")
    return scores, problems


def _scores(course: str | Path, name: str, student: str) -> dict[str, tuple[float, float]]:
    from nbgrader.api import Gradebook

    with Gradebook(_config(course).CourseDirectory.db_url, COURSE) as book:
        grades = [grade for notebook in book.find_submission(name, student).notebooks for grade in notebook.grades]
        return {grade.name: (float(grade.score), float(grade.max_score)) for grade in grades}


def table(scores: Scores) -> str:
    """The scores as text, a line a student, a column a check."""
    columns = list(next(filter(None, scores.values()), {}))
    rows = [["student", *columns, "total"]]
    for student, points in sorted(scores.items()):
        most = sum(most for _, most in points.values())
        total = f"{sum(got for got, _ in points.values()):g} of {most:g}" if points else "not graded"
        rows.append([student, *(f"{points[name][0]:g}" if points else "-" for name in columns), total])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for student, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        lines.append("  ".join([student.ljust(widths[0]), *aligned]))
    return "\n".join(lines)


def _config(course: str | Path):
    from traitlets.config import Config

    root = Path(course).resolve()
    config = Config()
    config.CourseDirectory.update(
        {"root": str(root), "course_id": COURSE, "db_url": f"sqlite:///{root / 'gradebook.db'}"}
    )
    config.LockCells.lock_readonly_cells = False  # a student may change parameters; grading restores them
    config.OverwriteCells.add_missing_cells = True
    config.Execute.timeout = CELL_SECONDS
    return config


def _convert(kind: str, course: str | Path, name: str, *, student: str = "", **options) -> None:
    """Run one of nbgrader's converters, its kernels on unix sockets.

    Raises MmkitError with the last error that nbgrader logged.
    """
    try:
        from nbgrader import converters
        from nbgrader.coursedir import CourseDirectory
        from nbgrader.preprocessors import Execute
    except ImportError as error:
        raise MmkitError(f"labs need nbgrader ({error}): python -m pip install -e '.[labs]'") from error

    class ExecuteOnUnixSockets(Execute):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "kernel_manager_class": notebooks.IpcKernelManager})

    config = _config(course)
    steps = converters.Autograde.autograde_preprocessors.default()
    config.Autograde.autograde_preprocessors = [ExecuteOnUnixSockets if step is Execute else step for step in steps]
    directory = CourseDirectory(config=config)
    directory.assignment_id, directory.student_id = name, student or directory.student_id
    converter = getattr(converters, kind)(coursedir=directory, config=config)
    converter.force = True
    for option, value in options.items():
        setattr(converter, option, value)
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    converter.log.addHandler(handler)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # nbgrader calls alembic
    with notebooks.environment(PATH=path), warnings.catch_warnings(action="ignore"):  # its queries make SQLAlchemy warn
        try:
            converter.start()
        except (converters.NbGraderException, SystemExit) as error:
            reasons = [line for line in said.getvalue().splitlines() if re.match(r"\w*(Error|Exception)\b", line)]
            raise MmkitError((reasons or [str(error)])[-1]) from error
        finally:
            converter.log.removeHandler(handler)
