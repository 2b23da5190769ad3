"""Each formula of the core in a few plain lines: read this first. The tests hold the fast code against it.

N pairs, D width of an embedding, T tokens, V words, Q queries, G gallery rows. Nothing here saves time or memory: the
whole matrix of scores is held. Nothing checks its input. In float64 the results are good to at least 7 digits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE of (N, D) unit vectors (Radford et al. 2021, "Learning Transferable Visual Models From Natural
    Language Supervision", arXiv 2103.00020, figure 3): the text of image i is class i, and the image of text i is."""
    logits = logit_scale * image @ text.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def sigmoid_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float = 0.0) -> Tensor:
    """Each of the N x N pairs is a yes-or-no question of its own (Zhai et al. 2023, "Sigmoid Loss for Language Image
    Pre-Training", arXiv 2303.15343, algorithm 1): labels are 1 on the diagonal and -1 elsewhere."""
    logits = logit_scale * image @ text.T + logit_bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of tokens (T, D) over the words (V, D) of an output layer. Label smoothing moves that share of
    the target's probability to all words alike (Szegedy et al. 2016, arXiv 1512.00567, section 7)."""
    kept = target != ignore_index
    log_p = F.linear(hidden[kept], weight, bias).log_softmax(1)
    wanted = (1 - label_smoothing) * F.one_hot(target[kept], len(weight)) + label_smoothing / len(weight)
    return -(wanted * log_p).sum() / max(1, len(log_p))


def scores(queries: Tensor, gallery: Tensor) -> Tensor:
    """The dot product of each query with each gallery row: (Q, G) in float64. Each is added in the same order, so that
    equal rows score equally to the last bit, which a matrix product does not promise."""
    return torch.stack([(query * gallery.double()).sum(1) for query in queries.double()])


def topk(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores (Q, k) and numbers (Q, k) of the k best gallery rows. A stable sort keeps the earlier of rows that tie."""
    values, rows = scores(queries, gallery).sort(dim=1, descending=True, stable=True)
    return values[:, :k], rows[:, :k]


def retrieval_ranks(queries: Tensor, gallery: Tensor, query_group: Tensor, gallery_group: Tensor) -> Tensor:
    """Rank (Q,) of the best gallery row of the query's own group: 1 + the wrong rows that score at least as high. So a
    wrong row that ties stands before it, and a constant model earns the worst rank."""
    all_scores, right = scores(queries, gallery), query_group[:, None] == gallery_group
    best = all_scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return 1 + ((all_scores >= best) & ~right).sum(1)


def gradient_cache(encode, chunks, loss_of) -> Tensor:
    """The gradient of the whole batch, as plain backpropagation adds it to `.grad`: GradCache (Gao et al. 2021, arXiv
    2101.06983) must give the same, with the activations of one chunk at a time. `encode` returns a tuple."""
    encoded = [encode(chunk) for chunk in chunks]
    loss = loss_of(*(torch.cat(parts) for parts in zip(*encoded)))
    loss.backward()
    return loss.detach()
