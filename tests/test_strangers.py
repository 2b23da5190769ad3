"""Text and files of strangers at the command line: one line with the remedy, and nothing that steers the terminal."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import nbformat
import psutil
import pytest
from conftest import NOTEBOOKS, ROOT
from repro_data import batch_folder, claim, head_to_head, result
from repro_data import Scores as scores_of
from repro_stub import wait_for, write

from mmkit import doctor, notebooks, terminal
from mmkit.errors import MmkitError, printable
from mmkit.repro import report

# --- text -------------------------------------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J<script>alert(1)</script>\u202e<img src=x onerror=alert(2)>"


def test_printable_writes_out_what_a_terminal_would_obey():
    assert printable("a\nb\tc é ✔ 中文 \u200d") == "a\nb\tc é ✔ 中文 \u200d"
    assert printable("\x1b[31m \x07 \r \x9b \u202e \ud800 \x00") == r"\x1b[31m \x07 \x0d \x9b \u202e \ud800 \x00"
    assert len(printable("x" * 1000, 100)) < 120


def test_nothing_that_a_command_prints_steers_the_terminal(tmp_path, mmkit):
    folder = tmp_path / "runs" / "evil"
    (folder / "0123456789abcdef").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"runs": [{"key": "0123456789abcdef", "label": EVIL}]}))
    (folder / "0123456789abcdef" / "record.json").write_text(json.dumps({"key": EVIL, "finished": EVIL}))
    (folder / "0123456789abcdef" / "stderr.txt").write_text(EVIL)
    for command in (("runs", "list", "evil"), ("runs", "show", "0123"), ("runs", "show", EVIL), ("run", EVIL)):
        done = mmkit(*command, MMKIT_RUNS=str(tmp_path / "runs"))
        assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout + done.stderr
        assert "\u202e" not in done.stdout + done.stderr and r"\x1b[2J" in done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_output_is_shown_in_any_encoding(tmp_path, mmkit, encoding):
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"runs": [{"key": "0" * 16, "label": "✔ 中文"}]}))
    options = {"MMKIT_RUNS": str(tmp_path / "runs"), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = mmkit("runs", "list", "toy", **options)
    assert done.returncode == 0 and r"\u2714 \u4e2d\u6587" in done.stdout
    done = mmkit("runs", "list", "中文", **options)
    assert done.returncode == 2 and "Traceback" not in done.stderr and r"\u4e2d" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    folder = tmp_path / "runs" / "many"
    folder.mkdir(parents=True)
    runs = [{"key": f"{number:016x}", "label": "x" * 200} for number in range(2000)]
    (folder / "plan.json").write_text(json.dumps({"runs": runs}))
    command = f"{sys.executable} -m mmkit.cli runs list many | head -n 1"
    environment = os.environ | {"MMKIT_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("to do") and done.stderr == ""


def test_a_stream_that_is_none_of_the_systems_is_left_alone():
    assert terminal.fit(None) is None


class Tags(HTMLParser):
    """The names of a page's elements and attributes, and where its pictures come from, as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.sources = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.sources += [value for name, value in attrs if name == "src"]


@pytest.mark.slow
def test_text_of_records_and_claims_is_no_code_in_the_report(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path))
    made = []
    for row in head_to_head(seeds=6, pairs=(64,)):
        about = {"condition": row.row["condition"] | {"case": EVIL}, "data": EVIL, "data_hash": EVIL}
        values = {"accuracy": scores_of(*row.items_of("accuracy"))}
        made.append(result(row.row["arm"] + EVIL, row.row["seed"], values, **about))
    terms = [
        {"arm": arm + EVIL, "score": "accuracy", "weight": w} for arm, w in (("holistic", 1.0), ("component", -1.0))
    ]
    declared = claim(f"C{EVIL}", statement=EVIL, source=EVIL, scope=EVIL, limits=EVIL, unit=EVIL, terms=terms)
    failure = {"label": EVIL, "cell": EVIL, "kind": EVIL, "message": EVIL, "attempts": 1, "key": "0"}
    batch_folder(tmp_path / "toy", made, [declared], failures=[failure])
    text = report.export("toy").read_text(encoding="utf-8")
    page = Tags(text)
    assert not page.names & {"script", "iframe", "object", "embed", "link", "base", "form", "svg"}
    assert not {name for name in page.attributes if name.startswith("on")} and "<img src=x" not in text
    assert all(source.startswith("data:image/png") for source in page.sources) and "javascript:" not in text
    assert re.search(r'<meta http-equiv="Content-Security-Policy" content="default-src .none.; img-src data:;', text)
    assert "&lt;script&gt;" in text and "data:image/png;base64," in text and text.count("<details>") >= 3
    assert '<td style="color:' in text.replace("; white-space", ";white-space") or "color: #" in text


def test_cards_and_tables_escape_where_the_text_enters():
    assert "<script" not in report._definitions({EVIL: EVIL})
    assert "<script" not in report.table_html(report.pd.DataFrame({EVIL: {EVIL: EVIL}}))


# --- notebooks --------------------------------------------------------------------------------------------------------

