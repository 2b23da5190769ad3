"""Every notebook keeps the contract, runs at smoke size with its own and with other parameters, and reproduces its
committed outputs.

Papermill and nbval are blind in opposite places, so both run. Whatever is in `notebooks/` is taken; nothing is left
out. Memory is held here. Time is not, for a shared machine can be five times slower than a quiet one: the contract
holds the time that `mmkit notebook refresh` measured and wrote on the page, and the summary names the notebooks that
took twice that here. What nbval compares is in `plugins/nbval_strict.py`.
"""

import asyncio
import os
import queue
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import nbformat
import pytest
import zmq.asyncio
from jupyter_client.session import Session

from conftest import NOTEBOOKS, ROOT
from mmkit import notebooks
from mmkit.teach import contract

PROFILES = notebooks.profiles(ROOT / "notebooks")
FROM_FILES = ("covid_cxr", "flickr8k", "openmoji")  # data sets that need the mirror here, where there is no network
OTHER = [
    pytest.param(path, values, id=f"{path.stem}-{number}")
    for path in NOTEBOOKS
    for number, values in enumerate(PROFILES.get(path.stem, {}).get("other", []))
    if values.get("data") not in FROM_FILES or os.environ.get("MMKIT_MIRROR")
]
NBVAL = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-p",
    "nbval_strict",
    "-p",
    "no:cacheprovider",
    "--nbval",
    "--nbval-cell-timeout=1200",
]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


# Linux counts the memory of the process that forks to the one that is started; this one is small, whatever these
# tests grew to.
LAUNCHER = """import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=file)
sys.exit(code)"""


