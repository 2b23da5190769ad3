"""`kill -9` of the runner, a run or a kernel, of a Dask scheduler or its workers, at random times: in the end the table
is that of an undisturbed run.

A handful of kills by default; the long form is `MMKIT_KILLS=32 pytest -s tests/test_repro_crash.py`, which says what it
killed.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import cycle

import psutil
import pytest
import yaml
from repro_dask import Cluster
from repro_stub import finished, make_plan, quiet, rows, undisturbed, write

from mmkit.repro import runner

KILLS = int(os.environ.get("MMKIT_KILLS", "0"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800 + 120 * KILLS)]


def below(pid, level):
    """A living process so many levels below one, or None."""
    try:
        found = [psutil.Process(pid)]
        for _ in range(level):
            found = [child for parent in found for child in parent.children()]
    except psutil.NoSuchProcess:
        return None
    return random.choice(found) if found else None


def storm(folder, victims, kills, begin, tend):
    """Run a plan to its end, killing all the while, and check after each kill what was finished. The plan grows until
    there was enough killing.

    victims: name -> a process of that kind below the present runner, or None. begin: a runner of a plan file. tend:
    what must be alive is."""
    random.seed(kills)
    stub, file, batches = write(folder / "20_stub.ipynb"), folder / "stub.yaml", folder / "runs" / "stub"
    runs, killed, kept, process, names = 4, Counter(), {}, None, cycle(victims)
    name = next(names)
    while killed.total() < kills or process.poll() is None:
        tend()
        if (
            process is None or process.poll() is not None
        ):  # at the start, after a kill, or when all is done, which asks for more
            kept = check(batches, kept)
            runs += 4 if len(kept) == runs else 0
            whole = make_plan(stub, parameters={"work": 0.3}, seeds=runs)
            file.write_text(yaml.safe_dump(whole.model_dump()), encoding="utf-8")
            process = begin(file)
            when = time.monotonic() + random.uniform(0, 6)
        time.sleep(random.uniform(0, 0.1))
        victim = victims[name](process) if time.monotonic() > when and killed.total() < kills else None
        if victim:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
                killed[name] += 1
                name = next(names)
            when = time.monotonic() + random.uniform(0, 3)
    kept = check(batches, kept)
    batch = runner.run_plan(whole, workers=2, say=quiet)
    check(batches, kept)
    assert batch.complete and rows(batch) == undisturbed(range(runs)), dict(killed)
    assert len(finished(batches)) == runs and not list(batches.glob(".tmp-*")) and not list(batches.glob("failed/*"))
    print(f"killed {dict(killed)}; {runs} runs, each recorded once")


def check(folder, before):
    """What was finished stays as it was."""
    now = finished(folder)
    assert before.items() <= now.items()
    return now


def run(file, **options):
    """A runner of a plan file, as a process."""
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    with open(file.with_suffix(".log"), "ab") as log:
        return psutil.Popen(
            [sys.executable, "-c", f"from mmkit.repro import run_plan; run_plan({str(file)!r}, {given})"],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )


def test_any_process_may_be_killed_at_any_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    levels = {
        name: lambda process, level=level: below(process.pid, level)
        for level, name in enumerate(("runner", "run", "kernel"))
    }
    storm(tmp_path, levels, KILLS or 4, lambda file: run(file, workers=2), lambda: None)


def test_any_process_of_a_cluster_may_be_killed_at_any_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    cluster = Cluster(tmp_path)

    def of_workers(level):
        return below(random.choice(cluster.workers).pid, level) if cluster.workers else None

    victims = {
        "worker": lambda _: of_workers(0),
        "scheduler": lambda _: cluster.scheduler if cluster.scheduler.poll() is None else None,
        "runner": lambda process: process if of_workers(1) else None,  # while it has runs there
        "run": lambda _: of_workers(1),
        "kernel": lambda _: of_workers(2),
    }
    cluster.up()
    try:
        storm(tmp_path, victims, KILLS or 3, lambda file: run(file, scheduler=cluster.up()), cluster.tend)
    finally:
        cluster.down()
