"""Where a run's encoders come from: random, pretrained on the unpaired pools, or real ones."""

from dataclasses import replace

import torch
from torch import nn

from mmkit.errors import MmkitError, unknown
from mmkit.pretraining.pool import pretrained_in_place
from mmkit.strategies.encoders import Encoders
from mmkit.strategies.strategy import STARTS, Strategy
from mmkit.training import Phase, seeded


def start(
    strategy: Strategy, task, encoders: Encoders, words, *, seed: int, device: torch.device
) -> tuple[dict[str, nn.Module], dict[str, Phase], dict[str, dict]]:
    """The parts of a strategy's model before any training on pairs, by modality; what pretraining them cost; and by
    what objective, on how many entries and labels they were pretrained.

    Besides encoders these are the parts that a task brings itself (a decoder). Raises MmkitError where they cannot
    be had as the strategy asks."""
    used = strategy.modalities_of(task)
    if strategy.pretrains and encoders.real:
        raise MmkitError(
            f"{strategy.name} pretrains its own encoders; with real ones take frozen, lp_ft or holistic, or leave the "
            "encoders small"
        )
    own = task.own_parts(words)
    if not isinstance(strategy.start, str):
        for name in strategy.start:
            if name not in task.modalities and name not in own:
                raise unknown(f"modality in the start of {strategy.name!r}", name, {*task.modalities, *own})
    modules, phases, notes = {}, {}, {}
    for name in dict.fromkeys((*used, *own)):
        how = strategy.start_of(name)
        if encoders.real and name not in own:
            modules[name] = _given(encoders, name, how == "pretrained")
            continue
        chosen = _choosing(encoders, name, how)
        part = own.get(name) or chosen.part(name, len(words))
        modules[name] = seeded(seed, name, part.build)
        if how != "random" and not encoders.real:
            phases[f"pretrain_{name}"], notes[name] = pretrained_in_place(
                modules[name], name, part, task, words, chosen, seed=seed, device=device
            )
    return modules, phases, notes


def _choosing(encoders: Encoders, modality: str, how: str) -> Encoders:
    """The encoders with the objective of pretraining that a strategy names for a modality, where it names one."""
    if how in STARTS:
        return encoders
    encoders.require_objective(modality, how)
    return replace(encoders, objective={**encoders.objective, modality: how})


def _given(encoders: Encoders, modality: str, pretrained: bool) -> nn.Module:
    if not pretrained:
        given = f"leave image={encoders.image!r} and text={encoders.text!r} out, or take frozen, holistic or lp_ft"
        raise MmkitError(f"arms that start from random encoders train small ones here: {given}")
    return encoders.given(modality)
