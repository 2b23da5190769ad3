"""A valid notebook passes the contract; each way to break it is caught, by cell and with the remedy."""

import json
from copy import deepcopy

import pytest

from mmkit.teach.contract import check

FIRST = """# Does more data help?

**You will learn** to ask. **You need first** nothing.

**Time and memory** 5 s and 0.5 GB on 2 cores.

**Data and terms** none."""
EXERCISE = "### BEGIN SOLUTION\nanswer = 2\n### END SOLUTION"
FIGURE = {
    "output_type": "display_data",
    "data": {"image/png": "aGk=", "text/plain": "[figure]"},
    "metadata": {"image/png": {"alt": "A line that rises from left to right."}},
}
PROFILES = """05_valid:
  smoke: {pairs: 8}
  other: [{rates: [0.1]}]
  limits: {smoke: {seconds: 9, gigabytes: 1}, lab: {seconds: 30, gigabytes: 2}}
"""


def markdown(identity, text):
    return {"cell_type": "markdown", "id": identity, "metadata": {}, "source": text}


def code(identity, text, *tags, outputs=()):
    return {
        "cell_type": "code",
        "id": identity,
        "metadata": {"tags": list(tags)} if tags else {},
        "source": text,
        "outputs": list(outputs),
        "execution_count": None,
    }


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def valid():
    cells = [
        markdown("question", FIRST),
        code("set-up", "import numpy as np"),
        code(
            "parameters",
            "pairs: int = 64  # labelled pairs\nrates: list[float] = [1e-3, 0.01]  # learning rates",
            "parameters",
        ),
        code("result", "total = pairs * len(rates)\nprint(total)", "nbval-check-output", outputs=[stream("128\n")]),
        code("figure", "show(np.arange(total))", outputs=[deepcopy(FIGURE)]),
        markdown("exercises", "## Exercises\nHow many?"),
        code("answer", EXERCISE, "exercise"),
        code("answer-check", "assert answer == len(rates)", "check"),
        markdown("found", "## What was found"),
        code("findings", "print(f'{total} in all')", outputs=[stream("128 in all\n")]),
        markdown("limits", "## Where it stops being true\nHere.\n\n## What to read\nBooks."),
    ]
    for count, cell in enumerate((cell for cell in cells if cell["cell_type"] == "code"), 1):
        cell["execution_count"] = count
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def cell(notebook, identity):
    return next(cell for cell in notebook["cells"] if cell["id"] == identity)


def breaches(tmp_path, notebook, name="05_valid.ipynb", profiles=PROFILES):
    (tmp_path / "profiles.yaml").write_text(profiles)
    path = tmp_path / name
    path.write_text(json.dumps(notebook))
    return check(path)


def test_a_valid_notebook_passes(tmp_path):
    assert breaches(tmp_path, valid()) == []


def sets(identity, **changes):
    return lambda notebook: cell(notebook, identity).update(changes)


def source(identity, old, new):
    def change(notebook):
        assert old in cell(notebook, identity)["source"]
        cell(notebook, identity)["source"] = cell(notebook, identity)["source"].replace(old, new)

    return change


def removes(*identities):
    return lambda notebook: notebook.update(cells=[cell for cell in notebook["cells"] if cell["id"] not in identities])


def adds(at, *cells):
    return lambda notebook: notebook["cells"].__setitem__(slice(at, at), deepcopy(list(cells)))


