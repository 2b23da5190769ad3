"""What a prediction depends on, and what features know."""

from mmkit.explain.occlusion import occlusion
from mmkit.explain.probes import probe, some_of_each, standardised

__all__ = ["occlusion", "probe", "some_of_each", "standardised"]
