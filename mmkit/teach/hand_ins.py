"""What students hand in: find it, read it, and put its answers into the assignment, or say what is wrong and where.

Honest accidents are mended: another name, a duplicated, split, moved or deleted cell, lost metadata. The assignment's
own cells come from its source, so that only answers and added cells are the student's.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmkit import notebooks
from mmkit.errors import MmkitError
from mmkit.teach import views

BYTES = 50_000_000
STUDENT = re.compile(r"\w[\w .,@'-]*(?<! )")  # nbgrader reads a name as a pattern for file names
OTHERS = ((b"PK", "a zip archive"), (b"<", "a web page"), (b"%PDF", "a PDF"))
# Names that an answer has no need of, and what they may be for.
SUSPECT = {
    "changes how cells or assertions run": r"(input|ast)_transformers?\w*|get_ipython|run_cell\w*|settrace|excepthook",
    "makes comparisons of its own": r"__(eq|ne|lt|le|gt|ge|bool|instancecheck|array_ufunc|array_function)__",
    "reaches into Python": r"(__)?builtins(__)?|meta_path|sys\.modules|_getframe|currentframe|gc|ctypes|exec|globals",
    "starts processes": r"subprocess|Popen|fork|system|spawn\w*|setsid|multiprocessing|_exit|kill",
    "looks at files": r"open|glob|rglob|iterdir|listdir|scandir|walk|read_text|read_bytes|__file__|nbformat|sqlite3",
    "changes a module": r"\w+ =|setattr|delattr|__setattr__|__dict__|__code__|__globals__|__class__|mock|monkeypatch",
}
FILES = re.compile(r"\.ipynb|gradebook|nbgrader|/proc/|\.\./")


def folders(submitted: Path, name: str) -> list[Path]:
    """The folders of the students who handed something in for the assignment `name`."""
    found = [path for path in submitted.glob("*") if path.is_dir() and not path.name.startswith(".")]
    return sorted(path for path in found if any(path.glob(f"{name}*")))


def choose(folder: Path, name: str) -> tuple[Path, str]:
    """A student's notebook for the assignment `name`, and what to know about the choice. Raises MmkitError."""
    exact = folder / name / f"{name}.ipynb"
    files = sorted(path for path in (*folder.glob(f"{name}/*"), *folder.glob(f"{name}*")) if path.is_file())
    candidates = [path for path in files if ".ipynb" in path.name.lower() and not path.name.startswith(".")]
    chosen = exact if exact in candidates else candidates[0] if len(candidates) == 1 else None
    others = ", ".join(str(path.relative_to(folder)) for path in files if path != chosen)
    if not STUDENT.fullmatch(folder.name):
        raise MmkitError("nbgrader takes no such name for a student: rename the folder")
    if chosen is None and candidates:
        raise MmkitError(f"there are several notebooks ({others}): keep one, as {name}/{name}.ipynb")
    if chosen is None:
        raise MmkitError(f"there is no notebook, but {others or 'an empty folder'}: ask for {name}.ipynb")
    if chosen.resolve() != folder.parent.resolve() / chosen.relative_to(folder.parent):
        raise MmkitError(f"{chosen.name} is a link to {chosen.resolve()}: ask for the file itself")
    if chosen != exact:
        return chosen, f"{chosen.relative_to(folder)} was taken for {name}.ipynb"
    return chosen, f"{name}.ipynb was taken, not {others}" if len(candidates) > 1 else ""


