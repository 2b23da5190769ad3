"""Answers to exercises, run as a grader would run them, but here and without the cells that an answer does not need."""

import ast
import builtins
import contextlib
import functools
import io
import json
import symtable

import yaml

from conftest import ROOT
from mmkit import notebooks

MUTANTS = ROOT / "tests" / "mutants"


def exercises(path) -> dict[str, tuple[dict, dict]]:
    """id of each exercise -> its cell and the cell that checks it."""
    code = notebooks.code_cells(notebooks.read(path))
    return {
        cell["id"]: (cell, code[place + 1]) for place, cell in enumerate(code) if "exercise" in notebooks.tags(cell)
    }


def mutants(path) -> dict:
    """tests/mutants/NN.yaml: exercise -> list of why and code (the whole cell).

    Its `parameters`: exercise -> what differs from the smoke profile.
    """
    file = MUTANTS / f"{path.stem[:2]}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def wrong(path):
    """Each wrong answer with its exercise's id."""
    for name, listed in mutants(path).items():
        if name != "parameters":
            yield from ((name, each) for each in listed)


def _globals(table: symtable.SymbolTable) -> set[str]:
    """Names of the module that a scope, or one inside it, reads."""
    top = table.get_type() == "module"
    read = {
        symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and (top or symbol.is_global())
    }
    return read.union(*map(_globals, table.get_children()))


def _changed(statement: ast.stmt) -> set[str]:
    """Names whose attribute or item a statement sets: the cell changes what another one made."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            while isinstance(node, ast.Attribute | ast.Subscript):
                node = node.value
            found |= {node.id} if isinstance(node, ast.Name) else set()
    return found


def names(source: str) -> tuple[set[str], set[str]]:
    """What a cell makes or changes, and what it takes from the cells before it, as names."""
    made, changed, read = set(), set(), set()
    for statement in ast.parse(source).body:
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
        changed |= set() if isinstance(statement, ast.FunctionDef | ast.ClassDef) else _changed(statement)
        used = _globals(table) - (own if isinstance(statement, ast.For | ast.With | ast.FunctionDef) else set())
        read |= (used | (own if isinstance(statement, ast.AugAssign) else set())) - made
        made |= own
    return made | changed, read - set(dir(builtins))


def needed(code: list[dict], place: int) -> list[dict]:
    """The cells before `place` that the exercise there and its check read from, whole chains of them, in order."""
    wanted = names(code[place]["source"])[1] | names(code[place + 1]["source"])[1]
    kept = []
    for cell in reversed(code[:place]):
        made, read = names(cell["source"])
        if made & wanted or "parameters" in notebooks.tags(cell):
            kept.append(cell)
            wanted |= read
    return kept[::-1]


def run(source: str, space: dict, name: str) -> str:
    """Run a cell in the namespace `space`; returns what it printed."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(source, name, "exec", dont_inherit=True), space)
    return shown.getvalue()


class Bench:
    """A notebook run as far as some exercises need it; answers are put in and checked, each from the same state."""

    def __init__(self, path, cells: list[dict], values: dict):
        self.space = {"__name__": "__main__"}
        for cell in cells:
            run(cell["source"], self.space, cell["id"])
            if "parameters" in notebooks.tags(cell):
                self.space |= notebooks.checked(path, values, "smoke")
        self.before = dict(self.space)

    def answer(self, cell: dict, source: str) -> None:
        """Put an answer into an exercise's cell; what it raises is raised."""
        self.space.clear()
        self.space.update(self.before)
        run(source, self.space, cell["id"])

    def verdict(self, check: dict) -> str:
        """Run the check; returns what it printed, and what it raises is raised."""
        return run(check["source"], self.space, check["id"])


@functools.cache
def _bench(path, cells: tuple[str, ...], values: str) -> Bench:
    return Bench(
        path, [cell for cell in notebooks.code_cells(notebooks.read(path)) if cell["id"] in cells], json.loads(values)
    )


def bench(path, exercise: str) -> Bench:
    """The bench of an exercise, shared by all that need the same cells with the same parameters."""
    code = notebooks.code_cells(notebooks.read(path))
    place = next(number for number, cell in enumerate(code) if cell["id"] == exercise)
    values = mutants(path).get("parameters", {}).get(exercise, {})
    return _bench(path, tuple(cell["id"] for cell in needed(code, place)), json.dumps(values))
