"""Exact ranks for retrieval, in chunks of queries, so that the whole score matrix is never held."""

import torch
from torch import Tensor


@torch.no_grad()
def retrieval_ranks(queries: Tensor, gallery: Tensor, query_group: Tensor, gallery_group: Tensor, *, chunk: int = 512) -> Tensor:
    """Rank (1 is best) of each query's best-placed positive, by counting what scores higher.

    queries (Q, D), gallery (G, D); a gallery row is a positive of a query when their groups (Q,), (G,) are equal, so that an
    image may have several captions. Wrong rows that tie with the best positive are counted before it: a constant model earns
    the worst rank, not the best. Returns (Q,) int64. Raises ValueError when there is no query, a query has no positive or a score is not finite.
    """
    if queries.shape[1:] != gallery.shape[1:] or len(queries) != len(query_group) or len(gallery) != len(gallery_group):
        raise ValueError(f"shapes do not match: queries {tuple(queries.shape)} with {len(query_group)} groups, gallery {tuple(gallery.shape)} with {len(gallery_group)} groups")
    if not len(queries):
        raise ValueError("retrieval_ranks needs at least one query")
    ranks = []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ gallery.T
        if not torch.isfinite(scores).all():
            raise ValueError("retrieval scores are not finite: the embeddings hold NaN or infinity")
        positive = query_group[start : start + chunk, None] == gallery_group[None, :]
        if not positive.any(1).all():
            raise ValueError(f"query {start + int((~positive.any(1)).nonzero()[0])} has no positive in the gallery")
        best = scores.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
        ranks.append(((scores >= best) & ~positive).sum(1) + 1)
    return torch.cat(ranks)
