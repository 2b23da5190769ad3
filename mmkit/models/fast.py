"""A frozen image encoder on a CPU, computed by ONNX Runtime where that is installed: the same features in a third of
PyTorch's time."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from mmkit.data import cached
from mmkit.models.pretrained import EfficientNetLite0

FEWEST = 1000  # images from which the export, 15 s for weights that were not met before, is worth it
TOLERANCE = 1e-3  # relative difference of the maps that is still the same encoder


@contextmanager
def quick(encoder: nn.Module, count: int) -> Iterator[str]:
    """Within the block an `EfficientNetLite0` on a CPU takes its maps from ONNX Runtime, if it is to encode `count` >=
    1000 images. Yields what computes them, with the reason; prints it where there was a choice. Falls back to
    PyTorch when ONNX Runtime is missing or its maps differ."""
    if not isinstance(encoder, EfficientNetLite0) or next(encoder.parameters()).device.type != "cpu" or count < FEWEST:
        yield "PyTorch: the other way is for many images, an EfficientNet-Lite0 and a CPU"
        return
    missing = [name for name in ("onnxruntime", "onnxscript") if not find_spec(name)]
    said = f"PyTorch: {' and '.join(missing)} not installed, pip install -e '.[fast]'"
    if not missing:
        maps, error = _session(encoder), 0.0
        with torch.inference_mode():
            x = torch.rand(2, 3, encoder.size, encoder.size) * 2 - 1
            expected = encoder.maps(x)
            error = float((maps(x) - expected).norm() / expected.norm())
        if error < TOLERANCE:
            encoder.maps = maps  # on the object, in front of the method
            said = f"ONNX Runtime: relative difference from PyTorch {error:.0e}"
        else:
            said = f"PyTorch: ONNX Runtime's maps differ from it by {error:.0e}"
    print(f"image encoder by {said}")
    try:
        yield said
    finally:
        vars(encoder).pop("maps", None)


def _session(encoder: EfficientNetLite0):
    """The encoder's body, (B, 3, S, S) to (B, D, H, W), as ONNX Runtime runs it. The exported network is kept in the
    cache by its weights."""
    import onnxruntime

    weights = hashlib.sha256(
        b"".join(x.contiguous().numpy().tobytes() for x in encoder.body.state_dict().values())
    ).hexdigest()
    versions = {name: metadata.version(name) for name in ("torch", "timm", "onnxscript")}
    network = cached(
        {"what": "onnx", "weights": weights, "size": encoder.size, **versions}, lambda: {"network": _exported(encoder)}
    )["network"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(network.numpy().tobytes(), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.contiguous().numpy()})[0])


class _Maps(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body.forward_features(x)


def _exported(encoder: EfficientNetLite0) -> Tensor:
    """The bytes of the network, any number of images of the encoder's size: uint8."""
    x = torch.zeros(2, 3, encoder.size, encoder.size)
    file = io.BytesIO()
    torch.onnx.export(
        _Maps(encoder.body).eval(), (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    ).save(file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
