"""What a run cost, phase by phase: FLOPs, seconds, peak memory, parameters trained."""

from dataclasses import asdict, dataclass, field


@dataclass
class Phase:
    """One stage of training (pretraining of an encoder, fusion, everything)."""

    flops: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    parameters_trained: int = 0
    cached: bool = False
    """True when the result came from the cache: `seconds` and `flops` are then those of the run that made it."""


@dataclass
class Cost:
    """The sum over phases. FLOPs are counted on one real step of each phase and multiplied by its steps
    (a multiply-add is two FLOPs); seconds are wall time of training, evaluation left out; bytes are peak resident memory."""

    phases: dict[str, Phase] = field(default_factory=dict)
    peak_bytes: int = 0
    parameters_total: int = 0

    @property
    def flops(self) -> float:
        return sum(phase.flops for phase in self.phases.values())

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases.values())

    @property
    def parameters_trained(self) -> int:
        """The most parameters any one phase trains."""
        return max((phase.parameters_trained for phase in self.phases.values()), default=0)

    def as_dict(self) -> dict:
        return {
            "flops": self.flops,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "parameters_trained": self.parameters_trained,
            "parameters_total": self.parameters_total,
            "phases": {name: asdict(phase) for name, phase in self.phases.items()},
        }
