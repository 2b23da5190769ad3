"""Arms that are made of other arms: models of single modalities, chosen among or averaged."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from mmkit.models import Average
from mmkit.strategies.run import Budget, Run
from mmkit.strategies.scoring import loader_of, scores_of, splits_of
from mmkit.strategies.strategy import single
from mmkit.strategies.tuned import learning_rate, rate_from
from mmkit.training import Cost


@dataclass(frozen=True)
class Combination:
    """An arm made of one member a modality. combine: (members, task, options of `fit`) -> their Run."""

    name: str
    what: str
    combine: Callable

    def fit(self, fit: Callable[..., Run], task, *, budget: Budget, lr: float | None, **options) -> Run:
        """Train the members, each on an equal share of the FLOPs where these are limited, and combine them."""
        members = [single(modality) for modality in task.modalities] if task.alone else []
        if not members:
            single(task.modalities[0]).modalities_of(task)  # says why it is not defined
        share = replace(budget, flops=budget.flops and budget.flops / len(members))
        rate = learning_rate(task.tuned_as, self.name) if lr is None and self.combine is averaged else lr
        runs = [fit(member, task, budget=share, lr=rate, **options) for member in members]
        phases = {}
        for run in runs:
            phases |= {f"{run.arm}/{key}": phase for key, phase in run.cost.phases.items()}
        cost = Cost(phases, max(run.cost.peak_bytes for run in runs), sum(run.cost.parameters_total for run in runs))
        history = [entry for run in runs for entry in run.history]
        combined = self.combine(runs, task, lr=lr, name=self.name, **options)
        return replace(combined, arm=self.name, budget=budget, cost=cost, history=history)


def better(runs: list[Run], task, *, name: str, **options) -> Run:
    """The member with the best validation score."""
    best = max(runs, key=lambda run: run.settings["validation"])
    return replace(best, settings={**best.settings, "chosen": best.arm})


def averaged(runs: list[Run], task, *, name: str, lr: float | None, encoders, evaluate=None, **options) -> Run:
    """The mean of the members' log-probabilities. Its rate is tuned as an arm of its own: what is best for a member
    alone need not be best for the mean."""
    model = Average([run.model for run in runs]).eval()
    loader = loader_of(task, encoders)
    scores = scores_of(task, model, loader, splits_of(task, evaluate), blank=False)
    validation = task.scores(model, loader, task.rows("val"))[task.metric].value
    rates = [run.settings["lr"] for run in runs]
    settings = {
        **runs[0].settings,
        "lr": rates,
        "lr_from": rate_from(task.tuned_as, name, lr),
        "validation": validation,
    }
    return replace(runs[0], settings=settings, scores=scores, model=model, trained=None)
