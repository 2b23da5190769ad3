"""Metrics that return their value and the per-item values that intervals need."""

from mmkit.metrics.captioning import caption_scores, caption_words
from mmkit.metrics.classification import (
    accuracy,
    at_threshold,
    auroc,
    average_precision,
    brier,
    calibration_error,
    threshold,
)
from mmkit.metrics.retrieval import mean_average_precision, retrieval_scores
from mmkit.metrics.score import Score

__all__ = [
    "Score",
    "accuracy",
    "at_threshold",
    "auroc",
    "average_precision",
    "brier",
    "calibration_error",
    "caption_scores",
    "caption_words",
    "mean_average_precision",
    "retrieval_scores",
    "threshold",
]
