"""Cheats earn nothing or are pointed at; what runs in the sandbox and in a container is ended and reaches nothing."""

import json
import os
import stat
import sys
import time

import pytest

import small_course
from mmkit.errors import MmkitError
from mmkit.teach import sandbox
from small_course import NAME, NOTEBOOK, WRONG


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return small_course.build(tmp_path_factory.mktemp("course"))


@pytest.fixture
def course(built, tmp_path):
    return small_course.Course(built, tmp_path / "course")


TRANSFORMER = """
def drop(lines):
    return [line for line in lines if not line.lstrip().startswith("assert")]
get_ipython().input_transformers_cleanup.append(drop)"""
ALWAYS = """
class Yes:
    def __eq__(self, other): return True
    def __array__(self, *args, **options): return np.array(4)
double = lambda x: Yes()"""
MODULE = "import numpy\ndouble = lambda x: x"
SOURCES = f"""
import json, mmkit
from pathlib import Path
places = [Path("../../../source/{NAME}"), Path("../source/{NAME}"), Path("."), Path(mmkit.__file__).parents[1]]
found = [file for folder in places for file in folder.glob("**/*.ipynb")]
exec("".join(json.loads(found[0].read_text())["cells"][5]["source"]))"""
QUIET = "get_ipython().showtraceback = lambda *args, **options: None\ndouble = lambda x: x"
SHOWN = """
from IPython import get_ipython as shell
def double(x):
    shell().displayhook.exec_result = None
    shell().displayhook.session.send(shell().displayhook.pub_socket, "execute_result",
        {"data": {"text/plain": "3"}, "metadata": {}, "execution_count": 1}, parent=shell().displayhook.parent_header)
    return 0"""
WARNS = """
import warnings
def double(x):
    warnings.warn("slow")
    return 2 * x"""
CHEATS = {  # answer, points (None: not graded), what is said about it
    "transformer": (TRANSFORMER, None, "an assertion that must fail did not, before answer-check"),
    "always": (ALWAYS, 3, "cell answer makes comparisons of its own (__eq__)"),
    "module": (MODULE, 0, ""),
    "sources": (SOURCES, 0, "cell answer looks at files"),
    "patched": ("np.allclose = lambda *args: True\ndouble = lambda x: 2 * x", 3, "changes a module (np =)"),
    "shown": (SHOWN, 0, "cell answer changes how cells or assertions run (get_ipython)"),
    "warns": (WARNS, 3, ""),
    "quiet": (QUIET, 0, "cell answer changes how cells or assertions run (get_ipython)"),
    "optimised": (WRONG, 0, ""),
}


@pytest.mark.slow
def test_cheats_earn_nothing_or_are_pointed_at(course, monkeypatch):
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(course.root), os.environ.get("PYTHONPATH", "")]))
    for student, (answer, _, _) in CHEATS.items():
        path = course.hand_in(student, answer=answer)
        if student == "module":
            (path.parent / "numpy.py").write_text("allclose = lambda *args: True\n")
    points, problems, notes = course.grade()
    assert points == {student: [] if wanted is None else [1, wanted] for student, (_, wanted, _) in CHEATS.items()}, (
        problems
    )
    for student, (_, _, said) in CHEATS.items():
        about = "".join(text for text in (*problems, *notes) if text.startswith(student))
        assert said in about and bool(said) == bool(about), (student, about)


DAEMON = """
import os, sys, time
if not os.fork():
    os.setsid()
    if not os.fork():
        for name in os.listdir("/proc/self/fd"):
            try: os.close(int(name))
            except OSError: pass
        while True:
            open({mark!r}, "a").write("x")
            time.sleep(0.1)
    os._exit(0)
double = lambda x: 2 * x"""
OVERWRITE = "open({path!r}, 'w').write('full marks')\ndouble = lambda x: 2 * x"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to their ancestor")
def test_a_process_that_a_hand_in_leaves_behind_is_ended(course, tmp_path):
    mark = tmp_path / "mark"
    course.hand_in("daemon", answer=DAEMON.format(mark=str(mark)))
    assert course.grade()[0] == {"daemon": [1, 3]} and mark.is_file()
    size = mark.stat().st_size
    time.sleep(1)
    assert mark.stat().st_size == size


