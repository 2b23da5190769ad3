"""A large batch of negatives in the memory of a small one (GradCache, Gao et al. 2021, arXiv 2101.06983)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradient_cache(encode: Callable, chunks: Sequence, loss_of: Callable[..., Tensor]) -> Tensor:
    """The loss of all chunks as one batch. Adds its gradients to `.grad`, holding one chunk's activations at a time.

    encode(chunk) -> embeddings of the chunk, one tensor (n, ...) or several. loss_of(*embeddings of all) -> scalar,
    such as `contrastive_loss` with the model's own scale. Each chunk is encoded twice. The second pass replays
    torch's random state, so that dropout draws the same masks. Batch statistics are those of a chunk. Under
    DistributedDataParallel call it inside `model.no_sync()` and then `average_gradients`. Raises ValueError without
    chunks, and RuntimeError when the second pass gives other embeddings: the model draws from a generator of its own,
    or changes a state that it reads.
    """
    if not len(chunks):
        raise ValueError("gradient_cache needs at least one chunk")
    states, first = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            first.append(_as_tuple(encode(chunk)))
    leaves = [torch.cat(parts).requires_grad_() for parts in zip(*first)]
    loss = loss_of(*leaves)
    loss.backward()
    sizes = [len(embeddings[0]) for embeddings in first]
    gradients = zip(*(leaf.grad.split(sizes) for leaf in leaves))
    for number, (chunk, state, before, gradient) in enumerate(zip(chunks, states, first, gradients)):
        with torch.random.fork_rng(devices=list(range(len(state[1])))):
            torch.set_rng_state(state[0])
            for device, cuda in enumerate(state[1]):
                torch.cuda.set_rng_state(cuda, device)
            again = _as_tuple(encode(chunk))
        for old, new in zip(before, again):
            if not torch.allclose(old, new.detach(), rtol=1e-2, atol=1e-3 * float(old.abs().max())):
                remedy = "draw from torch's global random state only"
                raise RuntimeError(f"chunk {number} of gradient_cache encodes differently the second time: {remedy}")
        torch.autograd.backward(again, gradient)
    return loss.detach()


def _as_tuple(embeddings) -> tuple[Tensor, ...]:
    return (embeddings,) if isinstance(embeddings, Tensor) else tuple(embeddings)


def _random_state() -> tuple[Tensor, list[Tensor]]:
    """Of the CPU and of each GPU in use."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpu else []
