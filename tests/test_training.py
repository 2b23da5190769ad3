"""The training loop against one written by hand, its seeds, its features and its accounting."""

import math
import time
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmkit.core import contrastive_loss, linear_cross_entropy, sigmoid_loss
from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.models import CNN, Encoded, TextTransformer, ViT
from mmkit.tasks import Retrieval
from mmkit.training import (
    Batch,
    Cost,
    Group,
    Phase,
    batches,
    device,
    encode_all,
    flops_of,
    forget_peak,
    peak_bytes,
    seeded,
    train,
    warmup_cosine,
)

SMALL = {"train": 96, "val": 32, "test": 64, "ood": 32, "pool": 64}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(rows=40):
    """A small network, and the data it learns from."""
    model = seeded(0, "model", lambda: nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3)))
    x = torch.randn(rows, 6, generator=generator(1))
    return model, x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def shown(x, y, size=8):
    """Endless batches of the data."""
    for part in batches(torch.arange(len(x)), size, generator()):
        yield Batch(part, {"x": x[part]}, y[part])


def loss_of(model, batch):
    return F.cross_entropy(model(batch.inputs["x"]), batch.target)


# ---------------------------------------------------------------------------------------------- the loop


def by_hand(model, objective, batches, *, steps, lr):
    """What `train` does, from the page: AdamW, whose decay leaves vectors out, linear warm-up over a tenth, half a
    cosine, the gradient's norm clipped at 1."""
    matrices, vectors = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    rise = max(1, round(0.1 * steps))
    model.train()
    for step in range(steps):
        factor = (step + 1) / rise if step < rise else (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        loss = objective(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
        for p in model.parameters():
            p.grad.mul_(min(1.0, 1.0 / (norm.item() + 1e-6)))
        optimizer.step()


@pytest.mark.parametrize("steps", [1, 2, 25])
def test_train_ends_in_the_weights_of_a_loop_written_by_hand(steps):
    weights = []
    for way in (train, by_hand):
        model, x, y = problem()
        before = deepcopy(model.state_dict())
        seeded(0, "dropout", way, model, loss_of, shown(x, y), steps=steps, lr=0.05)
        weights.append(model.state_dict())
        assert all((weights[-1][name] != before[name]).any() for name in before)
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-5, atol=1e-6)


def test_train_learns_and_reports_what_it_did():
    model, x, y = problem()
    phase, history = train(
        model,
        loss_of,
        shown(x, y),
        steps=200,
        lr=0.01,
        validate=lambda model: (model(x).argmax(1) == y).double().mean().item(),
        where="here",
    )
    assert history[-1]["validation"] > 0.9
    assert [entry["step"] for entry in history] == [40, 80, 120, 160, 200]
    assert {entry["where"] for entry in history} == {"here"}
    assert set(history[0]) == {"where", "step", "loss", "validation"}
    assert phase.steps == 200 and phase.parameters_trained == 6 * 16 + 16 + 16 * 3 + 3 and phase.seconds > 0


def test_only_what_a_group_names_is_trained():
    """Whatever was frozen before: the groups decide."""
    model, x, y = problem()
    model[3].requires_grad_(False)
    before = deepcopy(model.state_dict())
    phase, _ = train(model, loss_of, shown(x, y), steps=5, lr=0.01, groups=(Group("3.*"),))
    assert phase.parameters_trained == 16 * 3 + 3
    assert model[0].weight.equal(before["0.weight"]) and not model[3].weight.equal(before["3.weight"])


def test_the_best_weights_by_validation_are_kept():
    model, x, y = problem()
    seen, scores = [], iter([0.1, 0.9, 0.3, 0.9, 0.2])

    def validate(model):
        seen.append(deepcopy(model.state_dict()))
        return next(scores)

    _, history = train(model, loss_of, shown(x, y), steps=50, lr=0.05, validate=validate)
    assert [entry["validation"] for entry in history] == [0.1, 0.9, 0.3, 0.9, 0.2]
    assert all(model.state_dict()[name].equal(seen[1][name]) for name in seen[1]), "the first of equals"
    assert any(not model.state_dict()[name].equal(seen[4][name]) for name in seen[4])


@pytest.mark.parametrize("steps, checks, expected", [(3, 5, [1, 2, 3]), (1, 5, [1]), (10, 2, [5, 10]), (7, 1, [7])])
def test_validation_comes_as_often_as_asked_and_always_at_the_end(steps, checks, expected):
    model, x, y = problem()
    _, history = train(model, loss_of, shown(x, y), steps=steps, lr=0.01, validate=lambda _: 0.0, checks=checks)
    assert [entry["step"] for entry in history] == expected


def test_the_model_trains_in_training_mode_and_is_validated_in_evaluation_mode():
    modes = []
    model, x, y = problem()
    model.eval()  # as an encoder comes that was used before

    def loss(model, batch):
        modes.append(model.training)
        return loss_of(model, batch)

    def validate(model):
        modes.append(model.training)
        return 0.0

    train(model, loss, shown(x, y), steps=6, lr=0.01, checks=2, validate=validate)
    assert modes == [True] * 3 + [False] + [True] * 3 + [False]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(bad):
    model, x, y = problem()
    losses = iter([1.0, 1.0, bad])
    before = None

    def loss(model, batch):
        nonlocal before
        before = deepcopy(model.state_dict())
        return loss_of(model, batch) * next(losses)

    message = f"the loss became {bad} in component, fusion, step 2 of 9: lower lr .now 0.01. or look for NaN"
    with pytest.raises(MmkitError, match=message):
        train(model, loss, shown(x, y), steps=9, lr=0.01, where="component, fusion")
    assert all(model.state_dict()[name].equal(before[name]) for name in before), "as before the bad step"


def test_nan_in_the_inputs_is_found_at_the_first_batch_that_holds_it():
    model, x, y = problem()
    x[17, 3] = math.nan
    with pytest.raises(MmkitError, match=r"the loss became nan in training, step \d of 20"):
        train(model, loss_of, shown(x, y), steps=20, lr=0.01)


# ---------------------------------------------------------------------------------------------- schedule and batches


def test_warmup_and_cosine():
    factors = [warmup_cosine(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5) and 0 < factors[99] < 0.001
    assert all(a > b for a, b in zip(factors[10:], factors[11:]))
    assert [warmup_cosine(step, 1) for step in range(1)] == [1] and warmup_cosine(0, 2) == 1
    assert max(warmup_cosine(step, 100, warmup=0.5) for step in range(49)) < 1


@pytest.mark.parametrize("count, size", [(40, 8), (43, 8), (5, 8), (8, 8), (1, 1)])
def test_every_pass_sees_every_row_once_but_for_the_ragged_end(count, size):
    rows = torch.arange(100, 100 + count)
    drawn = batches(rows, size, generator())
    passes, a_pass = [], max(1, count // size)
    for _ in range(3):
        passes.append(torch.cat([next(drawn) for _ in range(a_pass)]).tolist())
    for seen in passes:
        assert len(set(seen)) == len(seen) == count - (count % size if count > size else 0)
        assert set(seen) <= set(rows.tolist())
    assert count == 1 or passes[0] != passes[1]
    assert count < 40 or set(passes[0]) | set(passes[1]) | set(passes[2]) == set(rows.tolist())


# ---------------------------------------------------------------------------------------------- cost


def flops_by_formula(batch):
    """Forward and backward of two linear layers: a multiply-add is two; the first layer's input needs no gradient."""
    return 2 * batch * (6 * 16 * 2 + 16 * 3 * 3)


def test_flops_are_those_of_one_step_times_the_steps():
    model, x, y = problem()
    phase, _ = train(model, loss_of, shown(x, y), steps=25, lr=0.01)
    assert phase.flops == 25 * flops_by_formula(8)
    assert phase.flops == 25 * flops_of(lambda: loss_of(model, next(shown(x, y))).backward())


@pytest.mark.parametrize(
    "encoder, given",
    [
        (ViT(layers=2), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)),
        (TextTransformer(20, layers=1), torch.randint(1, 20, (2, 10))),
    ],
    ids=["vit", "transformer"],
)
def test_flops_of_a_transformer_do_not_vanish_in_inference(encoder, given):
    """PyTorch's own layer takes a fused path in inference, which hid its products from the counter: the number must be
    the training path's."""
    dim, tokens, layers = 64, 16 if isinstance(encoder, ViT) else 10, 2 if isinstance(encoder, ViT) else 1
    layer = 2 * 2 * tokens * (4 * dim * dim + 2 * 2 * dim * dim) + 2 * 2 * 2 * tokens * tokens * dim
    patches = 2 * 2 * tokens * 3 * 8 * 8 * dim if isinstance(encoder, ViT) else 0
    with torch.inference_mode():
        assert flops_of(lambda: encoder.eval()(given)) == layers * layer + patches
    assert flops_of(lambda: encoder.train()(given)) == layers * layer + patches


def test_cost_adds_its_phases_up():
    cost = Cost(
        {"pretrain": Phase(1e9, 2.0, 10, 500), "joint": Phase(2e9, 3.0, 20, 300)}, peak_bytes=7, parameters_total=400
    )
    assert (cost.flops, cost.seconds, cost.parameters_trained) == (3e9, 5.0, 500)
    assert cost.as_dict() == {
        "flops": 3e9,
        "seconds": 5.0,
        "peak_bytes": 7,
        "parameters_trained": 500,
        "parameters_total": 400,
        "phases": {
            "pretrain": {"flops": 1e9, "seconds": 2.0, "steps": 10, "parameters_trained": 500},
            "joint": {"flops": 2e9, "seconds": 3.0, "steps": 20, "parameters_trained": 300},
        },
    }
    assert Cost().parameters_trained == 0 == Cost().flops


def test_validation_is_no_cost():
    model, x, y = problem()
    begun = time.perf_counter()
    phase, _ = train(
        model,
        loss_of,
        shown(x, y),
        steps=2,
        lr=0.01,
        checks=1,
        validate=lambda _: time.sleep(0.5) or 0.0,
    )
    assert 0 < phase.seconds < time.perf_counter() - begun - 0.5


def test_peak_memory_is_a_peak():
    forget_peak()
    before = peak_bytes()
    held = np.ones(40_000_000)
    del held
    assert peak_bytes() - before > 250e6, "320 MB were held for a moment"


# ---------------------------------------------------------------------------------------------- features


@pytest.fixture(scope="module")
def captions():
    dataset = load("scenes", **SMALL)
    return dataset, Retrieval(dataset).loader()


@pytest.mark.parametrize("tokens", [True, False])
def test_encode_all_is_the_encoder_in_order(captions, tokens):
    dataset, loader = captions
    text, image = TextTransformer(200).eval(), CNN().eval()
    order = loader.view("text").lengths.argsort()[:50]
    encoded = encode_all(text, 50, lambda part: loader.of_entries("text", order[part]), tokens=tokens, batch=8)
    with torch.no_grad():
        whole = text(loader.of_entries("text", order))
    torch.testing.assert_close(encoded.summary, whole.summary, rtol=1e-4, atol=1e-5)
    assert encoded.tokens.shape == ((50, whole.tokens.shape[1], 64) if tokens else (50, 0, 64))
    if tokens:
        assert encoded.mask.equal(whole.mask)
        torch.testing.assert_close(encoded.tokens[whole.mask], whole.tokens[whole.mask], rtol=1e-4, atol=1e-5)
    images = encode_all(image.train(), 5, lambda part: dataset.pixels(part), tokens=tokens, batch=2)
    assert images.summary.shape == (5, 128) and not image.training


def test_features_that_are_not_finite_say_which_input(captions):
    class Damaged(nn.Module):
        def forward(self, rows):
            summary = torch.ones(len(rows), 3)
            summary[rows == 13, 1] = math.nan
            return Encoded(summary[:, None], torch.ones(len(rows), 1, dtype=torch.bool), summary)

    message = "the features of input 13 of 20 are not finite .encoder Damaged.: look for damage in that input or NaN"
    with pytest.raises(MmkitError, match=message):
        encode_all(Damaged(), 20, lambda part: part, tokens=False, batch=4)


# ---------------------------------------------------------------------------------------------- device


def test_a_device_says_why_it_was_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device("cpu") == (torch.device("cpu"), "asked for")
    assert device()[0].type == "cpu" and device()[1].startswith("auto: no CUDA device")
    message = "device 'cuda' was asked for and is not available here; pass device='auto' or 'cpu'"
    with pytest.raises(MmkitError, match=message):
        device("cuda")
    with pytest.raises(MmkitError, match="unknown device 'cud': did you mean 'cuda'"):
        device("cud")


def test_the_cores_losses_are_counted_though_the_counter_cannot_see_into_them():
    a, b = (torch.nn.functional.normalize(torch.randn(24, 16), dim=1).requires_grad_() for _ in range(2))
    pairs = 24 * 24 * 16
    assert flops_of(lambda: contrastive_loss(a, b, 10.0)) == 2 * pairs
    assert flops_of(lambda: contrastive_loss(a, b, 10.0).backward()) == 8 * pairs
    assert flops_of(lambda: sigmoid_loss(a, b, 10.0, -5.0).backward()) == 6 * pairs
    with torch.no_grad():
        assert flops_of(lambda: sigmoid_loss(a, b, 10.0, -5.0)) == 2 * pairs
    weight, target = torch.randn(40, 16, requires_grad=True), torch.randint(0, 40, (24,))
    assert flops_of(lambda: linear_cross_entropy(a, weight, target).backward()) == 6 * 24 * 40 * 16
