"""Parameters are typed, profiles merge under them, and a run that broke off is never taken for a finished one."""

import tempfile
from pathlib import Path

import nbformat
import pytest

from mmkit import cli, notebooks
from mmkit.errors import MmkitError

DECLARED = """count: int = 3  # how many
rate: float = 1e-3  # learning rate
name: str = "scenes"  # data set
fast: bool = False  # skip the slow part
sizes: list[int] = [64, 128]  # one run each
arms: list[str] = ["scratch"]  # arms
limit: int | None = None  # all by default
"""


@pytest.fixture
def write(tmp_path):
    """Write a notebook of code cells (the second is the parameters cell) and return its path."""

    def make(*sources, name="07_made.ipynb", profiles=None):
        cells = [nbformat.v4.new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(sources)]
        cells[1].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / name)
        if profiles:
            (tmp_path / "profiles.yaml").write_text(profiles)
        return tmp_path / name

    return make


def test_declarations_are_read(write):
    declared = notebooks.parameters(write("import os", DECLARED))
    assert {p.name: (p.type, p.default) for p in declared.values()} == {
        "count": ("int", 3), "rate": ("float", 1e-3), "name": ("str", "scenes"), "fast": ("bool", False),
        "sizes": ("list[int]", [64, 128]), "arms": ("list[str]", ["scratch"]), "limit": ("int | None", None),
    }  # fmt: skip
    assert declared["rate"].help == "learning rate"


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("count", "007", 7),
        ("count", 5, 5),
        ("rate", "1e-3", 0.001),
        ("rate", 1, 1.0),
        ("name", "007", "007"),
        ("name", "true", "true"),
        ("fast", "true", True),
        ("fast", "no", False),
        ("sizes", "256,512", [256, 512]),
        ("sizes", "[256, 512]", [256, 512]),
        ("sizes", (1, 2), [1, 2]),
        ("sizes", "64", [64]),
        ("arms", "scratch, 'lp_ft'", ["scratch", "lp_ft"]),
        ("arms", "[scratch, lp_ft]", ["scratch", "lp_ft"]),
        ("arms", "[Pp]neumonia", ["[Pp]neumonia"]),
        ("arms", "[Pp]neumonia, x{1,2}", ["[Pp]neumonia", "x{1,2}"]),
        ("arms", "pneumo(nia|thorax)", ["pneumo(nia|thorax)"]),
        ("arms", "(pneumonia|thorax)", ["(pneumonia|thorax)"]),
        ("arms", "(scratch, lp_ft)", ["scratch", "lp_ft"]),
        ("arms", r"\(a, b", [r"\(a", "b"]),
        ("arms", '["a, b", "[c]"]', ["a, b", "[c]"]),
        ("arms", "['a, b', \"c\"]", ["a, b", "c"]),
        ("arms", "'a, b', c", ["a, b", "c"]),
        ("arms", "don't, can't", ["don't", "can't"]),
        ("arms", "[a], [b]", ["[a]", "[b]"]),
        ("arms", "[1, 2]", ["1", "2"]),
        ("arms", "007", ["007"]),
        ("arms", "[]", []),
        ("arms", "", []),
        ("limit", "none", None),
        ("limit", None, None),
        ("limit", "12", 12),
    ],
)
def test_values_take_the_declared_type(write, name, given, wanted):
    value = notebooks.checked(write("", DECLARED), {name: given})[name]
    assert value == wanted and type(value) is type(wanted)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("count", "many", "parameter 'count' is int (default 3), got 'many' of type str"),
        ("count", 2.5, "parameter 'count' is int (default 3), got 2.5 of type float"),
        ("count", True, "got True of type bool"),
        ("rate", "nan", "parameter 'rate' is float (default 0.001), got nan"),
        ("name", 7, "parameter 'name' is str (default 'scenes'), got 7 of type int"),
        ("fast", "maybe", "parameter 'fast' is bool (default False), got 'maybe'"),
        ("sizes", 64, "parameter 'sizes' is list[int] (default [64, 128]), got 64 of type int"),
        ("sizes", "64,x", "got 'x' of type str"),
        ("count", None, "got None of type NoneType"),
        ("name", "\ud800", "parameter 'name': '\\ud800' holds half a character: write it in UTF-8"),
        ("arms", "a, \udc80", "holds half a character"),
        ("cuont", 1, "07_made: unknown parameter 'cuont': did you mean 'count'?"),
    ],
)
def test_a_wrong_value_is_refused(write, name, given, message):
    with pytest.raises(MmkitError) as error:
        notebooks.checked(write("", DECLARED), {name: given})
    assert message in str(error.value)


def test_a_parameter_that_is_given_twice_is_refused():
    with pytest.raises(MmkitError, match="'seed' is given twice, as '1' and '2': keep one"):
        cli._pairs(["seed=1", "lr=2", " seed =2"])


