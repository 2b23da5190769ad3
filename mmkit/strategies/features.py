"""Features of frozen encoders: where no encoder learns in a stage, every input is encoded once and kept in the cache by
content."""

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmkit.data import cached
from mmkit.models.encoded import Encoded
from mmkit.models.identity import digest, structure
from mmkit.training.code import installed, sources
from mmkit.training import Loader, Phase, encode_all, flops_of


def encoded(
    loader: Loader, model: nn.Module, *, rows: Tensor, learnt: Tensor, tokens: bool, about: dict
) -> tuple[Loader, Phase]:
    """The loader, showing what the model's encoders make of `rows` in place of raw inputs.

    The phase is what encoding `learnt`, the rows that are trained on, cost; the others are for evaluation, which no
    arm pays for. tokens: keep tokens, too, in half precision, and not the summaries alone. about: what else the
    features depend on, as JSON values."""
    views, total = dict(loader.views), Phase()
    for modality in model.modalities:
        features, entries, each = _encode(loader, getattr(model, modality), modality, rows, tokens, about)
        views[modality] = views[modality].with_features(features, entries)
        count = len(loader.entries(modality, learnt)[0])
        flops, seconds = each.tolist()
        total.flops += count * flops
        total.seconds += count * seconds
    return replace(loader, views=views), total


def _encode(
    loader: Loader, encoder: nn.Module, modality: str, rows: Tensor, tokens: bool, about: dict
) -> tuple[Encoded, Tensor, Tensor]:
    """Features of all entries of `rows`, those entries, and (2,) what one cost: FLOPs and seconds."""
    view = replace(loader, partner={}).view(modality)
    entries = view.entries(rows)[0]
    if view.lengths is not None:
        entries = entries[view.lengths[entries].argsort(stable=True)]  # texts of one length together
    key = about | {
        "what": "features",
        "modality": modality,
        "code": sources(),
        "weights": digest(encoder),
        "encoder": structure(encoder),
        "tokens": tokens,
        "entries": entries.tolist(),
    }

    def take(part: Tensor) -> Tensor:
        return view(entries[part]).to(loader.device)

    def compute() -> dict[str, Tensor]:
        started = time.perf_counter()
        features = encode_all(encoder, len(entries), take, tokens=tokens, half=tokens)
        seconds = time.perf_counter() - started
        sample = torch.arange(len(entries))[:: max(1, len(entries) // 8)].split(1)
        with torch.inference_mode():
            flops = sum(flops_of(lambda one=one: encoder(take(one))) for one in sample)  # noqa: B023, called here
        cost = torch.tensor([flops / len(sample), seconds / len(entries)], dtype=torch.float64)
        return {**features._asdict(), "cost": cost}

    kept = cached(key, compute) if installed(encoder) else compute()
    return Encoded(*(kept[name] for name in Encoded._fields)), entries, kept["cost"]
