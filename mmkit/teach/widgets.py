"""A figure with controls. With a kernel they redraw it in place; without one the page keeps its first drawing."""

import inspect
from collections.abc import Callable, Iterable

import ipywidgets
from IPython import get_ipython
from IPython.display import display
from IPython.utils.capture import capture_output

from mmkit.errors import MmkitError


def live(draw: Callable[..., None], **choices: Iterable) -> ipywidgets.VBox:
    """Show what `draw` displays for its defaults, and under it one control for each of `choices`. Returns the controls.

    draw: each parameter has a default, and an entry in `choices`: the values that it may take. Texts make a menu, the
    rest a slider. The figure is an output of the cell itself, so that a page without a kernel keeps it. Outside IPython
    `draw` runs once. Raises MmkitError for a parameter without choices, for a default that is none of them, and for a
    `draw` that displays nothing.
    """
    values = {name: parameter.default for name, parameter in inspect.signature(draw).parameters.items()}
    if values.keys() != choices.keys():
        found = f"{draw.__name__} takes {', '.join(values)}, and there are choices for {', '.join(choices)}"
        raise MmkitError(f"live: {found}: give each parameter its own")
    controls = {name: _control(name, list(choices[name]), value) for name, value in values.items()}
    box = ipywidgets.VBox(list(controls.values()))
    if get_ipython() is None:
        draw(**values)
        return box
    handles = [display(data, metadata=metadata, raw=True, display_id=True) for data, metadata in _drawn(draw, values)]

    def redraw(_change) -> None:
        now = _drawn(draw, {name: control.value for name, control in controls.items()})
        for handle, (data, metadata) in zip(handles, now, strict=True):
            handle.update(data, metadata=metadata, raw=True)

    for control in controls.values():
        control.observe(redraw, names="value")
    display(box)
    return box


def _drawn(draw: Callable[..., None], values: dict) -> list[tuple[dict, dict]]:
    """The data and the metadata of each output that `draw(**values)` displays."""
    with capture_output() as captured:
        draw(**values)
    if not captured.outputs:
        raise MmkitError(f"live: {draw.__name__} displayed nothing for {values}: end it with plots.figure or display")
    return [(output.data, output.metadata or {}) for output in captured.outputs]


def _control(name: str, options: list, value) -> ipywidgets.DOMWidget:
    if value not in options:
        raise MmkitError(f"live: the default {name}={value!r} is none of its choices {options}: take one of them")
    labelled = [(f"{option:.3g}" if isinstance(option, float) else str(option), option) for option in options]
    kind = ipywidgets.Dropdown if all(isinstance(option, str) for option in options) else ipywidgets.SelectionSlider
    style = {"description_width": "initial"}
    return kind(options=labelled, value=value, description=name.replace("_", " "), style=style)
