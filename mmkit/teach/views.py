"""Copies made from the one source of a notebook: for students, with solutions, and code only. Nobody edits a copy.

`notebooks/views/student/NN_name.ipynb` has no solutions and no hidden tests. `solution/NN_name.ipynb` has both, and no
markers. `code/NN_name.py` is the code with its answers, as a script. Outputs stay in the source alone, so that a copy
changes only when its text does.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from mmkit import notebooks

STUB = "# YOUR CODE HERE\nraise NotImplementedError()"  # nbgrader's own
SOLUTION, HIDDEN = "SOLUTION", "HIDDEN TESTS"
KINDS = ("student", "solution", "code")


def without_regions(source: str, kind: str, stub: str = "") -> str:
    """`source` with each region from `### BEGIN kind` to `### END kind` replaced by `stub`, indented as it was."""

    def replacement(region: re.Match) -> str:
        return "".join(f"{region['indent']}{line}\n" for line in stub.splitlines())

    pattern = rf"^(?P<indent> *)### BEGIN {kind} *\n.*?^ *### END {kind} *(\n|\Z)"
    return re.sub(pattern, replacement, source, flags=re.M | re.S).rstrip("\n")


def without_markers(source: str) -> str:
    """`source` with its solutions and hidden tests, but not the lines that mark them."""
    return re.sub(rf"^ *### (BEGIN|END) ({SOLUTION}|{HIDDEN}) *(\n|\Z)", "", source, flags=re.M).rstrip("\n")


def student_source(source: str) -> str:
    """A code cell as a student gets it: the text that nbgrader makes of it, too."""
    return without_regions(without_regions(source, SOLUTION, STUB), HIDDEN)


def render(path: str | Path) -> dict[str, str]:
    """The texts of the views of the notebook at `path`: file name under `views/` -> content."""
    path = Path(path)
    notebook = notebooks.read(path)
    return {
        f"student/{path.name}": _copy(notebook, path, "student", student_source),
        f"solution/{path.name}": _copy(notebook, path, "solution", without_markers),
        f"code/{path.stem}.py": _script(notebook, path),
    }


def _copy(notebook: dict, path: Path, kind: str, change: Callable[[str], str]) -> str:
    cells = []
    for cell in notebook["cells"]:
        fresh = {name: cell[name] for name in ("cell_type", "id", "source")}
        fresh["metadata"] = {"tags": notebooks.tags(cell)} if notebooks.tags(cell) else {}
        if cell["cell_type"] == "code":
            fresh |= {"execution_count": None, "outputs": [], "source": change(cell["source"])}
        cells.append(fresh | {"source": fresh["source"].splitlines(keepends=True)})
    kernel = notebook["metadata"].get("kernelspec", {})
    metadata = {"kernelspec": kernel, "mmkit": {"generated_from": path.name, "view": kind}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _script(notebook: dict, path: Path) -> str:
    first = notebook["cells"][0]["source"] if notebook["cells"] else ""
    title = [*first.splitlines(), path.stem][0].lstrip("# ")
    made = f"The code of {path.name} with its answers, made by `mmkit labs views`; the text is in the notebook."
    parts = [f"\n# %% {cell['id']}\n{without_markers(cell['source'])}\n" for cell in notebooks.code_cells(notebook)]
    return "".join([f"# {title}\n# {made}\n", *parts])


def folder(path: str | Path) -> Path:
    """Where the views of the notebook at `path` are."""
    return Path(path).parent / "views"


def stale(path: str | Path) -> list[Path]:
    """The views of the notebook at `path` that are missing, or are not what it would give today."""
    wanted = {folder(path) / name: text for name, text in render(path).items()}
    return [file for file, text in wanted.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]


def write(path: str | Path) -> list[Path]:
    """Bring the views of the notebook at `path` up to date; returns the files that changed."""
    changed, texts = stale(path), render(path)
    for file in changed:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(texts[str(file.relative_to(folder(path)).as_posix())], encoding="utf-8", newline="\n")
    return changed


def orphans(root: str | Path) -> list[Path]:
    """Views under the notebook folder `root` whose source is gone."""
    stems = {path.stem for path in Path(root).glob("[0-9][0-9]_*.ipynb")}
    copies = [file for kind in KINDS for file in (Path(root) / "views" / kind).glob("[0-9][0-9]_*")]
    return sorted(file for file in copies if file.is_file() and file.stem not in stems)
