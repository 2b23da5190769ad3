"""Runs handed to a real Dask scheduler with two worker processes on this machine; a worker, then the scheduler, killed half-way."""

import subprocess
import sys
import time

import pytest
import yaml
from repro_stub import make_plan, quiet, rows, undisturbed, write

from mmkit.errors import MmkitError
from mmkit.repro import runner

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path):
    """Address of a scheduler, its process and those of two workers with one thread each."""
    file, processes = tmp_path / "scheduler.json", []

    def begin(kind, *options):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(file), "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", *options]
        processes.append(subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=open(tmp_path / f"{kind}{len(processes)}.log", "wb")))

    begin("scheduler", "--port", "0")
    wait_for(file.exists)
    for _ in range(2):
        begin("worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path))
    yield yaml.safe_load(file.read_text())["address"], processes
    for process in processes:
        process.kill()
        process.wait()


def wait_for(condition, seconds=60):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)


def test_a_cluster_makes_the_same_runs_and_survives_a_worker(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    address, (scheduler, *workers) = cluster
    stub = write(tmp_path / "20_stub.ipynb")
    said = []

    def say(line):
        said.append(line)
        if sum("done (" in line for line in said) == 3 and workers:
            workers.pop().kill()

    batch = runner.run_plan(make_plan(stub, parameters={"work": 0.3}, seeds=8), scheduler=address, say=say)
    assert len(workers) == 1 and batch.complete and rows(batch) == undisturbed(range(8)) and sum("done (" in line for line in said) == 8
    assert not list((tmp_path / "runs" / "stub").glob(".tmp-*"))

    def end_scheduler(line):
        if "done (" in line:
            scheduler.kill()

    with pytest.raises(MmkitError, match="the executor is gone .*finished runs are kept"):
        runner.run_plan(make_plan(stub, parameters={"work": 0.31}, seeds=6), scheduler=address, say=end_scheduler)
    here = runner.run_plan(make_plan(stub, parameters={"work": 0.31}, seeds=6), workers=2, say=said.append)
    assert here.complete and rows(here) == undisturbed(range(6)) and "of 6 runs are there already" in said[8]


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with pytest.raises(MmkitError, match="no Dask scheduler answers at 'tcp://127.0.0.1:1' .*: start one with 'dask scheduler'"):
        runner.run_plan(make_plan(write(tmp_path / "20_stub.ipynb"), seeds=1), scheduler="tcp://127.0.0.1:1", say=quiet)
