"""Bring a committed notebook up to date with its own code: outputs, metadata, and the time and memory it states."""

import math
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from mmkit import notebooks
from mmkit.errors import MmkitError
from mmkit.teach import views
from mmkit.teach.prose import MEASURED

WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_SECONDS = 600


def refresh(path: str | Path) -> str:
    """Run the notebook at `path` with its defaults (the lab profile) and write the outputs in place.

    Cell ids stay, run metadata and widget state go, and the views follow. The file is untouched when a cell fails.
    Returns what was measured, such as "20 s and 1.5 GB on 2 cores". Raises MmkitError.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    path = Path(path).resolve()
    notebooks.read(path)  # says what is wrong with a damaged one
    notebook = nbformat.read(path, as_version=4)
    options = {"kernel_name": "python3", "record_timing": False, "timeout": CELL_SECONDS}
    options["resources"] = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, kernel_manager_class=notebooks.IpcKernelManager, **options)
    start, before = time.perf_counter(), os.times()
    try:
        # Without runs of its own a page shows the published records, not what this machine happens to hold.
        with TemporaryDirectory() as nothing, notebooks.environment(MMKIT_PROFILE="lab", MMKIT_RUNS=nothing):
            client.execute()
        reason = notebooks.unfinished(notebook)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        reason = notebooks.unfinished(notebook) or str(error).strip().splitlines()[-1]
    if reason:
        raise MmkitError(f"{path.name} was left as it is: {reason}")
    # The kernel's processor time: a busy machine does not lengthen it.
    worked = sum(os.times()[2:4]) - sum(before[2:4])
    measured = _measured(min(time.perf_counter() - start, worked or math.inf))
    clean(notebook)
    first = notebook.cells[0]
    first.source = MEASURED.sub(lambda match: match[1] + measured, first.source)
    nbformat.validate(notebook)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    nbformat.write(notebook, beside)
    os.replace(beside, path)
    views.write(path)
    return measured


def clean(notebook) -> None:
    """Strip what a run or an editor leaves behind. Widget views go, because without a kernel they show nothing."""
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]


def _measured(seconds: float) -> str:
    """Time rounded up to 5 s and the kernel's peak memory to 0.5 GB, so that a run again rarely changes them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{5 * math.ceil(seconds / 5)} s and {math.ceil(2 * notebooks.peak_gigabytes()) / 2:g} GB on {cores} cores"
