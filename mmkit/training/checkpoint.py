"""A long run kept at its checks, so that a killed process goes on where it was: with the same numbers as one that was
never killed."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmkit.data.folders import replacing, writing
from mmkit.errors import MmkitError


class Checkpoint:
    """One file that holds model, optimizer, best weights, random streams, history, cost and step of one stage of
    training, and what its hooks hold (see `mmkit.training.hooks`).

    about: what the run depends on (code, data, settings), as JSON values. Raises MmkitError when the file is of
    another run, with what differs; a file that is damaged is said to be so and training starts anew."""

    def __init__(self, path: Path, about: dict):
        self.path, self.about = Path(path), json.loads(json.dumps(about, sort_keys=True))

    def resume(self, state, phase, batches, hooks: Sequence[object] = ()) -> int:
        """Put everything back as it was and return the step to go on with; 0 without a file."""
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, framework="pt") as file:
                notes = json.loads(file.metadata()["notes"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            print(f"checkpoint {self.path.name} is damaged ({error}); training starts anew")
            return 0
        self._require_same(notes["about"] | {"hooks": list(notes["hooks"])}, {"hooks": list(_kept(hooks))})
        _restore(state, phase, batches, tensors, notes)
        for name, hook in _kept(hooks).items():
            hook.restore(notes["hooks"][name] | _part(tensors, f"hooks/{name}/"))
        print(f"going on from step {notes['step']} of {state.steps} ({self.path.name})")
        return state.steps if state.stop else notes["step"]

    def keep(self, state, phase, batches, hooks: Sequence[object] = ()) -> None:
        """Write the file beside and move it into place, so that a kill leaves the one before."""
        tensors, notes = _snapshot(state, phase, batches)
        notes |= {"about": self.about, "hooks": {}}
        for name, hook in _kept(hooks).items():
            held = hook.state()
            tensors |= {f"hooks/{name}/{key}": value for key, value in held.items() if isinstance(value, Tensor)}
            notes["hooks"][name] = {key: value for key, value in held.items() if not isinstance(value, Tensor)}
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        with writing(self.path.parent, "name another folder for the checkpoints"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as part:
                save_file(tensors, part, metadata={"notes": _json(notes)})

    def _require_same(self, about: dict, present: dict) -> None:
        wanted = self.about | present
        differing = sorted(key for key in about.keys() | wanted.keys() if about.get(key) != wanted.get(key))
        if differing:
            raise MmkitError(
                f"the checkpoint {self.path} is of another run ({', '.join(differing)} differ): remove it, or name "
                "another folder"
            )


def _kept(hooks: Sequence[object]) -> dict[str, object]:
    """The hooks whose state can be kept, by place and class."""
    return {
        f"{n} {type(hook).__name__}": hook for n, hook in enumerate(hooks) if callable(getattr(hook, "restore", None))
    }


def _accelerator():
    """The module that holds the random state of the accelerator (`torch.cuda`, `torch.mps`), None without one."""
    return torch.get_device_module() if torch.accelerator.is_available() else None


def _json(notes: dict) -> str:
    try:
        return json.dumps(notes)
    except (TypeError, ValueError) as error:
        raise MmkitError(f"a hook's state() is a dict of tensors and JSON values, got another: {error}") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _snapshot(state, phase, batches) -> tuple[dict[str, Tensor], dict]:
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in (state.best_weights or {}).items()}
    tensors |= {f"batches/{name}": value for name, value in batches.state().items()}
    tensors["random"] = torch.get_rng_state()
    if device := _accelerator():
        tensors["random of the accelerator"] = device.get_rng_state()
    optimizer = state.optimizer.state_dict()
    for index, values in optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
    return tensors, {
        "step": state.step + 1,
        "history": state.history,
        "phase": asdict(phase),
        "best": None if state.best_weights is None else state.best,
        "stop": state.stop,
        "groups": optimizer["param_groups"],
        "trained": [name for name, parameter in state.model.named_parameters() if parameter.requires_grad],
    }


def _restore(state, phase, batches, tensors: dict[str, Tensor], notes: dict) -> None:
    state.model.load_state_dict(_part(tensors, "model/"))
    for name, parameter in state.model.named_parameters():
        parameter.requires_grad_(name in notes["trained"])  # a hook may have frozen or thawed some
    state.trained_changed()
    state.best_weights = _part(tensors, "best/") or None
    state.best = -math.inf if notes["best"] is None else notes["best"]
    state.history.extend(notes["history"])
    state.stop = notes["stop"]
    for name, value in notes["phase"].items():
        setattr(phase, name, value)
    moments: dict[int, dict] = {}
    for name, value in _part(tensors, "optimizer/").items():
        index, key = name.split("/")
        moments.setdefault(int(index), {})[key] = value
    state.optimizer.load_state_dict({"state": moments, "param_groups": notes["groups"]})
    batches.restore(_part(tensors, "batches/"))
    torch.set_rng_state(tensors["random"])
    if (device := _accelerator()) and "random of the accelerator" in tensors:
        device.set_rng_state(tensors["random of the accelerator"])
