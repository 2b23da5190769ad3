"""Objectives and exact search that need no other room of mmkit and never hold a matrix of all pairs.

`reference` has each formula in a few plain lines: start there.
"""

from mmkit.core import reference
from mmkit.core.backend import Choice, choose
from mmkit.core.contrastive import contrastive_loss
from mmkit.core.distributed import average_gradients
from mmkit.core.gradient_cache import gradient_cache
from mmkit.core.linear_cross_entropy import linear_cross_entropy
from mmkit.core.ranks import ranks_both_ways, retrieval_ranks, topk
from mmkit.core.sigmoid import sigmoid_loss

__all__ = ["Choice", "average_gradients", "choose", "contrastive_loss", "gradient_cache", "linear_cross_entropy"]
__all__ += ["ranks_both_ways", "reference", "retrieval_ranks", "sigmoid_loss", "topk"]
