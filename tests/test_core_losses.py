"""The losses of the core against their formulas in float64: values, gradients, sizes, types, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmkit.core import choose, contrastive_loss, gradient_cache, linear_cross_entropy, reference, sigmoid_loss


def batch(regime, n, d, seed=0):
    """Unit vectors and a scale. cone: all alike; hard: near misses; saturated: all told apart, as late in training."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    if regime == "cone":
        centre = 1.5 * draw(1, d)
        return F.normalize(draw(n, d) + centre, dim=1), F.normalize(draw(n, d) + centre, dim=1), 14.3
    image, noise = draw(n, d), {"hard": 5.0, "saturated": 2.2}[regime] * math.sqrt(d / 384)
    return F.normalize(image, dim=1), F.normalize(image + noise * draw(n, d), dim=1), 100.0


def run(loss, *inputs):
    """The loss and the gradient of every input, in float64."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    value.backward()
    gradients = [x.grad for x in inputs]
    return [x.double() for x in (value.detach(), *gradients)]


def errors(loss, formula, *inputs):
    """Relative error of the loss and of each gradient against the formula in float64 of the same numbers."""
    expected = run(formula, *(x.double() for x in inputs))
    return [float((a - b).norm() / b.norm()) for a, b in zip(run(loss, *inputs), expected)]


SIZES = [(1023, 384), (515, 512), (257, 640), (300, 768), (130, 1024)]


@pytest.mark.parametrize("n, d", SIZES)
@pytest.mark.parametrize("regime, bound", [("cone", 1e-6), ("hard", 1e-6), ("saturated", 1e-5)])
def test_contrastive_gradients_in_float32(regime, bound, n, d):
    image, text, scale = batch(regime, n, d)
    found = errors(
        lambda *x: contrastive_loss(*x, tile=256), reference.contrastive_loss, image, text, torch.tensor(scale)
    )
    assert max(found[:3]) <= bound and found[3] <= 5e-6, found


@pytest.mark.parametrize("regime", ["cone", "hard", "saturated"])
def test_contrastive_gradients_in_bfloat16(regime):
    image, text, scale = batch(regime, 515, 384)
    assert (
        max(
            errors(contrastive_loss, reference.contrastive_loss, image.bfloat16(), text.bfloat16(), torch.tensor(scale))
        )
        <= 2e-3
    )


def test_a_saturated_batch_keeps_digits_that_the_ordinary_formula_loses():
    image, text, scale = batch("saturated", 515, 384)
    expected = run(reference.contrastive_loss, image.double(), text.double(), torch.tensor(scale).double())
    assert 0 < expected[0] < 1e-4
    both = contrastive_loss, reference.contrastive_loss
    ours, theirs = (run(loss, image, text, torch.tensor(scale))[1] for loss in both)
    assert 20 * (ours - expected[1]).norm() < (theirs - expected[1]).norm()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 50), st.floats(0.5, 300), st.integers(0, 99))
def test_contrastive_loss_is_its_formula_for_any_tile(n, d, tile, scale, seed):
    image, text = (x.double() for x in batch("hard", n, d, seed)[:2])
    scale = torch.tensor(scale, dtype=torch.float64)
    found, expected = (
        run(lambda *x: contrastive_loss(*x, tile=tile), image, text, scale),
        run(reference.contrastive_loss, image, text, scale),
    )
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_scores_that_lie_far_apart_are_not_lost():
    """Duplicates across pairs put some scores 600 powers of two above others. One shift a tile would lose the small."""
    image, text, _ = batch("hard", 60, 16)
    text[7], image[3] = image[20], -text[4]
    for scale in (30.0, 200.0, 1000.0):
        found = errors(
            lambda *x: contrastive_loss(*x, tile=32), reference.contrastive_loss, image, text, torch.tensor(scale)
        )
        assert max(found) <= 2e-5 * max(1, scale / 100), (scale, found)


def test_contrastive_gradients_are_the_same_bits_each_time_and_follow_the_order_of_pairs():
    image, text, scale = batch("hard", 600, 64)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    one, two = (run(lambda *x: contrastive_loss(*x, tile=256), image, text, torch.tensor(scale)) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(one, two))
    moved = run(contrastive_loss, image[order], text[order], torch.tensor(scale))
    assert (moved[1] - one[1][order]).norm() <= 2e-6 * one[1].norm()


def test_a_batch_of_one_has_nothing_to_learn_from():
    found = run(contrastive_loss, torch.ones(1, 4) / 2, torch.ones(1, 4) / 2, torch.tensor(20.0))
    assert all(not x.any() for x in found)


def test_the_gradient_carries_what_comes_from_above():
    image, text, scale = batch("hard", 30, 8)
    for loss in (contrastive_loss, sigmoid_loss):
        once = run(loss, image, text, torch.tensor(scale))
        thrice = run(lambda *x, loss=loss: 3 * loss(*x) + 1, image, text, torch.tensor(scale))
        for a, b in zip(once[1:], thrice[1:]):
            torch.testing.assert_close(3 * a, b, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------- sigmoid


@pytest.mark.parametrize("n, d", SIZES)
@pytest.mark.parametrize("regime", ["cone", "hard", "saturated"])
def test_sigmoid_gradients_in_float32(regime, n, d):
    image, text, scale = batch(regime, n, d)
    bias = {"cone": -10.0, "hard": -20.0, "saturated": -25.0}[regime]
    found = errors(
        lambda *x: sigmoid_loss(*x, tile=256),
        reference.sigmoid_loss,
        image,
        text,
        torch.tensor(scale),
        torch.tensor(bias),
    )
    assert max(found) <= 1e-5, found


def test_sigmoid_loss_by_hand_and_without_gradients():
    image, text = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    by_hand = sum(math.log(1 + math.exp(-z * (3 * s - 1))) for z, s in [(1, 1), (-1, 1), (-1, 0), (1, 0)]) / 2
    assert sigmoid_loss(image, text, 3.0, -1.0).item() == pytest.approx(by_hand, rel=1e-6)
    with torch.no_grad():
        assert sigmoid_loss(image.requires_grad_(), text, 3.0, -1.0).item() == pytest.approx(by_hand, rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 40), st.floats(0.5, 150), st.floats(-20, 20))
def test_sigmoid_loss_is_its_formula_for_any_tile(n, d, tile, scale, bias):
    inputs = *(x.double() for x in batch("hard", n, d)[:2]), torch.tensor(scale).double(), torch.tensor(bias).double()
    for a, b in zip(run(lambda *x: sigmoid_loss(*x, tile=tile), *inputs), run(reference.sigmoid_loss, *inputs)):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


# ---------------------------------------------------------------------------------------------- linear cross-entropy


def words(t, v, d, seed=0, confident=1.0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weight, target = draw(v, d), torch.randint(v, (t,), generator=generator)
    return confident * weight[target] + draw(t, d), weight, draw(v), target


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("biased", [False, True])
def test_linear_cross_entropy_is_its_formula(reduction, smoothing, biased):
    hidden, weight, bias, target = words(53, 211, 48, confident=0.4)
    target[::7] = 5
    share = torch.linspace(0.5, 1.5, len(hidden))

    def loss(function):
        def total(hidden, weight, bias):
            value = function(hidden, weight, bias if biased else None)
            return (value * share.to(value.dtype)).sum() if reduction == "none" else value + 0 * bias.sum()

        return total

    smoothed = dict(ignore_index=5, label_smoothing=smoothing)
    options = dict(smoothed, reduction=reduction)
    ours = loss(lambda h, w, b: linear_cross_entropy(h, w, target, b, chunk=16, **options))
    formula = loss(lambda h, w, b: F.cross_entropy(F.linear(h, w, b), target, **options))
    if reduction == "mean":
        formula = loss(lambda h, w, b: reference.linear_cross_entropy(h, w, target, b, **smoothed))
    if not biased:
        ours, formula = ((lambda h, w, f=f: f(h, w, torch.zeros(1))) for f in (ours, formula))
    found = errors(ours, formula, hidden, weight, *[bias] * biased)
    assert max(found) <= 1e-6, found


def test_linear_cross_entropy_at_confident_tokens():
    """Where p is 1 - 1e-9 the gradient p - 1 has no digit left in float32, unless the target stays out of the sum."""
    _, weight, bias, target = words(40, 300, 64)
    hidden = 0.6 * weight[target]

    def formula(hidden, weight, bias):
        return reference.linear_cross_entropy(hidden, weight, target, bias)

    assert formula(hidden.double(), weight.double(), bias.double()) < 1e-3
    found = errors(lambda *x: linear_cross_entropy(*x[:2], target, x[2]), formula, hidden, weight, bias)
    assert max(found) <= 2e-5, found


def test_linear_cross_entropy_without_a_token_to_learn_from():
    hidden, weight, _, target = words(6, 9, 4)
    hidden[2:] = torch.nan  # padding may hold anything
    target[2:] = -100
    expected = reference.linear_cross_entropy(hidden, weight, target).item()
    assert linear_cross_entropy(hidden, weight, target).item() == pytest.approx(expected, rel=1e-5)
    found = run(lambda h, w: linear_cross_entropy(h, w, torch.full((6,), -100)), hidden, weight)
    assert all(not x.any() for x in found)


# ---------------------------------------------------------------------------------------------- gradient cache


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = lambda: (torch.nn.Linear(12, 32), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(32, 8))  # noqa: E731
        self.image, self.text = (torch.nn.Sequential(*layers()) for _ in range(2))
        self.scale = torch.nn.Parameter(torch.tensor(10.0))

    def forward(self, pair):
        return F.normalize(self.image(pair[0]), dim=1), F.normalize(self.text(pair[1]), dim=1)


def test_gradient_cache_is_the_whole_batch_at_once():
    pairs = torch.randn(30, 12), torch.randn(30, 12)
    chunks = list(zip(*(x.split(8) for x in pairs)))
    for dropout in (False, True):
        whole, cached = Towers().train(dropout), Towers().train(dropout)
        torch.manual_seed(1)
        expected = reference.gradient_cache(whole, chunks, lambda *x: contrastive_loss(*x, whole.scale))  # noqa: B023
        after = torch.get_rng_state()
        torch.manual_seed(1)
        loss = gradient_cache(cached, chunks, lambda *x: contrastive_loss(*x, cached.scale))  # noqa: B023
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6) and not loss.requires_grad
        assert torch.get_rng_state().equal(after), "what comes next draws as if the chunks were encoded once"
        for a, b in zip(whole.parameters(), cached.parameters()):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)


def test_gradient_cache_notices_a_random_state_that_it_cannot_replay():
    generator, model = torch.Generator().manual_seed(0), torch.nn.Linear(4, 4)
    noisy = lambda x: model(x) + torch.randn(len(x), 4, generator=generator)  # noqa: E731
    with pytest.raises(RuntimeError, match="chunk 0 of gradient_cache encodes differently"):
        gradient_cache(noisy, torch.randn(6, 4).split(3), lambda x: x.square().sum())
    with pytest.raises(ValueError, match="at least one chunk"):
        gradient_cache(model, [], torch.sum)


# ---------------------------------------------------------------------------------------------- what they refuse


def losses():
    target = torch.arange(6) % 5
    return {
        "contrastive_loss": lambda a, b: contrastive_loss(a, b, 5.0),
        "sigmoid_loss": lambda a, b: sigmoid_loss(a, b, 5.0, -1.0),
        "linear_cross_entropy": lambda a, b: linear_cross_entropy(a, b[:5], target),
        "linear_cross_entropy, each": lambda a, b: (
            linear_cross_entropy(a, b[:5], target, reduction="none").square().sum()
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", losses())
def test_gradients_compile_functional_autocast_and_second_derivatives(name):
    loss, (image, text, _) = losses()[name], batch("hard", 6, 4)
    assert torch.autograd.gradcheck(loss, (image.double().requires_grad_(), text.double().requires_grad_()))
    value, d_image, d_text = run(loss, image, text)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for a, b in zip(run(compiled, image, text), (value, d_image, d_text)):
        torch.testing.assert_close(a, b)
    gradients = torch.func.grad(loss, (0, 1))(image, text)
    torch.testing.assert_close([x.double() for x in gradients], [d_image, d_text])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(loss, image, text)
    expected = run(loss, image.bfloat16(), text.bfloat16())
    torch.testing.assert_close(mixed, expected, rtol=1e-2, atol=1e-3)
    leaf = image.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf, text), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("name", losses())
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_reported(name, bad):
    for side in (0, 1):
        given_batch = list(batch("hard", 6, 4)[:2])
        given_batch[side][1, 2] = bad
        with pytest.raises(ValueError, match=f"scores of {name.split(',')[0]} are not finite"):
            losses()[name](*given_batch)


def test_the_reason_for_a_backend_is_told(caplog):
    x = torch.ones(2, 3)
    with caplog.at_level("DEBUG", "mmkit.core"):
        choice = choose(x)
    assert choice.name == "torch" and choice.why and choice.why in caplog.text
    assert choose(x, "torch") == ("torch", "asked for")
    with pytest.raises(ValueError, match="backend='cuda' is unknown, choose one of auto, torch, triton"):
        contrastive_loss(x, x, 1.0, backend="cuda")
    with pytest.raises(ValueError, match="backend='triton' cannot run: "):
        sigmoid_loss(x, x, 1.0, backend="triton")


def test_inputs_that_do_not_fit_are_refused():
    x = torch.ones(3, 2)
    for loss in (contrastive_loss, sigmoid_loss):
        for image, text in [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)), ((0, 3), (0, 3)), ((2, 0), (2, 0))]:
            with pytest.raises(ValueError, match="two non-empty .N, D. tensors of one shape"):
                loss(torch.zeros(image), torch.zeros(text), 1.0)
        with pytest.raises(ValueError, match="one type and device, got torch.float32 on cpu and torch.float64"):
            loss(x, x.double(), 1.0)
        with pytest.raises(ValueError, match="floating-point"):
            loss(x.long(), x.long(), 1.0)
        with pytest.raises(ValueError, match="logit_scale is one number"):
            loss(x, x, torch.ones(3))
    target = torch.zeros(3, dtype=torch.int64)
    for arguments, reason in [
        ((x, torch.ones(4, 3), target), "needs hidden"),
        ((x, x, target[:2]), "needs hidden"),
        ((x, x, target, torch.ones(2)), "bias of"),
        ((x, x, target.float()), "int64 targets"),
        ((x, x.double(), target), "one floating-point type"),
        ((x, x, target + 3), "outside the 3 words"),
        ((x, x, target - 2), "outside the 3 words"),
    ]:
        with pytest.raises(ValueError, match=reason):
            linear_cross_entropy(*arguments)
    for options, reason in [({"reduction": "max"}, "mean, sum or none"), ({"label_smoothing": 1.0}, "lie in .0, 1.")]:
        with pytest.raises(ValueError, match=reason):
            linear_cross_entropy(x, x, target, **options)
