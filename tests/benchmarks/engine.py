"""What the engine costs: start-up, overhead and memory a run, two workers against one, listing and reading many runs.

    python tests/benchmarks/engine.py            # all of it: 1,000 runs, 10,000 records; an hour on two cores
    python tests/benchmarks/engine.py --runs 60 --records 2000

Processor time is what the runs took from the machine; on a busy machine wall times say little.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from repro_stub import SETUP, make_plan, write  # noqa: E402

from mmkit.repro import batches, runner  # noqa: E402

HEAVY = "import torch\nimport pandas as pd\nfrom mmkit.strategies import fit\nfrom mmkit.teach import plots\n"


def processor_seconds() -> float:
    """Of this process and of those it waited for."""
    spent = psutil.Process().cpu_times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def start_up(folder: Path, runs: int) -> None:
    """Processor seconds a run of a notebook that imports what the kit's notebooks import and then does nothing."""
    notebook = write(folder / "20_stub.ipynb", setup=HEAVY + SETUP)
    os.environ["MMKIT_RUNS"] = str(folder / "start")
    marks = []
    plan = make_plan(notebook, seeds=runs)
    runner.run_plan(plan, workers=1, say=lambda _: marks.append((time.monotonic(), processor_seconds())))
    each = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:], strict=False)]
    wall, spent = median(e[0] for e in each), median(e[1] for e in each)
    print(f"start-up: {spent:.2f} s of processor and {wall:.2f} s of wall a run after the first")


def many(folder: Path, runs: int, workers: int) -> float:
    """A plan of short runs (0.2 s of work): time and memory along the way."""
    notebook = write(folder / "20_stub.ipynb")
    os.environ["MMKIT_RUNS"] = str(folder / f"many{workers}")
    marks = []
    begun = time.monotonic()

    def say(line):
        if "done (" in line:
            marks.append((time.monotonic(), processor_seconds(), psutil.Process().memory_info().rss))

    batch = runner.run_plan(make_plan(notebook, parameters={"work": 0.2}, seeds=runs), workers=workers, say=say)
    assert batch.complete and len(marks) == runs
    tenth = max(1, runs // 10)
    for name, first in (("first", tenth // 10), ("last", runs - tenth - 1)):
        (t0, c0, _), (t1, c1, rss) = marks[first], marks[first + tenth]
        where = f"{runs} runs, {workers} workers, {name} {tenth} after run {first + 1}"
        each = f"{(t1 - t0) / tenth:.2f} s of wall, {(c1 - c0) / tenth:.2f} s of processor a run"
        print(f"{where}: {each}; runner {rss / 1e6:.0f} MB")
    print(f"{runs} runs, {workers} workers: {time.monotonic() - begun:.0f} s in all")
    return marks[-1][0] - marks[0][0]


def copies(folder: Path, records: int) -> None:
    """Listing and reading: one run's folder, copied under other keys."""
    stub = folder / "many2" / "stub"
    manifest = json.loads((stub / "plan.json").read_text())
    model = stub / manifest["runs"][0]["key"]
    for count in sorted({min(records, 1000), records}):
        os.environ["MMKIT_RUNS"] = str(folder / f"copies{count}")
        target = folder / f"copies{count}" / "stub"
        keys = [f"{number:016x}" for number in range(count)]
        for key in keys:
            shutil.copytree(model, target / key)
            header = json.loads((target / key / "record.json").read_text())
            (target / key / "record.json").write_text(json.dumps(header | {"key": key}, indent=1))
        asked = manifest | {"runs": [manifest["runs"][0] | {"key": key} for key in keys]}
        (target / "plan.json").write_text(json.dumps(asked | {"digest": batches.digest(asked)}))
        measured = [("runs list", [sys.executable, "-m", "mmkit.cli", "runs", "list", "stub"])]
        if count <= 1000:
            measured.append(("report", [sys.executable, "-m", "mmkit.cli", "report", "stub"]))
        for name, command in measured:
            before, begun = os.times(), time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            print(f"{name} of {count} records: {used:.2f} s of processor, {time.monotonic() - begun:.2f} s of wall")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--runs", type=int, default=1000)
    asked.add_argument("--records", type=int, default=10_000)
    asked = asked.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_up(folder, 5)
        wide = many(folder, asked.runs, 2)
        narrow = many(folder, min(asked.runs, 60), 1)
        print(f"two workers against one: x{(narrow / min(asked.runs, 60)) / (wide / asked.runs):.2f}")
        copies(folder, asked.records)


if __name__ == "__main__":
    main()
