"""Metrics that return their value and the per-item values that intervals need."""

from mmkit.metrics.classification import accuracy
from mmkit.metrics.retrieval import retrieval_scores
from mmkit.metrics.score import Score

__all__ = ["Score", "accuracy", "retrieval_scores"]
