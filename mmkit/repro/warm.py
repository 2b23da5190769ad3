"""Runs without the start-up: one process a batch imports what the notebooks import, and forks itself for every run.

A fork is sound in a process of one thread that never touched the GPU. Where that cannot be had (another system than Linux,
an import that starts a thread or the GPU) the process ends itself and runs are started plainly; the results are the same.
A run is two forks, as a plain start is two programs: one that drives the notebook, and before it has any thread, its kernel.
"""

import ast
import atexit
import gc
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
from jupyter_client.provisioning import LocalProvisioner

from mmkit import notebooks

IMPORTS, GONE = "imports.json", "gone"
ALWAYS = [
    "import papermill.iorw, papermill.engines, nbclient, ipykernel.kernelapp, ipykernel.ipkernel, mmkit.repro.execute",
    "import nbformat.validator; nbformat.validator.get_validator(4, 5)",  # compiled once
]
LATER = {"mmkit": "import pandas, pyarrow.parquet", "torch": "import torch._dynamo"}  # what is imported at first use: the first optimizer
NO_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # else pyarrow starts one, and a look at the GPU opens it


def imports(paths: Iterable[str | Path]) -> list[str]:
    """The import statements at the top level of some notebooks, each once."""
    found = {}
    for cell in (cell for path in paths for cell in notebooks.code_cells(notebooks.read(path))):
        with suppress(SyntaxError):  # a cell with magics
            found |= {ast.unparse(node): None for node in ast.parse(cell["source"]).body if isinstance(node, ast.Import | ast.ImportFrom)}
    return list(found)


class Warm:
    """The runner's end: the process, and the socket on which it is asked for runs. Made in a batch folder with its `.code`."""

    def __init__(self, batch: Path, code: Path, token: str, environment: dict[str, str]) -> None:
        self.token, self.served = token, False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(code / "warm.txt", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mmkit.repro.warm", str(theirs.fileno()), str(code / IMPORTS), token], cwd=batch, start_new_session=True,
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment | NO_THREAD | {"MMKIT_RUN_DIR": str(batch)},
            )  # fmt: skip

    def start(self, variables: dict[str, str], log: int) -> "Child | None":
        """A run in the folder `MMKIT_RUN_DIR` of `variables`, its output to the file descriptor `log`; None when the process has ended."""
        line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, suppress(OSError):
            socket.send_fds(self._control, [json.dumps(variables).encode()], [theirs.fileno(), log])
            return Child(self, line)

    def close(self) -> None:
        self._control.close()
        self.process.kill()
        self.process.wait()


class Child:
    """A forked run, watched like a `subprocess.Popen`. It says its `pid` when it begins, and ends when the line is closed on either side."""

    pid = None

    def __init__(self, warm: Warm, line: socket.socket) -> None:
        self._warm, self.stdin = warm, line

    def poll(self) -> int | str | None:
        """None while it is alive or waits, then 0, or `GONE` when it never began because the warm process ended."""
        try:
            told = self.stdin.recv(32, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if told:
            self.pid, self._warm.served = int(told), True
        return None if told else 0 if self.pid else GONE

    def wait(self) -> None:
        """The warm process waits for it."""


# --- inside the process -------------------------------------------------------------------------------------------------


def serve(control: socket.socket, statements: list[str], token: str) -> int:
    """Import, then fork a run for every message, as long as the runner of this token goes on. Returns the exit code, also of the forks."""
    for statement in [*ALWAYS, *statements]:
        with suppress(ImportError):  # the notebook will say it, in its cell
            exec(statement, {})
    for statement in (LATER[name] for name in LATER if name in sys.modules):
        exec(statement, {})
    if not _sound():
        return 1
    from mmkit.repro import execute, records

    records.versions(), gc.collect(), gc.freeze()  # what is here stays shared between the runs
    control.settimeout(5)
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        try:
            message, files, _, _ = socket.recv_fds(control, 1 << 16, 2)
        except TimeoutError:
            if execute.owned(Path.cwd(), token):
                continue
            message = b""
        if not message:
            return 0
        if os.fork() == 0:
            control.close()
            return execute.main(*_begin(json.loads(message), *files))
        for file in files:
            os.close(file)


def _sound() -> bool:
    """One thread, and a fork of this process could use the GPU."""
    if psutil.Process().num_threads() > 1:
        return False
    pid = os.fork()
    if pid == 0:
        os._exit("torch" in sys.modules and sys.modules["torch"].cuda._is_in_bad_fork())
    return os.waitpid(pid, 0)[1] == 0


def _begin(variables: dict[str, str], line: int, log: int) -> tuple[Path, type]:
    """In the fork: what a new process would have, then the kernel's fork. Returns the run's folder, and a kernel manager that uses that kernel."""
    os.setsid()
    for old, new in ((line, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    os.close(line), os.close(log)
    os.write(0, str(os.getpid()).encode())
    os.environ.update(variables)
    os.chdir(variables["MMKIT_RUN_DIR"])
    if "numpy" in sys.modules:  # its global generator would be the same in every run; Python reseeds its own
        sys.modules["numpy"].random.seed()
    read, write = os.pipe()
    kernel = os.fork()
    if kernel == 0:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.close(write)
        _kernel(read)
    os.close(read)

    class Manager(notebooks.IpcKernelManager):
        async def _async_pre_start_kernel(self, **options):
            self.kernel_id = str(kernel)
            self.provisioner = _Forked(kernel, write, kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
            return await super()._async_pre_start_kernel(**options)

    return Path.cwd(), Manager


class _Waiting(psutil.Process):
    """A fork, as far as jupyter_client uses a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        with suppress(psutil.TimeoutExpired):
            return self.wait(0)


class _Forked(LocalProvisioner):
    """Gives the waiting fork what a new program would find on its command line."""

    def __init__(self, pid: int, pipe: int, **options) -> None:
        super().__init__(**options)
        self.pid = self.pgid = pid
        self._pipe = pipe

    async def launch_kernel(self, cmd, **options):
        with open(self._pipe, "w") as pipe:
            if cmd[0] != sys.executable or "ipykernel_launcher" not in cmd:  # the kernel of another environment
                return await super().launch_kernel(cmd, **options)
            self.cwd = str(options.get("cwd") or Path.cwd())
            json.dump([cmd[cmd.index("ipykernel_launcher") + 1 :], options["env"], self.cwd], pipe)
        self.process = _Waiting(self.pid)
        return self.connection_info


def _kernel(pipe: int) -> None:
    """Wait for the word to begin, be the kernel, and end the process."""
    with open(pipe) as told:
        text = told.read()
    if text:
        arguments, environment, cwd = json.loads(text)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(cwd)
        sys.argv = ["ipykernel_launcher", *arguments]
        app = sys.modules["ipykernel.kernelapp"].IPKernelApp.instance(parent_handle=os.getppid())
        app.initialize(arguments)
        if "ipywidgets" in sys.modules:  # it does this when it is imported in a kernel
            sys.modules["ipywidgets"].register_comm_target()
        app.start()
        app.shell.user_ns.clear()  # so that what the notebook left open is closed
        gc.collect()
    _end(0)


def _end(code: int) -> None:
    """End without taking down the interpreter: of a fork of so much, that costs as much as some runs."""
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = os.environ.get("MPLBACKEND") or "module://matplotlib_inline.backend_inline"  # as a kernel sets it, before pyplot is imported
    try:
        _end(serve(socket.socket(fileno=int(sys.argv[1])), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), sys.argv[3]))
    except Exception:
        traceback.print_exc()
        _end(1)