def test_no_name_is_no_notebook():
    with pytest.raises(MmkitError, match="unknown notebook ''"):
        notebooks.resolve("")


def test_profiles_merge_under_what_is_given(write):
    limits = "limits: {smoke: {seconds: 9, gigabytes: 1}, lab: {seconds: 30, gigabytes: 2}}"
    path = write("", DECLARED, profiles=f"07_made:\n  smoke: {{count: 1, rate: 1e-2}}\n  {limits}\n")
    assert notebooks.checked(path, {"count": "2"}, "smoke") == {"count": 2, "rate": 0.01}
    assert notebooks.checked(path, {}, "lab") == notebooks.checked(path, {}, "full") == {}
    with pytest.raises(MmkitError, match="unknown profile 'smok': did you mean 'smoke'"):
        notebooks.checked(path, {}, "smok")


def test_profiles_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "profiles.yaml").write_bytes("# Größe".encode("latin-1"))
    with pytest.raises(MmkitError, match="profiles.yaml cannot be read: 'utf-8' codec"):
        notebooks.profiles(tmp_path)


def test_a_notebook_is_found_by_number_name_and_path(write):
    path = write("", DECLARED)
    assert notebooks.resolve(path) == path
    for name in notebooks.folder().glob("[0-9][0-9]_*.ipynb"):
        assert notebooks.resolve(name.stem) == notebooks.resolve(name.stem[:2]) == name
    with pytest.raises(MmkitError, match="unknown notebook '77'"):
        notebooks.resolve("77")
    with pytest.raises(MmkitError, match="no notebook 'gone.ipynb'"):
        notebooks.resolve("gone.ipynb")


def run(path, **options):
    """Execute a made notebook; returns the outputs of its last cell."""
    out = path.parent / "out" / "done.ipynb"
    notebooks.execute(path, out, {"count": 5}, profile="smoke", **options)
    return notebooks.code_cells(notebooks.read(out))[-1]["outputs"]


COUNT = "count: int = 3  # how many"


@pytest.mark.notebooks
def test_parameters_profile_and_folder_reach_the_notebook(write):
    path = write("import os", COUNT, "print(count, os.environ['MMKIT_PROFILE'], os.path.exists('07_made.ipynb'))")
    assert run(path)[0]["text"] == ["5 smoke True\n"]


BROKEN_OFF = {
    "an error": ("1 / 0", "cell cell-2 raised ZeroDivisionError: division by zero"),
    "an exit that papermill calls success": ("import sys; sys.exit(0)", "cell cell-2 raised SystemExit: 0"),
    "a killed kernel": ("os.kill(os.getpid(), 9)", "the kernel died in cell cell-2"),
    "a time-out": ("import time; time.sleep(30)", "more than 3 s were spent in cell cell-2"),
}


@pytest.mark.notebooks
@pytest.mark.parametrize("way", BROKEN_OFF)
def test_a_run_that_broke_off_is_told(write, way):
    code, message = BROKEN_OFF[way]
    path = write("import os", COUNT, code, "print('the end')")
    with pytest.raises(MmkitError) as error:
        run(path, timeout=3 if way == "a time-out" else None)
    assert "07_made.ipynb did not finish" in str(error.value) and message in str(error.value)
    assert (path.parent / "out" / "done.ipynb").is_file(), "what ran is kept"


@pytest.mark.notebooks
@pytest.mark.parametrize("code", ["os.kill(os.getpid(), 9)", "import sys; sys.exit(0)", "import time; time.sleep(30)"])
def test_so_is_one_that_broke_off_in_its_last_cell(write, code):
    with pytest.raises(
        MmkitError,
        match=r"did not finish: (the kernel died in cell cell-2|more than 3 s were spent in cell cell-2|cell cell-2 "
        r"raised SystemExit)",
    ):
        run(write("import os", COUNT, code), timeout=3 if "sleep" in code else None)


@pytest.mark.notebooks
def test_an_error_in_a_widgets_callback_is_seen(write):
    callback = (
        "import ipywidgets\nslider = ipywidgets.IntSlider()\n"
        "ipywidgets.interactive_output(lambda x: 1 / (3 - x), {'x': slider})\nslider.value = 3"
    )
    with pytest.raises(MmkitError, match="a widget's callback raised ZeroDivisionError"):
        run(write("import os", COUNT, callback))


@pytest.mark.notebooks
def test_kernels_talk_over_sockets_of_their_own_and_leave_nothing(write):
    code = (
        "import json\nfrom ipykernel import get_connection_info\n"
        "info = json.loads(get_connection_info())\nprint(info['transport'], info['ip'])"
    )
    transport, address = run(write("import os", COUNT, code))[0]["text"][0].split()
    assert transport == "ipc" and Path(address).parent.parent == Path(tempfile.gettempdir())
    assert not Path(address).parent.exists()
