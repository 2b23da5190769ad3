"""A notebook that does next to nothing and records two arms, or fails as it is told; for the tests of the engine."""

import time
from pathlib import Path

import nbformat
import numpy as np

from mmkit.repro import plan, records
from mmkit.repro.paths import read_json

SETUP = """
import dataclasses, os, sys, time
import numpy as np
import mmkit
from types import SimpleNamespace

@dataclasses.dataclass
class Budget:
    pairs: int = 64

class Cost:
    def as_dict(self):
        return {"flops": 1e9, "seconds": 1.0, "peak_bytes": 1, "parameters_trained": 1, "parameters_total": 1}

def score(values):
    about = {"clusters": np.arange(len(values)), "aggregate": "mean", "higher_is_better": True}
    return SimpleNamespace(items=values, value=float(values.mean()), **about)
"""
PARAMETERS = """
seed: int = 0  # the seed
mode: str = "fine"  # what happens
marker: str = ""  # a file
work: float = 0.0  # seconds of it
"""
ACT = """
time.sleep(work)
if mode == "error":
    1 / 0
if mode == "exit":
    sys.exit(0)
if mode == "killed" and not os.path.exists(marker):
    open(marker, "w").close()
    os.kill(os.getpid(), 9)
if mode == "sleep":
    time.sleep(60)
if mode == "hungry":
    held = np.ones(100_000_000)
    time.sleep(60)
"""
RECORD = """
rng = np.random.default_rng(seed)
for arm in ("a", "b"):
    told = {"arm": arm, "task": "stub", "data": "none", "data_hash": "0", "seed": seed, "settings": {}}
    run = SimpleNamespace(**told, budget=Budget(), cost=Cost(), scores={"accuracy": score(rng.random(20))})
    mmkit.record(run, mode=mode)
"""


def write(path: Path, **cells: str) -> Path:
    """The notebook; `cells` replace or follow its own (setup, parameters, act, record)."""
    sources = {"setup": SETUP, "parameters": PARAMETERS, "act": ACT, "record": RECORD} | cells
    made = [nbformat.v4.new_code_cell(source, id=f"{name}-cell") for name, source in sources.items()]
    made[1].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel), path)
    return path


def make_plan(notebook: Path, **entry) -> plan.Plan:
    return plan.Plan.model_validate(
        {"name": "stub", "title": "Stub", "notebooks": [{"notebook": str(notebook)} | entry]}
    )


def quiet(_line: str) -> None:
    return None


def wait_for(condition) -> None:
    """How long that may take is pytest's time limit: a second here is a minute where many others compute."""
    while not condition():
        time.sleep(0.05)


def rows(batch) -> list[tuple]:
    return sorted((r.row["arm"], r.row["seed"], r.row["scores"]["accuracy"]) for r in batch.results)


def undisturbed(seeds) -> list[tuple]:
    """What the stub records, computed here."""
    expected = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        expected += [(arm, seed, float(rng.random(20).mean())) for arm in ("a", "b")]
    return sorted(expected)


def finished(folder: Path) -> dict[str, int]:
    """Every finished run and when its record was written; each is whole."""
    found = {}
    for path in folder.glob("[0-9a-f]*/record.json"):
        assert len(records.read(path.parent)) == read_json(path)["results"] == 2
        found[path.parent.name] = path.stat().st_mtime_ns
    return found