@pytest.mark.slow
@pytest.mark.parametrize("file", ["gradebook.db", f"source/{NAME}/{NAME}.ipynb", f"submitted/good/{NAME}/new"])
def test_a_hand_in_cannot_change_the_course(course, file):
    target = course.root / file
    before = target.read_bytes() if target.is_file() else None
    course.hand_in("bad", answer=OVERWRITE.format(path=str(target)))
    course.hand_in("good")
    points, problems, _ = course.grade()
    assert points == {"bad": [], "good": [1, 3]}
    assert [f"while it ran, {file} changed: put back as before" in problem for problem in problems] == [True]
    assert file == "gradebook.db" or (target.read_bytes() if target.is_file() else None) == before


@pytest.mark.slow
def test_a_hand_in_that_ends_its_runner_is_not_graded_and_sees_no_secrets(course, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    course.hand_in("bad", answer="import os\nos.kill(os.getppid(), 9)\nimport time\ntime.sleep(60)")
    course.hand_in("nosy", answer="import os\ndouble = lambda x: 2 * x if 'SOME_TOKEN' not in os.environ else 0")
    points, problems, _ = course.grade()
    assert points == {"bad": [], "nosy": [1, 3]}
    assert ["bad was not graded: the process that runs it was ended" in problem for problem in problems] == [True]


@pytest.mark.slow
def test_a_hand_in_that_never_ends_is_ended(course, monkeypatch):
    monkeypatch.setattr(sandbox, "HAND_IN_SECONDS", 10)
    course.hand_in("bad", answer="while True:\n    pass")
    points, problems, _ = course.grade()
    assert points == {"bad": []} and problems == ["bad was not graded: it ran for more than 10 s in all, and was ended"]


# --- the container ----------------------------------------------------------------------------------------------------

ENGINE = """#!{python}
import json, os, subprocess, sys
if sys.argv[1] == "rm":
    sys.exit()
arguments = sys.argv[2:]
with open({log!r}, "w") as file:
    json.dump(arguments, file)
inside = dict(part.removeprefix("--env=").split("=", 1) for part in arguments if part.startswith("--env="))
volumes = [arguments[place + 1].split(":") for place, part in enumerate(arguments) if part == "--volume"]
for outside, within, _ in volumes:
    inside = {{name: value.replace(within, outside) for name, value in inside.items()}}
at = arguments.index("the-image")
sys.exit(subprocess.run([sys.executable, *arguments[at + 2 :]], env=os.environ | inside).returncode)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_in_a_container_a_hand_in_has_no_network_and_nothing_to_write(course, tmp_path, monkeypatch, engine):
    log = tmp_path / "log"
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / engine
    fake.write_text(ENGINE.format(python=sys.executable, log=str(log)))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(fake.parent), "/usr/bin", "/bin"]))
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    course.hand_in("right")
    course.hand_in("wrong", answer=WRONG)
    assert course.grade(image="the-image")[:2] == ({"right": [1, 3], "wrong": [1, 0]}, [])
    arguments = json.loads(log.read_text())
    text = " ".join(arguments)
    for part in (
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "--pids-limit",
        "--memory",
        "--rm",
        "no-new-privileges",
    ):
        assert part in text
    assert ("--user" in arguments) == (engine == "docker") and text.endswith("the-image python -m mmkit.teach.sandbox")
    mounted = [arguments[place + 1].split(":") for place, part in enumerate(arguments) if part == "--volume"]
    assert [(within, how) for _, within, how in mounted] == [("/kit", "ro"), ("/data", "ro")]
    assert str(course.root) not in text and os.getcwd() not in text


def test_without_an_engine_the_remedy_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MmkitError, match="--container needs podman or docker"):
        sandbox.run(NOTEBOOK, image="the-image")


def test_the_copy_of_the_kit_holds_no_solutions(tmp_path):
    sandbox._copy_kit(tmp_path / "kit")
    files = [path for path in (tmp_path / "kit").rglob("*") if path.is_file()]
    assert any(path.name == "profiles.yaml" for path in files) and any(path.name == "sandbox.py" for path in files)
    assert not [path for path in files if path.suffix == ".ipynb" or "views" in path.parts or "tests" in path.parts]
