"""Training by composition: batches, parameter groups, objectives, hooks and a visible loop; seeds with separate
streams; what training cost."""

from mmkit.models.encode import encode_all
from mmkit.training.batch import Batch, Batches, Loader, RowBatches, View, batches
from mmkit.training.checkpoint import Checkpoint
from mmkit.training.cost import Cost, Phase, flops_of, forget_peak, peak_bytes
from mmkit.training.device import device
from mmkit.training.groups import EVERYTHING, Group, layerwise, parameter_groups
from mmkit.training.hooks import EarlyStopping, Losses, RankAllocation, Unfreeze, WeightAverage
from mmkit.training.loop import State, train
from mmkit.training.objectives import Objective, adversarial, cross_entropy, distilled, multi_task, mutual
from mmkit.training.schedules import constant, warmup_constant, warmup_cosine
from mmkit.training.seeds import choose, seeded, stream
from mmkit.training.views import array_view, cut, text_view

__all__ = [
    "EVERYTHING",
    "Batch",
    "Batches",
    "Checkpoint",
    "Cost",
    "EarlyStopping",
    "Group",
    "Loader",
    "Losses",
    "Objective",
    "Phase",
    "RankAllocation",
    "RowBatches",
    "State",
    "Unfreeze",
    "View",
    "WeightAverage",
    "adversarial",
    "array_view",
    "batches",
    "choose",
    "constant",
    "cross_entropy",
    "cut",
    "device",
    "distilled",
    "encode_all",
    "flops_of",
    "forget_peak",
    "layerwise",
    "multi_task",
    "mutual",
    "parameter_groups",
    "peak_bytes",
    "seeded",
    "stream",
    "text_view",
    "train",
    "warmup_constant",
    "warmup_cosine",
]
