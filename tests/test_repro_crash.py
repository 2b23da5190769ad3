"""`kill -9` of the runner, its warm process, a run or a kernel, at random times: in the end the table is that of an undisturbed run.

A handful of kills by default; the long form is `MMKIT_KILLS=40 pytest tests/test_repro_crash.py`.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest
import yaml
from repro_stub import make_plan, quiet, rows, undisturbed, write

from mmkit.repro import records, runner

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("MMKIT_KILLS", "6"))
VICTIMS = ("runner", "warm process", "run", "kernel")


def find(process, victim):
    """A living process of that kind below a runner, or None."""
    level = [process]
    try:
        for _ in range(VICTIMS.index(victim)):
            level = [child for parent in level for child in parent.children()]
    except psutil.NoSuchProcess:
        return None
    return random.choice(level) if level else None


def finished(folder):
    """Every finished run and when its record was written; each is whole."""
    found = {}
    for path in folder.glob("[0-9a-f]*/record.json"):
        assert len(records.read(path.parent)) == runner.read_json(path)["results"] == 2
        found[path.parent.name] = path.stat().st_mtime_ns
    return found


def test_any_process_may_be_killed_at_any_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    random.seed(KILLS)
    stub = write(tmp_path / "20_stub.ipynb")
    file, folder = tmp_path / "stub.yaml", tmp_path / "runs" / "stub"
    runs, killed, kept, process = 4, Counter(), {}, None
    limit = time.monotonic() + 120 + 40 * KILLS
    while sum(killed.values()) < KILLS or process.poll() is None:
        if process is None or process.poll() is not None:  # at the start, after a kill, or when all is done, which asks for more
            kept = check(folder, kept)
            runs += 4 if len(kept) == runs else 0
            whole = make_plan(stub, parameters={"work": 0.3}, seeds=runs)
            file.write_text(yaml.safe_dump(whole.model_dump()), encoding="utf-8")
            process = psutil.Popen([sys.executable, "-c", f"from mmkit.repro import run_plan; run_plan({str(file)!r}, workers=2)"], stdout=subprocess.DEVNULL)
            when = time.monotonic() + random.uniform(0, 6)
        time.sleep(random.uniform(0, 0.1))
        victim = find(process, VICTIMS[sum(killed.values()) % len(VICTIMS)]) if time.monotonic() > when and sum(killed.values()) < KILLS else None
        if victim:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
                killed[VICTIMS[sum(killed.values()) % len(VICTIMS)]] += 1
            when = time.monotonic() + random.uniform(0, 3)
        assert time.monotonic() < limit, f"only {dict(killed)} were killed in time"
    kept = check(folder, kept)
    batch = runner.run_plan(whole, workers=2, say=quiet)
    check(folder, kept)
    assert batch.complete and rows(batch) == undisturbed(range(runs)), dict(killed)
    assert len(finished(folder)) == runs and not list(folder.glob(".tmp-*")) and not list(folder.glob("failed/*"))
    print(f"killed {dict(killed)}; {runs} runs, each recorded once")


def check(folder, before):
    """What was finished stays as it was."""
    now = finished(folder)
    assert before.items() <= now.items()
    return now
