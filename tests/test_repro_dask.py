"""Runs handed to a real Dask scheduler with two worker processes on this machine; a worker, the runner and the
scheduler killed half-way."""

import subprocess
import sys

import pytest
import yaml
from repro_dask import Cluster
from repro_stub import finished, make_plan, quiet, rows, undisturbed, wait_for, write

from mmkit.errors import MmkitError
from mmkit.repro import runner

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.down()


def test_a_cluster_makes_the_same_runs_and_survives_a_worker(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    address, stub, said = cluster.up(), write(tmp_path / "20_stub.ipynb"), []

    def say(line):
        said.append(line)
        if sum("done (" in line for line in said) == 3:
            cluster.workers[0].kill()

    batch = runner.run_plan(make_plan(stub, parameters={"work": 0.3}, seeds=8), scheduler=address, say=say)
    assert [worker.poll() for worker in cluster.workers] == [-9, None]
    assert batch.complete and rows(batch) == undisturbed(range(8)) and sum("done (" in line for line in said) == 8
    assert not list((tmp_path / "runs" / "stub").glob(".tmp-*"))


def test_the_runner_then_the_scheduler_are_killed_and_all_goes_on(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    whole = make_plan(write(tmp_path / "20_stub.ipynb"), parameters={"work": 0.3}, seeds=14)
    file, folder, said = tmp_path / "stub.yaml", tmp_path / "runs" / "stub", []
    file.write_text(yaml.safe_dump(whole.model_dump()), encoding="utf-8")
    address = cluster.up()
    process = subprocess.Popen(
        [sys.executable, "-c", f"from mmkit.repro import run_plan; run_plan({str(file)!r}, scheduler={address!r})"],
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: len(finished(folder)) >= 2 and list(folder.glob(".tmp-*")))
    process.kill()
    process.wait()
    first = finished(folder)

    def end_scheduler(line):
        said.append(line)
        if "done (" in line:
            cluster.scheduler.kill()

    with pytest.raises(
        MmkitError, match="the executor is gone .*: finished runs are kept, the same command goes on from here"
    ):
        runner.run_plan(whole, scheduler=address, say=end_scheduler)
    second = finished(folder)
    assert first.items() <= second.items() and len(first) < len(second) < 14
    assert "of 14 runs are there already" in said[0] and int(said[0].split()[0]) >= len(first)

    batch = runner.run_plan(whole, scheduler=cluster.up(), say=said.append)
    assert batch.complete and rows(batch) == undisturbed(range(14)) and second.items() <= finished(folder).items()
    assert not list(folder.glob(".tmp-*")) and not list(folder.glob("failed/*"))


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with pytest.raises(
        MmkitError,
        match="no Dask scheduler answers at 'tcp://127.0.0.1:1' .*: start one with 'dask scheduler --host 127.0.0.1'",
    ):
        runner.run_plan(make_plan(write(tmp_path / "20_stub.ipynb"), seeds=1), scheduler="tcp://127.0.0.1:1", say=quiet)
