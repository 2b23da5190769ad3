"""The processes of one run: found wherever they moved, counted together, and ended together.

A process can leave its group, its session and its environment behind, but not its parent. So the run's own process
adopts what its descendants leave behind (Linux: a subreaper, see prctl(2)), and all of them stay below it. Elsewhere,
and where that process was killed, they are known by `MMKIT_RUN_DIR` in their environment and by having been seen.
"""

import ctypes
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


def adopt_orphans() -> None:
    """From now on this process is the parent of what its descendants leave behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def below(pid: int) -> list[psutil.Process]:
    """All descendants of a process."""
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def memory(pid: int) -> int:
    """Bytes a process and its descendants hold, what they share counted once."""
    total = 0
    for process in [pid, *(child.pid for child in below(pid))]:
        with suppress(psutil.Error):  # gone meanwhile
            info = psutil.Process(process).memory_full_info()
            total += getattr(info, "pss", info.uss)
    return total


def end(work: Path, pid: int | None = None, seen: Iterable[psutil.Process] = ()) -> None:
    """End every process of the run in the folder `work`: what is below `pid`, what was `seen`, what names the folder.

    pid: the run's own process. It is stopped first and ended last, so that nothing can get away from below it; when it
    is the calling process, it is left alone.
    """
    root = None
    if pid and pid != os.getpid():
        with suppress(psutil.Error):
            root = psutil.Process(pid)
            root.suspend()
    for _ in range(100):
        found = {process for process in [*(below(pid) if pid else ()), *seen, *_naming(work)] if _alive(process)}
        found -= {process for process in found if process.pid in (os.getpid(), pid)}
        if not found:
            break
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)  # not psutil's wait: it would take the exit code from the Popen that needs it
    if root:
        with suppress(psutil.Error):
            root.kill()


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _naming(work: Path) -> list[psutil.Process]:
    """Processes whose environment names the run's folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # another user's, or gone meanwhile
            if process.environ().get("MMKIT_RUN_DIR") == str(work):
                found.append(process)
    return found
