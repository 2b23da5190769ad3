"""Intervals, tests and power of paired comparisons over seeds and clusters."""

from mmkit.stats.intervals import (
    Estimate,
    Term,
    crossed_draws,
    effective_clusters,
    paired_bootstrap,
    score_interval,
    t_estimate,
    t_interval,
    two_way_variance,
)
from mmkit.stats.power import all_or_none, replicates, seeds_needed, smallest_detectable
from mmkit.stats.summaries import interquartile_mean, performance_profile, stratified_interval
from mmkit.stats.tests import FEWEST_SEEDS, holm, probability_of_improvement, sign_flip, tost, tost_p, two_way_p

__all__ = [
    "FEWEST_SEEDS",
    "Estimate",
    "Term",
    "all_or_none",
    "crossed_draws",
    "effective_clusters",
    "holm",
    "interquartile_mean",
    "paired_bootstrap",
    "performance_profile",
    "probability_of_improvement",
    "replicates",
    "score_interval",
    "seeds_needed",
    "sign_flip",
    "smallest_detectable",
    "stratified_interval",
    "t_estimate",
    "t_interval",
    "tost",
    "tost_p",
    "two_way_p",
    "two_way_variance",
]
