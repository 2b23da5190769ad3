"""`live`: what a page shows without a kernel, and that a moved control redraws the cell's own output."""

import nbformat
import pytest
from nbclient import NotebookClient

from mmkit import MmkitError, notebooks
from mmkit.teach import widgets

SHOW = """
from IPython.display import display
from mmkit.teach import widgets

def draw(size=2, kind="plain"):
    display({"text/plain": f"{kind} {size}"}, metadata={"text/plain": {"alt": f"alt of {kind} {size}"}}, raw=True)
    display({"text/plain": f"caption {size}"}, raw=True)

box = widgets.live(draw, size=[1, 2, 3], kind=["plain", "dotted"])
"""


def executed(*sources):
    """The outputs of each cell after all have run, widget views left out."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    options = {"kernel_name": "python3", "kernel_manager_class": notebooks.IpcKernelManager, "timeout": 1200}
    NotebookClient(notebook, **options).execute()
    return [_without_widgets(cell.outputs) for cell in notebook.cells], notebook


def _without_widgets(outputs):
    return [output for output in outputs if "application/vnd.jupyter.widget-view+json" not in output.get("data", {})]


@pytest.mark.slow
def test_the_figure_is_an_output_of_the_cell_and_a_moved_control_redraws_it_in_place():
    (still,), notebook = executed(SHOW)
    assert [output.data["text/plain"] for output in still] == ["plain 2", "caption 2"]
    assert any("application/vnd.jupyter.widget-view+json" in output.data for output in notebook.cells[0].outputs)

    (moved, rest), _ = executed(SHOW, "slider, menu = box.children\nslider.value = 3\nmenu.value = 'dotted'")
    assert [output.data["text/plain"] for output in moved] == ["dotted 3", "caption 3"]
    assert moved[0].metadata["text/plain"]["alt"] == "alt of dotted 3" and rest == []


def test_texts_make_a_menu_and_numbers_a_slider(capsys):
    def draw(tau=0.07, name="a"):
        print(f"drawn with {tau} {name}")

    box = widgets.live(draw, tau=[0.0123456, 0.07], name=["a", "b"])
    assert capsys.readouterr().out == "drawn with 0.07 a\n"  # outside IPython: once, for the defaults
    assert [type(control).__name__ for control in box.children] == ["SelectionSlider", "Dropdown"]
    assert [label for label, _ in box.children[0].options] == ["0.0123", "0.07"] and box.children[0].value == 0.07


def test_it_says_what_is_wrong():
    def draw(size=2):
        print(size)

    with pytest.raises(MmkitError, match="takes size, and there are choices for colour"):
        widgets.live(draw, colour=["red"])
    with pytest.raises(MmkitError, match="size=2 is none of its choices"):
        widgets.live(draw, size=[1, 3])


def test_a_draw_that_displays_nothing_is_refused():
    source = "from mmkit.teach import widgets\ntry:\n    widgets.live(lambda size=1: None, size=[1])\n"
    source += "except Exception as error:\n    print(type(error).__name__, error)"
    ((output,),), _ = executed(source)
    assert output.text.startswith("MmkitError") and "displayed nothing" in output.text
