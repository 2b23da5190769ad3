"""Image encoders small enough for two cores. Each takes uint8 pixels (B, 3, H, W) and scales them itself."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.errors import MmkitError
from mmkit.models.encoded import Encoded
from mmkit.models.layers import Transformer


def scaled(pixels: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W) -> float (B, 3, size, size) in [-1, 1], averaged down where the image is larger."""
    x = torch.div(pixels, 127.5).sub_(1)
    return (
        x
        if x.shape[-2:] == (size, size)
        else F.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    )


class CNN(nn.Module):
    """Convolutions down to a 4 x 4 grid of tokens; the summary is a linear map of the whole grid, so it knows where
    things are.

    size: a power of two, at least 16; larger images are averaged down to it."""

    def __init__(self, *, size: int = 32, width: int = 32, dim: int = 64, summary_dim: int = 128):
        super().__init__()
        if size < 16 or size & (size - 1):
            raise MmkitError(f"size={size} does not suit the CNN: give a power of two from 16 on, for example 32 or 64")
        self.size, self.dim, self.summary_dim = size, dim, summary_dim
        layers = [nn.Conv2d(3, width, 4, stride=4), nn.GroupNorm(4, width), nn.ReLU()]
        channels, side = width, size // 4
        while side > 4:
            layers += [nn.Conv2d(channels, dim, 3, stride=2, padding=1), nn.GroupNorm(4, dim), nn.ReLU()]
            channels, side = dim, side // 2
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, dim, 1))
        self.to_summary = nn.Linear(16 * dim, summary_dim)

    def forward(self, pixels: Tensor) -> Encoded:
        tokens = self.body(scaled(pixels, self.size)).flatten(2).transpose(1, 2)
        return Encoded(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), self.to_summary(tokens.flatten(1)))


class ViT(nn.Module):
    """A Vision Transformer (arXiv 2010.11929): patches as tokens, learned positions, the mean token as summary."""

    def __init__(self, *, size: int = 32, patch: int = 8, dim: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.size, self.dim, self.summary_dim = size, dim, dim
        self.patches = nn.Conv2d(3, dim, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2, dim) * 0.02)
        self.body = Transformer(dim, layers, heads)

    def forward(self, pixels: Tensor) -> Encoded:
        tokens = self.body(self.patches(scaled(pixels, self.size)).flatten(2).transpose(1, 2) + self.positions)
        return Encoded(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), tokens.mean(1))
