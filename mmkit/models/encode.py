"""Features of frozen encoders: every input once."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmkit.errors import MmkitError
from mmkit.models.encoded import Encoded, encode_in_order
from mmkit.models.fast import quick


@torch.inference_mode()
def encode_all(
    encoder: nn.Module,
    count: int,
    take: Callable[[Tensor], Tensor],
    *,
    tokens: bool,
    half: bool = False,
    batch: int | None = None,
) -> Encoded:
    """`encoder` over `count` inputs, in order, on the CPU afterwards.

    take: positions (B,) -> raw input. tokens: False keeps only the summaries. half: tokens are kept in half
    precision. batch: None takes 16 on a CPU, where a small batch stays in its caches, and 256 elsewhere. Raises
    MmkitError when a feature is not finite, saying which."""
    encoder.eval()
    batch = batch or (16 if next(encoder.parameters()).device.type == "cpu" else 256)
    parts = []
    with quick(encoder, count):
        for start in range(0, count, batch):
            out = encoder(take(torch.arange(start, min(start + batch, count))))
            _require_finite(encoder, out, start, count)
            if not tokens:
                out = Encoded(out.tokens[:, :0], out.mask[:, :0], out.summary)
            elif half:
                out = Encoded(out.tokens.half(), out.mask, out.summary)
            parts.append(Encoded(*(part.cpu() for part in out)))
    return encode_in_order(parts)


def _require_finite(encoder: nn.Module, out: Encoded, start: int, count: int) -> None:
    bad = (~torch.isfinite(out.summary)).any(1)
    if bad.any():
        which = f"input {start + int(bad.nonzero()[0])} of {count}"
        kind = type(encoder).__name__
        raise MmkitError(
            f"the features of {which} are not finite (encoder {kind}): look for damage in that input or NaN in the "
            "weights"
        )