def measured(command, log: Path, **environment):
    """Run a command; returns exit code, seconds of processor time (at one thread they are what the clock shows on a
    quiet machine) and gigabytes, both of it and all its descendants."""
    usage = log.with_suffix(".usage")
    with open(log, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-S", "-c", LAUNCHER, str(usage), *command],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    seconds, peak = map(float, usage.read_text().split())
    return done.returncode, seconds, peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def smoke(path, out, values):
    words = [word for name, value in values.items() for word in ("-p", f"{name}={value}")]
    log = out.with_suffix(".log")
    code, _, gigabytes = measured(
        [sys.executable, "-m", "mmkit.cli", "run", str(path), "--profile", "smoke", "--out", str(out), *words], log
    )
    assert code == 0, log.read_text()
    executed = notebooks.read(out)
    assert notebooks.unfinished(executed) is None
    return executed, gigabytes


def standard_error(executed):
    return [
        (cell["id"], "".join(output["text"]))
        for cell in notebooks.code_cells(executed)
        for output in cell["outputs"]
        if output.get("name") == "stderr"
    ]


def test_memory_is_of_the_command_alone(tmp_path):
    ballast = bytearray(os.urandom(1)) * 600_000_000
    code, seconds, gigabytes = measured(
        [sys.executable, "-S", "-c", "kept = bytearray(b'x') * 100_000_000; raise SystemExit(3)"], tmp_path / "log"
    )
    assert code == 3 and seconds > 0 and 0.1 < gigabytes < 0.3 < len(ballast) / 1e9


def test_there_are_notebooks_and_each_has_a_profile():
    assert NOTEBOOKS and set(PROFILES) == {path.stem for path in NOTEBOOKS}


@each_notebook
def test_it_keeps_the_contract(path):
    assert contract.check(path) == []


@pytest.mark.notebooks
@each_notebook
def test_it_runs_at_smoke_size_within_its_memory(path, tmp_path):
    executed, gigabytes = smoke(path, tmp_path / path.name, {})
    assert standard_error(executed) == []
    assert gigabytes <= PROFILES[path.stem]["limits"]["smoke"]["gigabytes"]


@pytest.mark.notebooks
@pytest.mark.parametrize(("path", "values"), OTHER)
def test_it_runs_with_other_parameters(path, values, tmp_path):
    executed, _ = smoke(path, tmp_path / path.name, values)
    [injected] = [
        cell["source"] for cell in notebooks.code_cells(executed) if "injected-parameters" in notebooks.tags(cell)
    ]
    assert all(f"{name} = " in injected for name in values)


@pytest.mark.notebooks
@each_notebook
def test_it_reproduces_its_committed_outputs_within_its_memory(path, tmp_path, record_property):
    """nbval at lab size: every cell runs, and its output is the one on the page."""
    log = tmp_path / "nbval.log"
    code, seconds, gigabytes = measured([*NBVAL, str(path)], log)
    assert code == 0, log.read_text()
    assert f"{len(notebooks.code_cells(notebooks.read(path)))} passed" in log.read_text()
    stated = contract.MEASURED.search(notebooks.read(path)["cells"][0]["source"])
    limit = min(PROFILES[path.stem]["limits"]["lab"]["gigabytes"], 1.5 * float(stated[3]) + 0.25)
    assert gigabytes <= limit, (
        f"it took {gigabytes:.1f} GB, its first cell says {stated[3]} GB: run `mmkit notebook refresh`"
    )
    if seconds > 2 * float(stated[2]) + 10:
        record_property(
            "slow",
            f"{path.stem} took {seconds:.0f} s of processor, its first cell says {stated[2]} s: if this machine was "
            "quiet, run `mmkit notebook refresh`",
        )


async def _reply_whose_news_is_lost():
    """What a client gets that waits for a message while something else is done with the same socket; jupyter_client's
    own channel waits for ever."""
    session = Session(key=b"")
    ours, theirs = zmq.asyncio.Context.instance().socket(zmq.DEALER), zmq.Context.instance().socket(zmq.DEALER)
    try:
        ours.connect(f"tcp://127.0.0.1:{theirs.bind_to_random_port('tcp://127.0.0.1')}")
        session.send(ours, "request")
        theirs.recv_multipart()
        waiting = asyncio.create_task(notebooks.PatientChannel(ours, session).get_msg())
        await asyncio.sleep(0.2)
        session.send(theirs, "reply")
        raw = zmq.Socket.shadow(ours.underlying)
        while not raw.getsockopt(zmq.EVENTS) & zmq.POLLIN:  # as a send does on its way
            pass
        return (await waiting)["msg_type"]
    finally:
        ours.close(0), theirs.close(0)


def test_a_reply_whose_news_was_lost_is_found_all_the_same():
    assert asyncio.run(_reply_whose_news_is_lost()) == "reply"
    assert notebooks.IpcKernelManager().client().shell_channel_class is notebooks.PatientChannel


def test_the_patient_channel_gives_up_in_time():
    async def nothing():
        with closing(zmq.asyncio.Context.instance().socket(zmq.DEALER)) as socket:
            await notebooks.PatientChannel(socket, Session(key=b"")).get_msg(timeout=0.1)

    with pytest.raises(queue.Empty):
        asyncio.run(nothing())


# --- the guards guard ---

PNG = """import base64, struct, sys, zlib
from IPython.display import display
def png(across, down):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", across, down, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress((bytes(across + 1)) * down)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\\x89PNG\\r\\n\\x1a\\n" + body).decode()"""
exec(PNG)


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", text=text, name=name)


def figure(across, down):
    return nbformat.v4.new_output("display_data", data={"image/png": png(across, down), "text/plain": "[figure]"})  # noqa: F821  made above


SHOW = "display({'image/png': png(8, 6), 'text/plain': '[figure]'}, raw=True)"
CHECK, IGNORE = ["nbval-check-output"], ["nbval-ignore-output"]
PAGE = {  # cell: source, tags, what the page shows, whether nbval may let it pass
    "helpers": (PNG, [], [], True),
    "a number": ("print(6 * 7)", CHECK, [stream("42\n")], True),
    "a changed number": ("print(6 * 7)", CHECK, [stream("41\n")], False),
    "a number that hangs on training": ("print(6 * 7)", [], [stream("41\n")], True),
    "a figure": (SHOW, [], [figure(8, 6)], True),
    "a changed figure size": (SHOW, [], [figure(8, 7)], False),
    "a changed figure size in an exact cell": (SHOW, CHECK, [figure(9, 6)], False),
    "a removed figure": (SHOW, [], [], False),
    "a figure whose picture was removed": (
        SHOW,
        [],
        [nbformat.v4.new_output("display_data", data={"text/plain": "[figure]"})],
        False,
    ),
    "a removed output": ("print(6 * 7)", [], [], False),
    "a removed output in an exact cell": ("print(6 * 7)", CHECK, [], False),
    "an output that is not made any more": ("pass", [], [stream("42\n")], False),
    "a warning": ("print('careful', file=sys.stderr)", [], [], False),
    "an output that is not compared": ("print(6 * 7)", IGNORE, [stream("some\nmore\n")], True),
    "an error": ("1 / 0", IGNORE, [], False),
}


@pytest.mark.notebooks
def test_nbval_catches_what_was_broken_on_purpose(tmp_path):
    """The same command on a page with a changed number, changed figure sizes, removed outputs."""
    cells = [
        nbformat.v4.new_code_cell(
            source, id=f"cell-{number}", execution_count=number + 1, metadata={"tags": tags}, outputs=shown
        )
        for number, (source, tags, shown, _) in enumerate(PAGE.values())
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "00_made.ipynb")
    code, _, _ = measured([*NBVAL, "-rA", str(tmp_path / "00_made.ipynb")], tmp_path / "log")
    log = (tmp_path / "log").read_text()
    verdicts = {
        int(number): verdict == "PASSED"
        for verdict, number in re.findall(r"^(PASSED|FAILED) \S+::Cell (\d+)", log, re.M)
    }
    assert {name: verdicts[number] for number, name in enumerate(PAGE)} == {
        name: passes for name, (*_, passes) in PAGE.items()
    }, log
    assert code == 1


@pytest.mark.notebooks
def test_standard_error_is_kept_and_an_undeclared_override_refused(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("import sys", id="set-up"),
        nbformat.v4.new_code_cell("pairs: int = 8  # pairs", id="parameters", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(f'{pairs} are few', file=sys.stderr)", id="warning"),
    ]
    path, out = tmp_path / "00_made.ipynb", tmp_path / "executed.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        ),
        path,
    )
    executed, _ = smoke(path, out, {"pairs": 3})
    assert standard_error(executed) == [("warning", "3 are few\n")]
    with pytest.raises(AssertionError, match="unknown parameter 'pars': did you mean 'pairs'?"):
        smoke(path, out, {"pars": 3})
