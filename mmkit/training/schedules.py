"""Learning-rate factors over a run: step, steps -> a multiple of the learning rate."""

import math


def warmup_cosine(step: int, steps: int, *, warmup: float = 0.1) -> float:
    """Linear rise over the first `warmup` share of steps, then half a cosine down to zero."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def warmup_constant(step: int, steps: int, *, warmup: float = 0.1) -> float:
    """Linear rise over the first `warmup` share of steps, then 1."""
    return min(1.0, (step + 1) / max(1, round(warmup * steps)))


def constant(step: int, steps: int) -> float:
    """1 at every step."""
    return 1.0
