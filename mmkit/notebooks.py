"""Notebooks as things with typed parameters, profiles and an honest "it ran to the end".

Used by the command line, the contract check and the plan runner; imports nothing of mmkit but its errors.
"""

import json
import math
import os
import queue
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.manager import AsyncKernelManager, KernelManager

from mmkit import yamls
from mmkit.errors import MmkitError, unknown
from mmkit.parameters import Parameter, parse_parameters

# jsonschema, which papermill and nbformat import, would build a grammar of internationalised addresses: two seconds for
# a format that no notebook holds. It does without when there is no such module.
sys.modules.setdefault("rfc3987_syntax", None)

PROFILES = ("smoke", "lab", "full")


def folder() -> Path:
    """The notebooks of the checkout: beside the installed package, else at or above the working folder.

    Raises MmkitError when there are none.
    """
    here = Path.cwd().resolve()
    for root in (Path(__file__).resolve().parents[1], here, *here.parents):
        if (root / "notebooks").is_dir() and (root / "mmkit" / "__init__.py").is_file():
            return root / "notebooks"
    raise MmkitError(
        f"no mmkit checkout (a folder with mmkit/ and notebooks/) at or above {here}: change into your clone, or "
        f"install it with 'pip install -e .'"
    )


def resolve(name: str | Path) -> Path:
    """The notebook meant by a number (`06`, `6`), a name (`06_head_to_head`) or a path. Raises MmkitError."""
    path = Path(name)
    if path.suffix == ".ipynb":
        if path.is_file():
            return path.resolve()
        raise MmkitError(f"no notebook {str(name)!r}: give a number, a name or a path; there are {', '.join(_stems())}")
    text = str(name)
    for stem in _stems():
        if stem == text or (text and stem.split("_")[0] == text.zfill(2)):
            return folder() / f"{stem}.ipynb"
    raise unknown("notebook", text, _stems())


def _stems() -> list[str]:
    return sorted(path.stem for path in folder().glob("[0-9][0-9]_*.ipynb"))


def read(path: str | Path) -> dict:
    """The notebook as plain JSON with every source joined to one string. Raises MmkitError when it is none."""
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            cell.setdefault("id", "")
            cell["metadata"] = cell.get("metadata") or {}
            _check_cell(cell)
        notebook["metadata"] = notebook.get("metadata") or {}
        if not isinstance(notebook["metadata"], dict):
            raise ValueError("its metadata are no mapping")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise MmkitError(f"{path} is not a readable notebook ({reason}): restore it from version control") from error
    return notebook


def _check_cell(cell: dict) -> None:
    """Raises ValueError for a cell that a later step would stumble over."""
    if not isinstance(cell["metadata"], dict) or not isinstance(cell["metadata"].get("tags", []), list):
        raise ValueError("the metadata of a cell are no mapping, or its tags no list")
    if not isinstance(cell["cell_type"], str):
        raise ValueError("a cell without a type")
    for output in cell.get("outputs") or []:
        if not isinstance(output["output_type"], str):
            raise ValueError("an output without a type")
        if output["output_type"] == "error":
            output.setdefault("ename", "an error"), output.setdefault("evalue", "")


def tags(cell: Mapping) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def code_cells(notebook: Mapping) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


# --- parameters -------------------------------------------------------------------------------------------------------


def parameters(path: str | Path) -> dict[str, Parameter]:
    """The declared parameters of a notebook, in order. Raises MmkitError naming the line that is no declaration."""
    cells = [cell for cell in code_cells(read(path)) if "parameters" in tags(cell)]
    if len(cells) != 1:
        raise MmkitError(f"{Path(path).name} has {len(cells)} cells tagged 'parameters': exactly one is needed")
    return parse_parameters(cells[0]["source"])


def checked(path: str | Path, values: Mapping[str, object], profile: str | None = None) -> dict:
    """`values` over the profile's overrides, names and types checked against the notebook. Raises MmkitError."""
    overrides = profile_overrides(Path(path).stem, profile, root=Path(path).parent) if profile else {}
    return merged(Path(path).stem, parameters(path), overrides, values)


def merged(stem: str, declared: Mapping[str, Parameter], overrides: Mapping, values: Mapping) -> dict:
    """What `checked` gives, of a notebook whose parameters and profile are read already. Raises MmkitError."""
    both = {**overrides, **values}
    for name in both:
        if name not in declared:
            where = "notebooks/profiles.yaml: " if name in overrides and name not in values else ""
            raise MmkitError(f"{where}{stem}: {unknown('parameter', name, declared)}")
    return {name: declared[name].convert(value) for name, value in both.items()}


# --- profiles ---------------------------------------------------------------------------------------------------------


def profiles(root: Path | None = None) -> dict[str, dict]:
    """`profiles.yaml`, checked: per notebook `smoke` and `full` overrides, `other` parameter sets for the tests, and
    `limits` in seconds and gigabytes. Raises MmkitError."""
    table = yamls.read((root or folder()) / "profiles.yaml") or {}
    if not isinstance(table, dict):
        raise MmkitError("profiles.yaml: one entry a notebook is needed, `NAME: {smoke: ..., full: ..., limits: ...}`")
    shape = {"smoke": dict, "full": dict, "other": list, "limits": dict}
    for stem, entry in table.items():
        if not isinstance(entry, dict):
            raise MmkitError(f"profiles.yaml: {stem} needs smoke, full and limits, got {entry!r}")
        for key, value in entry.items():
            if key == "lab":
                raise MmkitError(f"profiles.yaml: {stem}: lab is what the defaults are: change the parameters cell")
            if key not in shape:
                raise MmkitError(f"profiles.yaml: {stem}: {unknown('key', key, shape)}")
            if not isinstance(value, shape[key]):
                raise MmkitError(f"profiles.yaml: {stem}: {key} is a {shape[key].__name__}, got {value!r}")
        for profile in ("smoke", "lab"):
            limit = entry.get("limits", {}).get(profile)
            if not isinstance(limit, dict) or set(limit) != {"seconds", "gigabytes"}:
                raise MmkitError(f"profiles.yaml: {stem}: limits.{profile} needs seconds and gigabytes, got {limit}")
        if entry["limits"]["lab"]["seconds"] > 60 or entry["limits"]["lab"]["gigabytes"] > 3:
            raise MmkitError(
                f"profiles.yaml: {stem}: a lab run takes at most 60 s and 3 GB, got {entry['limits']['lab']}"
            )
    return table


