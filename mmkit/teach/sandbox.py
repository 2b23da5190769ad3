"""Run a hand-in in a process of its own, if asked in a container, where it finds no solutions, course or gradebook.

The process gets a notebook as JSON on its standard input and answers with the outputs of its cells. Its folder is
empty, its environment holds no settings of the grader's, and the kit that it imports is a copy without notebooks.
Without a container it has the grader's rights all the same: code that searches the disk finds what is there.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from mmkit import notebooks
from mmkit.data.folders import data_root
from mmkit.errors import MmkitError

CELL_SECONDS, HAND_IN_SECONDS = 300, 1800  # an endless loop ends here; a lab run takes a minute in all
OUTPUT_BYTES = 10_000_000  # of a cell; what an endless loop prints beyond is dropped
KEPT = tuple("LANG LC_ TZ PATH HOME USERPROFILE SYSTEMROOT LD_ DYLD_ OMP_ MKL_ CUDA_ XDG_ MMKIT_MIRROR MPL".split())
NOTHING_MORE = (
    "--rm --interactive --init --network none --read-only --cap-drop ALL --security-opt no-new-privileges "
    "--security-opt label=disable --pids-limit 512 --memory 4g --tmpfs /tmp:rw,exec,size=2g,mode=1777 --workdir /tmp"
).split()
RUNNER = ("-m", "mmkit.teach.sandbox")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux

Outputs = dict[str, dict]
"""cell id -> its outputs and execution_count"""


def run(notebook: Mapping, *, image: str | None = None) -> tuple[Outputs, str]:
    """The outputs of each code cell, and why the notebook did not run to its end ("" when it did).

    image: run in a container of this image, which holds what the kit needs. Raises MmkitError.
    """
    engine = _engine() if image else None
    with TemporaryDirectory(prefix="mmk", ignore_cleanup_errors=True) as name, TemporaryFile() as asked:
        room = Path(name)
        _copy_kit(room / "kit")
        for folder in ("work", "home", "tmp"):
            (room / folder).mkdir()
        command = container(engine, image, room) if engine else [sys.executable, *RUNNER]
        environment = None if engine else _environment(room)  # the engine's client needs the grader's
        asked.write(json.dumps(notebook).encode())
        asked.seek(0)
        # Files, not pipes: a process that the hand-in leaves behind would hold a pipe open.
        with TemporaryFile() as answer, TemporaryFile() as said, _no_strays():
            streams = {"stdin": asked, "stdout": answer, "stderr": said}
            process = subprocess.Popen(command, cwd=room / "work", env=environment, start_new_session=True, **streams)
            try:
                process.wait(HAND_IN_SECONDS)
            except subprocess.TimeoutExpired:
                raise MmkitError(f"it ran for more than {HAND_IN_SECONDS} s in all, and was ended") from None
            finally:
                if engine:  # ending the client would leave the container
                    subprocess.run([engine, "rm", "--force", room.name], capture_output=True)
            return _read(answer, said)


def _read(answer, said) -> tuple[Outputs, str]:
    for file in (answer, said):
        file.seek(0)
    try:
        given = json.load(answer)
        return dict(given["cells"]), str(given["fault"])
    except (ValueError, KeyError, TypeError):
        lines = said.read()[-2000:].decode(errors="replace").strip().splitlines()
        raise MmkitError(f"the process that runs it was ended: {lines[-1] if lines else 'it said nothing'}") from None


def container(engine: str, image: str, room: Path) -> list[str]:
    """The command that runs a hand-in in `image`: without network, with nothing to write but a temporary folder."""
    # Podman's root is the grader without rights; docker's is root.
    user = ["--user", f"{os.getuid()}:{os.getgid()}"] if Path(engine).name == "docker" else []
    volumes = ["--volume", f"{room / 'kit'}:/kit:ro", "--volume", f"{data_root()}:/data:ro"]
    inside = {"PYTHONPATH": "/kit", "MMKIT_DATA": "/data", "MMKIT_RUNS": "/tmp/runs", "HOME": "/tmp"}
    inside |= {"MMKIT_PROFILE": "lab", "PYTHONOPTIMIZE": ""}
    variables = [f"--env={name}={value}" for name, value in inside.items()]
    return [engine, "run", "--name", room.name, *NOTHING_MORE, *user, *volumes, *variables, image, "python", *RUNNER]


def _engine() -> str:
    engine = shutil.which("podman") or shutil.which("docker")
    if not engine:
        raise MmkitError("--container needs podman or docker: install one, or grade without it what friends hand in")
    return engine


def _environment(room: Path) -> dict[str, str]:
    """What finds programs and the prepared data; no token of the grader's, no PYTHONOPTIMIZE, no Jupyter settings."""
    home, kit = str(room / "home"), str(room / "kit")
    own = {"IPYTHONDIR": home, **{f"JUPYTER_{kind}_DIR": home for kind in ("CONFIG", "DATA", "RUNTIME")}}
    own |= {"PYTHONPATH": kit, "PYTHONSAFEPATH": "1", "TMPDIR": str(room / "tmp")}
    own |= {"MMKIT_DATA": str(data_root()), "MMKIT_RUNS": str(room / "runs"), "MMKIT_PROFILE": "lab"}
    return {name: value for name, value in os.environ.items() if name.upper().startswith(KEPT)} | own


