"""`mmkit doctor`: is this machine able to run the kit, and what is on it. One table to paste into a bug report.

No row shows an absolute path or a user's name.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import mmkit
from mmkit.errors import MmkitError

GIGABYTE = 1e9
SHOWN = ("torch", "torchvision", "transformers", "timm", "papermill", "jupyterlab")


@dataclass(frozen=True)
class Row:
    """One finding. state: `ok`, `note` (worth knowing, nothing fails) or `broken` (something needed does not work)."""

    name: str
    state: str
    finding: str
    remedy: str = ""


def diagnose() -> list[Row]:
    """Every finding, in the order of the table. A check that itself fails is a broken row, never a traceback."""
    rows = []
    checks: tuple[Callable[[], Iterator[Row]], ...] = (
        _machine,
        _packages,
        _torch,
        _weights,
        _folders,
        _runs,
        _kernel,
        _source,
    )
    for check in checks:
        try:
            rows += check()
        except MmkitError as error:
            rows.append(Row(check.__name__.strip("_"), "broken", str(error)))
        except Exception as error:  # the doctor reports on broken machines: any failure of a check is a finding
            rows.append(
                Row(
                    check.__name__.strip("_"),
                    "broken",
                    f"the check failed: {type(error).__name__}: {error}",
                    "paste this table into a bug report",
                )
            )
    return [replace(row, finding=_private(row.finding)) for row in rows]


def _private(text: str) -> str:
    """Without the user's folders."""
    for path, name in (
        (sys.prefix, "<environment>"),
        (str(Path(__file__).resolve().parents[1]), "<clone>"),
        (os.path.expanduser("~"), "~"),
    ):
        text = text.replace(path, name) if path.strip("/") else text  # a service's home may be /
    return text


def table(rows: list[Row]) -> str:
    """The findings as text of fixed width."""
    width = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        state = row.state.upper() if row.state == "broken" else row.state
        lines.append(f"{state:<7} {row.name:<{width}}  {row.finding}")
        if row.remedy:
            lines.append(f"{'':<7} {'':<{width}}  -> {row.remedy}")
    broken = sum(row.state == "broken" for row in rows)
    lines.append(f"\n{broken} of {len(rows)} checks are broken" if broken else f"\nall {len(rows)} checks pass")
    return "\n".join(lines)


