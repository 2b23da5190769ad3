"""The visible training loop, seeds with separate streams, and what training cost."""

from mmkit.training.cost import Cost, Phase, flops_of, forget_peak, peak_bytes
from mmkit.training.device import device
from mmkit.training.inputs import Inputs, encode_all
from mmkit.training.loop import batches, train, warmup_cosine
from mmkit.training.seeds import choose, seeded, stream

__all__ = [
    "Cost", "Inputs", "Phase", "batches", "choose", "device", "encode_all", "flops_of", "forget_peak", "peak_bytes", "seeded", "stream", "train",
    "warmup_cosine",
]