CELL = {
    "cell_type": "code",
    "id": "a",
    "metadata": {"tags": ["parameters"]},
    "source": "seed: int = 0  # it",
    "outputs": [],
}
ODD = {
    "a list": [],
    "a number": 7,
    "no cells": {},
    "cells that are none": {"cells": {"a": 1}},
    "a cell that is none": {"cells": ["x"]},
    "a cell of null": {"cells": [None]},
    "no type": {"cells": [{"source": "x"}]},
    "a type that is none": {"cells": [{"source": "x", "cell_type": ["code"]}]},
    "no source": {"cells": [{"cell_type": "code"}]},
    "a source of numbers": {"cells": [{"cell_type": "code", "source": [1, 2]}]},
    "metadata that are none": {"cells": [CELL | {"metadata": "x"}]},
    "tags that are none": {"cells": [CELL | {"metadata": {"tags": 3}}]},
    "outputs that are none": {"cells": [CELL | {"outputs": "x"}]},
    "an output that is none": {"cells": [CELL | {"outputs": [{"x": 1}]}]},
    "notebook metadata that are none": {"cells": [CELL], "metadata": [1], "nbformat": 4, "nbformat_minor": 5},
    "no format": {"cells": [CELL], "metadata": {}},
    "a format of letters": {"cells": [CELL], "metadata": {}, "nbformat": "four", "nbformat_minor": 5},
    "an old format": {"worksheets": [], "metadata": {}, "nbformat": 3, "nbformat_minor": 0},
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_notebook_is_one_line(tmp_path, mmkit, kind):
    path = tmp_path / "20_odd.ipynb"
    path.write_text(json.dumps(ODD[kind]))
    done = mmkit("run", path, MMKIT_RUNS=str(tmp_path / "runs"))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("mmkit: "), done.stderr
    done = mmkit("notebook", "check", path)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"cells": [' + b"[" * 5000])
def test_a_file_that_is_no_json_is_one_line(tmp_path, content):
    path = tmp_path / "20_odd.ipynb"
    path.write_bytes(content)
    with pytest.raises(MmkitError, match="20_odd.ipynb is not a readable notebook .*restore it from version control"):
        notebooks.read(path)


@pytest.mark.notebooks
def test_a_notebook_without_a_kernelspec_runs(tmp_path, mmkit):
    path = write(tmp_path / "20_stub.ipynb")
    notebook = nbformat.read(path, 4)
    notebook.metadata = {}
    nbformat.write(notebook, path)
    done = mmkit("run", path, "-p", "seed=3", check=0, MMKIT_RUNS=str(tmp_path / "runs"))
    assert "seed = 3\n" in done.stdout and "20_stub (lab) ran in" in done.stdout


@pytest.mark.notebooks
def test_what_run_writes_takes_the_place_of_nothing(tmp_path, mmkit):
    path = write(tmp_path / "20_stub.ipynb")
    for taken in (path, NOTEBOOKS[0], tmp_path):
        before = taken.read_bytes() if taken.is_file() else None
        done = mmkit("run", path, "--out", taken)
        assert done.returncode == 2 and "is there already: give another name, or remove it" in done.stderr
        assert before is None or taken.read_bytes() == before
    commands = [[sys.executable, "-m", "mmkit.cli", "run", str(path)] for _ in range(2)]
    environment = os.environ | {"MMKIT_RUNS": str(tmp_path / "runs")}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) for command in commands]
    assert [process.communicate() and process.returncode for process in both] == [0, 0]
    assert len(list((tmp_path / "runs" / "interactive").iterdir())) == 2


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_loop_of_links_is_one_line(tmp_path, mmkit):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for command in (("runs", "list"), ("runs", "clean", "x"), ("report", "head_to_head"), ("reproduce", "--dry-run")):
        done = mmkit(*command, MMKIT_RUNS=str(tmp_path / "a"))
        assert done.returncode == 2 and "Traceback" not in done.stderr, (command, done.stderr)
        assert "MMKIT_RUNS" in done.stderr and len(done.stderr.splitlines()) == 1
    for command in (("reproduce", tmp_path / "loop.yaml"), ("run", tmp_path / "loop.ipynb")):
        command[1].symlink_to(command[1])
        done = mmkit(*command, MMKIT_RUNS=str(tmp_path / "runs"))
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    done = mmkit("doctor", MMKIT_RUNS=str(tmp_path / "a"))
    assert done.returncode == 1 and "BROKEN" in done.stdout and "MMKIT_RUNS" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="no Unix sockets")
@pytest.mark.notebooks
def test_a_temporary_folder_with_a_long_name_is_no_hindrance(tmp_path, mmkit):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    path = write(tmp_path / "20_stub.ipynb")
    mmkit("run", path, check=0, MMKIT_RUNS=str(tmp_path / "runs"), TMPDIR=str(long))
    assert "note    kernel sockets" in mmkit("doctor", TMPDIR=str(long)).stdout


def test_the_doctor_sees_a_runs_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "file"))
    assert [row.state for row in doctor._runs() if row.name == "runs folder"] == ["broken"]
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "new" / "runs"))
    assert [row.state for row in doctor._runs()] == ["ok", "ok"] and not (tmp_path / "new").exists()


# --- servers ----------------------------------------------------------------------------------------------------------


def test_every_dask_scheduler_that_is_named_listens_on_this_machine_alone():
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *NOTEBOOKS, *(ROOT / "mmkit").rglob("*.py")]
    found = []
    for path in [*texts, *(ROOT / "docs").rglob("*.md")]:
        found += re.findall(r"dask[ -]scheduler[^\n]*", path.read_text(encoding="utf-8"))
    started = [line for line in found if re.match(r"dask[ -]scheduler( --|['`\"]|$|  )", line)]
    assert len(started) >= 2 and all("--host 127.0.0.1" in line or "--tls" in line for line in started), started


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="there JupyterLab is a process of its own")
def test_no_server_listens_after_the_lab_was_ended(tmp_path):
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    command = [sys.executable, "-m", "mmkit.cli", "lab", "--no-browser", "--port=0", "--allow-root"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("jpserver-*.json")) or process.poll() is not None)
    assert process.poll() is None and "jupyterlab" in psutil.Process(process.pid).cmdline(), "the same process"
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() < begun + 60:
        time.sleep(0.1)
    assert process.poll() is not None and not list(tmp_path.glob("jpserver-*.json"))
