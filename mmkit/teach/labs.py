"""nbgrader assignments from the notebooks: `build` makes one, `grade` marks with nbgrader's autograder what came back.

A cell tagged `exercise` is where an answer goes. The `check` behind it, hidden tests included, earns its points. Every
other code cell is restored before grading. A prediction earns its point for being made in the asked form: a guess is
not marked right or wrong. Hidden tests stop mistakes, not cheats: grade what strangers hand in inside a container.
"""

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from mmkit import notebooks
from mmkit.errors import MmkitError, printable
from mmkit.teach import hand_ins, sandbox

PREDICTION_POINTS, ANSWER_POINTS = 1, 3
COURSE = "mmkit"
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
MUST_FAIL = "must-fail-"  # before a check's id: a cell that fails, unless assertions are off

Scores = dict[str, dict[str, tuple[float, float]]]
"""student -> check cell -> (points, most points); {} for who was not graded"""


class Graded(NamedTuple):
    """What `grade` found: scores, why students were not graded or not to the end, and what a grader should know."""

    scores: Scores
    problems: list[str]
    notes: list[str]


def build(path: str | Path, course: str | Path) -> Path:
    """Make the assignment of the notebook at `path` in the folder `course`; returns the notebook to hand out.

    With the answers it is in `source/`, without them in `release/`. Submissions go to
    `submitted/STUDENT/NAME/NAME.ipynb`. Raises MmkitError.
    """
    path = Path(path)
    import nbformat

    notebook, source = nbformat.from_dict(assignment(notebooks.read(path))), _source(course, path.stem)
    source.parent.mkdir(parents=True, exist_ok=True)
    try:
        nbformat.validate(notebook)
        nbformat.write(notebook, source)
    except (nbformat.ValidationError, UnicodeError) as error:
        reason = str(error).splitlines()[0]
        raise MmkitError(f"{path.name} makes no assignment ({reason}): correct the notebook") from None
    _convert("GenerateAssignment", course, path.stem)
    return Path(course) / "release" / path.stem / path.name


def assignment(notebook: Mapping) -> dict:
    """`notebook` with nbgrader's metadata and without outputs, for the kernel python3 where it names none.

    Raises MmkitError for an exercise that no check follows, and for cells that share an id or have none.
    """
    code, cells = notebooks.code_cells(notebook), []
    for cell in notebook["cells"]:
        fresh = {name: cell[name] for name in ("cell_type", "id", "source")}
        fresh["metadata"] = {"tags": notebooks.tags(cell)} if notebooks.tags(cell) else {}
        if cell["cell_type"] == "code":
            place = next(number for number, other in enumerate(code) if other is cell)
            fresh |= {"outputs": [], "execution_count": None}
            fresh["metadata"]["nbgrader"] = {"schema_version": 3, "grade_id": cell["id"], "task": False}
            fresh["metadata"]["nbgrader"] |= _role(code, place)
        if not cell["id"] or any(cell["id"] == other["id"] for other in cells):
            raise MmkitError(
                f"cell {len(cells) + 1} has no id of its own ({cell['id']!r}): run `mmkit notebook refresh`"
            )
        cells.append(fresh)
    kernel = notebook.get("metadata", {}).get("kernelspec") or KERNEL
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _role(code: list[dict], place: int) -> dict:
    tags, before = notebooks.tags(code[place]), notebooks.tags(code[place - 1]) if place else []
    if "exercise" in tags:
        if place + 1 == len(code) or "check" not in notebooks.tags(code[place + 1]):
            raise MmkitError(f"exercise {code[place]['id']} has no check behind it: tag the next code cell 'check'")
        return {"grade": False, "solution": True, "locked": False}
    if "check" in tags and "exercise" in before:
        points = PREDICTION_POINTS if "prediction" in before else ANSWER_POINTS
        return {"grade": True, "solution": False, "locked": True, "points": points}
    return {"grade": False, "solution": False, "locked": True}


def _source(course: str | Path, name: str) -> Path:
    return Path(course) / "source" / name / f"{name}.ipynb"


def grade(name: str, course: str | Path, *, image: str | None = None) -> Graded:
    """Run and mark every submission of the assignment `name`. Raises MmkitError.

    image: run them in containers of this image, by podman or docker, without network.
    """
    submitted = Path(course) / "submitted"
    folders = hand_ins.folders(submitted, name)
    if not folders:
        raise MmkitError(f"nothing was handed in for {name}: put notebooks at {submitted}/STUDENT/{name}/{name}.ipynb")
    if not _source(course, name).is_file():
        raise MmkitError(f"the course has no assignment {name}: make it with `mmkit labs build {name}`")
    graded = Graded({}, [], [])
    for folder in folders:
        student = printable(folder.name)  # the same where a name is taken: `choose` refuses others
        graded.scores[student] = {}
        try:
            path, choice = hand_ins.choose(folder, name)
            with TemporaryDirectory(prefix="mmk") as staging:
                notes, fault = _mark(path, name, course, Path(staging), student, image)
            graded.scores[student] = _scores(course, name, student)
            graded.notes.extend(printable(f"{student}: {text}") for text in (choice, *notes) if text)
            graded.problems.extend([printable(f"{student} was graded as far as it ran: {fault}")] if fault else [])
        except MmkitError as error:
            graded.problems.append(f"{student} was not graded: {error}")
    return graded


