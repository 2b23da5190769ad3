"""Notebooks as things with typed parameters, profiles and an honest "it ran to the end".

Used by the command line, the contract check and the plan runner; imports nothing of mmkit but its errors.
"""

import ast
import io
import json
import math
import os
import queue
import re
import shutil
import sys
import tempfile
import time
import tokenize
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.manager import AsyncKernelManager, KernelManager

from mmkit.errors import MmkitError, unknown

# jsonschema, which papermill and nbformat import, would build a grammar of internationalised addresses: two seconds for a
# format that no notebook holds. It does without when there is no such module.
sys.modules.setdefault("rfc3987_syntax", None)

PROFILES = ("smoke", "lab", "full")
TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def folder() -> Path:
    """The notebooks of the checkout: beside the installed package, else at or above the working folder. Raises MmkitError."""
    here = Path.cwd().resolve()
    for root in (Path(__file__).resolve().parents[1], here, *here.parents):
        if (root / "notebooks").is_dir() and (root / "mmkit" / "__init__.py").is_file():
            return root / "notebooks"
    raise MmkitError(f"no mmkit checkout (a folder with mmkit/ and notebooks/) at or above {here}: change into your clone, or install it with 'pip install -e .'")


def resolve(name: str | Path) -> Path:
    """The notebook meant by a number (`06`, `6`), a name (`06_head_to_head`) or a path. Raises MmkitError."""
    path = Path(name)
    if path.suffix == ".ipynb":
        if path.is_file():
            return path.resolve()
        raise MmkitError(f"no notebook {str(name)!r}: give a number, a name or a path; there are {', '.join(_stems())}")
    text = str(name)
    for stem in _stems():
        if stem == text or stem.split("_")[0] == text.zfill(2):
            return folder() / f"{stem}.ipynb"
    raise unknown("notebook", text, _stems())


def _stems() -> list[str]:
    return sorted(path.stem for path in folder().glob("[0-9][0-9]_*.ipynb"))