MUTATIONS = {
    "format": (lambda n: n.update(nbformat_minor=4), "not nbformat 4.5"),
    "kernel": (lambda n: n["metadata"]["kernelspec"].update(name="conda-env"), "its kernel is not python3"),
    "run metadata": (lambda n: n["metadata"].update(papermill={}), "metadata.papermill is a left-over"),
    "widget state": (lambda n: n["metadata"].update(widgets={}), "metadata.widgets is a left-over"),
    "cell times": (
        lambda n: cell(n, "result")["metadata"].update(execution={}),
        "cell result: metadata.execution is a left-over",
    ),
    "size": (sets("found", source="## What was found\n" + "x" * 1_000_001), "exceed 1,000,000"),
    "cells": (
        adds(5, *[markdown(f"extra-{k}", "text") for k in "abcdefghijklmnopqrstuvwxyzabcd"]),
        "41 cells exceed 40",
    ),
    "code lines": (
        adds(5, *[code(f"long-{k}", "x = 1\n" * 19) for k in "abcdefghijklmnopq"]),
        "lines of code exceed 250",
    ),
    "cell lines": (sets("set-up", source="x = 1\n" * 21), "cell set-up: 21 lines of code exceed 20"),
    "columns": (
        sets("set-up", source=f"x = '{'y' * 100}'"),
        "cell set-up: a line of 106 columns exceeds 100",
    ),
    "same id": (sets("found", id="limits"), "cell limits: 2 cells have this id"),
    "random id": (sets("found", id="3f2a9c1e"), "cell 3f2a9c1e: an id is readable"),
    "tag": (
        lambda n: cell(n, "result")["metadata"].update(tags=["nbval-check-ouput"]),
        "did you mean 'nbval-check-output'?",
    ),
    "no question": (
        source("question", "help?", "helps."),
        "cell question: the first cell begins with the title as a question",
    ),
    "no label": (source("question", "**You need first**", "You need"), "lacks `**You need first**`"),
    "no times": (source("question", "5 s and 0.5 GB on 2 cores", "little"), "goes on with `N s and N GB on 2 cores`"),
    "too slow": (source("question", "5 s and", "45 s and"), "stated 45 s and 0.5 GB exceed the limits"),
    "two titles": (sets("found", source="# Again\n## What was found"), "cell found: a second `# ` title"),
    "set-up missing": (removes("set-up"), "the second code cell, after one set-up cell"),
    "two parameter cells": (
        lambda n: cell(n, "result")["metadata"].update(tags=["parameters"]),
        "and no other is tagged `parameters`",
    ),
    "not typed": (
        source("parameters", "pairs: int = 64", "pairs = 64"),
        "holds 'pairs = 64': write `name: type = literal  # help`",
    ),
    "derived": (source("parameters", "pairs: int = 64", "pairs: int = 8 * 8"), "holds 'pairs: int = 8 * 8'"),
    "no help": (source("parameters", "  # labelled pairs", ""), "parameter 'pairs' has no help"),
    "wrong default": (
        source("parameters", "pairs: int = 64", "pairs: int = 6.4"),
        "parameter 'pairs' is int (default 6.4), got 6.4 of type float",
    ),
    "unread": (source("result", "pairs * ", ""), "cell parameters: parameter 'pairs' is never read in a later cell"),
    "overwritten": (
        source("result", "total =", "pairs = 3\ntotal ="),
        "parameter 'pairs' is overwritten before it is read",
    ),
    "section": (source("limits", "## What to read", "Reading"), "there is no section `## What to read`"),
    "typed findings": (removes("findings"), "`## What was found` has no code cell"),
    "no figure": (sets("figure", outputs=[]), "there is no figure"),
    "alt text": (
        lambda n: cell(n, "figure")["outputs"][0]["metadata"].clear(),
        "cell figure: a figure without alt text",
    ),
    "no exercise": (lambda n: cell(n, "answer").update(metadata={}), "no code cell is tagged `exercise`"),
    "no region": (source("answer", "### END SOLUTION", ""), "cell answer: an exercise holds its solution between"),
    "empty region": (source("answer", "answer = 2", ""), "cell answer: an exercise holds its solution between"),
    "no answer check": (removes("answer-check"), "cell answer: an exercise is followed by a code cell tagged `check`"),
    "value of a check": (
        sets(
            "answer-check",
            outputs=[
                {"output_type": "execute_result", "data": {"text/plain": "1"}, "metadata": {}, "execution_count": 4}
            ],
        ),
        "cell answer-check: a check ends in a bare value",
    ),
    "typed number": (
        sets("limits", source="## Where it stops being true\nAbove 43.5 %.\n\n## What to read\nBooks."),
        "cell limits: the number 43.5 % is typed or stale",
    ),
    "not run": (sets("findings", execution_count=None), "its cells were not run once each from top to bottom"),
    "run twice": (sets("findings", execution_count=9), "its cells were not run once each from top to bottom"),
    "error kept": (
        sets("findings", outputs=[{"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}]),
        "its committed output is an error (KeyError)",
    ),
    "warning kept": (
        sets("findings", outputs=[stream("UserWarning", "stderr")]),
        "cell findings: its committed output holds standard error",
    ),
    "empty check": (sets("result", outputs=[]), "cell result: tagged `nbval-check-output` and holds no output"),
    "address": (
        sets("result", outputs=[stream("<object at 0x7f3a2b1c> 1")]),
        "cell result: tagged `nbval-check-output` and prints an object's address",
    ),
    "no number checked": (
        sets("result", outputs=[stream("done")]),
        "no cell tagged `nbval-check-output` prints a number",
    ),
    "path in source": (
        source("set-up", "import numpy as np", "import numpy as np\nhere = '/home/ada/data'"),
        "cell set-up: an absolute path in its source (`/home/ada/data'",
    ),
    "path in output": (
        sets("findings", outputs=[stream("saved to /tmp/x/y.csv")]),
        "cell findings: an absolute path in its output (`/tmp/x/y.csv`)",
    ),
    "path of Windows": (sets("found", source="## What was found\nin C:\\Users\\ada"), "cell found: an absolute path"),
    "magic": (
        source("set-up", "import numpy as np", "%pip install numpy"),
        "cell set-up: a line magic or shell command",
    ),
    "shell": (source("set-up", "import numpy as np", "!wget there"), "cell set-up: a line magic or shell command"),
    "download": (
        source("set-up", "import numpy as np", "import numpy as np, requests"),
        "cell set-up: `requests` installs, downloads",
    ),
    "hub": (
        source("set-up", "import numpy as np", "import numpy as np\nm = M.from_pretrained('bert')"),
        "`from_pretrained` installs, downloads",
    ),
    "syntax": (source("set-up", "import numpy as np", "import numpy as"), "cell set-up: not Python"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_breach_is_caught(tmp_path, mutation):
    change, message = MUTATIONS[mutation]
    notebook = valid()
    change(notebook)
    found = breaches(tmp_path, notebook)
    assert any(message in breach for breach in found), found


def test_the_file_name_is_checked(tmp_path):
    assert "the file is called NN_snake_case.ipynb" in breaches(tmp_path, valid(), name="5 Valid.ipynb")[0]


def test_a_file_that_is_no_notebook(tmp_path):
    (tmp_path / "05_valid.ipynb").write_text("<<<<<<< HEAD")
    assert "is not a readable notebook" in check(tmp_path / "05_valid.ipynb")[0]


ODD = {
    "outputs of another shape": sets("figure", outputs=[{"output_type": "display_data", "data": [[1]]}]),
    "a number for an id": sets("figure", id=3),
    "tags that are none": sets("figure", metadata={"tags": [None]}),
    "half a surrogate pair": sets("figure", source="'\ud800'"),
    "a list for the kernel": lambda notebook: notebook.update(metadata={"kernelspec": []}),
    "no cells": lambda notebook: notebook.update(cells={}),
}


@pytest.mark.parametrize("odd", ODD)
def test_json_of_another_shape_is_a_damaged_notebook(tmp_path, odd):
    notebook = valid()
    ODD[odd](notebook)
    [breach] = breaches(tmp_path, notebook)
    assert "damaged" in breach or "not a readable notebook" in breach


def test_what_a_terminal_would_obey_is_written_out(tmp_path):
    notebook = valid()
    cell(notebook, "result")["metadata"] = {"tags": ["\x1b[2Jcheck"]}
    assert [breach for breach in breaches(tmp_path, notebook) if r"\x1b[2Jcheck" in breach]
    assert "\x1b" not in "".join(breaches(tmp_path, notebook))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("05_valid", "06_other", "profiles.yaml has no entry for it"),
        ("pairs: 8", "pars: 8", "unknown parameter 'pars': did you mean 'pairs'?"),
        ("pairs: 8", "pairs: many", "parameter 'pairs' is int (default 64), got 'many' of type str"),
        ("rates: [0.1]", "rate: [0.1]", "unknown parameter 'rate': did you mean 'rates'?"),
        ("smoke: {pairs: 8}", "smok: {pairs: 8}", "unknown key 'smok': did you mean 'smoke'?"),
        ("smoke: {pairs: 8}", "lab: {pairs: 8}", "lab is what the defaults are"),
        ("seconds: 30", "seconds: 90", "a lab run takes at most 60 s and 3 GB"),
        ("seconds: 30, ", "", "limits.lab needs seconds and gigabytes"),
    ],
)
def test_profiles_are_checked(tmp_path, old, new, message):
    assert old in PROFILES
    found = breaches(tmp_path, valid(), profiles=PROFILES.replace(old, new))
    assert any(message in breach for breach in found), found
