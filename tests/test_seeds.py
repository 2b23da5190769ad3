"""One seed, separate streams."""

from itertools import product

import pytest
import torch
from torch import nn

from mmkit.training import choose, seeded, stream


def test_streams_are_repeatable_and_do_not_depend_on_each_other():
    draw = lambda seed, name: torch.rand(4, generator=stream(seed, name)).tolist()  # noqa: E731
    assert draw(3, "pairs") == draw(3, "pairs")
    names = (
        "pairs",
        "head",
        "image",
        "text",
        "order",
        "texts",
        "shuffle",
        "dropout/joint",
        "dropout/fusion",
        "own heads",
    )
    first = {(seed, name): draw(seed, name)[0] for seed, name in product(range(30), names)}
    assert len(set(first.values())) == len(first), "no two streams of thirty seeds begin alike"
    one, two = stream(0, "a"), stream(0, "b")
    expected = torch.rand(3, generator=stream(0, "b"))
    torch.rand(100, generator=one)
    assert torch.rand(3, generator=two).equal(expected)


def test_neighbouring_seeds_are_not_correlated():
    draws = torch.stack([torch.rand(400, generator=stream(seed, "order")) for seed in range(20)])
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.25


def test_seeded_gives_equal_weights_and_leaves_the_global_generator_untouched():
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    first = seeded(5, "head", nn.Linear, 4, 3)
    assert torch.rand(2).equal(expected)
    torch.rand(50)
    assert seeded(5, "head", nn.Linear, 4, 3).weight.equal(first.weight)
    for other in ((6, "head"), (5, "image")):
        assert not seeded(*other, nn.Linear, 4, 3).weight.equal(first.weight)
    with pytest.raises(ZeroDivisionError):
        torch.manual_seed(11)
        seeded(5, "head", lambda: 1 / 0)
    assert torch.rand(2).equal(expected), "also after an error"


def test_a_larger_choice_contains_the_smaller():
    rows = torch.arange(500, 900)
    chosen = [choose(rows, count, stream(2, "pairs")).tolist() for count in (8, 64, 400)]
    assert chosen[0] == chosen[1][:8] and chosen[1] == chosen[2][:64]
    assert sorted(chosen[2]) == rows.tolist() and chosen[2] != rows.tolist()
    assert choose(rows, 8, stream(3, "pairs")).tolist() != chosen[0]
