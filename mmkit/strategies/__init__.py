"""The strategies: how encoders start, what is trained on the pairs, and what each costs."""

from mmkit.strategies.arms import ARMS, DERIVED, suited
from mmkit.strategies.encoders import Encoders, tokenizer
from mmkit.strategies.fit import fit
from mmkit.strategies.run import Budget, Run, interpolate
from mmkit.strategies.scoring import loader_of, pairs, scores_of, splits_of
from mmkit.strategies.strategy import Fitting, Stage, Strategy
from mmkit.pretraining import Part

load_model = Run.load

__all__ = [
    "ARMS",
    "DERIVED",
    "Budget",
    "Encoders",
    "Fitting",
    "Part",
    "Run",
    "Stage",
    "Strategy",
    "fit",
    "interpolate",
    "load_model",
    "loader_of",
    "pairs",
    "scores_of",
    "splits_of",
    "suited",
    "tokenizer",
]
