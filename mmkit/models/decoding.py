"""Captions from a captioner: batched beam search with cached states; with one beam it is greedy.

Legend: N images, K beams, L words, T image tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmkit.errors import MmkitError
from mmkit.models.captioner import END, START, Captioner
from mmkit.models.multimodal import Inputs
from mmkit.models.text import UNKNOWN


class Beams(NamedTuple):
    """The K captions found for each image, best first: ids (N, K, L), padded with END; attention (N, K, L, T) of each
    word; score (N, K), the log-probability of words and end over their number to the power of the length penalty."""

    ids: Tensor
    attention: Tensor
    score: Tensor


@torch.inference_mode()
def beam_search(
    model: Captioner, inputs: Inputs, *, beams: int = 3, length_penalty: float = 0.5, length: int | None = None
) -> Beams:
    """The `beams` best captions of each image, at most `length` words long (default: the decoder's).

    Every step keeps the K best of all continuations by score, in which captions that have ended stay as they are; an
    image whose K captions have all ended is done. length_penalty: 0 compares log-probabilities, which favours short
    captions; 1 compares their mean over words (compare GNMT, arXiv 1609.08144). A word the vocabulary lacks is never
    said. Raises MmkitError for options out of range.
    """
    decoder, memory, state = model.head, model.eval().memory(inputs), None
    length = decoder.length if length is None else length
    _require_options(decoder.length, beams, length_penalty, length)
    active = torch.arange(len(memory[0]), device=memory[0].device)
    memory = [x.repeat_interleave(beams, 0) for x in memory]
    words, seen = active.new_full((len(active), beams, 1), START), None
    total = torch.full((len(active), beams), -torch.inf, device=active.device)
    size = active.new_zeros(len(active), beams)
    total[:, 0] = 0  # the other beams are copies of the first until its words differ
    ended, found = torch.zeros_like(size, dtype=torch.bool), None
    while len(active):
        step = decoder(words[..., -1].flatten()[:, None], memory, state)
        now = step.attention.unflatten(0, (-1, beams))
        seen = now if seen is None else torch.cat([seen, now], dim=2)
        found = found or Beams(
            words.new_full((*total.shape, length + 1), END),
            seen.new_zeros(*total.shape, length + 1, seen.shape[3]),
            torch.zeros_like(total),
        )
        chances = _chances(
            decoder.out(step.hidden[:, 0]).unflatten(0, (-1, beams)), ended, last=words.shape[2] > length
        )
        sums, size = total[..., None] + chances, size + ~ended
        score, best = (sums / size[..., None] ** length_penalty).flatten(1).topk(beams, dim=1)
        parent, word = best // chances.shape[2], (best % chances.shape[2]).masked_fill(score.isneginf(), END)
        total, words = sums.flatten(1).gather(1, best), torch.cat([_take(words, parent), word[..., None]], dim=2)
        size, seen, ended = _take(size, parent), _take(seen, parent), word == END
        over, going = ended.all(1), (~ended.all(1)).nonzero()[:, 0]
        found.ids[active[over], :, : seen.shape[2]], found.attention[active[over], :, : seen.shape[2]] = (
            words[over, :, 1:],
            seen[over],
        )
        found.score[active[over]] = score[over]
        rows = (parent + beams * torch.arange(len(parent), device=parent.device)[:, None])[going].flatten()
        state, memory = [x[rows] for x in step.state], [x[rows] for x in memory] if over.any() else memory
        words, total, size, seen, ended, active = (x[going] for x in (words, total, size, seen, ended, active))
    longest = int((found.ids != END).sum(2).max())
    return Beams(found.ids[..., :longest], found.attention[:, :, :longest], found.score)


def _require_options(longest: int, beams: int, length_penalty: float, length: int) -> None:
    if not 1 <= length <= longest or beams < 1 or length_penalty < 0:
        needs = f"beam search needs 1 <= length <= {longest}, beams >= 1 and length_penalty >= 0"
        raise MmkitError(f"{needs}, got {length}, {beams} and {length_penalty}")


def _chances(logits: Tensor, ended: Tensor, *, last: bool) -> Tensor:
    """Log-probabilities (N, K, V) of the next word; after an end only END, for nothing; after the last word only END,
    at its price."""
    logits = logits.float()
    logits[..., [UNKNOWN, START]] = -torch.inf
    chances = torch.log_softmax(logits, -1)
    if last:
        chances[..., END + 1 :] = -torch.inf
    chances[ended] = -torch.inf
    chances[..., END].masked_fill_(ended, 0)
    return chances


def _take(x: Tensor, parent: Tensor) -> Tensor:
    """Row n, beam k of the result is beam parent[n, k] of row n."""
    return x[torch.arange(len(x), device=x.device)[:, None], parent]
