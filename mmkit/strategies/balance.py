"""Joint training with an eye on each modality: own losses beside the joint one, blended by how they overfit, or the leading modality's gradients held back."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.training import Inputs, seeded, stream

FLOOR = 0.1  # nats: a smaller gap between training and validation is taken for noise, or what learns nothing would weigh most
ALPHA = 0.8  # how hard OGM-GE holds the leading modality back


def own_heads(model: nn.Module, task, *, seed: int) -> nn.ModuleDict:
    """A linear head for each modality, whose first weights depend on the seed alone."""
    return seeded(seed, "own heads", lambda: nn.ModuleDict({m: nn.Linear(getattr(model, m).summary_dim, len(task.classes)) for m in task.modalities}))


class Blended:
    """The joint loss plus each modality's own , weighted: `weights` of joint, image and text."""

    def __init__(self, task, model: nn.Module, inputs: Inputs, drawn: torch.Generator, weights: dict[str, float]):
        self.task, self.model, self.inputs, self.drawn, self.weights = task, model, inputs, drawn, weights

    def __call__(self, rows: Tensor) -> Tensor:
        image, text = self.model.encode(self.inputs.image(rows), self.inputs.text(self.inputs.one_text(rows, self.drawn)))
        target = self.task.target[rows].to(self.inputs.device)
        own = {"image": image.summary, "text": text.summary}
        return self.weights["joint"] * F.cross_entropy(self.model(image, text), target) + sum(
            self.weights[m] * F.cross_entropy(self.model.own_heads[m](summary), target) for m, summary in own.items()
        )


class Modulated(Blended):
    """On-the-fly gradient modulation with generalisation enhancement (OGM-GE, arXiv 2203.15332).

    Each modality is scored by a head of its own on what its encoder gives, which trains along and sends no gradient back. With r the
    ratio of a modality's summed probability of the right class to the other's, the leading encoder's gradients (r > 1) are multiplied
    by 1 - tanh(alpha r), and noise of each gradient's own standard deviation is added to both encoders'.
    """

    def __call__(self, rows: Tensor) -> Tensor:
        image, text = self.model.encode(self.inputs.image(rows), self.inputs.text(self.inputs.one_text(rows, self.drawn)))
        target = self.task.target[rows].to(self.inputs.device)
        logits = {m: self.model.own_heads[m](encoded.summary.detach()) for m, encoded in (("image", image), ("text", text))}
        right = {m: float(z.detach().softmax(1).gather(1, target[:, None]).sum()) for m, z in logits.items()}
        ratio = {"image": right["image"] / right["text"], "text": right["text"] / right["image"]}
        self.kept = {m: 1 - math.tanh(ALPHA * r) if r > 1 else 1.0 for m, r in ratio.items()}
        return F.cross_entropy(self.model(image, text), target) + sum(F.cross_entropy(z, target) for z in logits.values())

    def adjust(self) -> None:
        """Change the gradients that the last loss left behind, before the step."""
        for modality, kept in self.kept.items():
            for parameter in getattr(self.model, modality).parameters():
                if parameter.grad is not None:
                    noise = torch.randn_like(parameter.grad) * parameter.grad.std(correction=0)
                    parameter.grad.mul_(kept).add_(noise)


def blend_weights(losses: dict[str, tuple[float, float]], classes: int) -> dict[str, float]:
    """Gradient-Blending (arXiv 1905.12681): each source weighs as its gain over its overfitting squared; the weights sum to 1.

    losses: source -> (training loss, validation loss) at the end of a training of its own. An untrained head's loss is log(classes) on both,
    so the gain is log(classes) less the validation loss, never below 0, and the overfitting is the gap, never below FLOOR. Without any gain all weigh the same.
    """
    weights = {source: max(math.log(classes) - held, 0.0) / max(held - seen, FLOOR) ** 2 for source, (seen, held) in losses.items()}
    total = sum(weights.values())
    return {source: weight / total if total else 1 / len(losses) for source, weight in weights.items()}


@torch.inference_mode()
def end_losses(task, model: nn.Module, inputs: Inputs, rows: Tensor, validation: Tensor) -> tuple[float, float]:
    """Mean loss on the training pairs and on the validation split, in evaluation mode."""
    model.eval()
    return tuple(float(task.loss(model, replace(inputs, partner=None), some, stream(0, "losses"))) for some in (rows, validation))
