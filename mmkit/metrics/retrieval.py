"""Recall at K, median rank and mean average precision of search in both directions, with several captions an image.

Legend: N images, M captions, D width. image: (N, D). text: (M, D). owner: (M,), the row of the image that a caption
describes. clusters: (N,), which images belong together, by default each by itself; a caption's cluster is its image's.
A candidate whose similarity ties with the right one's is placed before it.

Right is what `owner` says, whatever the texts are. Two images with the same caption: its two copies tie, so that an
image's own copy comes second at best, and its recall@1 is 0 unless another of its captions is first. Asked with that
caption, the other image counts as wrong. So captions that images share lower the scores of all models alike.
"""

import numpy as np
import torch
from torch import Tensor

from mmkit.core import ranks_both_ways, retrieval_ranks
from mmkit.errors import MmkitError
from mmkit.metrics.score import Score

KS = (1, 5, 10)
CHUNK = 4096  # captions ranked at once: bounds the memory


def retrieval_scores(
    image: Tensor, text: Tensor, owner: Tensor, *, ks: tuple[int, ...] = KS, clusters: np.ndarray | None = None
) -> dict[str, Score]:
    """Scores of image-to-text (`i2t`) and text-to-image (`t2i`) search; `recall@1` is the mean of both ways.

    An item of `recall@1` is an image with its captions. An image's rank is that of its best-placed caption, as in the
    field's protocol (Karpathy & Fei-Fei, arXiv 1412.2306). Raises MmkitError for an owner that is no image, ValueError
    (of `core`) for an image without a caption.
    """
    groups, ranks = _groups(image, owner, clusters), dict(zip(("i2t", "t2i"), ranks_both_ways(image, text, owner)))
    scores = {}
    for way, rank in ranks.items():
        for k in ks:
            scores[f"{way}/recall@{k}"] = Score((rank <= k).double().numpy(), groups[way])
        median = {"aggregate": "median", "higher_is_better": False}
        scores[f"{way}/median_rank"] = Score(rank.double().numpy(), groups[way], **median)
    per_image = _by_image((ranks["t2i"] <= 1).double(), owner, len(image))
    scores["recall@1"] = Score(((ranks["i2t"] <= 1).double() + per_image).numpy() / 2, groups["i2t"])
    return scores


def mean_average_precision(
    image: Tensor, text: Tensor, owner: Tensor, *, clusters: np.ndarray | None = None
) -> dict[str, Score]:
    """`i2t/map` and `t2i/map`: the mean over queries of average precision.

    The average precision of a query is the mean, over what it should find, of the precision at that score. With ties,
    too, it is what scikit-learn's `average_precision_score` gives. Raises as `retrieval_scores`.
    """
    groups, rows = _groups(image, owner, clusters), torch.arange(len(text))
    # The place of each caption among all of them, when its own image is the query.
    place = torch.cat([retrieval_ranks(image[owner[part]], text, part, rows) for part in rows.split(CHUNK)])
    first = owner * (len(text) + 1)
    ordered = (first + place).sort().values
    # How many captions of the same image are placed at or before it.
    right = torch.searchsorted(ordered, first + place, right=True) - torch.searchsorted(ordered, first)
    i2t = _by_image(right / place.double(), owner, len(image))
    t2i = 1 / retrieval_ranks(text, image, owner, torch.arange(len(image))).double()
    return {"i2t/map": Score(i2t.numpy(), groups["i2t"]), "t2i/map": Score(t2i.numpy(), groups["t2i"])}


def _groups(image: Tensor, owner: Tensor, clusters: np.ndarray | None) -> dict[str, np.ndarray]:
    if len(owner) and not 0 <= int(owner.min()) <= int(owner.max()) < len(image):
        found = f"a caption belongs to image {int(owner.max())} or {int(owner.min())}, and there are {len(image)}"
        raise MmkitError(f"{found}: number owners from 0 in the order of the images")
    clusters = np.arange(len(image)) if clusters is None else np.asarray(clusters)
    return {"i2t": clusters, "t2i": clusters[owner.numpy()]}


def _by_image(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """The mean over each image's captions, (N,)."""
    return torch.zeros(count, dtype=torch.float64).index_add_(0, owner, values) / torch.bincount(owner, minlength=count)
