"""The house keeps its own rules: one list of requirements, commands that exist, rooms on their floors, small files, nothing that names a machine."""

import ast
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from conftest import NOTEBOOKS, ROOT
from mmkit import notebooks

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA_NAMES = {"pytorch": "torch", "jupyter_client": "jupyter-client"}
FLOORS = {
    0: ("errors",),
    1: ("core", "data", "notebooks"),
    2: ("models", "metrics"),
    3: ("training",),
    4: ("strategies", "tasks"),
    5: ("repro", "teach", "deploy"),
    6: ("doctor",),
    7: ("cli",),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
SOURCES = sorted([*(ROOT / "mmkit").rglob("*.py"), *(ROOT / "data_recipes").glob("*.py")])
TREE = [
    path
    for path in ROOT.rglob("*")
    if path.is_file()
    and not {".venv", ".git", "runs", "build", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", ".ipynb_checkpoints"} & set(path.relative_to(ROOT).parts)
    and not any(part.endswith(".egg-info") for part in path.parts)
]
TEXTS = [path for path in TREE if path.suffix in {"", ".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".ipynb", ".txt", ".json", ".csv"} or path.name == ".gitignore"]


def test_conda_and_pip_install_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    project = PYPROJECT["project"]
    assert environment["name"] == project["name"] and environment["channels"][0] == "conda-forge"
    assert conda[:2] == [f"python{project['requires-python']}", "pip"] and pip["pip"][-1] == "-e ."
    renamed = [re.sub(r"^[\w-]+", lambda name: CONDA_NAMES.get(name[0], name[0]), entry) for entry in conda[2:]]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert sorted(renamed + pip["pip"][:-1]) == sorted(wanted)


def test_every_import_of_the_package_is_a_requirement():
    needed = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn", "jupyter_client": "jupyter-client", "IPython": "ipykernel", "triton": "torch"}
    extras = PYPROJECT["project"]["optional-dependencies"]
    names = {re.match(r"[\w-]+", entry)[0] for entry in PYPROJECT["project"]["dependencies"] + extras["labs"] + extras["fast"] + extras["dask"]}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in {module.split(".")[0] for module in modules} - {"mmkit", "data_recipes"} - sys.stdlib_module_names:
                assert needed.get(module, module) in names, f"{path.relative_to(ROOT)} imports {module}, which pyproject.toml does not list"


def imported_rooms(path):
    """The rooms of mmkit that a file names in an import, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            modules = [f"mmkit.{alias.name}" for alias in node.names] if node.module == "mmkit" else [node.module]
        else:
            continue
        rooms = (module.split(".")[1] for module in modules if module.startswith("mmkit."))
        yield from ((room, node.lineno) for room in rooms if not room.startswith("__"))


@pytest.mark.parametrize("path", sorted((ROOT / "mmkit").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below(path):
    room = path.relative_to(ROOT / "mmkit").parts[0].removesuffix(".py")
    if room == "__init__":  # names only, loaded when they are used
        assert not list(imported_rooms(path))
        return
    for other, line in imported_rooms(path):
        assert other == room or FLOOR[other] < FLOOR[room], f"{path.name}:{line}: mmkit.{room} (floor {FLOOR[room]}) imports mmkit.{other} (floor {FLOOR[other]})"


def test_the_package_and_its_files_stay_small():
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCES}
    assert not {str(path): lines for path, lines in lengths.items() if lines > 400}
    assert sum(lines for path, lines in lengths.items() if path.is_relative_to(ROOT / "mmkit")) <= 13_000  # the sum of DESIGN.md's caps: rooms are being formatted at 120 columns
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno > 60
    ]
    assert not long


def test_nothing_large_is_in_the_tree():
    assert not {str(path): path.stat().st_size for path in TREE if path.stat().st_size > 5_000_000}


def test_the_root_holds_what_design_says_and_nothing_else():
    assert {path.relative_to(ROOT).parts[0] for path in TREE} <= {
        "notebooks", "mmkit", "data_recipes", "tests", "environment.yml", "README.md", "pyproject.toml", "Makefile", "LICENSE",
        "CONTRIBUTING.md", "CITATION.cff", ".ci", ".github", ".gitignore", ".dockerignore",
    }  # fmt: skip


def test_nothing_names_a_package_host_a_mirror_or_a_users_folder():
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "org"), ("download", "pytorch", "org"))]
    folders = re.compile(r"(?<![\w.~])/(?:work|home|root|Users)/\w")
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for host in hosts:
            assert host not in text, f"{path.relative_to(ROOT)} names {host}"
        if path.name not in ("test_house.py", "test_contract.py", "contract.py"):
            assert not folders.search(text), f"{path.relative_to(ROOT)} names a folder of one machine: {folders.search(text)}"
        if path != ROOT / ".ci" / "run":
            assert "/".join(("shared", "data")) not in text, f"{path.relative_to(ROOT)} names the mirror"


def test_code_has_no_loose_ends():
    loose = [r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bXX" + r"X\b", r"allow_pickle\s*=\s*True", r"except Exception:\s*\n\s*pass", r"^\s*except:"]
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]:
        for pattern in loose:
            found = re.search(pattern, path.read_text(), re.M)
            assert not found, f"{path.relative_to(ROOT)}: {found[0]!r}"


def test_ruff_has_nothing_to_say():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "mmkit", "data_recipes", "notebooks", "tests"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- commands -----------------------------------------------------------------------------------------------------------


def targets():
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


def commands():
    import typer

    from mmkit.cli import app

    root = typer.main.get_command(app)
    return {name if not hasattr(command, "commands") else f"{name} {sub}" for name, command in root.commands.items() for sub in getattr(command, "commands", [""])}


def written():
    """Texts that tell people commands: documents, notebooks, and the messages of the package."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *NOTEBOOKS, *SOURCES]


def test_make_help_lists_every_target_and_is_the_default():
    text = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets() == {"help", *re.findall(r"^make (\w+)", text, re.M)} == {"help", "reproduce", "test", "quick", "lab", "clean"}


@pytest.mark.parametrize("path", written(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_told_exists(path):
    text = path.read_text(encoding="utf-8")
    told = re.findall(r"(?:^ {4,}|`|\$\()make ([a-z]+)", text, re.M)
    assert set(told) <= targets()
    known = commands()
    for command in re.findall(r"(?:`|^ {4}|: |run |BIN\)/)(?:\.venv/bin/)?mmkit ((?:data|notebook) [a-z]+|[a-z]+)", text, re.M):
        assert command in known or command in {name.split()[0] for name in known}, f"`mmkit {command}` does not exist"


def test_the_readme_and_the_first_notebook_list_the_notebooks_that_exist():
    rows = dict(re.findall(r"\]\(notebooks/(\w+\.ipynb)\) \| (.+?) \|", (ROOT / "README.md").read_text()))
    titles = {path.name: notebooks.read(path)["cells"][0]["source"].splitlines()[0].removeprefix("# ") for path in NOTEBOOKS}
    assert rows == titles
    linked = set(re.findall(r"\]\((\w+\.ipynb)\)", (ROOT / "notebooks" / "00_start_here.ipynb").read_text()))
    assert linked == set(titles) - {"00_start_here.ipynb"}


def test_links_inside_the_documents_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / link).exists(), f"{name} links to {link}"


# --- make ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile and a fake Python that only records how it was called."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    fake = tmp_path / "fake"
    fake.write_text(
        '#!/bin/sh\nif [ "$1" = -c ]; then [ -z "$FAKE_OLD" ]; exit; fi\nif [ "$1" = --version ]; then echo Python 3.x; exit; fi\n'
        'echo "$@" >> calls\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/mmkit"; fi\n'
        'if [ -n "$FAKE_BROKEN" ] && [ "$2" = pip ]; then exit 1; fi\n'
    )
    fake.chmod(0o755)

    def make(*arguments, **environment):
        command = ["make", "--no-print-directory", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment})
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        (tmp_path / "calls").unlink(missing_ok=True)
        return done, calls

    return make


def test_a_second_make_does_not_install_again(clone):
    done, calls = clone("quick", "PYTHON=./fake")
    assert done.returncode == 0, done.stderr
    assert [call.split()[1] for call in calls] == ["venv", "pip", "pytest"]
    assert [call.split()[1] for call in clone("quick", "PYTHON=./fake")[1]] == ["pytest"]
    assert [call.split()[1] for call in clone("-j8", "quick", "test", "PYTHON=./fake")[1]] == ["pytest", "pytest"]


def test_an_installation_that_broke_off_is_done_again(clone):
    assert clone("quick", "PYTHON=./fake", FAKE_BROKEN="1")[0].returncode != 0
    done, calls = clone("quick", "PYTHON=./fake")
    assert done.returncode == 0 and [call.split()[1] for call in calls] == ["venv", "pip", "pytest"]


def test_reproduce_checks_the_machine_and_runs_the_plan(clone):
    _, calls = clone("reproduce", "PYTHON=./fake", "PLAN=other")
    assert calls[2:] == ["doctor", "reproduce other"]


def test_an_old_python_is_refused_in_words(clone):
    done, calls = clone("test", "PYTHON=./fake", FAKE_OLD="1")
    assert done.returncode != 0 and not calls
    assert "mmkit needs Python 3.11 or newer; found: Python 3.x. Install one, or name it: make PYTHON=" in done.stderr


def test_continuous_integration_runs_make_test_on_the_oldest_python():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text() and script.read_text().splitlines()[-1] == "make test"
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]["test"]
    assert f">={job['strategy']['matrix']['python'][0]}" == PYPROJECT["project"]["requires-python"] and {"run": "make test"} in job["steps"]


# --- benchmarks ---------------------------------------------------------------------------------------------------------


def test_benchmarks_are_described():
    listed = set(re.findall(r"`(\w+\.py)`", (ROOT / "tests" / "benchmarks" / "README.md").read_text()))
    assert {path.name for path in (ROOT / "tests" / "benchmarks").glob("*.py")} <= listed
