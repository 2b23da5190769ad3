"""Controls know nothing that they should not; modalities in balance."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from watched import BUDGET, QUICK, SMALL

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.strategies import ARMS, Budget, fit
from mmkit.strategies.balance import Modulation, blend_weights, unimodal_heads
from mmkit.strategies.start import start
from mmkit.tasks import Answering, Retrieval
from mmkit.training import stream


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


def untrained(task):
    """Its loader, and a model as it is before training."""
    parts, _, _ = start(ARMS["scratch"], task, QUICK, range(300), seed=0, device=torch.device("cpu"))
    return task.loader(), task.build(parts, seed=0)


# ---------------------------------------------------------------------------------------------- controls know nothing


@pytest.fixture(scope="module")
def retrieval(scenes):
    epochs = {"scratch": 12, "shuffled_pairs": 12, "blank_image": 2, "blank_text": 2}
    options = {"seed": 0, "encoders": QUICK, "evaluate": ("test",)}
    return {name: fit(name, Retrieval(scenes), budget=Budget(192, n), **options).scores for name, n in epochs.items()}


def test_shuffled_and_blank_controls_of_retrieval_are_at_chance(retrieval):
    assert retrieval["scratch"]["recall@1"].value > 0.25, "the same training, on true pairs"
    for name in ("shuffled_pairs", "blank_image", "blank_text"):
        scores = retrieval[name]
        assert scores["recall@1"].value <= 5 / 64 and scores["t2i/recall@5"].value <= 15 / 64, name
        assert scores["t2i/median_rank"].value > 20 and scores["i2t/median_rank"].value > 20


def test_a_blank_side_of_retrieval_ranks_by_nothing(retrieval):
    assert retrieval["blank_image"]["t2i/recall@10"].value == 0
    assert retrieval["blank_image"]["t2i/median_rank"].value == 64
    assert retrieval["blank_text"]["i2t/recall@10"].value == 0


@pytest.fixture(scope="module")
def told():
    """Answers that the text alone tells."""
    return Answering(load("scenes", both=0.0, image_share=0.0, **SMALL))


@pytest.fixture(scope="module")
def singles(told):
    budget = Budget(pairs=192, epochs=6)
    names = ("image_only", "text_only", "best_single", "ensemble_single")
    return {name: fit(name, told, budget=budget, seed=0, encoders=QUICK, lr=6e-3) for name in names}


def test_a_single_modality_answers_what_it_holds_and_nothing_else(singles, told):
    assert singles["text_only"].scores["accuracy"].value > 0.7 and singles["image_only"].scores["accuracy"].value < 0.45
    assert not hasattr(singles["text_only"].model, "image") and not hasattr(singles["image_only"].model, "text")
    for name in ("shuffled_pairs", "blank_text"):
        run = fit(name, told, budget=Budget(192, 4), seed=0, encoders=QUICK, evaluate=("test",))
        assert run.scores["accuracy"].value < 0.45


def test_an_ensemble_says_where_its_rate_comes_from(singles, told):
    drawn = fit("ensemble_single", told, budget=Budget(64, 1), seed=0, encoders=QUICK, evaluate=("test",))
    assert drawn.settings["lr_from"] == "tuned" and singles["ensemble_single"].settings["lr_from"] == "given"


def test_best_single_is_the_better_one_by_validation(singles):
    best = singles["best_single"]
    assert best.settings["chosen"] == "text_only" and best.arm == "best_single"
    for name, score in best.scores.items():
        assert score.items.tolist() == singles["text_only"].scores[name].items.tolist()
    assert set(best.cost.phases) == {"image_only/joint", "text_only/joint"}
    both = singles["image_only"].cost.flops + singles["text_only"].cost.flops
    assert best.cost.flops == both, "the choice between two costs both"


def test_the_ensemble_averages_the_log_probabilities_of_its_members(singles, told):
    ensemble, loader = singles["ensemble_single"], told.loader()
    for split, key in (("test", "accuracy"), ("ood_style", "ood_style/accuracy")):
        rows, members = told.rows(split), []
        for name in ("image_only", "text_only"):
            members.append(F.log_softmax(told.logits(singles[name].model, loader, rows), 1))
        expected = (torch.stack(members).mean(0).argmax(1) == told.target[rows]).double()
        assert ensemble.scores[key].items.tolist() == expected.tolist()
    held = told.scores(ensemble.model, loader, told.rows("val"))["accuracy"].value
    assert ensemble.settings["validation"] == pytest.approx(held)


def test_answers_that_need_both_are_beyond_either_alone():
    task = Answering(load("scenes", both=1.0, **SMALL))
    run = fit("ensemble_single", task, budget=Budget(192, 6), seed=0, encoders=QUICK, evaluate=("test",))
    assert run.scores["accuracy"].value < 0.45


# ---------------------------------------------------------------------------------------------- modalities in balance


def test_blend_weights_are_gain_over_overfitting_squared():
    chance = np.log(4)
    losses = {"joint": (0.1, 0.5), "image": (0.2, 0.4), "text": (0.9, chance + 0.2)}
    wanted = np.array([(chance - 0.5) / 0.4**2, (chance - 0.4) / 0.2**2, 0.0])
    assert np.allclose(list(blend_weights(losses, 4).values()), wanted / wanted.sum())
    nothing_gained = blend_weights({"joint": (1.0, 2.0), "image": (1.0, 9.0)}, 2)
    assert nothing_gained == {"joint": 0.5, "image": 0.5}, "nothing to choose by"
    no_overfitting = blend_weights({"joint": (0.5, 0.5), "image": (0.6, 0.5)}, 4)
    assert sum(no_overfitting.values()) == pytest.approx(1), "no division by zero"


@pytest.mark.slow
def test_grad_blend_measures_first_and_pays_for_it(told):
    run = fit("grad_blend", told, budget=Budget(192, 8), seed=0, encoders=QUICK, lr=6e-3)
    weights = run.settings["weights"]
    assert weights["text"] > 10 * weights["image"], "the image tells nothing here"
    assert sum(weights.values()) == pytest.approx(1)
    assert {"measure joint/joint", "measure image/joint", "measure text/joint", "joint"} == set(run.cost.phases)
    assert run.cost.flops > 2.5 * run.cost.phases["joint"].flops
    json.dumps(run.settings)


def test_modulation_holds_the_leading_encoder_back_and_adds_noise_of_its_size(told):
    loader, model = untrained(told)
    model.own_heads = unimodal_heads(model, len(told.classes), seed=0)
    objective = Modulation(told.objective)
    batch = loader(told.rows("train")[:32], stream(0, "texts"))
    with torch.no_grad():  # a head that knows the answers from the text: the text leads
        summary = model.text(batch.inputs["text"]).summary
        target = F.one_hot(batch.target, 4).float() * 8
        model.own_heads["text"].weight.copy_(torch.linalg.lstsq(summary, target).solution.T)
    objective(model, batch).backward()
    assert objective.kept["image"] == 1 and objective.kept["text"] < 0.4
    lead, other = model.text.words.weight.grad.clone(), model.image.to_summary.weight.grad.clone()
    assert model.own_heads["image"].weight.grad.abs().sum() > 0
    objective.after_backward(SimpleNamespace(model=model))
    for changed, before, kept in (
        (model.text.words.weight.grad, lead, objective.kept["text"]),
        (model.image.to_summary.weight.grad, other, 1.0),
    ):
        noise = changed - kept * before
        assert float(noise.std() / before.std()) == pytest.approx(1, rel=0.1)
        assert abs(float(noise.mean() / before.std())) < 0.1


def test_heads_that_only_measure_send_no_gradient_to_the_encoders(told):
    gradients = {}
    for name, objective in (("joint alone", told.objective), ("modulated", Modulation(told.objective))):
        loader, model = untrained(told)
        model.own_heads = unimodal_heads(model, len(told.classes), seed=0)
        objective(model, loader(told.rows("train")[:32])).backward()
        gradients[name] = model.text.words.weight.grad
    assert torch.allclose(*gradients.values(), atol=1e-7)


def test_balancing_is_not_defined_where_a_modality_alone_has_no_loss(scenes):
    for name in ("ogm_ge", "grad_blend", "joint_plus_unimodal"):
        message = f"'{name}' is not defined for retrieval: a modality alone has no loss there"
        with pytest.raises(MmkitError, match=message):
            fit(name, Retrieval(scenes), budget=BUDGET, seed=0, encoders=QUICK)
