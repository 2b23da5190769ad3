"""Numbers in prose: a result that a text states is one that a run of today gives.

A decimal or a percentage in a Markdown cell, or in a text that code prints, must also stand in the notebook's code (a setting) or in the committed output of a cell
tagged `nbval-check-output`, which nbval compares with what the code gives now (a result): a number typed by hand fails, and so does one
that a change has left behind. Quoted results are free where their paragraph names the source. Whole numbers, code, years and versions are.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping

from mmkit.notebooks import code_cells, tags

MEASURED = re.compile(r"(\*\*Time and memory\*\*:?\s*)([\d.]+) s and ([\d.]+) GB on (\d+) cores")  # written by `mmkit notebook refresh`
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|\bdoi:|https?://|\((?:\w[^()]*,? )?(?:19|20)\d\d[a-z]?\)")
NO_PROSE = re.compile(
    r"```.*?```|`[^`\n]*`|\]\([^)]*\)|^ {4}[^\n]*$"  # code, links
    r"|\barXiv:\S+|§ ?[\d.]+\d|\b(Python|License) \d[\d.]*|\b9[059] % (?=(confidence )?intervals?\b)",  # not results: places, versions, levels
    re.S | re.M,
)
NUMBER = re.compile(r"(?<![\w.])(\d+(?:,\d{3})*(?:\.\d+)?)(\s?\\?%)?(?![\w]|\.\d)")


def results(text: str) -> set[tuple[str, float]]:
    """The numbers of a text that read like results, each as written and as a value: decimals, and percentages as shares."""
    found = set()
    for number in NUMBER.finditer(text):
        if number[2] or "." in number[1]:
            found.add((number[0].replace("\\", ""), float(number[1].replace(",", "")) / (100 if number[2] else 1)))
    return found


def evidence(notebook: Mapping) -> set[float]:
    """The numbers that the notebook's code sets and those that its exact outputs show."""
    values = set()
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.Constant) and type(node.value) in (int, float):
                values.add(float(node.value))
        if "nbval-check-output" in tags(cell):
            typed = {value for text in _shown(cell["source"]) for _, value in results(text)}  # printing a number does not make it a result
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                texts = map("".join, [output.get("text", ""), *(data[kind] for kind in data if kind.startswith("text/"))])
                values |= {value for text in texts for _, value in results(text)} - typed
    return values


def unsupported(text: str, values: Iterable[float]) -> list[str]:
    """The numbers of a Markdown text that read like results, have no source in their paragraph and are not among `values`."""
    known, found = {round(value, 12) for value in values}, []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[*|-] |\|)", MEASURED.sub("", text)):
        if not SOURCE.search(paragraph):
            found += [written for written, value in sorted(results(NO_PROSE.sub(" ", paragraph))) if round(value, 12) not in known]
    return found


def _shown(source: str) -> Iterator[str]:
    """The fixed texts that a code cell prints, writes or puts under a figure: the numbers among them are typed too."""
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
    for cell in notebook["cells"]:
        texts = [cell["source"]] if cell["cell_type"] == "markdown" else _shown(cell["source"]) if cell["cell_type"] == "code" else []
        for written in dict.fromkeys(number for text in texts for number in unsupported(text, values)):
            yield cell["id"], f"the number {written} is typed or stale: print it in a cell tagged `nbval-check-output`, or name its source in the paragraph"
