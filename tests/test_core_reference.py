"""The formulas of `mmkit.core.reference` against loops in plain Python; the core's functions bear their names."""

import inspect
import math

import pytest
import torch
from torch.nn import functional as F

import mmkit.core
from mmkit.core import reference


def unit(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


@pytest.mark.parametrize("n, d, scale", [(1, 3, 10.0), (2, 4, 1.0), (7, 5, 14.3), (16, 8, 40.0)])
def test_contrastive_loss_is_the_loop_of_its_formula(n, d, scale):
    image, text = unit(n, d, 0), unit(n, d, 1)
    total = 0.0
    for i, (u, v) in enumerate(zip(image.tolist(), text.tolist())):
        row = [scale * dot(u, other) for other in text.tolist()]
        column = [scale * dot(other, v) for other in image.tolist()]
        for scores in (row, column):
            total -= scores[i] - math.log(sum(math.exp(s) for s in scores))
    assert reference.contrastive_loss(image, text, scale).item() == pytest.approx(total / (2 * n), rel=1e-12)


def test_sigmoid_loss_is_the_loop_of_its_formula():
    image, text = unit(6, 4, 0), unit(6, 4, 1)
    total = 0.0
    for i, u in enumerate(image.tolist()):
        for j, v in enumerate(text.tolist()):
            score = 8.0 * dot(u, v) - 3.0
            total += math.log(1 + math.exp(-score if i == j else score))
    assert reference.sigmoid_loss(image, text, 8.0, -3.0).item() == pytest.approx(total / 6, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("biased", [False, True])
def test_linear_cross_entropy_is_that_of_pytorch(smoothing, biased):
    hidden, weight, bias, target = (
        unit(9, 4, 0),
        5 * unit(7, 4, 1),
        unit(1, 7, 2)[0] if biased else None,
        torch.arange(9) % 7,
    )
    target[3] = 2
    for ignored in (-100, 2):
        options = dict(ignore_index=ignored, label_smoothing=smoothing)
        expected = F.cross_entropy(F.linear(hidden, weight, bias), target, **options)
        torch.testing.assert_close(reference.linear_cross_entropy(hidden, weight, target, bias, **options), expected)
    assert reference.linear_cross_entropy(hidden, weight, torch.full((9,), -100)) == 0


def test_ranks_and_topk_by_hand():
    queries, gallery = (
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[2.0, 1.0], [3.0, 1.0], [2.0, 5.0], [1.0, 0.0]]),
    )
    values, rows = reference.topk(queries, gallery, 3)
    assert rows.tolist() == [[1, 0, 2], [2, 0, 1]], "rows 0 and 2 tie for the first query, rows 0 and 1 for the second"
    assert values.tolist() == [[3, 2, 2], [5, 1, 1]]
    ranks = reference.retrieval_ranks(queries, gallery, torch.tensor([0, 1]), torch.tensor([0, 9, 1, 0]))
    assert ranks.tolist() == [3, 1], "the wrong row 2 ties with row 0 and stands before it"


def test_gradient_cache_is_plain_backpropagation():
    weight = torch.ones(3, requires_grad=True)
    loss = reference.gradient_cache(lambda x: (x * weight,), torch.arange(6.0).view(2, 1, 3), lambda x: x.sum() ** 2)
    assert loss == 225 and weight.grad.tolist() == [90, 150, 210] and not loss.requires_grad


def test_each_formula_has_the_name_and_the_arguments_of_the_function_it_defines():
    formulas = {name: f for name, f in vars(reference).items() if inspect.isfunction(f) and name in mmkit.core.__all__}
    assert len(formulas) == 6
    for name, formula in formulas.items():
        ours = list(inspect.signature(getattr(mmkit.core, name)).parameters)
        arguments = list(inspect.signature(formula).parameters)
        assert [x for x in ours if x in arguments] == arguments, name
