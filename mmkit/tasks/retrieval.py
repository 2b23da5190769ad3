"""Retrieval: find an image's captions, and a caption's image."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from mmkit.core import contrastive_loss, sigmoid_loss, topk
from mmkit.data import Dataset
from mmkit.errors import MmkitError, unknown
from mmkit.metrics import Score, mean_average_precision, retrieval_scores
from mmkit.models import DualEncoder
from mmkit.tasks.base import Task, require_loaded
from mmkit.tasks.texts import SAID
from mmkit.training import Batch, Loader, Phase, flops_of, seeded, stream
from mmkit.training.objectives import require_equal_weights

LOSSES = ("infonce", "sigmoid", "hinge", "hardest")
NEIGHBOURS = 20


@dataclass(eq=False, repr=False)
class Retrieval(Task):
    """Data: images with one or more captions. Metric: R@1, the mean of both directions.

    loss: `infonce` (symmetric, CLIP's), `sigmoid` (SigLIP's, with its learnable bias), `hinge` (the sum over wrong
    ones of a batch) or `hardest` (the hardest of them alone, VSE++'s). temperature: None learns InfoNCE's from 0.07
    on. margin: of the hinge losses, on the cosine.

    A caption that is also another image's counts as wrong for this one, in the losses and in the metrics; how many
    there are stands in a run's settings under `texts`, as `shared`."""

    dataset: Dataset
    _: KW_ONLY
    role: str = "caption"
    language: str = "en"
    loss: str = "infonce"
    temperature: float | None = None
    margin: float = 0.2
    dim: int = 128
    hidden: int = 256
    dropout: float = 0.0
    norm: str = "layer"
    limit: int | None = None

    name, metric, fusion = "retrieval", "recall@1", "dual"
    modalities, needs, can_mine = ("image", "text"), ("image", "text"), True
    told = tuple(SAID)

    def __post_init__(self):
        require_loaded(self.dataset)
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        if self.margin <= 0 or (self.temperature is not None and self.temperature <= 0):
            given = f"margin={self.margin} and temperature={self.temperature}"
            raise MmkitError(f"margin and temperature are above 0, got {given}: take for example 0.2 and 0.07")

    @property
    def tuned_as(self) -> str:
        """Where the table of tuned learning rates has this task: each loss is tuned by itself."""
        return self.name if self.loss == "infonce" else f"{self.name}, {self.loss}"

    def settings(self) -> dict:
        """The options; `objective` is the loss's name in records."""
        settings = self.options() | {"fusion": self.fusion, "objective": self.loss}
        del settings["loss"]
        return settings

    def build(self, parts: Mapping[str, nn.Module], *, seed: int) -> DualEncoder:
        """The first weights depend on the seed alone; the sigmoid loss starts from its paper's scale 10 and bias
        -10."""
        options = {"dim": self.dim, "hidden": self.hidden, "dropout": self.dropout, "norm": self.norm}
        model = seeded(seed, "head", DualEncoder, parts, **options)
        if self.loss == "sigmoid":
            nn.init.constant_(model.head.logit_scale, math.log(10))
            model.head.logit_bias = nn.Parameter(torch.tensor(-10.0))
        return model

    def objective(self, model: DualEncoder, batch: Batch) -> Tensor:
        require_equal_weights(batch, f"the loss {self.loss!r}")
        image, text = model(batch.inputs).values()
        if self.loss == "infonce":
            return contrastive_loss(image, text, 1 / self.temperature if self.temperature else model.logit_scale)
        if self.loss == "sigmoid":
            return sigmoid_loss(image, text, model.logit_scale, model.head.logit_bias)
        return hinge_loss(image, text, margin=self.margin, hardest=self.loss == "hardest")

    @torch.inference_mode()
    def embeddings(
        self, model: DualEncoder, loader: Loader, rows: Tensor, *, batch: int = 256
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, E), all their captions (M, E) and each caption's owner (M,), in evaluation mode."""
        model.eval()
        entries, owner = loader.entries("text", rows)
        image = [model.embed("image", loader.input("image", part)).cpu() for part in rows.split(batch)]
        text = [model.embed("text", loader.of_entries("text", part)).cpu() for part in entries.split(batch)]
        return torch.cat(image), torch.cat(text), owner

    @torch.inference_mode()
    def predict(self, model: DualEncoder, inputs: dict) -> dict[str, Tensor]:
        """Unit vectors (B, E) of each modality that is given; products of two are their similarities."""
        model.eval()
        return {modality: model.embed(modality, x).cpu() for modality, x in inputs.items()}

    def mined(self, fitting) -> Callable[[torch.Generator], Tensor]:
        """The order of batches of hard negatives: a row is followed by the one whose caption the model, as it is now,
        takes for its own most (of those left).

        fitting: the run, which pays for the search."""
        started = time.perf_counter()
        near: list[list[int]] = []

        def search() -> None:
            image, text, owner = self.embeddings(fitting.model, fitting.loader, fitting.rows)
            near.extend(owner[topk(image, text, min(NEIGHBOURS, len(text)))[1]].tolist())

        flops = flops_of(search)
        fitting.cost.phases["mining for mined"] = Phase(flops=flops, seconds=time.perf_counter() - started)
        walk = stream(fitting.seed, "mined")
        return lambda _: fitting.rows[_walk(near, walk)]

    def scores(self, model: DualEncoder, loader: Loader, rows: Tensor) -> dict[str, Score]:
        given, clusters = self.embeddings(model, loader, rows), self.dataset.clusters(rows.numpy())
        return retrieval_scores(*given, clusters=clusters) | mean_average_precision(*given, clusters=clusters)


def hinge_loss(image: Tensor, text: Tensor, *, margin: float = 0.2, hardest: bool = False) -> Tensor:
    """1/N sum_i of max(0, margin - s_ii + s_ij) over wrong captions j, and the same over wrong images: their sum, or
    the hardest alone (VSE++, arXiv 1707.05612).

    image, text: (N, D) unit vectors, row i of one belongs to row i of the other."""
    scores = image @ text.T
    own, right = torch.eye(len(scores), dtype=torch.bool, device=scores.device), scores.diagonal()
    captions, images = (
        (margin - best + scores).clamp(min=0).masked_fill(own, 0) for best in (right[:, None], right[None])
    )
    return (captions.amax(1) + images.amax(0) if hardest else captions.sum(1) + images.sum(0)).mean()


def _walk(near: list[list[int]], generator: torch.Generator) -> Tensor:
    """Every number once, each followed by the first of its `near` that has not come yet, or else by a random one."""
    left, order, at = dict.fromkeys(torch.randperm(len(near), generator=generator).tolist()), [], None
    while left:
        following = next((j for j in near[at] if j in left), None) if order else None
        at = next(iter(left)) if following is None else following
        del left[at]
        order.append(at)
    return torch.tensor(order)
