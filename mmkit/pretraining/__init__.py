"""What an encoder can learn from its own modality, before it meets a pair; and what a linear reader finds in it."""

from mmkit.pretraining.pretext import (
    Contrast,
    MaskedLanguageModel,
    NextWord,
    Part,
    Reconstruction,
    Supervised,
    pretrain,
)
from mmkit.pretraining.probe import linear_probe

__all__ = [
    "Contrast",
    "MaskedLanguageModel",
    "NextWord",
    "Part",
    "Reconstruction",
    "Supervised",
    "linear_probe",
    "pretrain",
]
