"""What a strategy is: how encoders start, and the stages of training on pairs. A student writes one in a line and hands
it to `fit`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from inspect import signature
from itertools import chain

import torch
from torch import Tensor, nn

from mmkit.errors import MmkitError, unknown
from mmkit.pretraining.pool import SUPERVISED
from mmkit.strategies.encoders import OBJECTIVES, Encoders
from mmkit.strategies.run import Budget
from mmkit.training import EVERYTHING, Cost, Group, Loader, Objective, warmup_cosine
from mmkit.training.batch import Transform

STARTS = ("random", "pretrained")  # or an objective of pretraining by its name
PRECISIONS = ("float32", "bfloat16")


def require_function(value: object, what: str, arguments: str) -> None:
    """Raise MmkitError for what cannot be called with these arguments."""
    try:
        signature(value).bind(*arguments.split(", "))
    except TypeError as error:
        remedy = f"write it as one, def name({arguments}): ..."
        raise MmkitError(f"{what} is not a function of ({arguments}): {remedy}") from error
    except ValueError:  # a built-in function, which does not say what it takes
        return


def _require_functions(owner: object, whose: str, called: Mapping[str, str]) -> None:
    for name, arguments in called.items():
        if getattr(owner, name) is not None:
            require_function(getattr(owner, name), f"{name} of {whose}", arguments)


def _require_tuple(values: object, kind: type, what: str, example: str) -> None:
    if not isinstance(values, tuple | list) or not all(isinstance(value, kind) for value in values):
        raise MmkitError(f"{what} are a tuple, for example {example}, got {values!r}")


@dataclass
class Fitting:
    """A run while it is being made: what the callables of a strategy are given.

    loader: of the training pairs, as the strategy shows them. rows: the labelled pairs; validation: the rows that
    choose weights. settings: what they add to the run's record. objective: of the present stage. refit: trains
    another strategy on the same pairs. refits: what was trained so, with what it was asked by."""

    task: object
    encoders: Encoders
    budget: Budget
    seed: int
    lr: float
    batch: int
    rows: Tensor
    validation: Tensor
    loader: Loader
    model: nn.Module
    cost: Cost
    settings: dict = field(default_factory=dict)
    objective: Objective | None = None
    refit: Callable | None = None
    refits: list[tuple] = field(default_factory=list)

    def fit(self, strategy: "Strategy | str", *, name: str | None = None, **options):
        """Another strategy, trained on the same pairs, seed and budget: a teacher, an expert, something to measure
        against. Returns its `Run`; what it cost is counted here, under `name` or its own. What was asked for before is
        trained once: a stage's `wrap` is called a second time where FLOPs are limited, to price a step."""
        for asked, run in self.refits:
            if asked == (strategy, name, options):
                return replace(run, model=deepcopy(run.model))
        run = self.refit(strategy, self.task, **options)
        self.refits.append(((strategy, name, options), replace(run, model=deepcopy(run.model))))
        self.cost.phases |= {f"{name or run.arm}/{phase}": cost for phase, cost in run.cost.phases.items()}
        return run

    @property
    def device(self) -> torch.device:
        return self.loader.device


@dataclass(frozen=True)
class Stage:
    """Part of the training on pairs.

    groups: which parameters learn, how fast; what no group names is frozen.
    share: of the epochs. lr: a multiple of the run's learning rate. schedule: step, steps -> a multiple of lr.
    wrap: (objective, fitting) -> objective. hooks: fitting -> hooks, made anew for every run.
    order: fitting -> (generator -> the rows of one pass).
    precision: `float32`, or `bfloat16` for mixed precision. compiled: by torch.compile, for long runs.
    keep_best: whether validation chooses the weights.
    """

    name: str
    groups: tuple[Group, ...] = EVERYTHING
    share: float = 1.0
    lr: float = 1.0
    wrap: Callable[[Objective, Fitting], Objective] | None = None
    hooks: Callable[[Fitting], Sequence[object]] | None = None
    order: Callable[[Fitting], Callable[[torch.Generator], Tensor]] | None = None
    schedule: Callable[[int, int], float] = warmup_cosine
    precision: str = "float32"
    compiled: bool = False
    keep_best: bool = True

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        _require_tuple(self.groups, Group, f"groups of the stage {self.name!r}", "groups=(Group('head.*'),)")
        called = {"wrap": "objective, fitting", "hooks": "fitting", "order": "fitting", "schedule": "step, steps"}
        _require_functions(self, f"the stage {self.name!r}", called)
        if not self.groups or self.share <= 0 or self.lr <= 0:
            raise MmkitError(
                f"the stage {self.name!r} needs a group and share and lr above 0, got {self.groups}, {self.share} and "
                f"{self.lr}"
            )

    def autocast(self, device: torch.device) -> Callable[[], AbstractContextManager]:
        """The context of the forward pass."""
        if self.precision == "float32":
            return nullcontext
        return lambda: torch.autocast(device.type, torch.bfloat16)


