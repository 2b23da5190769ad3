"""What a student sees: JupyterLab, and a headless Chromium that opens notebooks, runs all cells and moves a widget.

The copies that are opened have the smoke parameters put into their parameters cell. Screenshots are kept in
runs/screenshots/.
Without a Chromium this file is not collected, and the summary says so; where CI is set it fails instead.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time

import pytest
from playwright.sync_api import sync_playwright

from conftest import BROWSER, NOTEBOOKS, ROOT
from mmkit import notebooks

pytestmark = pytest.mark.notebooks
SCREENSHOTS = ROOT / "runs" / "screenshots"
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic"
).split()
SECONDS = 500  # for one step of the browser on a busy machine
POLLING = 250  # milliseconds between two looks at the page: by default it looks at every frame

# In the page: `window.jupyterapp` is JupyterLab, its current widget the notebook.
OPEN = """() => {
    const panel = window.jupyterapp?.shell.currentWidget, kernel = panel?.sessionContext?.session?.kernel;
    return panel?.context?.isReady && panel.sessionContext.isReady &&
        kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
ANSWERS = """() => { const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    kernel.requestKernelInfo().then(() => { window.answers = true; }); }"""
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.ran = true; }); }"
CELLS = """() => Array.from(window.jupyterapp.shell.currentWidget.content.model.cells).map(cell => ({
    id: cell.id, type: cell.type, count: cell.executionCount ?? null, outputs: cell.outputs?.toJSON() ?? []}))"""
SHOW = """id => { const notebook = window.jupyterapp.shell.currentWidget.content;
    const place = notebook.widgets.findIndex(cell => cell.model.id === id);
    notebook.activeCellIndex = place; notebook.scrollToItem(place, 'start'); }"""


def at_smoke_size(path, folder):
    """A copy of a notebook, without outputs, whose defaults are the smoke profile's."""
    notebook, declared = json.loads(path.read_text(encoding="utf-8")), notebooks.parameters(path)
    for name, value in notebooks.checked(path, {}, "smoke").items():
        declared[name] = f"{name}: {declared[name].type} = {value!r}  # {declared[name].help}"
    for cell in notebooks.code_cells(notebook):
        cell["outputs"], cell["execution_count"] = [], None
        if "parameters" in notebooks.tags(cell):
            lines = [
                line if isinstance(line, str) else f"{line.name}: {line.type} = {line.default!r}  # {line.help}"
                for line in declared.values()
            ]
            cell["source"] = "\n".join(lines)
    (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A JupyterLab with settings of its own on the copies; yields its address and token."""
    home = tmp_path_factory.mktemp("jupyter")
    for name in ("files", "config/labconfig", "data", "runtime"):
        (home / name).mkdir(parents=True)
    (home / "config" / "labconfig" / "page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    for path in NOTEBOOKS:
        at_smoke_size(path, home / "files")
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    environment = {**os.environ, **{name: str(home / folder) for name, folder in own.items()}, "MMKIT_PROFILE": "smoke"}
    token = secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": 0,
        "ServerApp.root_dir": home / "files",
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
        "LabApp.extension_manager": "readonly",
    }
    command = [sys.executable, "-m", "jupyterlab", "--expose-app-in-browser"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield _address(process, home), token
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _address(process, home):
    for _ in range(10 * SECONDS):
        for file in (home / "runtime").glob("jpserver-*.json"):
            return json.loads(file.read_text())["url"]
        assert process.poll() is None, (home / "log").read_text()
        time.sleep(0.1)
    raise AssertionError((home / "log").read_text())


@pytest.fixture(scope="module")
def browser():
    assert BROWSER, "CI is set, so this test must run, and there is no Chromium: install Debian's package `chromium`"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 1600})
    context.set_default_timeout(1000 * SECONDS)
    yield context.new_page()
    context.close()


def run_all(page, server, path):
    """Open a notebook, run all of its cells and wait; returns the cells, none of them with an error."""
    address, token = server
    page.goto(f"{address}lab/tree/{path.name}?token={token}&reset")
    page.wait_for_function(OPEN, polling=POLLING)
    page.evaluate(ANSWERS)
    page.wait_for_function("() => window.answers", polling=POLLING)
    page.evaluate(RUN_ALL)
    page.wait_for_function("() => window.ran", polling=POLLING)
    cells = page.evaluate(CELLS)
    errors = [
        (cell["id"], output["ename"], output["evalue"])
        for cell in cells
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]
    assert errors == []
    assert [cell["count"] for cell in cells if cell["type"] == "code"] == list(
        range(1, 1 + sum(cell["type"] == "code" for cell in cells))
    )
    return cells


def holding(cells, kind):
    """Ids of the cells with an output of this kind."""
    return [cell["id"] for cell in cells if kind in _kinds(cell)]


def _kinds(cell):
    return {kind for output in cell["outputs"] for kind in output.get("data", {})}


def shown(page, identity):
    """The place of a cell's output in the page, scrolled into view."""
    page.evaluate(SHOW, identity)
    return page.locator(".jp-Notebook .jp-Cell.jp-mod-active")


def keep(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def notebook(number):
    return next(path for path in NOTEBOOKS if path.name.startswith(number))


def test_the_first_notebook_runs_and_shows_its_figure(page, server):
    cells = run_all(page, server, notebook("00"))
    output = shown(page, holding(cells, "image/png")[0]).locator(".jp-OutputArea-output")
    figure = output.locator("img").first
    figure.scroll_into_view_if_needed()
    assert figure.evaluate("image => image.complete && image.naturalWidth") > 500
    keep(page, "00-figure")
    assert "How often the worse strategy wins" in output.last.inner_text(), (
        "the caption carries the finding: JupyterLab shows no alt text"
    )


def test_a_widget_moves_the_figure(page, server):
    cells = run_all(page, server, notebook("01"))
    cell = shown(page, holding(cells, "application/vnd.jupyter.widget-view+json")[0])
    figure, handle = cell.locator(".jp-OutputArea-output img").first, cell.locator(".noUi-handle").first
    handle.scroll_into_view_if_needed()
    before, caption = figure.get_attribute("src"), cell.locator(".jp-OutputArea-output em").first.inner_text()
    keep(page, "01-widget-before")
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "([cell, before]) => cell.querySelector('.jp-OutputArea-output img')?.getAttribute('src') !== before",
        arg=[cell.element_handle(), before],
        polling=POLLING,
    )
    page.wait_for_function(OPEN, polling=POLLING)
    keep(page, "01-widget-after")
    assert (
        figure.evaluate("image => image.complete && image.naturalWidth") > 500 and figure.get_attribute("src") != before
    )
    assert cell.locator(".jp-OutputArea-output em").first.inner_text() != caption


def test_the_search_box_finds_pictures_and_says_which_word_it_does_not_know(page, server):
    cells = run_all(page, server, notebook("11"))
    cell = shown(page, holding(cells, "application/vnd.jupyter.widget-view+json")[0])
    field, figure = cell.locator("input[type=text]").first, cell.locator("img").first
    figure.scroll_into_view_if_needed()
    before = figure.get_attribute("src")
    field.fill("dragon")
    field.press("Enter")
    page.wait_for_function(
        "cell => cell.innerText.includes('not in the vocabulary: dragon')", arg=cell.element_handle(), polling=POLLING
    )
    keep(page, "11-search")
    assert cell.locator("img").first.get_attribute("src") != before, "other words find other pictures"