def read(path: Path) -> list[dict]:
    """The cells of a notebook that was handed in: cell_type, id, source, metadata. Raises MmkitError with the cause."""
    again = "ask for the notebook again"
    if path.stat().st_size > BYTES:
        raise MmkitError(f"{path.name} has more than {BYTES // 10**6} MB: ask for it without outputs")
    text = path.read_bytes()
    kind = next((kind for start, kind in OTHERS if text.lstrip().startswith(start)), "")
    if kind or not text.strip():
        raise MmkitError(f"{path.name} is {kind or 'empty'}: {again}")
    try:
        return [_cell(cell) for cell in json.loads(text)["cells"]]
    except (ValueError, RecursionError) as error:
        raise MmkitError(f"{path.name} is cut off or no notebook ({error}): {again}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise MmkitError(f"{path.name} is a damaged notebook ({type(error).__name__}: {error}): {again}") from None


def _cell(cell: dict) -> dict:
    source = "".join(cell["source"]).encode(errors="replace").decode()  # half a surrogate pair cannot be written
    texts = {"cell_type": str(cell["cell_type"]), "id": str(cell.get("id", "")), "source": source}
    return {**texts, "metadata": dict(cell.get("metadata") or {})}


def assemble(cells: list[dict], source: Mapping) -> tuple[dict, list[str]]:
    """The assignment `source` with a student's answers and added cells in their places, and what had to be mended.

    Raises MmkitError when none of the assignment's cells is there.
    """
    known = {cell["id"]: cell for cell in notebooks.code_cells(source)}
    groups: dict[str | None, list[tuple[bool, dict]]] = {identity: [] for identity in (None, *known)}
    at = None
    for cell in cells:
        identity = _identity(cell, known)
        at = identity or at  # an added cell stays behind the assignment's cell that it followed
        groups[at].append((identity is not None, cell))
    if len(groups[None]) == len(cells):
        raise MmkitError(f"none of the {len(known)} code cells of the assignment is in it: is it another notebook?")
    placed, notes = [_plain(cell) for _, cell in groups.pop(None)], []
    for identity, group in groups.items():
        place = _answered if known[identity]["metadata"]["nbgrader"]["solution"] else _restored
        placed += place(known[identity], group, notes)
    for number, cell in enumerate(placed):
        if "nbgrader" not in cell["metadata"]:
            code = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
            kept = {"cell_type": cell["cell_type"], "source": cell["source"]}
            placed[number] = {**kept, **code, "id": f"added-{number}", "metadata": {}}
    return {**source, "cells": placed}, notes


def _identity(cell: dict, known: Mapping) -> str | None:
    """Which of the assignment's cells this is: by nbgrader's metadata or, where an editor dropped them, by its id."""
    metadata = cell["metadata"].get("nbgrader")
    named = metadata.get("grade_id") if isinstance(metadata, dict) else None
    if isinstance(named, str) and named in known:
        return named
    return cell["id"] if cell["id"] in known and cell["cell_type"] == "code" else None


def _restored(original: dict, group: list[tuple[bool, dict]], notes: list[str]) -> list[dict]:
    """A cell that students do not answer, as its source has it, then what was added behind it.

    An edited copy of it counts as added, but not one of a check or of the parameters: grading has its own.
    """
    handed_out, behind, seen = views.student_source(original["source"]).strip(), [], False
    single = original["metadata"]["nbgrader"]["grade"] or "parameters" in notebooks.tags(original)
    for is_copy, cell in group:
        if not is_copy or (seen and not single and cell["source"].strip() != handed_out):
            behind.append(_plain(cell))
        seen = seen or is_copy
    return [original, *behind]


def _answered(original: dict, group: list[tuple[bool, dict]], notes: list[str]) -> list[dict]:
    """The cells of an answer in the student's order, without those left as they were handed out. The last is graded."""
    name, handed_out = original["id"], views.student_source(original["source"])
    parts = [cell for is_part, cell in group if is_part]
    written = [cell for cell in parts if cell["source"].strip() != handed_out.strip()]
    if not parts:
        notes.append(f"answer cell {name} is missing, and earns nothing")
    if len(written) > 1:
        notes.append(f"answer {name} is in {len(written)} cells, which were run one after the other")
    if any(cell["cell_type"] != "code" for cell in written):
        notes.append(f"answer {name} was no code cell, and was run as one")
    last = written[-1]["source"] if written else handed_out
    whole = "\n".join(cell["source"] for cell in written)
    if not all(_nodes(cell["source"]) for cell in written) and _nodes(whole):  # split inside a statement
        last, written = whole, written[-1:]
    placed = [] if written else [original | {"source": last}]
    for is_part, cell in group:
        if not is_part:
            placed.append(_plain(cell))
        elif any(cell is part for part in written):
            graded = cell is written[-1]
            placed.append(original | {"source": last} if graded else _plain(cell) | {"cell_type": "code"})
    return placed


def _plain(cell: dict) -> dict:
    return cell | {"metadata": {}}


def remarks(cells: list[dict], source: Mapping) -> list[str]:
    """What in a student's own code a grader should look at: a line for each cell and reason."""
    own = {cell["id"]: views.student_source(cell["source"]) for cell in notebooks.code_cells(source)}
    modules = {name for text in own.values() for name in _imported(_nodes(text))}
    used = _used_by_checks(source)
    found = []
    for number, cell in enumerate(cells, 1):
        identity = _identity(cell, own)
        given = own.get(identity, "")
        if cell["cell_type"] != "code" or cell["source"].strip() == given.strip():
            continue
        new = set(_words(cell["source"], modules)) - set(_words(given, modules))
        for reason, pattern in SUSPECT.items():
            words = sorted(word for word in new if re.fullmatch(pattern, word))
            if words:
                found.append(f"cell {identity or number} {reason} ({', '.join(words[:3])}): look at it")
        if names := sorted(used & set(_bound(_nodes(cell["source"])))):
            found.append(
                f"cell {identity or number} gives names that checks use another meaning ({names[0]}): look at it"
            )
    return found


def _used_by_checks(source: Mapping) -> set[str]:
    """The names that checks read and that no answer has to define: modules, functions of Python, earlier results."""
    used, own = set(), set()
    for cell in notebooks.code_cells(source):
        nodes, role = _nodes(cell["source"]), cell["metadata"]["nbgrader"]
        if role["grade"]:
            used |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        if role["grade"] or role["solution"]:
            own |= set(_bound(nodes))
    return used - own


def _bound(nodes: list[ast.AST]) -> Iterator[str]:
    """The names that a cell as a whole gives a meaning; not those that are a function's or a class's own."""
    waiting = list(nodes[:1])  # the module
    yield from (name for node in nodes if isinstance(node, ast.Global) for name in node.names)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        if not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            waiting += ast.iter_child_nodes(node)


def _words(source: str, modules: set[str]) -> Iterator[str]:
    """The names in a cell's code and texts. `open`: a file of others. `np =`: an attribute of a module is set."""
    nodes = _nodes(source)
    modules = modules | set(_imported(nodes))
    yield from () if nodes else re.findall(r"\w+", source)  # magics
    for node in nodes:
        for word in (getattr(node, name, None) for name in ("id", "attr", "name", "module", "value")):
            if isinstance(word, str):
                yield from [*word.split("."), "open"] if FILES.search(word) else word.split(".")
        if isinstance(node, ast.Attribute) and node.attr == "modules" and ast.unparse(node.value) == "sys":
            yield "sys.modules"
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in modules:
                yield f"{node.value.id} ="


def _imported(nodes: list[ast.AST]) -> list[str]:
    """The names that `import` binds."""
    statements = [node for node in nodes if isinstance(node, ast.Import)]
    return [alias.asname or alias.name.split(".")[0] for node in statements for alias in node.names]


def _nodes(source: str) -> list[ast.AST]:
    """The syntax tree of a cell, flat; [] where it is not Python."""
    try:
        return list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