def _mark(
    path: Path, name: str, course: str | Path, staging: Path, student: str, image: str | None
) -> tuple[list[str], str]:
    """Run a hand-in apart from the course and mark its outputs; returns what to know, and why it did not end or ""."""
    import nbformat

    source, cells = notebooks.read(_source(course, name)), hand_ins.read(path)
    whole, notes = hand_ins.assemble(cells, source)
    with _unchanged(Path(course), name):
        outputs, fault = sandbox.run(_with_failures(whole), image=image)
    for cell in notebooks.code_cells(whole):
        test = outputs.get(MUST_FAIL + cell["id"], {"outputs": [{"output_type": "error"}]})
        if not any(output["output_type"] == "error" for output in test["outputs"]):
            raise MmkitError(f"an assertion that must fail did not, before {cell['id']}: something switches them off")
    staged = staging / "submitted" / student / name / f"{name}.ipynb"
    staged.parent.mkdir(parents=True)
    nbformat.write(nbformat.from_dict(whole), staged)
    _convert("Autograde", course, name, student, staging, outputs)
    return [*notes, *hand_ins.remarks(cells, source)], fault


def _with_failures(notebook: Mapping) -> dict:
    """`notebook` with a cell that fails before each check, so that assertions that are switched off are noticed."""
    cells = []
    for cell in notebook["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade"):
            code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
            cells.append({**code, "id": MUST_FAIL + cell["id"], "source": "assert 1 == 2, 'assertions work'"})
        cells.append(cell)
    return {**notebook, "cells": cells}


@contextmanager
def _unchanged(course: Path, name: str) -> Iterator[None]:
    """Put back what a hand-in changes in the course while it runs. Raises MmkitError that names it."""

    def files() -> dict[Path, bytes]:
        places = ("gradebook.db*", f"source/{name}/**/*", f"submitted/*/{name}*", f"submitted/*/{name}/**/*")
        kept = [path for place in places for path in course.glob(place)]
        return {path: path.read_bytes() for path in kept if path.is_file() and not path.is_symlink()}

    before = files()
    yield
    after = files()
    changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    for path in changed:
        path.unlink(missing_ok=True)
        if path in before:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(before[path])
    if changed:
        names = ", ".join(sorted(str(path.relative_to(course)) for path in changed))
        raise MmkitError(f"while it ran, {names} changed: put back as before; look at its code")


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


def _config(course: str | Path, staging: Path | None = None):
    from traitlets.config import Config

    root = Path(course).resolve()
    config = Config()
    config.CourseDirectory.update(
        {"root": str(root), "course_id": COURSE, "db_url": f"sqlite:///{root / 'gradebook.db'}"}
    )
    if staging:
        config.CourseDirectory.submitted_directory = str(staging / "submitted")
    config.LockCells.lock_readonly_cells = False  # a student may change parameters; grading restores them
    return config


def _convert(
    kind: str, course: str | Path, name: str, student: str = "", staging: Path | None = None, outputs: Mapping = {}
) -> None:
    """Run one of nbgrader's converters. outputs: of the cells, put in where nbgrader would run the notebook.

    Raises MmkitError with the last error that nbgrader logged.
    """
    try:
        from nbformat import from_dict
        from nbgrader import converters
        from nbgrader.coursedir import CourseDirectory
        from nbgrader.preprocessors import Execute, NbGraderPreprocessor
    except ImportError as error:
        raise MmkitError(f"labs need nbgrader ({error}): python -m pip install -e '.[labs]'") from error

    class WasRun(NbGraderPreprocessor):
        def preprocess_cell(self, cell, resources, index):
            if cell.cell_type == "code":
                cell.update(from_dict(outputs[cell.id]))
            if cell.metadata.get("nbgrader", {}).get("grade"):
                # For nbgrader a shown number is the points, whoever shows it, and a warning is a failure.
                cell.outputs = [output for output in cell.outputs if output.output_type in ("error", "stream")]
                for output in cell.outputs:
                    output.update({"name": "stdout"} if output.output_type == "stream" else {})
            return cell, resources

    config = _config(course, staging)
    steps = converters.Autograde.autograde_preprocessors.default()
    config.Autograde.autograde_preprocessors = [WasRun if step is Execute else step for step in steps]
    directory = CourseDirectory(config=config)
    directory.assignment_id, directory.student_id = name, student or directory.student_id
    converter = getattr(converters, kind)(coursedir=directory, config=config)
    converter.force = True
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    converter.log.addHandler(handler)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # nbgrader calls alembic
    with notebooks.environment(PATH=path), warnings.catch_warnings(action="ignore"):  # its queries make SQLAlchemy warn
        try:
            converter.start()
        except (converters.NbGraderException, SystemExit) as error:
            reasons = [line for line in said.getvalue().splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
            raise MmkitError((reasons or [str(error)])[-1]) from error
        finally:
            converter.log.removeHandler(handler)
