"""Occlusion: hide a part of the input and see how the score falls (Zeiler and Fergus 2014, arXiv 1311.2901)."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.inference_mode()
def occlusion(
    score: Callable[[Tensor], Tensor], image: Tensor, background: Tensor, *, window: int = 12, step: int = 4
) -> Tensor:
    """How much hiding each pixel costs, (H, W): the fall of the score, summed over the squares that hide the pixel.

    score: images (B, C, H, W) -> (B,), such as a log-odds. image: (1, C, H, W) uint8. background: (C, H, W), what a
    hidden pixel shows instead: the mean image is no object of its own, a grey square would be. window: pixels a side
    of a square; step: pixels from one to the next."""
    height, width = image.shape[2:]
    places = [(y, x) for y in range(0, height - window + 1, step) for x in range(0, width - window + 1, step)]
    squares = torch.zeros(len(places), 1, height, width)
    for square, (y, x) in zip(squares, places):
        square[:, y : y + window, x : x + window] = 1
    hidden = torch.where(squares > 0, background, image).to(image.dtype)
    found = score(torch.cat([image, hidden]))
    fall = found[0] - found[1:]
    return (fall[:, None, None] * squares[:, 0]).sum(0)
