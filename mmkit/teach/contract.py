"""The notebook contract: the rules that every notebook of the kit keeps, checked by machine.

`check(path)` returns one message for each breach, with the cell and the remedy; [] when every rule is kept.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from mmkit import notebooks
from mmkit.errors import MmkitError, printable
from mmkit.notebooks import code_cells, tags
from mmkit.teach import prose
from mmkit.teach.prose import MEASURED

CELLS, CODE_LINES, CELL_LINES, COLUMNS, BYTES = 40, 250, 20, 100, 1_000_000
TAGS = (
    "parameters setup prediction exercise check hide-input remove-input evidence "
    "nbval-check-output nbval-ignore-output".split()
)
LABELS = ("You will learn", "You need first", "Time and memory", "Data and terms")
SECTIONS = ("Exercises", "What was found", "Where it stops being true", "What to read")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
READABLE = re.compile(r"(?![0-9a-f]{8}(-[0-9a-f-]+)?$)[a-z][a-z0-9]*(-[a-z0-9]+)*")  # not eight random hex digits
ABSOLUTE = re.compile(
    r"(?<![\w.:/~$}])/(?:home|root|Users|tmp|var|opt|usr|mnt|srv|work|workspace|content|private)/\w|\b[A-Z]:\\\\?\w"
)
FETCHING = {"requests", "urllib", "httpx", "wget", "pooch", "subprocess", "huggingface_hub", "pip", "conda"}
FETCHING_CALLS = set(
    "system popen from_pretrained hf_hub_download snapshot_download urlretrieve urlopen "
    "load_state_dict_from_url download_url".split()
)
PICTURES = {"image/png", "image/svg+xml", "image/jpeg"}
REFRESH = "run `mmkit notebook refresh`"

Breach = tuple[str | None, str]
"""(cell id, or None for the file; what is wrong and the remedy)"""


def check(path: str | Path) -> list[str]:
    """Every breach of the contract by the notebook at `path`, as text; [] when there is none."""
    path = Path(path)
    try:
        breaches = list(_breaches(path, notebooks.read(path)))
    except MmkitError as error:
        return [str(error)]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # JSON of another shape
        breaches = [(None, f"it is damaged ({type(error).__name__}: {error}): restore it from version control")]
    texts = [f"cell {cell}: {text}" if cell else text for cell, text in breaches]
    return [printable(f"{path.name}: {text}") for text in texts]


def _breaches(path: Path, notebook: dict) -> Iterator[Breach]:
    yield from (*_file(path, notebook), *_first_cell(path, notebook), *_profile(path))
    for rule in (_cells, _code, _sections, _figures, _exercises, _outputs, _paths):
        yield from rule(notebook)
    trees, unreadable = _trees(notebook)
    yield from unreadable
    if not unreadable:
        yield from (*_parameters(trees), *_fetching(trees), *prose.check(notebook))


def _file(path: Path, notebook: dict) -> Iterator[Breach]:
    metadata = notebook.get("metadata", {})
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9]*(_[a-z0-9]+)*\.ipynb", path.name):
        yield None, "the file is called NN_snake_case.ipynb: rename it"
    if (notebook.get("nbformat"), notebook.get("nbformat_minor")) != (4, 5):
        yield None, f"it is not nbformat 4.5: {REFRESH}"
    if metadata.get("kernelspec", {}).get("name") != "python3":
        yield None, f"its kernel is not python3: {REFRESH}"
    for key in set(metadata) - {"kernelspec", "language_info"}:
        yield None, f"metadata.{key} is a left-over of a run: {REFRESH}"
    if path.stat().st_size > BYTES:
        yield None, f"{path.stat().st_size:,} bytes exceed {BYTES:,}: make its figures smaller"


def _cells(notebook: dict) -> Iterator[Breach]:
    cells = notebook["cells"]
    if len(cells) > CELLS:
        yield None, f"{len(cells)} cells exceed {CELLS}: split the notebook"
    for identity, count in Counter(cell["id"] for cell in cells).items():
        if count > 1:
            yield identity, f"{count} cells have this id: ids are unique"
        if not READABLE.fullmatch(identity):
            yield identity, "an id is readable, lower-case words with hyphens such as `wrong-sign-figure`: rename it"
    for cell in cells:
        for key in set(cell.get("metadata", {})) - {"tags"}:
            yield cell["id"], f"metadata.{key} is a left-over of a run: {REFRESH}"
        for tag in set(tags(cell)) - set(TAGS):
            close = get_close_matches(tag, TAGS, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(TAGS)}"
            yield cell["id"], f"unknown tag {tag!r}: {remedy}"


def _code(notebook: dict) -> Iterator[Breach]:
    """Length and width of the code, and where the parameters stand."""
    code, total = code_cells(notebook), 0
    for cell in code:
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        widest = max(map(len, lines), default=0)
        total += len(lines)
        if len(lines) > CELL_LINES:
            yield cell["id"], f"{len(lines)} lines of code exceed {CELL_LINES}: split the cell"
        if widest > COLUMNS:
            yield cell["id"], f"a line of {widest} columns exceeds {COLUMNS}: break it, or run `ruff format`"
    if total > CODE_LINES:
        yield None, f"{total} lines of code exceed {CODE_LINES}: move what does not teach into the package"
    tagged = [place for place, cell in enumerate(code, 1) if "parameters" in tags(cell)]
    if tagged != [2]:
        wanted = "the second code cell, after one set-up cell, and no other is tagged `parameters`"
        yield None, f"{wanted}; tagged are code cells {tagged}"


def _first_cell(path: Path, notebook: dict) -> Iterator[Breach]:
    first = notebook["cells"][0] if notebook["cells"] else {"cell_type": "none", "source": ""}
    identity, text = first.get("id"), first["source"]
    if first["cell_type"] != "markdown" or not re.match(r"# .+\?\s*(\n|$)", text):
        yield identity, "the first cell begins with the title as a question: `# ...?`"
    for label in LABELS:
        if f"**{label}**" not in text:
            yield identity, f"the first cell lacks `**{label}**`"
    stated = MEASURED.search(text)
    if f"**{LABELS[2]}**" in text and not stated:
        yield identity, f"`**{LABELS[2]}**` goes on with `N s and N GB on 2 cores`: write any N, then {REFRESH}"
    limit = _limits(path).get("lab")
    if stated and limit and (float(stated[2]) > limit["seconds"] or float(stated[3]) > limit["gigabytes"]):
        allowed = f"{limit['seconds']} s, {limit['gigabytes']} GB"
        yield identity, f"stated {stated[2]} s and {stated[3]} GB exceed the limits of profiles.yaml ({allowed})"
    for cell in notebook["cells"][1:]:
        text = re.sub(r"```.*?```", "", cell["source"], flags=re.S)
        if cell["cell_type"] == "markdown" and re.search(r"^# ", text, re.M):
            yield cell["id"], "a second `# ` title: use `## `"


def _sections(notebook: dict) -> Iterator[Breach]:
    code_under, section = {}, None
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^## (.+?)\s*$", cell["source"], re.M)
            section = headings[-1] if headings else section
            code_under |= {heading: code_under.get(heading, 0) for heading in headings}
        elif section:
            code_under[section] += 1
    for section in SECTIONS:
        if section not in code_under:
            yield None, f"there is no section `## {section}`"
    if code_under.get("What was found") == 0:
        yield None, "`## What was found` has no code cell: let one print the findings, so that no number is typed"


def _figures(notebook: dict) -> Iterator[Breach]:
    figures = 0
    for cell in code_cells(notebook):
        for output in cell.get("outputs", []):
            for kind in PICTURES & set(output.get("data", {})):
                figures += 1
                if len(str(output.get("metadata", {}).get(kind, {}).get("alt", ""))) < 20:
                    yield (
                        cell["id"],
                        "a figure without alt text of 20 characters: mmkit.teach.plots.show(figure, alt=...)",
                    )
    if not figures:
        yield None, "there is no figure: show the one that answers the question"


def _exercises(notebook: dict) -> Iterator[Breach]:
    code = code_cells(notebook)
    exercises = [place for place, cell in enumerate(code) if "exercise" in tags(cell)]
    if not exercises:
        yield None, f"no code cell is tagged `exercise`: add one with {BEGIN!r} ... {END!r}"
    for place in exercises:
        cell, follower = code[place], code[place + 1] if place + 1 < len(code) else {}
        markers = re.findall(f"{BEGIN}|{END}", cell["source"])
        solutions = re.split(f"{BEGIN}|{END}", cell["source"])[1::2]
        paired = markers == [BEGIN, END] * (len(markers) // 2)
        if not solutions or not paired or not all(solution.strip() for solution in solutions):
            yield cell["id"], f"an exercise holds its solution between {BEGIN!r} and {END!r}"
        if "check" not in tags(follower):
            yield cell["id"], "an exercise is followed by a code cell tagged `check` that tests the answer"
        if any(output["output_type"] == "execute_result" for output in follower.get("outputs", [])):
            yield follower["id"], "a check ends in a bare value, partial credit for nbgrader: assert it, or print it"


def _outputs(notebook: dict) -> Iterator[Breach]:
    code, held = code_cells(notebook), []
    counts = [cell.get("execution_count") for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield None, f"its cells were not run once each from top to bottom (counts {counts}): {REFRESH}"
    for cell in code:
        outputs = cell.get("outputs", [])
        for output in outputs:
            if output["output_type"] == "error":
                yield cell["id"], f"its committed output is an error ({output.get('ename')}): mend the cell, {REFRESH}"
            if output.get("name") == "stderr":
                yield cell["id"], "its committed output holds standard error: remove the warning's cause, or print"
        if "nbval-check-output" in tags(cell):
            texts = ["".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs]
            held += texts
            if not any(texts):
                yield cell["id"], "tagged `nbval-check-output` and holds no output: nbval would compare nothing"
            if any(re.search(r"0x[0-9a-f]{6,}", text) for text in texts):
                yield cell["id"], "tagged `nbval-check-output` and prints an object's address: every run has another"
    if not any(re.search(r"\d", text) for text in held):
        yield None, "no cell tagged `nbval-check-output` prints a number: tag one that prints a result, rounded"


def _paths(notebook: dict) -> Iterator[Breach]:
    for cell in notebook["cells"]:
        texts = [("source", cell["source"]), *(("output", text) for text in prose.shown(cell))]
        for where, text in texts:
            if found := ABSOLUTE.search(text):
                path = text[found.start() : found.start() + 40].splitlines()[0]
                yield cell["id"], f"an absolute path in its {where} (`{path}`): use data sets' names and relative paths"


def _limits(path: Path) -> dict:
    try:
        return notebooks.profiles(path.parent).get(path.stem, {}).get("limits", {})
    except MmkitError:  # `_profile` reports it
        return {}


def _profile(path: Path) -> Iterator[Breach]:
    if not (path.parent / "profiles.yaml").is_file():
        return
    try:
        profiles = notebooks.profiles(path.parent)
        if path.stem not in profiles:
            yield None, "profiles.yaml has no entry for it: add smoke, full and limits"
        for profile in notebooks.PROFILES:
            notebooks.checked(path, {}, profile)
        for values in profiles.get(path.stem, {}).get("other", []):
            notebooks.checked(path, values, "smoke")
    except MmkitError as error:
        yield None, str(error)


def _trees(notebook: dict) -> tuple[list[tuple[dict, ast.Module]], list[Breach]]:
    """Each code cell with its syntax tree, and a breach for each cell that has none."""
    trees, breaches = [], []
    for cell in code_cells(notebook):
        try:
            if re.search(r"^\s*[%!]", cell["source"], re.M):
                breaches.append((cell["id"], "a line magic or shell command, which nbval does not test: write Python"))
            else:
                trees.append((cell, ast.parse(cell["source"])))
        except SyntaxError as error:
            breaches.append((cell["id"], f"not Python: {error}"))
    return trees, breaches


def _parameters(trees: list[tuple[dict, ast.Module]]) -> Iterator[Breach]:
    at = next((place for place, (cell, _) in enumerate(trees) if "parameters" in tags(cell)), None)
    if at is None:  # `_code` reports it
        return
    cell = trees[at][0]
    try:
        declared = notebooks.parse_parameters(cell["source"])
    except MmkitError as error:
        yield cell["id"], str(error)
        return
    first_use: dict[str, str] = {}
    statements = [statement for _, tree in trees[at + 1 :] for statement in tree.body]
    for statement in statements:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        # `x = x + 1` reads x before it sets it, whatever stands first in the text
        for node in sorted(names, key=lambda node: isinstance(node.ctx, ast.Store)):
            first_use.setdefault(node.id, "overwritten" if isinstance(node.ctx, ast.Store) else "read")
    for name in declared:
        if first_use.get(name) != "read":
            state = "is overwritten before it is read" if name in first_use else "is never read in a later cell"
            yield cell["id"], f"parameter {name!r} {state}: use it or remove it"


def _fetching(trees: list[tuple[dict, ast.Module]]) -> Iterator[Breach]:
    for cell, tree in trees:
        for name in filter(None, map(_fetched, ast.walk(tree))):
            ways = "data come through mmkit.load, weights through mmkit.models"
            yield cell["id"], f"`{name}` installs, downloads or starts a process: {ways}"


def _fetched(node: ast.AST) -> str | None:
    """The module or function by which a node of a syntax tree fetches something, if it does."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return name if name in FETCHING_CALLS else None
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
    return next((module for module in modules if module.split(".")[0] in FETCHING), None)