@dataclass(frozen=True)
class Strategy:
    """One way to come from encoders and labelled pairs to a model.

    what: in a sentence. start: `random`, `pretrained` (by the objective that the run's `Encoders` name) or an objective
    (`contrast`, `supervised`), for all encoders or by modality; they learn on the unpaired pools, their cost and labels
    counted, or are real ones, whose cost nobody knows. modalities:
    those that are used; None is all of the task. blank: modalities that are always shown empty. transforms: (batch,
    generator) -> batch, of training batches. show: (loader, fitting) -> loader, for training alone. prepare: fitting
    -> None, once before training; it may change the model, and add to the cost. finish: (model, weights at the end
    of each stage) -> None. undefined: task -> why the strategy is not defined for it, or None. pretrains: refuse
    real encoders."""

    name: str
    what: str
    start: str | Mapping[str, str] = "random"
    stages: tuple[Stage, ...] = (Stage("joint"),)
    modalities: tuple[str, ...] | None = None
    blank: tuple[str, ...] = ()
    transforms: tuple[Transform, ...] = ()
    show: Callable[[Loader, Fitting], Loader] | None = None
    prepare: Callable[[Fitting], None] | None = None
    finish: Callable[[nn.Module, list[dict[str, Tensor]]], None] | None = None
    undefined: Callable[[object], str | None] | None = None
    pretrains: bool = False

    def __post_init__(self):
        _require_tuple(self.stages, Stage, f"stages of {self.name!r}", "stages=(Stage('joint'),)")
        _require_tuple(self.transforms, Callable, f"transforms of {self.name!r}", "transforms=(noise,)")
        called = {"show": "loader, fitting", "prepare": "fitting", "finish": "model, ends", "undefined": "task"}
        _require_functions(self, repr(self.name), called)
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise MmkitError(f"the strategy {self.name!r} needs stages with names of their own, got {names}")
        for start in [self.start] if isinstance(self.start, str) else self.start.values():
            if start not in (known := (*STARTS, SUPERVISED, *chain(*OBJECTIVES.values()))):
                raise unknown(f"start of {self.name!r}", start, known)

    def start_of(self, modality: str) -> str:
        """How the encoder of a modality starts."""
        return self.start if isinstance(self.start, str) else self.start.get(modality, "random")

    @property
    def any_pretrained(self) -> bool:
        """Whether some encoder starts pretrained."""
        return self.start != "random" if isinstance(self.start, str) else {*self.start.values()} != {"random"}

    def modalities_of(self, task) -> tuple[str, ...]:
        """The modalities that are used. Raises MmkitError when the strategy is not defined for the task, saying why."""
        reason = self.undefined(task) if self.undefined else None
        if reason:
            raise MmkitError(f"{self.name!r} is not defined for {task.name}: {reason}")
        used = task.modalities if self.modalities is None else self.modalities
        for modality in (*used, *self.blank):
            if modality not in task.modalities:
                error = unknown("modality", modality, task.modalities)
                raise MmkitError(f"{self.name!r} is not defined for {task.name}: {error}")
        return used


def nothing_alone(task) -> str | None:
    """Why strategies that read one modality are not defined for some tasks."""
    return None if task.alone else "a single modality has nothing to be compared with"


def single(modality: str) -> Strategy:
    """The control that reads one modality alone."""
    what = f"control: the {modality} alone"
    return Strategy(f"{modality}_only", what, modalities=(modality,), undefined=nothing_alone)