def as_json(rows: list[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=1)


def _machine() -> Iterator[Row]:
    version, needed = platform.python_version(), _installed().metadata.get("Requires-Python", ">=3.11")
    old = sys.version_info[:2] < tuple(int(part) for part in re.findall(r"\d+", needed)[:2])
    yield Row(
        "Python",
        "broken" if old else "ok",
        f"{version} (needs {needed})",
        "make the environment with a newer Python" if old else "",
    )
    yield Row(
        "platform", "ok", f"{platform.system()} {'.'.join(platform.release().split('.')[:2])} {platform.machine()}"
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Row("cores", "ok", str(cores))
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE
    yield Row(
        "memory",
        "ok" if memory >= 4 else "note",
        f"{memory:.1f} GB",
        "" if memory >= 4 else "a lab notebook may need 3 GB: close other programs",
    )


def _packages() -> Iterator[Row]:
    """Each requirement of the installed mmkit against what is installed, by name and version."""
    from packaging.requirements import Requirement

    wrong, fine = [], {}
    for text in _installed().requires or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is missing")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fine[requirement.name] = version
        else:
            wrong.append(f"{requirement} is needed, {version} is installed")
    for name in SHOWN:
        if name in fine:
            yield Row(name, "ok", fine[name])
    if wrong:
        yield Row(
            "packages",
            "broken",
            "; ".join(wrong),
            "python -m pip install -e . (in the clone), or: conda env update -f environment.yml",
        )
    else:
        yield Row("packages", "ok", f"{len(fine)} required, all installed")


def _torch() -> Iterator[Row]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Row(
            "device",
            "broken",
            f"torch does not import: {error}",
            "python -m pip install --force-reinstall torch torchvision",
        )
        return
    from mmkit.training import device

    chosen, reason = device()
    yield Row("device", "ok", f"{chosen} ({reason})")
    limit = os.environ.get("OMP_NUM_THREADS")
    yield Row(
        "threads", "ok", f"{torch.get_num_threads()} ({f'OMP_NUM_THREADS={limit}' if limit else 'torch default'})"
    )


def _weights() -> Iterator[Row]:
    from mmkit.models.pretrained import verify

    for name, fine, finding in verify():
        yield Row(f"weights {name}", "ok" if fine else "broken", f"{finding}, hash right" if fine else finding)


def _folders() -> Iterator[Row]:
    from mmkit.data.folders import data_root, named_folder

    root, how = data_root(), "$MMKIT_DATA" if os.environ.get("MMKIT_DATA") else "the user's cache folder"
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    probe = root / f".doctor-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        yield Row("data folder", "ok", f"{how}, writable")
    except OSError as error:
        yield Row(
            "data folder",
            "broken",
            f"{how} cannot be written ({error.strerror})",
            "point MMKIT_DATA at a folder you can write",
        )
    free = shutil.disk_usage(existing).free / GIGABYTE
    yield Row(
        "disk",
        "ok" if free >= 2 else "note",
        f"{free:.1f} GB free for data",
        "" if free >= 2 else "a real data set needs about 2 GB: free some, or move MMKIT_DATA",
    )
    mirror = named_folder("MMKIT_MIRROR")
    if not mirror:
        yield Row("mirror", "ok", "not set: real data sets are downloaded")
    elif not mirror.is_dir():
        yield Row(
            "mirror", "broken", "$MMKIT_MIRROR is no folder", "point it at the folder of raw data sets, or unset it"
        )
    else:
        sums = "with" if (mirror / "SHA256SUMS").is_file() else "without"
        yield Row("mirror", "ok", f"$MMKIT_MIRROR, {len(list(mirror.iterdir()))} entries, {sums} SHA256SUMS")


def _runs() -> Iterator[Row]:
    """What making runs needs: a folder to keep them in, and a place for the sockets of kernels."""
    from mmkit.notebooks import LONGEST_SOCKET, socket_folder
    from mmkit.repro import paths

    folder = paths.runs()
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    if folder.exists() and not folder.is_dir() or not os.access(existing, os.W_OK):
        yield Row("runs folder", "broken", "cannot be written", "point MMKIT_RUNS at a folder you can write")
    else:
        yield Row("runs folder", "ok", f"{'$MMKIT_RUNS' if os.environ.get('MMKIT_RUNS') else 'runs/'}, writable")
    made = socket_folder()
    short = made and len(os.fsencode(tempfile.gettempdir())) + len("/mmk12345678") <= LONGEST_SOCKET
    if short:
        yield Row("kernel sockets", "ok", "in the temporary folder")
    elif os.name == "posix":
        where = "in /tmp" if made else "over TCP, where ports race"
        yield Row("kernel sockets", "note", where, "TMPDIR has a long name or cannot be written: point it elsewhere")
    if made:
        os.rmdir(made)


def _kernel() -> Iterator[Row]:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    remedy = "python -m ipykernel install --sys-prefix"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield Row("kernel python3", "broken", "there is none", remedy)
        return
    same = not os.path.isabs(command) or os.path.realpath(command) == os.path.realpath(sys.executable)
    if same:
        yield Row("kernel python3", "ok", "runs this Python")
    else:
        yield Row("kernel python3", "broken", f"runs another Python ({Path(command).name})", remedy)


def _source() -> Iterator[Row]:
    root = Path(__file__).resolve().parents[1]
    try:
        ask = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, timeout=5, check=True
        )
        commit = f"commit {ask.stdout.strip()}"
    except (OSError, subprocess.SubprocessError):
        commit = "not a git clone"
    notebooks = len(list((root / "notebooks").glob("[0-9][0-9]_*.ipynb")))
    yield Row("mmkit", "ok" if notebooks else "note", f"{_installed().version}, {commit}, {notebooks} notebooks")


def _installed() -> metadata.Distribution:
    """What pip knows of this package. Raises MmkitError when it was never installed."""
    try:
        return metadata.distribution(mmkit.DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise MmkitError("mmkit itself is not installed: python -m pip install -e . (in the clone)") from error
