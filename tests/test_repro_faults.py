"""One run's fault is that run's alone, and nothing of a run lives on: odd notebooks, full disks, daemons, and plans too
large."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from repro_stub import make_plan, quiet, rows, undisturbed, wait_for, write

from mmkit import processes, yamls
from mmkit.errors import MmkitError
from mmkit.repro import batches, browse, plan, report, runner

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    return tmp_path


# Seed 0 misbehaves, seed 1 is as ever.
FAULTS = {
    "removes its folder": ("shutil.rmtree(os.environ['MMKIT_RUN_DIR'])", "folder gone|kernel died|cell error"),
    "removes its folder and dies": (
        "shutil.rmtree(os.environ['MMKIT_RUN_DIR']); os.kill(os.getppid(), 9)",
        "folder gone",
    ),
    "writes an empty record": ("folder('record.json').write_text('{}'); 1 / 0", "cell error"),
    "writes an empty record and dies": (
        "folder('record.json').write_text('{}'); os.kill(os.getppid(), 9)",
        "process died",
    ),
    "writes an odd failure": ("folder('failure.json').write_text('[]'); os.kill(os.getppid(), 9)", "process died"),
    "writes a failure and dies": ("folder('failure.json').write_text('{}'); os.kill(os.getppid(), 9)", "process died"),
    "makes its results a folder": ("folder('results.jsonl').mkdir()", "cell error"),
    "fails at length": ("raise ValueError('x' * 20_000_000)", "cell error"),
    "fails with an escape": (r"raise ValueError('\x1b[2J\x1b]0;title\x07')", "cell error"),
}
MISBEHAVE = "import shutil\nfrom pathlib import Path\nfolder = lambda name: Path(os.environ['MMKIT_RUN_DIR'], name)\n"


@pytest.mark.parametrize("fault", FAULTS)
def test_one_runs_fault_is_that_runs_alone(place, fault, capsys):
    code, kind = FAULTS[fault]
    stub = write(place / "20_stub.ipynb", act=f"{MISBEHAVE}if seed == 0:\n    {code}")
    said = []
    batch = runner.run_plan(make_plan(stub, seeds=2), workers=2, say=said.append)
    (failure,) = batch.failures
    assert rows(batch) == undisturbed([1]) and failure["kind"] in kind.split("|"), failure
    assert len(failure["message"]) < 3000 and sum(map(len, said)) < 2000
    assert all(line.isprintable() for line in said)
    assert list(browse.runs("stub"))[0].startswith("failed") and list(browse.show(failure["key"]))
    assert len(report.failures_table(batch)) == 1 and not list((place / "runs" / "stub").glob(".tmp-*"))


def test_a_record_that_a_notebook_wrote_is_not_taken_for_one(place):
    stub = write(place / "20_stub.ipynb", act=f"{MISBEHAVE}folder('record.json').write_text('{{}}')")
    (header,) = runner.run_plan(make_plan(stub, seeds=1), say=quiet).headers
    assert header["results"] == 2 and header["sha256"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "x"}'])
def test_a_failure_that_a_full_disk_cut_off_is_no_traceback_ever_after(place, text, mmkit):
    stub = write(place / "20_stub.ipynb", act="1 / 0")
    (failure,) = runner.run_plan(make_plan(stub, seeds=1), say=quiet).failures
    path = place / "runs" / "stub" / "failed" / failure["key"] / "failure.json"
    path.write_text(text)
    batch = batches.load(place / "runs" / "stub")
    assert batch.failures[0]["kind"] in ("unknown", "x") and len(report.failures_table(batch)) == 1
    for command in (("list", "stub"), ("list",), ("show", failure["key"]), ("clean", "stub")):
        done = mmkit("runs", *command)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr


# --- processes --------------------------------------------------------------------------------------------------------

DAEMON = '''
import subprocess, sys
from pathlib import Path
source = """
import os, sys, time
held = bytearray(int(sys.argv[1]))
open(sys.argv[2], "w").write(str(os.getpid()))
time.sleep(300)
"""
twice = "import os, subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True, env={})"
command = [sys.executable, "-c", source, str(held), marker]
subprocess.Popen([sys.executable, "-c", twice, *command] if away else command, start_new_session=True, env={})
while not (Path(marker).exists() and Path(marker).read_text()):
    time.sleep(0.05)
time.sleep(wait)
'''


def command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def daemon(place, *, away, wait, held=1000, **entry):
    """A run that starts a process without its environment or session, and `away`: without its parent."""
    act = f"away, wait, held = {away}, {wait}, {held}\n{DAEMON}"
    stub = write(place / "20_stub.ipynb", act=act)
    batch = runner.run_plan(make_plan(stub, parameters={"marker": str(place / "pid")}, **entry), say=quiet)
    return batch, int((place / "pid").read_text()) if (place / "pid").exists() else None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process adopts what its descendants leave behind")
@pytest.mark.parametrize("away", [False, True])
def test_nothing_that_a_run_started_outlives_it(place, away):
    batch, pid = daemon(place, away=away, wait=0)
    assert batch.complete and gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process adopts what its descendants leave behind")
@pytest.mark.parametrize("away", [False, True])
def test_the_time_limit_ends_what_left_its_environment_too(place, away, monkeypatch):
    monkeypatch.setattr(runner.execute, "MACHINE_FAULTS", ())
    batch, pid = daemon(place, away=away, wait=300, timeout_s=20)
    assert batch.failures[0]["kind"] == "time limit" and gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process adopts what its descendants leave behind")
def test_the_memory_of_what_left_its_session_counts(place, monkeypatch):
    monkeypatch.setattr(runner.execute, "MACHINE_FAULTS", ())
    batch, pid = daemon(place, away=True, wait=300, held=1_500_000_000, memory_gb=1)
    assert batch.failures[0]["kind"] == "out of memory" and (pid is None or gone(pid))
    assert not [process for process in psutil.process_iter() if str(place / "pid") in command_of(process)]


def test_ending_a_run_whose_own_process_was_killed_takes_what_was_seen(tmp_path):
    child = (
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], env={}, start_new_session=True)"
    )
    parent = f"import subprocess, sys; {child}; print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    seen = processes.below(process.pid)
    process.kill(), process.wait()
    processes.end(tmp_path, None, seen)
    wait_for(lambda: gone(pid))


GROUPS = processes._own_group() is not None  # Linux, and this process may make control groups


@pytest.mark.skipif(not GROUPS, reason="no control group can be made here; the tests above hold without one")
def test_what_a_run_left_behind_ends_though_it_killed_its_own_process_first(place, monkeypatch):
    """It has another parent then, an empty environment, and nobody looked while it was below the run."""
    monkeypatch.setattr(runner.execute, "MACHINE_FAULTS", ())
    own = "import psutil\nfor parent in psutil.Process().parents()[:-1]:\n"
    own += "    if 'mmkit.repro.execute' in parent.cmdline():\n        parent.kill()\n"
    act = f"away, wait, held = True, 300, 1000\n{DAEMON.replace('time.sleep(wait)', own)}"
    monkeypatch.setattr(processes, "below", lambda pid, work=None: [])
    stub = write(place / "20_stub.ipynb", act=act)
    batch = runner.run_plan(make_plan(stub, parameters={"marker": str(place / "pid")}), say=quiet)
    assert batch.failures[0]["kind"] == "process died" and gone(int((place / "pid").read_text()))
    assert not list(processes._own_group().glob(f"mmkit-.tmp-{batch.failures[0]['key']}*"))


@pytest.mark.skipif(not GROUPS, reason="no control group can be made here; the tests above hold without one")
def test_a_control_group_holds_what_a_process_starts_and_goes_with_it(tmp_path):
    work = tmp_path / f"of-{os.getpid()}"  # a name that no other test run has
    code = "import subprocess\ninput()\np = subprocess.Popen(['sleep', '300'], env={}, stdout=-3)\nprint(p.pid)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert processes.enclose(work, process.pid)
    pid = int(process.communicate("\n")[0])
    assert pid in [child.pid for child in processes.below(process.pid, work)]
    assert processes.memory(process.pid, work) > 0 == processes.memory(process.pid)
    processes.end(work)
    assert gone(pid) and processes._group(work) is None


def test_where_no_control_group_can_be_made_none_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_own_group", lambda: tmp_path)  # a folder without the files of the kernel
    assert not processes.enclose(tmp_path / "work", os.getpid()) and not list(tmp_path.iterdir())
    monkeypatch.setattr(processes, "_own_group", lambda: None)
    assert not processes.enclose(tmp_path / "work", os.getpid())


# --- plans too large --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        {"seeds": 300_000_000},
        {"seeds": 10**18},
        {"grid": {name: list(range(1000)) for name in ("seed", "work", "mode")}},
        {"grid": {"work": [0.1 * n for n in range(500)]}, "seeds": 400},
    ],
)
def test_a_plan_of_more_runs_than_anybody_means_is_refused_before_it_is_built(place, entry):
    begun = time.monotonic()
    with pytest.raises(MmkitError, match=r"plan 'stub' asks for [\d,]+ runs, at most 100,000 are made"):
        runner.run_plan(make_plan(write(place / "20_stub.ipynb"), **entry), dry_run=True, say=quiet)
    assert time.monotonic() - begun < 60 and not (place / "runs").exists()


def test_a_plan_of_more_notebooks_than_anybody_means_is_refused_before_they_are_read(tmp_path):
    (tmp_path / "many.yaml").write_text("name: many\ntitle: t\nnotebooks:\n" + "- notebook: '06'\n" * 1001)
    with pytest.raises(MmkitError, match="many.yaml: notebooks: List should have at most 1000 items"):
        plan.read_plan(tmp_path / "many.yaml")


def test_what_yaml_reads_as_a_number_is_asked_for_in_quotes(tmp_path):
    (tmp_path / "six.yaml").write_text("name: six\ntitle: t\nnotebooks:\n- notebook: 06\n")
    with pytest.raises(MmkitError, match="notebook: .*got '6' .YAML reads it as a number: put it in quotes."):
        plan.read_plan(tmp_path / "six.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_is_no_plan(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(MmkitError, match="pipe.yaml cannot be read: it is no file"):
        plan.read_plan(tmp_path / "pipe.yaml")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
ODD = {
    "aliases": (BOMB, "line 2 uses the alias [*]a: write out what it stands for"),
    "a merge": ("a: &a {x: 1}\nb:\n  <<: *a\n", "line 3 uses the alias [*]a"),
    "an alias of itself": ("a: &a [*a]\n", "line 1 uses the alias [*]a"),
    "a key twice": ("name: x\ntitle: y\nname: z\n", "the key 'name' is there twice, in lines 1 and 3"),
    "a key twice inside": ("notebooks:\n- {seeds: 1, notebook: a, seeds: 2}\n", "the key 'seeds' is there twice"),
    "deep": ("[" * 60 + "]" * 60, "line 1 is more than 50 levels deep"),
    "very deep": ("[" * 5000 + "]" * 5000, "cannot be read"),
    "very large": ("# " + "x" * 3_000_000 + "\n", "it has 3,000,003 characters, at most 2,000,000 are read"),
    "an object": ("a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
    "a huge number": ("a: " + "9" * 5000 + "\n", "cannot be read"),
    "a date that is none": ("a: 2026-99-99\n", "cannot be read"),
    "a control character": ("a: \x07\n", "cannot be read"),
    "a tab": ("a:\tx\n\ty: 1\n", "found a tab character"),
    "two documents": ("a: 1\n---\nb: 2\n", "expected a single document in the stream"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_file_that_cannot_be_what_was_meant_is_refused_with_its_line(tmp_path, kind):
    text, said = ODD[kind]
    path = tmp_path / "odd.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MmkitError, match=f"odd.yaml cannot be read: .*{said}|odd.yaml {said}") as error:
        yamls.read(path)
    assert "\n" not in str(error.value)
    with pytest.raises(MmkitError):
        plan.read_plan(path)


def test_the_kits_own_files_are_read():
    from mmkit import notebooks

    assert len(notebooks.profiles()) > 10 and len(list((notebooks.folder() / "plans").glob("*.yaml"))) > 10
    for path in (notebooks.folder() / "plans").glob("*.yaml"):
        assert plan.read_plan(path).name == path.stem


RUN = {"key": "0123456789abcdef", "label": "x"}


@pytest.mark.parametrize("change", [{"key": 1}, {"key": "../x"}, {"label": ["a"]}, {"label": None}, {"key": None}])
def test_a_run_of_a_manifest_that_is_none_is_damage(place, change):
    folder = place / "runs" / "stub"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"runs": [RUN, RUN | change]}))
    assert "plan.json is damaged (no list of runs): run the plan again" in "\n".join(browse.plans())
    for listed in (browse.runs("stub"), browse.tidy("stub", really=False)):
        with pytest.raises(MmkitError, match="plan.json is damaged .no list of runs.: run the plan again"):
            list(listed)


def test_odd_values_of_a_record_are_listed_and_shown_as_far_as_they_go(place):
    folder = place / "runs" / "stub"
    (folder / RUN["key"]).mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"runs": [RUN]}))
    (folder / RUN["key"] / "record.json").write_text(json.dumps({"key": 7, "seconds": "x", "versions": 3}))
    whole = {"arm": "a", "task": "t", "condition": {}, "scores": {"accuracy": 0.5}}
    odd = [[], 3, whole | {"scores": []}, whole | {"scores": {"accuracy": "x"}}, whole | {"arm": 1}, whole]
    (folder / RUN["key"] / "results.jsonl").write_text("\n".join(map(json.dumps, odd)))
    assert "\n".join(browse.runs("stub")).startswith("done    0123456789abcdef       0 s  ?  x")
    shown = "\n".join(browse.show("0123"))
    assert "seconds: x" in shown and shown.count("accuracy") == 1 and "a, t, {}: accuracy 0.5" in shown


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(place):
    folder = place / "runs" / "stub"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "plan.json")
    with pytest.raises(MmkitError, match="plan.json is damaged .no file.: remove its folder and run the plan again"):
        list(browse.runs("stub"))


@pytest.mark.parametrize(
    "content", ['{"runs": 3}', "[]", "{}", '{"runs": [], "claims": [], "plan": {}}', "\0", "[" * 99_999]
)
def test_a_damaged_manifest_is_one_line(place, content, mmkit):
    folder = place / "runs" / "stub"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(content)
    for command in (("runs", "list"), ("runs", "list", "stub"), ("runs", "clean", "stub"), ("report", "stub")):
        done = mmkit(*command)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, (command, done.stderr)
    assert json.dumps(os.listdir(folder))
