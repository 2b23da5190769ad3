"""Which device a run takes, and why."""

import torch

from mmkit.errors import MmkitError, unknown


def device(choice: str = "auto") -> tuple[torch.device, str]:
    """The device and the reason in words. choice: auto, cpu, cuda or mps; an asked-for device that is not there is an
    error."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if choice != "auto":
        if choice not in there:
            raise unknown("device", choice, ["auto", *there])
        if not there[choice]:
            raise MmkitError(f"device {choice!r} was asked for and is not available here; pass device='auto' or 'cpu'")
        return torch.device(choice), "asked for"
    if there["cuda"]:
        return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()} is available"
    why = "; runs on mps only when asked, since its results are not tested" if there["mps"] else ""
    return torch.device("cpu"), f"auto: no CUDA device{why}"
