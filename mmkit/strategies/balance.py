"""Joint training with an eye on each modality: losses of their own beside the joint one, blended by how they overfit,
or the leading modality's gradients held back."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmkit.strategies.strategy import Fitting, single
from mmkit.training import Batch, Objective, seeded, stream
from mmkit.training.objectives import labelled

# Nats. A smaller gap between training and validation is taken for noise, or what learns nothing would weigh most.
FLOOR = 0.1
ALPHA = 0.8  # how hard OGM-GE holds the leading modality back


def unimodal_heads(model: nn.Module, classes: int, *, seed: int) -> nn.ModuleDict:
    """A linear head for each modality, whose first weights depend on the seed alone."""

    def build() -> nn.ModuleDict:
        return nn.ModuleDict({m: nn.Linear(getattr(model, m).summary_dim, classes) for m in model.modalities})

    return seeded(seed, "own heads", build)


def add_unimodal_heads(fitting: Fitting) -> None:
    """Prepare: each modality gets a head of its own."""
    heads = unimodal_heads(fitting.model, len(fitting.task.classes), seed=fitting.seed)
    fitting.model.own_heads = heads.to(fitting.device)


def unimodal_losses(objective: Objective, fitting: Fitting) -> Objective:
    """Wrap: the joint loss plus each modality's own, weighted by the setting `weights` where it is there."""
    weights = fitting.settings.get("weights") or dict.fromkeys(("joint", *fitting.model.modalities), 1.0)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        encoded = model.encode(batch.inputs)
        joint = objective(model, replace(batch, inputs=encoded))
        own = 0.0
        for modality, x in encoded.items():
            logits = model.own_heads[modality](x.summary)
            own = own + weights[modality] * labelled(logits, batch)
        return weights["joint"] * joint + own

    return loss


class Modulation:
    """On-the-fly gradient modulation with generalisation enhancement (OGM-GE, arXiv 2203.15332): an objective, and a
    hook on its gradients.

    Each modality is scored by a head of its own on what its encoder gives, which trains along and sends no gradient
    back. With r the ratio of a modality's summed probability of the right class to the others' mean, the leading
    encoder's gradients (r > 1) are multiplied by 1 - tanh(alpha r), and noise of each gradient's own standard
    deviation is added to all encoders'.
    """

    def __init__(self, objective: Objective):
        self.objective, self.kept = objective, {}

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        encoded = model.encode(batch.inputs)
        logits = {m: model.own_heads[m](x.summary.detach()) for m, x in encoded.items()}
        own = sum(labelled(z, batch) for z in logits.values())
        self.kept = modulation(logits, batch.target)
        return self.objective(model, replace(batch, inputs=encoded)) + own

    def after_backward(self, state) -> None:
        """Change the gradients that the last loss left behind, before the step."""
        for modality, kept in self.kept.items():
            for parameter in getattr(state.model, modality).parameters():
                if parameter.grad is not None:
                    noise = torch.randn_like(parameter.grad) * parameter.grad.std(correction=0)
                    parameter.grad.mul_(kept).add_(noise)


def modulated(objective: Objective, fitting: Fitting) -> Modulation:
    """Wrap: the objective with its gradients modulated."""
    return Modulation(objective)


def modulation(logits: Mapping[str, Tensor], target: Tensor, *, alpha: float = ALPHA) -> dict[str, float]:
    """What is kept of each encoder's gradients: 1 - tanh(alpha r) for a leading modality (r > 1), else 1."""
    right = {m: float(z.detach().softmax(1).gather(1, target[:, None]).sum()) for m, z in logits.items()}
    kept = {}
    for modality, own in right.items():
        others = [value for other, value in right.items() if other != modality]
        ratio = own / (sum(others) / len(others))
        kept[modality] = 1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0
    return kept


def blend_weights(losses: Mapping[str, tuple[float, float]], classes: int) -> dict[str, float]:
    """Gradient-Blending (arXiv 1905.12681): each source weighs as its gain over its overfitting squared; the weights
    sum to 1.

    losses: source -> (training loss, validation loss) at the end of a training of its own. An untrained head's loss
    is log(classes) on both, so the gain is log(classes) less the validation loss, never below 0, and the overfitting
    is the gap, never below FLOOR. Without any gain all weigh the same.
    """
    weights = {}
    for source, (seen, held) in losses.items():
        weights[source] = max(math.log(classes) - held, 0.0) / max(held - seen, FLOOR) ** 2
    total = sum(weights.values())
    return {source: weight / total if total else 1 / len(losses) for source, weight in weights.items()}


def blended(fitting: Fitting) -> None:
    """Prepare: Gradient-Blending's weights, from training everything and each modality by itself first; what that cost
    is counted."""
    sources = {"joint": "scratch"} | {modality: single(modality) for modality in fitting.model.modalities}
    losses = {}
    for source, strategy in sources.items():
        run = fitting.fit(strategy, name=f"measure {source}", evaluate=("val",))
        losses[source] = end_losses(fitting, run.model)
    add_unimodal_heads(fitting)
    fitting.settings["weights"] = blend_weights(losses, len(fitting.task.classes))


@torch.inference_mode()
def end_losses(fitting: Fitting, model: nn.Module) -> tuple[float, float]:
    """Mean loss on the training pairs and on the validation split, in evaluation mode."""
    loader = fitting.loader.evaluation()
    losses = []
    for rows in (fitting.rows, fitting.validation):
        batch = loader(rows, stream(0, "losses"))
        losses.append(float(fitting.task.objective(model.eval(), batch)))
    return losses[0], losses[1]
