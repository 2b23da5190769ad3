"""What every test has: no network, one thread, data and runs in folders of this session."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"
sys.path.insert(0, str(PLUGINS))
sys.modules.pop("sitecustomize", None)  # the interpreter may have loaded one of its own
import sitecustomize  # noqa: E402, F401  closes the network for this process

# And for the processes it starts.
os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
for _name in ("MMKIT_PROFILE", "MMKIT_RUN_DIR"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CI = os.environ.get("CI", "").lower() in ("true", "1")

# What this machine lacks is not collected, and the summary names it; continuous integration has to have it.
NOT_RUN = [] if BROWSER or CI else [("test_browser.py", "no Chromium here (Debian and Ubuntu: apt install chromium)")]
collect_ignore = [name for name, _ in NOT_RUN]


def pytest_terminal_summary(terminalreporter):
    for name, reason in NOT_RUN:
        terminalreporter.write_line(f"NOT RUN: tests/{name}: {reason}", yellow=True)
    for report in terminalreporter.getreports("passed"):
        for name, said in report.user_properties:
            if name in ("slow", "older") and report.when == "call":
                terminalreporter.write_line(f"{name.upper()}: {said}", yellow=True)


@pytest.fixture(scope="session", autouse=True)
def _session_folders(tmp_path_factory):
    """Prepared sets are shared by the tests of one session, its processes included, and never with the user's own."""
    base = tmp_path_factory.getbasetemp()
    patch = pytest.MonkeyPatch()
    patch.setenv("MMKIT_DATA", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"))
    patch.setenv("MMKIT_RUNS", str(base / "runs"))
    patch.setenv("IPYTHONDIR", str(base / "ipython"))  # no start-up files of the user in the kernels
    yield
    patch.undo()


@pytest.fixture
def data_root(tmp_path, monkeypatch):
    """A folder of prepared sets for one test, and no mirror."""
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MMKIT_MIRROR", raising=False)
    return tmp_path / "data"


@pytest.fixture
def photos(tmp_path):
    """A folder of ten small photos, `p0.png` to `p9.png`."""
    (tmp_path / "photos").mkdir()
    for n in range(10):
        Image.new("RGB", (30, 20), (n, n, n)).save(tmp_path / f"photos/p{n}.png")
    return tmp_path / "photos"


@pytest.fixture
def mmkit(tmp_path):
    """Run the command line as a user would: `mmkit("data", "list")` -> completed process with text output."""

    def call(*arguments, check=None, cwd=ROOT, **environment):
        command = [sys.executable, "-m", "mmkit.cli", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call
