"""The notebook contract: what every notebook of the kit keeps to, checked by machine.

`check(path)` returns one message for each breach, with the cell and the remedy; an empty list is a notebook that keeps it.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from mmkit import notebooks
from mmkit.errors import MmkitError
from mmkit.notebooks import code_cells, tags
from mmkit.teach import prose
from mmkit.teach.prose import MEASURED

CELLS, CODE_LINES, CELL_LINES, BYTES = 40, 250, 20, 1_000_000
TAGS = ("parameters", "setup", "prediction", "exercise", "check", "hide-input", "remove-input", "nbval-check-output", "nbval-ignore-output")
LABELS = ("You will learn", "You need first", "Time and memory", "Data and terms")
SECTIONS = ("Exercises", "What was found", "Where it stops being true", "What to read")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
ABSOLUTE = re.compile(r"(?<![\w.:/~$}])/(?:home|root|Users|tmp|var|opt|usr|mnt|srv|work|workspace|content|private)/\w|\b[A-Z]:\\\\?\w")
FETCHING = {"requests", "urllib", "httpx", "wget", "pooch", "subprocess", "huggingface_hub", "pip", "conda"}
FETCHING_CALLS = {"system", "popen", "from_pretrained", "hf_hub_download", "snapshot_download", "urlretrieve", "urlopen", "load_state_dict_from_url", "download_url"}

Breach = tuple[str | None, str]
"""(cell id, or None for the file; what is wrong and the remedy)"""


def check(path: str | Path) -> list[str]:
    """Every breach of the contract by the notebook at `path`, as text; [] when there is none."""
    path = Path(path)
    try:
        notebook = notebooks.read(path)
    except MmkitError as error:
        return [str(error)]
    rules = [_file(path, notebook), _first_cell(path, notebook), _order(notebook), _sections(notebook), _figures(notebook)]
    rules += [_exercises(notebook), _outputs(notebook), _paths(notebook), _profile(path)]
    breaches = [breach for rule in rules for breach in rule]
    trees, unreadable = _trees(notebook)
    breaches += unreadable
    if not unreadable:
        breaches += [*_parameters(notebook, trees), *_fetching(trees), *prose.check(notebook)]
    return [f"{path.name}: cell {cell}: {text}" if cell else f"{path.name}: {text}" for cell, text in breaches]


def _file(path: Path, notebook: dict) -> Iterator[Breach]:
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9]*(_[a-z0-9]+)*\.ipynb", path.name):
        yield None, "the file is called NN_snake_case.ipynb: rename it"
    if (notebook.get("nbformat"), notebook.get("nbformat_minor")) != (4, 5):
        yield None, "it is not nbformat 4.5: run `mmkit notebook refresh`"
    metadata = notebook.get("metadata", {})
    if metadata.get("kernelspec", {}).get("name") != "python3":
        yield None, "its kernel is not python3: run `mmkit notebook refresh`"
    for key in set(metadata) - {"kernelspec", "language_info"}:
        yield None, f"metadata.{key} is a left-over of a run: run `mmkit notebook refresh`"
    if path.stat().st_size > BYTES:
        yield None, f"{path.stat().st_size:,} bytes exceed {BYTES:,}: make its figures smaller"
    cells = notebook["cells"]
    if len(cells) > CELLS:
        yield None, f"{len(cells)} cells exceed {CELLS}: split the notebook"
    lengths = {cell["id"]: sum(1 for line in cell["source"].splitlines() if line.strip()) for cell in code_cells(notebook)}
    if sum(lengths.values()) > CODE_LINES:
        yield None, f"{sum(lengths.values())} lines of code exceed {CODE_LINES}: move what does not teach into the package"
    for identity, lines in lengths.items():
        if lines > CELL_LINES:
            yield identity, f"{lines} lines of code exceed {CELL_LINES}: split the cell"
    for identity, count in Counter(cell.get("id") for cell in cells).items():
        if count > 1:
            yield identity, f"{count} cells have this id: ids are unique"
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", identity or "") or re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", identity):
            yield identity, "an id is readable, lower-case words with hyphens such as `wrong-sign-figure`: rename it"
    for cell in cells:
        for key in set(cell.get("metadata", {})) - {"tags"}:
            yield cell["id"], f"metadata.{key} is a left-over of a run: run `mmkit notebook refresh`"
        for tag in set(tags(cell)) - set(TAGS):
            close = get_close_matches(tag, TAGS, n=1)
            yield cell["id"], f"unknown tag {tag!r}: " + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(TAGS)}")


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
        yield identity, "`**Time and memory**` goes on with `N s and N GB on 2 cores`, which `mmkit notebook refresh` fills in"
    limit = _limits(path).get("lab")
    if stated and limit and (float(stated[2]) > limit["seconds"] or float(stated[3]) > limit["gigabytes"]):
        yield identity, f"stated {stated[2]} s and {stated[3]} GB exceed the limits of profiles.yaml ({limit['seconds']} s, {limit['gigabytes']} GB)"
    for cell in notebook["cells"][1:]:
        if cell["cell_type"] == "markdown" and re.search(r"^# ", re.sub(r"```.*?```", "", cell["source"], flags=re.S), re.M):
            yield cell["id"], "a second `# ` title: use `## `"


def _order(notebook: dict) -> Iterator[Breach]:
    code = code_cells(notebook)
    tagged = [number for number, cell in enumerate(code) if "parameters" in tags(cell)]
    if tagged != [1]:
        yield None, f"the second code cell, after one set-up cell, and no other is tagged `parameters`; tagged are code cells {[n + 1 for n in tagged]}"


def _sections(notebook: dict) -> Iterator[Breach]:
    under, section = {}, None
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^## (.+?)\s*$", cell["source"], re.M)
            section = headings[-1] if headings else section
            under |= {heading: under.get(heading, 0) for heading in headings}
        elif section:
            under[section] += 1
    for section in SECTIONS:
        if section not in under:
            yield None, f"there is no section `## {section}`"
    if under.get("What was found") == 0:
        yield None, "`## What was found` has no code cell: let one print the findings from the results, so that no number is typed"


def _figures(notebook: dict) -> Iterator[Breach]:
    figures = 0
    for cell in code_cells(notebook):
        for output in cell.get("outputs", []):
            for kind in {"image/png", "image/svg+xml", "image/jpeg"} & set(output.get("data", {})):
                figures += 1
                alt = output.get("metadata", {}).get(kind, {}).get("alt", "")
                if len(str(alt)) < 20:
                    yield cell["id"], "a figure without alt text: show it with mmkit.teach.plots.show(figure, alt=...) in 20 characters or more"
    if not figures:
        yield None, "there is no figure: show the one that answers the question"


def _exercises(notebook: dict) -> Iterator[Breach]:
    code = code_cells(notebook)
    exercises = [number for number, cell in enumerate(code) if "exercise" in tags(cell)]
    if not exercises:
        yield None, f"no code cell is tagged `exercise`: add one with {BEGIN!r} ... {END!r}"
    for number in exercises:
        cell, follower = code[number], code[number + 1] if number + 1 < len(code) else {}
        parts = re.split(f"{BEGIN}|{END}", cell["source"])
        if cell["source"].count(BEGIN) != cell["source"].count(END) or len(parts) < 3 or not all(part.strip() for part in parts[1::2]):
            yield cell["id"], f"an exercise holds its solution between {BEGIN!r} and {END!r}"
        if "check" not in tags(follower):
            yield cell["id"], "an exercise is followed by a code cell tagged `check` that tests the answer"
        if any(output["output_type"] == "execute_result" for output in follower.get("outputs", [])):
            yield follower["id"], "a check ends in a bare value, which nbgrader takes for partial credit: assert it, or print it"


def _outputs(notebook: dict) -> Iterator[Breach]:
    code, held = code_cells(notebook), []
    counts = [cell.get("execution_count") for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield None, f"its cells were not run once each from top to bottom (counts {counts}): run `mmkit notebook refresh`"
    for cell in code:
        outputs = cell.get("outputs", [])
        for output in outputs:
            if output["output_type"] == "error":
                yield cell["id"], f"its committed output is an error ({output.get('ename')}): mend the cell, run `mmkit notebook refresh`"
            if output.get("name") == "stderr":
                yield cell["id"], "its committed output holds standard error: remove the cause of the warning, or print to standard output"
        if "nbval-check-output" in tags(cell):
            texts = ["".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs]
            if not any(texts):
                yield cell["id"], "tagged `nbval-check-output` and holds no output: nbval would compare nothing"
            if any(re.search(r"0x[0-9a-f]{6,}", text) for text in texts):
                yield cell["id"], "tagged `nbval-check-output` and prints an object's address, which changes with every run"
            held += texts
    if not any(re.search(r"\d", text) for text in held):
        yield None, "no cell tagged `nbval-check-output` prints a number: tag one that prints a result, rounded"


def _paths(notebook: dict) -> Iterator[Breach]:
    for cell in notebook["cells"]:
        texts = [("source", cell["source"])]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [("output", "".join(data[kind])) for kind in data if kind.startswith("text/")]
            texts += [("output", "".join(output.get("text", "")))]
        for where, text in texts:
            if found := ABSOLUTE.search(text):
                yield cell["id"], f"an absolute path in its {where} (`{text[found.start() : found.start() + 40].splitlines()[0]}`): use names of data sets and relative paths"


def _limits(path: Path) -> dict:
    try:
        return notebooks.profiles(path.parent).get(path.stem, {}).get("limits", {})
    except MmkitError:  # `_profile` reports it
        return {}


def _profile(path: Path) -> Iterator[Breach]:
    if not (path.parent / "profiles.yaml").is_file():
        return
    try:
        if path.stem not in notebooks.profiles(path.parent):
            yield None, "profiles.yaml has no entry for it: add smoke, full and limits"
        for profile in notebooks.PROFILES:
            notebooks.checked(path, {}, profile)
        for values in notebooks.profiles(path.parent).get(path.stem, {}).get("other", []):
            notebooks.checked(path, values, "smoke")
    except MmkitError as error:
        yield None, str(error)


def _trees(notebook: dict) -> tuple[list[tuple[dict, ast.Module]], list[Breach]]:
    trees, breaches = [], []
    for cell in code_cells(notebook):
        if re.search(r"^\s*[%!]", cell["source"], re.M):
            breaches.append((cell["id"], "a line magic or shell command: write Python (nbval passes magics that do not exist)"))
            continue
        try:
            trees.append((cell, ast.parse(cell["source"])))
        except SyntaxError as error:
            breaches.append((cell["id"], f"not Python: {error}"))
    return trees, breaches


def _parameters(notebook: dict, trees: list) -> Iterator[Breach]:
    at = next((number for number, (cell, _) in enumerate(trees) if "parameters" in tags(cell)), None)
    if at is None:
        return
    cell = trees[at][0]
    try:
        declared = notebooks.parse_parameters(cell["source"])
    except MmkitError as error:
        yield cell["id"], str(error)
        return
    first_use: dict[str, str] = {}
    for _, tree in trees[at + 1 :]:
        for statement in tree.body:
            names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
            for context, use in ((ast.Load, "read"), (ast.Store, "overwritten")):
                for node in names:
                    if isinstance(node.ctx, context):
                        first_use.setdefault(node.id, use)
    for name in declared:
        if first_use.get(name) != "read":
            state = "is overwritten before it is read" if name in first_use else "is never read in a later cell"
            yield cell["id"], f"parameter {name!r} {state}: use it or remove it"


def _fetching(trees: list) -> Iterator[Breach]:
    for cell, tree in trees:
        for node in ast.walk(tree):
            found = None
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                found = next((module for module in modules if module.split(".")[0] in FETCHING), None)
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                found = name if name in FETCHING_CALLS else None
            if found:
                yield cell["id"], f"`{found}` installs, downloads or starts a process: data come through mmkit.load, weights through mmkit.models"
