"""Exact search in chunks of queries: the whole score matrix is never held. Legend: Q queries, G gallery rows, D width.

Scores are the float64 dot products of the given numbers. They are computed in the type of the input (float32 at least).
Only pairs that its rounding leaves open are computed again in float64, one dot product each, so that equal rows tie
exactly.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mmkit.core.backend import PAD, choose, wide
from mmkit.core.workers import one_thread, shared, slices, strips, threads, tiles

CACHED = 2**19  # scores that are counted at once, in the second-level cache
CROWDED = 0.02  # share of open pairs in a chunk from which one float64 product is cheaper than a dot product each


@torch.no_grad()
@one_thread()
def retrieval_ranks(
    queries: Tensor, gallery: Tensor, query_group: Tensor, gallery_group: Tensor, *, chunk: int = 256, backend="auto"
) -> Tensor:
    """Rank (1 is best) of each query's best-placed positive, by counting what scores higher: (Q,) int64.

    queries (Q, D), gallery (G, D). A gallery row is a positive of a query when their groups (Q,), (G,) are equal, so
    that an image may have several captions. Wrong rows that tie with the best positive count as before it: a constant
    model earns the worst rank, not the best. `chunk`, the number of queries at a time, changes time and memory only.
    Raises ValueError when there is no query, when a query has no positive, or when a score is not finite.
    """
    _check("retrieval_ranks", queries, gallery)
    if len(queries) != len(query_group) or len(gallery) != len(gallery_group):
        sides = (("queries", queries, query_group), ("gallery", gallery, gallery_group))
        said = ", ".join(f"{name} {tuple(x.shape)} with {len(groups)} groups" for name, x, groups in sides)
        raise ValueError(f"shapes do not match: {said}")
    order = gallery_group.argsort(stable=True)
    ordered = gallery_group[order]
    first, last = (torch.searchsorted(ordered, query_group.contiguous(), right=right) for right in (False, True))
    lonely = (first == last).nonzero()
    if len(lonely):
        raise ValueError(f"query {int(lonely[0])} has no positive in the gallery")

    def positives(part: slice) -> tuple[Tensor, Tensor]:
        """Rows within the part and gallery rows of its positive pairs."""
        counts = last[part] - first[part]
        rows = torch.arange(len(counts), device=queries.device).repeat_interleave(counts)
        within = torch.arange(len(rows), device=queries.device) - (counts.cumsum(0) - counts)[rows]
        return rows, order[within + first[part][rows]]

    if choose(queries, backend).name == "triton":
        owners = torch.searchsorted(ordered, gallery_group.contiguous())
        ranks, unsure = _counted(queries, gallery, positives(slice(None)), first, owners)
        if len(unsure):  # these go the way below
            again = queries[unsure], gallery, query_group[unsure], gallery_group
            ranks[unsure] = retrieval_ranks(*again, chunk=chunk, backend="torch")
        return ranks
    ranks = torch.empty(len(queries), dtype=torch.int64, device=queries.device)

    def rank(part: slice, scores: Tensor, error: Tensor) -> None:
        ranks[part] = _ranks(queries[part], gallery, scores, error, *positives(part))

    _by_chunks(queries, gallery, chunk, rank)
    return ranks


def _counted(
    queries: Tensor, gallery: Tensor, positives: tuple[Tensor, Tensor], owner: Tensor, owners: Tensor
) -> tuple[Tensor, Tensor]:
    """Ranks by the kernel, and the queries whose rank the rounding of its scores leaves open.

    owner (Q,), owners (G,): numbers of the groups.
    """
    from mmkit.core.kernels.ranks import counts

    best = torch.full((len(queries),), -torch.inf, dtype=torch.float64, device=queries.device)
    best.scatter_reduce_(0, positives[0], _dots(queries, gallery, *positives), "amax")
    error = 4 * _rounding(queries, gallery, torch.float32)  # tensor cores cut off where others round
    maybe, surely = counts(queries, gallery, best - error, best + error, owner, owners)
    return surely + 1, (maybe > surely).nonzero()[:, 0]


@torch.no_grad()
@one_thread()
def ranks_both_ways(image: Tensor, text: Tensor, owner: Tensor, *, tile: int = 1024) -> tuple[Tensor, Tensor]:
    """Ranks (N,) of each image's best text and (M,) of each text's image: `retrieval_ranks` both ways from one product.

    image (N, D), text (M, D); text j belongs to image owner[j]. `tile` is the side of a tile of scores and changes time
    and memory only. Raises ValueError as `retrieval_ranks` does, also for an image without a text.
    """
    rows, texts = torch.arange(len(image), device=image.device), torch.arange(len(text), device=text.device)
    known = image.shape[1:] == text.shape[1:] and len(owner) == len(text)
    known = known and bool(torch.bincount(owner, minlength=len(image)).bool().all())
    ranks = _both_ways(image, text, owner, texts, tile) if known and choose(image).name == "torch" else None
    return ranks or (retrieval_ranks(image, text, rows, owner), retrieval_ranks(text, image, owner, rows))


def _both_ways(image: Tensor, text: Tensor, owner: Tensor, texts: Tensor, tile: int) -> tuple[Tensor, Tensor] | None:
    """Ranks by counting what reaches the right pairs' float64 scores, tile by tile.

    None where too many pairs lie too near to tell.
    """
    kind, right = wide(image.dtype), _dots(text, image, texts, owner)
    best = right.new_full((len(image),), -torch.inf).scatter_reduce_(0, owner, right, "amax")
    error, text_error = _rounding(image, text, kind), _rounding(text, image, kind)
    i2t, t2i = torch.ones(len(image), dtype=torch.int64, device=image.device), torch.ones_like(texts)
    crowded = []

    def count(buffer: Tensor, i: slice, j: slice) -> None:
        if crowded:
            return
        some, others, owners = image[i], text[j], owner[j]
        scores = torch.mm(some.to(kind), others.to(kind).T, out=buffer[: len(some), : len(others)])
        columns = ((owners >= i.start) & (owners < i.stop)).nonzero()[:, 0]
        scores[owners[columns] - i.start, columns] = -torch.inf  # what is left are the wrong pairs
        across = _ahead(scores, best[i], error[i], partial(_reaches, some, others, best[i]))
        down = _ahead(scores.T, right[j], text_error[j], partial(_reaches, others, some, right[j]))
        if across is None or down is None:
            crowded.append((i, j))
            return
        i2t[i] += across
        t2i[j] += down

    room = min(tile, len(image)), min(tile, len(text)) + PAD
    grid = tiles(len(image), len(text), tile)
    shared(image.device, count, grid, adds_to=strips, scratch=lambda: (image.new_empty(room, dtype=kind),))
    return None if crowded else (i2t, t2i)


def _ranks(queries: Tensor, gallery: Tensor, scores: Tensor, error: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Ranks of one chunk from its scores, which are changed.

    (rows, columns) are its positive pairs; `error` (chunk,) bounds the rounding of the scores.
    """
    best = scores.new_full((len(queries),), -torch.inf).scatter_reduce_(0, rows, scores[rows, columns], "amax")
    scores[rows, columns] = -torch.inf  # what is left are the wrong rows

    def reaches(i: Tensor, j: Tensor) -> Tensor:
        exact = torch.full((len(queries),), -torch.inf, dtype=torch.float64, device=queries.device)
        exact.scatter_reduce_(0, rows, _dots(queries, gallery, rows, columns), "amax")
        return _reaches(queries, gallery, exact, i, j)

    ahead = _ahead(scores, best, 2 * error, reaches)
    if ahead is None:
        queries, gallery = queries.double(), gallery.double()
        error = _rounding(queries, gallery, torch.float64)
        return _ranks(queries, gallery, queries @ gallery.T, error, rows, columns)
    return ahead + 1


