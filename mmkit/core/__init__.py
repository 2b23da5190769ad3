"""Objectives and exact search that need no other room of mmkit."""

from mmkit.core.contrastive import contrastive_loss
from mmkit.core.retrieval import retrieval_ranks

__all__ = ["contrastive_loss", "retrieval_ranks"]
