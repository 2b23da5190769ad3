"""Encoders, fusion modules and heads; real pretrained components in `pretrained`."""

from mmkit.models.encoded import Encoded
from mmkit.models.fusion import Concat, CrossAttention, Product
from mmkit.models.layers import Attention, Block, Transformer
from mmkit.models.multimodal import Average, DualEncoder, Multimodal
from mmkit.models.pretrained import PRETRAINED, pretrained
from mmkit.models.text import GRU, TextTransformer, WordTokenizer
from mmkit.models.vision import CNN, ViT

__all__ = [
    "CNN",
    "GRU",
    "PRETRAINED",
    "Attention",
    "Average",
    "Block",
    "Concat",
    "CrossAttention",
    "DualEncoder",
    "Encoded",
    "Multimodal",
    "Product",
    "TextTransformer",
    "Transformer",
    "ViT",
    "WordTokenizer",
    "pretrained",
]
