"""What results depend on besides the code: versions of packages and the hardware."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import mmkit

PACKAGES = (
    "torch", "torchvision", "transformers", "timm", "numpy", "pandas", "pyarrow", "scipy", "scikit-learn",
    "papermill", "ipykernel",
)  # fmt: skip


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the packages results depend on, read without importing them."""
    found = {"python": platform.python_version(), "mmkit": mmkit.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def hardware() -> dict[str, str | int]:
    """Processor, cores, memory in bytes and operating system; the GPU too when torch uses one."""
    import psutil

    found = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }
    torch = sys.modules.get("torch")  # never imported for this: it costs seconds
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit(checkout: Path) -> str:
    """The git commit of a checkout, with `+` when files differ from it; `unknown` without git."""
    options = {"cwd": checkout, "capture_output": True, "text": True, "timeout": 10}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], **options)
        changed = subprocess.run(["git", "status", "--porcelain"], **options).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return head.stdout.strip() + ("+" if changed else "") if head.returncode == 0 else "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