def _reaches(queries: Tensor, gallery: Tensor, bar: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Whether pair (i, j) scores at least bar[i], by float64 dot products."""
    return _dots(queries, gallery, i, j) >= bar[i]


def _ahead(scores: Tensor, bar: Tensor, error: Tensor, reaches: Callable) -> Tensor | None:
    """How many scores of each row (n, m) reach its bar (n,), where they are right within `error` (n,).

    reaches(i, j) settles the pairs that this leaves open. None when those are so many that one float64 product is
    cheaper.
    """
    low, high = ((bar + sign * error)[:, None].to(scores.dtype) for sign in (-1, 1))
    slab = max(1, CACHED // scores.shape[1]) if scores.device.type == "cpu" else len(scores)
    counts, open_pairs = [], 0
    for start in range(0, len(scores), slab):
        part, bottom, top = (x[start : start + slab] for x in (scores, low, high))
        surely, maybe = _count(part, top), _count(part, bottom)
        doubtful = (maybe > surely).nonzero()[:, 0]
        if len(doubtful):
            open_pairs += int((maybe - surely).sum())
            if open_pairs > CROWDED * scores.numel() and scores.dtype != torch.float64:
                return None
            near = part[doubtful]
            i, j = ((near >= bottom[doubtful]) & (near < top[doubtful])).nonzero(as_tuple=True)
            i = doubtful[i]
            surely += torch.bincount(i[reaches(i + start, j)], minlength=len(part))
        counts.append(surely)
    return torch.cat(counts)


def _count(scores: Tensor, bar: Tensor) -> Tensor:
    """How many scores of each row reach its bar.

    Ones in the scores' own type are summed: faster than counting truth values, and exact below 2^24.
    """
    return torch.ge(scores, bar, out=torch.empty_like(scores)).sum(1).long()


@torch.no_grad()
@one_thread()
def topk(queries: Tensor, gallery: Tensor, k: int, *, chunk: int = 256, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """The k gallery rows that score highest for each query, best first: scores (Q, k) in float64 and rows (Q, k).

    queries (Q, D), gallery (G, D). Of rows that tie the earlier comes first. Raises ValueError unless 1 <= k <= G, or
    when a score is not finite.
    """
    _check("topk", queries, gallery)
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k={k} does not lie between 1 and the {len(gallery)} rows of the gallery")
    if backend == "triton":
        raise ValueError("topk has no Triton kernel; pass backend='auto' or 'torch'")
    choose(queries, "torch" if backend == "auto" else backend)
    found = {}

    def best(part: slice, scores: Tensor, error: Tensor) -> None:
        bar = scores.topk(k, 1).values[:, -1:] - 2 * error[:, None]
        rows, columns = (scores >= bar).nonzero(as_tuple=True)  # candidates, in order of rows and columns
        exact = _dots(queries[part], gallery, rows, columns)
        by_score = exact.argsort(descending=True, stable=True)
        order = by_score[rows[by_score].argsort(stable=True)]
        counts = torch.bincount(rows, minlength=len(scores))
        keep = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(k, device=queries.device)]
        found[part.start] = exact[keep], columns[keep]

    _by_chunks(queries, gallery, chunk, best)
    values, indices = zip(*(found[start] for start in sorted(found)))
    return torch.cat(values), torch.cat(indices)


def _check(name: str, queries: Tensor, gallery: Tensor) -> None:
    if queries.ndim != 2 or queries.shape[1:] != gallery.shape[1:]:
        shapes = f"{tuple(queries.shape)} and {tuple(gallery.shape)}"
        raise ValueError(f"shapes do not match: {name} needs queries (Q, D) and a gallery (G, D), got {shapes}")
    if not len(queries):
        raise ValueError(f"{name} needs at least one query")
    if queries.dtype != gallery.dtype or not queries.is_floating_point() or queries.device != gallery.device:
        kinds = f"{queries.dtype} on {queries.device} and {gallery.dtype} on {gallery.device}"
        raise ValueError(f"{name} needs floating-point tensors of one type and device, got {kinds}")


def _by_chunks(queries: Tensor, gallery: Tensor, chunk: int, work: Callable) -> None:
    """Calls work(slice, scores, bound on their rounding error) for parts of the queries; threads share out a chunk."""
    kind = wide(queries.dtype)
    error, queries, gallery = _rounding(queries, gallery, kind), queries.to(kind), gallery.to(kind)
    rows = max(1, min(chunk, len(queries)) // threads(queries.device))

    def score(buffer: Tensor, part: slice) -> None:
        work(part, torch.mm(queries[part], gallery.T, out=buffer[: part.stop - part.start]), error[part])

    tasks = [(part,) for part in slices(len(queries), rows)]
    shared(queries.device, score, tasks, scratch=lambda: (queries.new_empty(rows, len(gallery)),))


def _rounding(queries: Tensor, gallery: Tensor, kind: torch.dtype) -> Tensor:
    """Bound (Q,) on the rounding error of scores summed in `kind`. Raises ValueError when a norm is not finite."""
    # |computed - exact| <= D u |q| |g| (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Twice
    # that leaves room for the rounding of the norms themselves.
    unit = torch.finfo(kind).eps * (queries.shape[1] + 2)
    error = unit * queries.norm(dim=1, dtype=kind) * gallery.norm(dim=1, dtype=kind).max()
    if not bool(error.isfinite().all()):
        raise ValueError("retrieval scores are not finite: the embeddings hold NaN or infinity")
    return error


def _dots(queries: Tensor, gallery: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """float64 dot products of pairs, each added in the same order, so that equal rows score equally."""
    strip = 1024 if queries.device.type == "cpu" else 8192
    strips = zip(rows.split(strip), columns.split(strip))
    return torch.cat([(queries[i].double() * gallery[j].double()).sum(1) for i, j in strips])
