"""The processes of one run: found wherever they moved, counted together, and ended together.

A process can leave its group, its session and its environment behind, but not its control group (Linux, cgroups(7),
version 2). So each run gets one, where the system lets us make it: as root, in a container that may, or below a folder
that systemd delegated. Besides, the run's own process adopts what its descendants leave behind (Linux: a subreaper, see
prctl(2)), so that all of them stay below it. Elsewhere, and where that process was killed, they are known by
`MMKIT_RUN_DIR` in their environment and by having been seen.
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
YOUNG = 60  # seconds in which a control group may be one that another runner is just filling


def adopt_orphans() -> None:
    """From now on this process is the parent of what its descendants leave behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def enclose(work: Path, pid: int) -> bool:
    """Put a process, and so all that it will start, into a control group for the run in the folder `work`.

    Returns whether there is one now: not where the system has no such groups, or lets nobody make them.
    """
    above = _own_group()
    if above is None:
        return False
    for left in above.glob("mmkit-*"):  # of runs that were killed together with their runner
        with suppress(OSError):  # one in use cannot be removed
            if time.time() - left.stat().st_ctime > YOUNG:
                left.rmdir()
    group = above / f"mmkit-{work.name}"
    try:
        group.mkdir()
        (group / "cgroup.kill").stat()  # Linux 5.14
        (group / "cgroup.procs").write_text(str(pid))
        return True
    except OSError:
        with suppress(OSError):
            group.rmdir()
        return False


def below(pid: int, work: Path | None = None) -> list[psutil.Process]:
    """All descendants of a process, and all others in the control group of the run in the folder `work`."""
    found = _members(work) if work else set()
    with suppress(psutil.Error):
        found.update(psutil.Process(pid).children(recursive=True))
    return [process for process in found if process.pid != pid]


def memory(pid: int, work: Path | None = None) -> int:
    """Bytes a process, its descendants and its control group hold, what they share counted once."""
    total = 0
    for process in {pid, *(child.pid for child in below(pid, work))}:
        with suppress(psutil.Error):  # gone meanwhile
            info = psutil.Process(process).memory_full_info()
            total += getattr(info, "pss", info.uss)
    return total


def end(work: Path, pid: int | None = None, seen: Iterable[psutil.Process] = ()) -> None:
    """End every process of the run in the folder `work`: what is below `pid`, in the run's control group, what was
    `seen`, what names the folder.

    pid: the run's own process. It is stopped first and ended last, so that nothing can get away from below it; when it
    is the calling process, it is left alone.
    """
    root = None
    if pid and pid != os.getpid():
        with suppress(psutil.Error):
            root = psutil.Process(pid)
            root.suspend()
    for _ in range(100):
        found = {*(below(pid) if pid else ()), *_members(work), *seen, *_naming(work)}
        found = {process for process in found if process.pid not in (os.getpid(), pid) and _alive(process)}
        if not found:
            break
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)  # not psutil's wait: it would take the exit code from the Popen that needs it
    if root:
        with suppress(psutil.Error):
            root.kill()
    if pid != os.getpid():
        _remove(work)


def _own_group() -> Path | None:
    """The folder of this process's own control group, where we may make others below it."""
    with suppress(OSError, StopIteration, IndexError):
        mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
        mount = next(parts[1] for parts in mounts if parts[2] == "cgroup2")
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = Path(mount) / next(line for line in lines if line.startswith("0::")).removeprefix("0::").lstrip("/")
        return group if os.access(group, os.W_OK) else None
    return None


def _group(work: Path) -> Path | None:
    """The control group of a run, seen from outside or from within."""
    own, name = _own_group(), f"mmkit-{work.name}"
    if own is None:
        return None
    group = own if own.name == name else own / name
    return group if group.is_dir() else None


def _members(work: Path) -> set[psutil.Process]:
    """The processes in a run's control group and in those that were made below it."""
    found, group = set(), _group(work)
    for path in group.rglob("cgroup.procs") if group else ():
        with suppress(OSError):
            for pid in path.read_text().split():
                with suppress(psutil.Error):
                    found.add(psutil.Process(int(pid)))
    return found


def _remove(work: Path) -> None:
    """Kill whatever may be left in a run's control group, and take the group away."""
    group = _group(work)
    if group is None:
        return
    with suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    for _ in range(100):
        with suppress(OSError):  # ended processes leave a moment later
            for inner in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                inner.rmdir()
            group.rmdir()
            return
        time.sleep(0.02)


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
