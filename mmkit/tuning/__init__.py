"""Search for an arm's settings as a part of its run."""

from mmkit.tuning.nested import GRID, REAL, nested

__all__ = ["GRID", "REAL", "nested"]
