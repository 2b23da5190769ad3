"""`pytest -p nbval_strict --nbval ...`: what nbval compares of each output of each cell, and how its kernels talk.

cell tagged              outputs                             text           figures         standard error
nbval-check-output       which kinds, and how many           as it is       size in pixels  none
(neither)                which kinds, and how many           that there is  size in pixels  none
nbval-ignore-output      not compared, the cell only runs    -              -               -

Text that hangs on training differs between platforms, and what was cached is not said to be made again, so outside
`nbval-check-output` text is not compared; trained numbers are held by the tests against records. The pixels of a
figure hang on fonts; its size does not. Kernels use unix sockets: TCP ports race.
"""

import base64
import struct

import nbval.kernel
import nbval.plugin
from nbformat import NotebookNode

from mmkit.notebooks import BlockingIpcKernelManager

SOME = "some text"
PNG = b"\x89PNG\r\n\x1a\n"


def _pixels(png: str) -> str:
    data = base64.b64decode(png)
    if not data.startswith(PNG):
        return "no PNG"
    across, down = struct.unpack(">II", data[16:24])
    return f"{across} x {down} pixels"


def _outline(output: NotebookNode, exact: bool) -> NotebookNode:
    """An output as it is compared. nbval leaves `image/png` out, so the size of a figure goes under a name of its
    own."""
    compared = NotebookNode(output)
    if output.output_type == "stream" and not exact:
        compared.text = SOME
    if "data" in output:
        compared.data = NotebookNode({kind: value if exact else SOME for kind, value in output.data.items()})
        if "image/png" in output.data:
            compared.data["figure"] = _pixels(output.data["image/png"])
    return compared


_compare_outputs = nbval.plugin.IPyNbCell.compare_outputs


def _compare_outlines(self, test, ref, skip_compare=None):
    exact = "nbval-check-output" in self.cell.metadata.get("tags", [])
    return _compare_outputs(
        self, [_outline(output, exact) for output in test], [_outline(output, exact) for output in ref], skip_compare
    )


nbval.plugin.IPyNbCell.compare_outputs = _compare_outlines
nbval.kernel.KernelManager = BlockingIpcKernelManager
