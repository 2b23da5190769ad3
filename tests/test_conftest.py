"""The guards of conftest.py guard."""

import os
import socket
import subprocess
import sys

import pytest

from conftest import ROOT

OUTSIDE = "192.0.2.1"  # reserved for documentation: nobody answers there


def test_the_network_is_closed_here():
    with socket.socket() as closed, pytest.raises(OSError, match="the tests have no network"):
        closed.connect((OUTSIDE, 80))
    with pytest.raises(OSError, match=r"example\.org is not this machine"):
        socket.create_connection(("example.org", 80), timeout=1)


def test_the_network_is_closed_in_processes_started_here():
    code = f"import socket; socket.create_connection(({OUTSIDE!r}, 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "the tests have no network" in done.stderr


def test_this_machine_stays_reachable():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_data_and_runs_are_the_sessions_own(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    assert os.environ["MMKIT_DATA"].startswith(str(base.parent)) and os.environ["MMKIT_RUNS"].startswith(str(base))


@pytest.mark.slow
@pytest.mark.parametrize(("ci", "collected"), [("", False), ("true", True)])
def test_a_machine_without_a_browser_says_so_and_ci_insists(ci, collected):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        "tests",
        "--ignore-glob=*/test_[ac-z]*",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PATH": "", "CI": ci})
    assert ("test_browser.py::test_a_widget_moves_the_figure" in done.stdout) == collected
    assert ("NOT RUN: tests/test_browser.py: no Chromium here" in done.stdout) == (not collected), done.stdout
