"""Encoders, fusion modules and heads; real pretrained components in `pretrained`."""

from mmkit.models.encoded import Encoded
from mmkit.models.fusion import Average, ConcatFusion, CrossAttentionFusion, DualEncoder, FusionClassifier, SingleClassifier
from mmkit.models.pretrained import PRETRAINED, pretrained
from mmkit.models.text import GRU, TextTransformer, WordTokenizer
from mmkit.models.vision import CNN, ViT

__all__ = [
    "CNN", "GRU", "PRETRAINED", "Average", "ConcatFusion", "CrossAttentionFusion", "DualEncoder", "Encoded", "FusionClassifier",
    "SingleClassifier", "TextTransformer", "ViT", "WordTokenizer", "pretrained",
]
