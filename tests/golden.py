"""Every arm on every task, tiny: what it was shown, how long it trained, what that cost, and what came out.

`tests/golden.json` holds what is the same on every machine (rows and texts of each step, steps, FLOPs, parameters);
`tests/test_golden.py` compares. Before code is moved, write everything, weights to the last bit, and compare afterwards
on the same machine:

    python tests/golden.py write before.json
    python tests/golden.py compare before.json
    python tests/golden.py pin                    # write tests/golden.json again, when numbers move on purpose
"""

import argparse
import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import torch

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.strategies import ARMS, DERIVED, Budget, Encoders, fit
from mmkit.tasks import Answering, Captioning, Diagnosis, Retrieval
from mmkit.training import View

PINNED = Path(__file__).with_suffix(".json")
SMALL = {"train": 192, "val": 32, "test": 64, "ood": 32, "pool": 96}
EVERY, FEW = (*ARMS, *DERIVED), ("scratch", "component", "frozen")
EXACT = ("drawn", "steps", "flops", "trained", "total", "error")  # the same on every machine
TRAINED = ("hard_negatives",)  # arms whose order follows from trained numbers


def cases():
    """(case, arm) -> a call that makes the run."""
    scenes = load("scenes", **SMALL)
    tasks = {
        "answering": (Answering(scenes), EVERY, {}),
        "retrieval": (Retrieval(scenes), EVERY, {}),
        "captioning": (Captioning(scenes), EVERY, {}),
        "answering, product": (Answering(scenes, fusion="product"), FEW, {}),
        "answering, cross-attention": (Answering(scenes, fusion="cross_attention"), FEW, {}),
        "answering, ViT and GRU": (Answering(scenes), FEW, {"encoders": Encoders(image="vit", text="gru", epochs=1)}),
        "answering, FLOPs": (Answering(scenes), FEW[:1], {"budget": Budget(64, 2, 6e9)}),
        "retrieval, sigmoid": (Retrieval(scenes, loss="sigmoid"), FEW, {}),
        "retrieval, hardest": (Retrieval(scenes, loss="hardest", norm="batch"), FEW, {}),
        "captioning, Transformer": (Captioning(scenes, decoder="transformer", captions=2), FEW, {}),
        "diagnosis": (Diagnosis(load("phantoms")), ("scratch", "component", "text_only"), {}),
    }
    found = {}
    for case, (task, arms, changes) in tasks.items():
        options = {"budget": Budget(64, 2), "encoders": Encoders(epochs=1), "lr": 2e-3, "seed": 3, **changes}
        for arm in arms:
            found[case, arm] = lambda task=task, arm=arm, options=options: fit(arm, task, **options)
    return found


@contextmanager
def listening():
    """What every step draws, in the order of drawing: a hash that grows."""
    drawn, draw = hashlib.sha256(), View.draw

    def heard(view, rows, generator=None):
        entries = draw(view, rows, generator)
        if generator is not None:
            drawn.update(rows.numpy().tobytes() + entries.numpy().tobytes())
        return entries

    View.draw = heard
    try:
        yield drawn
    finally:
        View.draw = draw


def observe(call) -> dict:
    """One run, as JSON values."""
    with listening() as drawn:
        try:
            run = call()
        except MmkitError as error:
            return {"error": str(error)}
    values = sorted(value.contiguous().numpy().tobytes() for value in run.model.state_dict().values())
    phases = run.cost.phases.items()
    return {
        "drawn": drawn.hexdigest()[:16],
        "steps": {name: phase.steps for name, phase in phases},
        "flops": {name: phase.flops for name, phase in phases},
        "trained": {name: phase.parameters_trained for name, phase in phases},
        "total": run.cost.parameters_total,
        "history": [[entry["where"], entry["step"], repr(entry["loss"])] for entry in run.history],
        "scores": {name: repr(score.value) for name, score in run.scores.items()},
        "weights": hashlib.sha256(b"".join(values)).hexdigest()[:16],
    }


def everything() -> dict[str, dict]:
    torch.set_num_threads(1)
    return {f"{case} / {arm}": observe(call) for (case, arm), call in cases().items()}


def exact(name: str, seen: dict) -> dict:
    """What of a run is the same on every machine."""
    kept = {key: value for key, value in seen.items() if key in EXACT}
    if name.endswith(TRAINED):
        kept.pop("drawn", None)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare", "pin"])
    parser.add_argument("file", nargs="?", type=Path)
    asked = parser.parse_args()
    seen = everything()
    if asked.what == "pin":
        pinned = {name: exact(name, values) for name, values in seen.items()}
        lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in pinned.items()]
        PINNED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    elif asked.what == "write":
        asked.file.write_text(json.dumps(seen, indent=1))
    else:
        before = json.loads(asked.file.read_text())
        for name in before.keys() | seen.keys():
            differing = [
                key
                for key in EXACT + ("history", "scores", "weights")
                if before.get(name, {}).get(key) != seen.get(name, {}).get(key)
            ]
            if differing:
                print(f"{name}: {', '.join(differing)} differ")
        equal = sum(before.get(name) == values for name, values in seen.items())
        print(f"{equal} of {len(seen)} runs are the same to the last bit")


if __name__ == "__main__":
    main()
