"""A long run kept at its checks, so that a killed process goes on where it was: with the same numbers as one that was
never killed."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmkit.data.folders import replacing, writing
from mmkit.errors import MmkitError


class Checkpoint:
    """One file that holds model, optimizer, best weights, random streams, history, cost and step of one stage of
    training.

    about: what the run depends on (code, data, settings), as JSON values. Raises MmkitError when the file is of
    another run, with what differs; a file that is damaged is said to be so and training starts anew. Hooks keep
    their own state, which is not kept here."""

    def __init__(self, path: Path, about: dict):
        self.path, self.about = Path(path), json.loads(json.dumps(about, sort_keys=True))

    def resume(self, state, phase, batches) -> int:
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
        self._require_same(notes["about"])
        _restore(state, phase, batches, tensors, notes)
        print(f"going on from step {notes['step']} of {state.steps} ({self.path.name})")
        return state.steps if state.stop else notes["step"]

    def keep(self, state, phase, batches) -> None:
        """Write the file beside and move it into place, so that a kill leaves the one before."""
        tensors, notes = _snapshot(state, phase, batches)
        notes["about"] = self.about
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as part:
                save_file(tensors, part, metadata={"notes": json.dumps(notes)})

    def _require_same(self, about: dict) -> None:
        differing = sorted(key for key in about.keys() | self.about.keys() if about.get(key) != self.about.get(key))
        if differing:
            raise MmkitError(
                f"the checkpoint {self.path} is of another run ({', '.join(differing)} differ): remove it, or name "
                "another folder"
            )


def _snapshot(state, phase, batches) -> tuple[dict[str, torch.Tensor], dict]:
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in (state.best_weights or {}).items()}
    tensors |= {f"batches/{name}": value for name, value in batches.state().items()}
    tensors["random"] = torch.get_rng_state()
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    best = None if state.best_weights is None else state.best
    notes = {"step": state.step + 1, "history": state.history, "phase": asdict(phase), "best": best, "stop": state.stop}
    return tensors, notes


def _restore(state, phase, batches, tensors: dict[str, torch.Tensor], notes: dict) -> None:
    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    state.model.load_state_dict(part("model/"))
    state.best_weights = part("best/") or None
    state.best = -math.inf if notes["best"] is None else notes["best"]
    state.history.extend(notes["history"])
    state.stop = notes["stop"]
    for name, value in notes["phase"].items():
        setattr(phase, name, value)
    optimizer = state.optimizer.state_dict()
    for name, value in part("optimizer/").items():
        index, key = name.split("/")
        optimizer["state"].setdefault(int(index), {})[key] = value
    state.optimizer.load_state_dict(optimizer)
    batches.restore(part("batches/"))
    torch.set_rng_state(tensors["random"])