def read(path: str | Path) -> dict:
    """The notebook as plain JSON with every source joined to one string. Raises MmkitError when it is not a notebook."""
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            cell.setdefault("id", "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MmkitError(f"{path} is not a readable notebook ({error}): restore it from version control") from error
    return notebook


def tags(cell: Mapping) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def code_cells(notebook: Mapping) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


# --- parameters ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `name: type = default  # help`. `type` is int, float, str, bool or list[...] of
    one of them, with ` | None` where the default may be left open."""

    name: str
    type: str
    default: object
    help: str

    def convert(self, value: object) -> object:
        """`value` as this parameter's type, JSON-typed. Text is read by the declared type, so `007` stays text where text
        is declared and `1e-3` is a number where a number is. Raises MmkitError."""
        base, optional = self.type.removesuffix(" | None"), self.type.endswith(" | None")
        if optional and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
            return None
        if not base.startswith("list["):
            return self._scalar(base, value)
        if isinstance(value, str):
            value = [part.strip(" '\"") for part in value.strip("[]() ").split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise self._wrong(value)
        return [self._scalar(base[5:-1], item) for item in value]

    def _scalar(self, kind: str, value: object) -> object:
        if isinstance(value, str) and kind != "str":
            value = self._from_text(kind, value)
        if kind == "float" and type(value) is int:
            value = float(value)
        if type(value) is not TYPES[kind] or (kind == "float" and not math.isfinite(value)):
            raise self._wrong(value)
        return value

    def _from_text(self, kind: str, text: str) -> object:
        try:
            if kind == "bool":
                return {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}[text.lower()]
            return TYPES[kind](text)
        except (ValueError, KeyError):
            raise self._wrong(text) from None

    def _wrong(self, value: object) -> MmkitError:
        return MmkitError(
            f"parameter {self.name!r} is {self.type} (default {self.default!r}), got {value!r} of type {type(value).__name__}"
        )


def parameters(path: str | Path) -> dict[str, Parameter]:
    """The declared parameters of a notebook, in order. Raises MmkitError naming the line that is no declaration."""
    cells = [cell for cell in code_cells(read(path)) if "parameters" in tags(cell)]
    if len(cells) != 1:
        raise MmkitError(f"{Path(path).name} has {len(cells)} cells tagged 'parameters': exactly one is needed")
    return parse_parameters(cells[0]["source"])


def parse_parameters(source: str) -> dict[str, Parameter]:
    """The declarations in the source of a parameters cell. Raises MmkitError."""
    try:
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        statements = ast.parse(source).body
    except (SyntaxError, tokenize.TokenError) as error:
        raise MmkitError(f"the parameters cell is not Python: {error}") from None
    found = {}
    for node in statements:
        line = ast.get_source_segment(source, node)
        try:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
                raise ValueError
            kind = ast.unparse(node.annotation).replace("None | ", "")
            if not re.fullmatch(r"(list\[(int|float|str|bool)\]|int|float|str|bool)( \| None)?", kind):
                raise ValueError
            help_text = comments.get(node.end_lineno, "") if node.lineno == node.end_lineno else ""
            parameter = Parameter(node.target.id, kind, ast.literal_eval(node.value), help_text)
        except ValueError:
            raise MmkitError(f"the parameters cell holds {line!r}: write `name: type = literal  # help` on one line") from None
        if not help_text:
            raise MmkitError(f"parameter {parameter.name!r} has no help: write `name: type = literal  # help` on one line")
        if parameter.convert(parameter.default) != parameter.default or parameter.name in found:
            raise MmkitError(f"parameter {parameter.name!r}: declared twice, or its default {parameter.default!r} is no {kind}")
        found[parameter.name] = parameter
    return found


def checked(path: str | Path, values: Mapping[str, object], profile: str | None = None) -> dict:
    """`values` over the profile's overrides, names and types checked against the notebook. Raises MmkitError."""
    declared = parameters(path)
    overrides = profile_overrides(Path(path).stem, profile, root=Path(path).parent) if profile else {}
    merged = {**overrides, **values}
    for name in merged:
        if name not in declared:
            where = "notebooks/profiles.yaml: " if name in overrides and name not in values else ""
            raise MmkitError(f"{where}{Path(path).stem}: {unknown('parameter', name, declared)}")
    return {name: declared[name].convert(value) for name, value in merged.items()}


# --- profiles -----------------------------------------------------------------------------------------------------------


def profiles(root: Path | None = None) -> dict[str, dict]:
    """`profiles.yaml`, checked: per notebook `smoke` and `full` overrides, `other` parameter sets for the tests, and
    `limits` in seconds and gigabytes. Raises MmkitError."""
    path = (root or folder()) / "profiles.yaml"
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MmkitError(f"{path.name} cannot be read: {error}") from error
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
            raise MmkitError(f"profiles.yaml: {stem}: a lab run takes at most 60 s and 3 GB, got {entry['limits']['lab']}")
    return table


def profile_overrides(stem: str, profile: str, root: Path | None = None) -> dict:
    """What `profile` changes in the notebook `stem`; `lab` changes nothing. Raises MmkitError."""
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    table = profiles(root) if ((root or folder()) / "profiles.yaml").is_file() else {}
    return dict(table.get(stem, {}).get(profile, {}))


# --- running ------------------------------------------------------------------------------------------------------------


class _PrivateSockets:
    """Unix sockets in a folder of this kernel's own: TCP ports race when kernels start together, and unix sockets with a
    shared name race worse. Where there are no unix sockets, TCP stays."""

    def __init__(self, **options):
        super().__init__(**options)
        if os.name == "posix":
            self._sockets = tempfile.mkdtemp(prefix="mmk")
            self.transport, self.ip = "ipc", os.path.join(self._sockets, "k")

    def cleanup_connection_file(self):
        super().cleanup_connection_file()
        if os.name == "posix":
            shutil.rmtree(self._sockets, ignore_errors=True)


class PatientChannel(AsyncZMQSocketChannel):
    """Looks for a message every second. libzmq tells of an arrival once, and a message sent on the same socket at that moment, as
    nbclient sends the states of output widgets, can swallow the news: the cell was done, and its client waited for ever."""

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
    path: str | Path, out: str | Path, values: Mapping[str, object], *,
    profile: str = "lab", timeout: int | None = None, progress: bool = False, kernel_manager: type[AsyncKernelManager] = IpcKernelManager,
) -> None:  # fmt: skip
    """Run a notebook through papermill in its own folder, with `values` already `checked`; the result, whole or broken
    off, is written to `out`. `timeout` is in seconds per cell. Raises MmkitError when the last cell did not run."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    path, out = Path(path).resolve(), Path(out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    fault = broken = None
    try:
        with environment(MMKIT_PROFILE=profile):
            papermill.execute_notebook(
                str(path), str(out), dict(values), kernel_name="python3", cwd=str(path.parent), progress_bar=progress,
                execution_timeout=timeout, kernel_manager_class=kernel_manager,
            )
    except papermill.PapermillExecutionError as error:
        broken = f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        fault = "the kernel died in"
    except CellTimeoutError:
        fault = f"more than {timeout} s were spent in"
    ran = read(out)
    begun = [cell["id"] for cell in code_cells(ran) if cell["metadata"].get("papermill", {}).get("start_time")]
    reason = f"{fault} cell {begun[-1]}" if fault else unfinished(ran) or broken
    if reason:
        raise MmkitError(f"{path.name} did not finish: {reason}; what ran is in {out}")


def unfinished(notebook: Mapping) -> str | None:
    """Why an executed notebook did not run to its end, or None. Papermill's metadata is not asked: it calls killed cells
    completed. Errors of widget callbacks, which papermill lets pass, are seen."""
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