def _copy_kit(target: Path) -> None:
    """The package and what its notebooks read, but no notebook: their solutions stay out."""
    package = Path(__file__).parents[2]
    for name in ("mmkit", "data_recipes"):
        shutil.copytree(package / name, target / name)
    shutil.copytree(notebooks.folder(), target / "notebooks", ignore=shutil.ignore_patterns("*.ipynb", "views", ".*"))


@contextmanager
def _no_strays() -> Iterator[None]:
    """End every process that was begun inside, daemons too: on Linux orphans become this process's children."""
    import psutil

    me = psutil.Process()
    before = set(me.children(recursive=True))
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc:
        libc.prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        for _ in range(100):  # one that begins others while it is ended needs more than one round
            strays = set(me.children(recursive=True)) - before
            for stray in strays:
                with suppress(psutil.Error):
                    stray.kill()
            psutil.wait_procs(strays, timeout=5)
            if not strays:
                break
        if libc:
            libc.prctl(SUBREAPER, 0, 0, 0, 0)


# --- inside -----------------------------------------------------------------------------------------------------------


def answer() -> None:
    """Run the notebook of standard input and write the outputs of its cells to standard output, as JSON."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what the kernel prints past Jupyter must not get into the answer
    given, fault = execute(json.load(sys.stdin))
    with open(answer, "w", encoding="utf-8") as file:
        json.dump({"cells": given, "fault": fault}, file)


def execute(notebook: Mapping) -> tuple[Outputs, str]:
    """Run a notebook here. When its kernel dies or hangs, the cells from there on hold an error that says so."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    whole, begun, fault = nbformat.from_dict(notebook), [], ""
    printed: dict[str, int] = {}

    class Client(NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] in ("stream", "display_data", "execute_result"):
                printed[cell.id] = printed.get(cell.id, 0) + len(str(msg["content"]))
                if printed[cell.id] > OUTPUT_BYTES:
                    return None
            return super().process_message(msg, cell, cell_index)

    def started(cell, cell_index):
        begun.append(cell.id)

    def executed(cell, cell_index, execute_reply):
        content = execute_reply["content"]
        if content["status"] == "error" and not any(output["output_type"] == "error" for output in cell.outputs):
            cell.outputs.append(_error(content["ename"], content["evalue"]))  # its traceback was switched off

    too_long = {"ename": "CellTimeoutError", "evalue": f"after {CELL_SECONDS} s", "traceback": []}
    options = {
        "timeout": CELL_SECONDS,
        "interrupt_on_timeout": True,
        "error_on_timeout": too_long,
        "allow_errors": True,
    }
    options |= {"kernel_name": "python3", "kernel_manager_class": notebooks.IpcKernelManager, "record_timing": False}
    options |= {
        "on_cell_start": started,
        "on_cell_executed": executed,
        "resources": {"metadata": {"path": os.getcwd()}},
    }
    try:
        Client(whole, extra_arguments=["--HistoryManager.hist_file=:memory:"], **options).execute()
    except DeadKernelError:
        fault = f"its kernel died in cell {begun[-1]} (it ran out of memory, crashed, or was ended by its own code)"
    except CellTimeoutError:
        fault = f"cell {begun[-1]} could not be interrupted after {CELL_SECONDS} s"
    code = notebooks.code_cells(whole)
    if fault:
        for cell in code[[cell.id for cell in code].index(begun[-1]) :]:
            cell.outputs.append(_error("NotRun", fault))
    return {cell.id: {"outputs": cell.outputs, "execution_count": cell.execution_count} for cell in code}, fault


def _error(name: str, text: str) -> dict:
    return {"output_type": "error", "ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}


if __name__ == "__main__":
    answer()
