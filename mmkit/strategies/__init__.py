"""The strategies: how encoders start, what is trained on the pairs, and what each costs."""

from mmkit.strategies.arms import ARMS, DERIVED, EVERYTHING, Arm, Stage
from mmkit.strategies.encoders import Encoders
from mmkit.strategies.fit import fit, pairs
from mmkit.strategies.run import Budget, Run, interpolate

__all__ = ["ARMS", "DERIVED", "EVERYTHING", "Arm", "Budget", "Encoders", "Run", "Stage", "fit", "interpolate", "pairs"]
