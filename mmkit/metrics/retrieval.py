"""Recall at K and median rank, both directions, several captions an image."""

import torch
from torch import Tensor

from mmkit.core import retrieval_ranks
from mmkit.metrics.score import Score

KS = (1, 5, 10)


def retrieval_scores(image: Tensor, text: Tensor, owner: Tensor, *, ks: tuple[int, ...] = KS) -> dict[str, Score]:
    """Scores of image-to-text (`i2t`) and text-to-image (`t2i`) search, and `recall@1`, the mean of both directions' R@1 an image.

    image (N, D), text (M, D), owner (M,): text j describes image owner[j]. An image's rank is that of its best-placed caption,
    as in the field's protocol (Karpathy & Fei-Fei, arXiv 1412.2306). The cluster of every item is its image.
    """
    rows = torch.arange(len(image))
    ranks = {"i2t": retrieval_ranks(image, text, rows, owner), "t2i": retrieval_ranks(text, image, owner, rows)}
    clusters = {"i2t": rows, "t2i": owner}
    scores = {}
    for way, rank in ranks.items():
        for k in ks:
            scores[f"{way}/recall@{k}"] = Score((rank <= k).double().numpy(), clusters[way].numpy())
        scores[f"{way}/median_rank"] = Score(rank.double().numpy(), clusters[way].numpy(), aggregate="median", higher_is_better=False)
    hits = (ranks["t2i"] <= 1).double()
    per_image = torch.zeros(len(image), dtype=torch.float64).index_add_(0, owner, hits) / torch.bincount(owner, minlength=len(image))
    scores["recall@1"] = Score(((ranks["i2t"] <= 1).double() + per_image).numpy() / 2, rows.numpy())
    return scores
