"""What the cache of frozen features is keyed by: all that can change a feature, and nothing else."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmkit.data import load
from mmkit.models import CNN, Encoded
from mmkit.strategies.features import encoded
from mmkit.tasks import Answering

SMALL = {"train": 24, "val": 8, "test": 8, "ood": 8, "pool": 8}


class Scaled(nn.Module):
    """An encoder whose setting is no weight: a slope that its digest does not know."""

    summary_dim = 4

    def __init__(self, slope):
        super().__init__()
        self.slope = slope
        self.to_summary = nn.Linear(3, 4)
        nn.init.ones_(self.to_summary.weight)

    def forward(self, pixels):
        summary = self.to_summary(pixels.float().mean((2, 3))) * self.slope
        return Encoded(summary[:, None], torch.ones(len(summary), 1, dtype=torch.bool), summary)


@pytest.fixture
def kept(monkeypatch):
    """The keys asked for, and an encoder of this file taken for an installed one."""
    module, keys = sys.modules["mmkit.strategies.features"], []
    monkeypatch.setattr(module, "installed", lambda encoder: True)
    real = module.cached
    monkeypatch.setattr(module, "cached", lambda key, compute: keys.append(key) or real(key, compute))
    return keys


@pytest.fixture(scope="module")
def loader():
    return Answering(load("scenes", **SMALL), modalities=("image",)).loader()


def features(loader, encoder, **changes):
    model, rows = SimpleNamespace(modalities=("image",), image=encoder.eval()), torch.arange(8)
    options = {"rows": rows, "learnt": rows, "tokens": False, "about": {"data": loader.dataset.content}}
    shown, _ = encoded(loader, model, **options | changes)
    return shown.views["image"].features.summary


def seeded_encoder(slope):
    torch.manual_seed(0)
    return Scaled(slope)


def test_a_setting_that_is_no_weight_makes_other_features(loader, kept):
    one, two = (features(loader, seeded_encoder(slope)) for slope in (1.0, 2.0))
    torch.testing.assert_close(two, 2 * one)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": torch.arange(1, 9)},
        {"tokens": True},
        {"about": {"data": "another"}},
    ],
    ids=["rows", "tokens", "data"],
)
def test_whatever_changes_features_changes_their_key(change, loader, kept):
    features(loader, seeded_encoder(1.0))
    features(loader, seeded_encoder(1.0), **change)
    assert kept[0] != kept[1]


def test_weights_and_code_are_in_the_key_and_what_is_learnt_on_is_not(loader, kept, monkeypatch):
    encoder = seeded_encoder(1.0)
    features(loader, encoder)
    features(loader, encoder, learnt=torch.arange(4))
    with torch.no_grad():
        encoder.to_summary.bias += 1
    features(loader, encoder)
    monkeypatch.setattr(sys.modules["mmkit.strategies.features"], "sources", lambda: "other code")
    features(loader, encoder)
    first, same, moved, recoded = kept
    assert first == same and first["weights"] != moved["weights"] and moved["code"] != recoded["code"]


def test_an_encoder_of_a_notebook_is_never_kept(loader, monkeypatch):
    """Its class may say something else in the next cell, under the same name."""
    monkeypatch.setattr(sys.modules["mmkit.strategies.features"], "cached", lambda *given: pytest.fail("kept"))
    features(loader, seeded_encoder(1.0))
    with pytest.raises(pytest.fail.Exception, match="kept"):
        features(loader, CNN(size=32))
