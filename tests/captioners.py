"""A captioner with opinions, and images for it, for the tests of captioning."""

import torch

from mmkit.models import CNN
from mmkit.models.captioner import DECODERS, END, Captioner
from mmkit.training import stream


def captioner(kind, *, words=9, dim=16, length=7, seed=0, **options):
    """A captioner with random weights large enough that it has opinions."""
    torch.manual_seed(seed)
    model = Captioner("image", CNN(), DECODERS[kind](words, dim=dim, length=length, **options)).eval()
    with torch.no_grad():
        for part in (model.fusion.tokens, model.fusion.summary):
            part[-1].weight.mul_(6)
        model.head.out.weight.mul_(6)
        model.head.out.bias[END] += 1.5
    return model


def images(count, seed=0):
    """Inputs of blocks of random colours: noise would look the same everywhere."""
    blocks = torch.randint(0, 256, (count, 3, 2, 2), dtype=torch.uint8, generator=stream(seed, "images"))
    return {"image": blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)}


def one(row, count):
    """Inputs of one of them."""
    return {"image": images(count)["image"][row : row + 1]}
