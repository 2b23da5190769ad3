"""Numbers in prose must be numbers that a run gives.

A decimal or a percentage in Markdown, or in a text that code prints, must also stand in one of two places: in the
notebook's code, as a setting, or in the committed output of a cell tagged `nbval-check-output`, as a result. nbval
compares such an output with what the code gives now: a number typed by hand fails, and one that a change left behind.
A quoted result is free where its paragraph names the source. Whole numbers, code, years and versions are always free.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping

from mmkit.notebooks import code_cells, tags

# `mmkit notebook refresh` writes these two numbers.
MEASURED = re.compile(r"(\*\*Time and memory\*\*:?\s*)([\d.]+) s and ([\d.]+) GB on (\d+) cores")
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|\bdoi:|https?://|\((?:\w[^()]*,? )?(?:19|20)\d\d[a-z]?\)")
NO_PROSE = re.compile(
    r"```.*?```|`[^`\n]*`|\]\([^)]*\)|^ {4}[^\n]*$"  # code, links
    r"|\barXiv:\S+|§ ?[\d.]+\d|\b(Python|License) \d[\d.]*( (to|and|or) \d[\d.]*)*"  # places and versions
    r"|\b9[059] % (?=(confidence )?intervals?\b)",  # levels
    re.S | re.M,
)
NUMBER = re.compile(r"(?<![\w.])(\d+(?:,\d{3})*(?:\.\d+)?)(\s?\\?%)?(?![\w]|\.\d)")


def results(text: str) -> set[tuple[str, float]]:
    """The numbers of a text that read like results: decimals, and percentages as shares. As written and as a value."""
    found = set()
    for number in NUMBER.finditer(text):
        if number[2] or "." in number[1]:
            value = float(number[1].replace(",", "")) / (100 if number[2] else 1)
            found.add((number[0].replace("\\", ""), value))
    return found


def shown(cell: Mapping) -> Iterator[str]:
    """Each text in the outputs of a cell."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        yield "".join(output.get("text", ""))
        yield from ("".join(data[kind]) for kind in data if kind.startswith("text/"))


def evidence(notebook: Mapping) -> set[float]:
    """The numbers that the notebook's code sets and those that its exact outputs show."""
    values = set()
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.Constant) and type(node.value) in (int, float):
                values.add(float(node.value))
        if "nbval-check-output" in tags(cell):
            # Printing a typed number does not make it a result.
            values |= _values(shown(cell)) - _values(_fixed_texts(cell["source"]))
    return values


def _values(texts: Iterable[str]) -> set[float]:
    return {value for text in texts for _, value in results(text)}


def unsupported(text: str, values: Iterable[float]) -> list[str]:
    """The numbers of a Markdown text that read like results, with no source beside them and no equal in `values`."""
    known, found = {round(value, 12) for value in values}, []
    text = re.sub(r"```.*?```", "", MEASURED.sub("", text), flags=re.S)  # first: there may be empty lines in it
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[*|-] |\|)", text):
        if not SOURCE.search(paragraph):
            numbers = sorted(results(NO_PROSE.sub(" ", paragraph)))
            found += [written for written, value in numbers if round(value, 12) not in known]
    return found


def _fixed_texts(source: str) -> Iterator[str]:
    """The fixed texts that a code cell prints, writes or puts under a figure: the numbers in them are typed, too."""
    nodes = list(ast.walk(ast.parse(source)))
    formats = [node.format_spec for node in nodes if isinstance(node, ast.FormattedValue)]
    for node in nodes:
        parts = node.values if isinstance(node, ast.JoinedStr) and node not in formats else []
        if isinstance(node, ast.Call):
            said = node.args if getattr(node.func, "id", "") in ("print", "Markdown") else []
            parts = [*said, *(keyword.value for keyword in node.keywords if keyword.arg in ("alt", "caption"))]
        yield from (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


def check(notebook: Mapping) -> Iterator[tuple[str, str]]:
    """(cell id, what is wrong and the remedy) for each number in prose that no run supports."""
    values = evidence(notebook)
    remedy = "print it in a cell tagged `nbval-check-output`, or name its source in the paragraph"
    for cell in notebook["cells"]:
        texts = _fixed_texts(cell["source"]) if cell["cell_type"] == "code" else [cell["source"]]
        numbers = [unsupported(text, values) for text in texts]
        for written in dict.fromkeys(sum(numbers, [])):
            yield cell["id"], f"the number {written} is typed or stale: {remedy}"