def profile_overrides(stem: str, profile: str, root: Path | None = None) -> dict:
    """What `profile` changes in the notebook `stem`; `lab` changes nothing. Raises MmkitError."""
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    table = profiles(root) if ((root or folder()) / "profiles.yaml").is_file() else {}
    return dict(table.get(stem, {}).get(profile, {}))


# --- running ----------------------------------------------------------------------------------------------------------


LONGEST_SOCKET = 90  # bytes of a socket's path that every system allows, with room for the number behind it


def socket_folder() -> str | None:
    """A new folder for the sockets of one kernel. None without Unix sockets, or without a folder of a short name."""
    for parent in (None, "/tmp") if os.name == "posix" else ():
        with suppress(OSError):
            made = tempfile.mkdtemp(prefix="mmk", dir=parent)
            if len(os.fsencode(made)) <= LONGEST_SOCKET:
                return made
            os.rmdir(made)
    return None


class _PrivateSockets:
    """Unix sockets in a folder of this kernel's own.

    TCP ports race when kernels start together, and Unix sockets with a shared name race worse. Where there can be no
    Unix sockets, TCP stays.
    """

    def __init__(self, **options):
        super().__init__(**options)
        self._sockets = socket_folder()
        if self._sockets:
            self.transport, self.ip = "ipc", os.path.join(self._sockets, "k")

    def cleanup_connection_file(self):
        super().cleanup_connection_file()
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)


class PatientChannel(AsyncZMQSocketChannel):
    """Looks for a message every second.

    libzmq tells of an arrival once. A message sent on the same socket at that moment, as nbclient sends the states of
    output widgets, can swallow the news: the cell was done, and its client waited for ever.
    """

    async def get_msg(self, timeout: float | None = None) -> dict:
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not await self.socket.poll(1000 * max(0.0, min(1.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                raise queue.Empty
        return await self._recv()


class IpcKernelManager(_PrivateSockets, AsyncKernelManager):
    """For papermill and nbclient: `kernel_manager_class=IpcKernelManager`."""

    def client(self, **options) -> AsyncKernelClient:
        client = super().client(**options)
        client.shell_channel_class = PatientChannel
        return client


class BlockingIpcKernelManager(_PrivateSockets, KernelManager):
    """For nbval, which drives its kernels without asyncio."""


def peak_gigabytes() -> float:
    """The largest resident memory of any process this one started and waited for, kernels included; 0 where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


@contextmanager
def environment(**variables):
    """Environment variables for the time of a `with`, kernels started in it included."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def execute(
    path: str | Path,
    out: str | Path,
    values: Mapping[str, object],
    *,
    profile: str = "lab",
    timeout: int | None = None,
    progress: bool = False,
) -> None:
    """Run a notebook through papermill in its own folder, with `values` already `checked`.

    The result, whole or broken off, is written to `out`. timeout: seconds per cell.
    Raises MmkitError when the last cell did not run.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    path, out = Path(path).resolve(), Path(out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    options = {"kernel_name": "python3", "language": "python", "kernel_manager_class": IpcKernelManager}
    fault = broken = None
    try:
        read(path)  # in one line what papermill would say in many
        with environment(MMKIT_PROFILE=profile):
            papermill.execute_notebook(
                str(path), str(out), dict(values), cwd=str(path.parent), progress_bar=progress,
                execution_timeout=timeout, **options,
            )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        broken = f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        fault = "the kernel died in"
    except CellTimeoutError:
        fault = f"more than {timeout} s were spent in"
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # papermill's and nbformat's for odd notebooks
        raise MmkitError(f"{path.name} cannot be run ({type(error).__name__}: {str(error)[:200]})") from error
    ran = read(out)
    begun = [cell["id"] for cell in code_cells(ran) if cell["metadata"].get("papermill", {}).get("start_time")]
    reason = f"{fault} cell {begun[-1] if begun else '?'}" if fault else unfinished(ran) or broken
    if reason:
        raise MmkitError(f"{path.name} did not finish: {reason}; what ran is in {out}")


def unfinished(notebook: Mapping) -> str | None:
    """Why an executed notebook did not run to its end, or None.

    Papermill's metadata is not asked: it calls killed cells completed. Errors of widget callbacks, which papermill lets
    pass, are seen.
    """
    cells = [cell for cell in code_cells(notebook) if "".join(cell["source"]).strip()]
    for cell in cells:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"cell {cell.get('id')} raised {output['ename']}: {output['evalue']}"
    for cell in cells:
        if cell.get("execution_count") is None:
            return f"cell {cell.get('id')} never ran to its end"
    widgets = notebook.get("metadata", {}).get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    for model in widgets.get("state", {}).values():
        for output in model.get("state", {}).get("outputs", []):
            if output.get("output_type") == "error":
                return f"a widget's callback raised {output['ename']}: {output['evalue']}"
    return None
