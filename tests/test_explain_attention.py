"""What attention shows and costs: the tools against cases whose answer is known."""

import matplotlib.pyplot as plt
import pytest
import torch

from mmkit.explain import attention
from mmkit.models import Block, TextTransformer, ViT


@pytest.fixture
def axes():
    figure, found = plt.subplots(1, 2)
    yield found
    plt.close(figure)


def test_pytorchs_layer_gives_what_the_block_gives():
    torch.manual_seed(0)
    block, x, real = Block(12, 3, hidden=20), torch.randn(2, 5, 12), torch.arange(5) < torch.tensor([[5], [3]])
    twin = attention.pytorch_layer(block)
    assert torch.allclose(block(x, real)[real], twin(x, src_key_padding_mask=~real)[real], atol=1e-5)
    assert not torch.allclose(attention.pytorch_layer(Block(12, 3, hidden=20))(x), twin(x), atol=1e-2)


def test_what_reaches_the_blocks_gives_the_encoders_output():
    torch.manual_seed(0)
    text, ids = TextTransformer(9, dim=12, heads=3), torch.tensor([[3, 4, 5], [6, 7, 0]])
    tokens, mask = attention.before_blocks(text, ids)
    assert torch.equal(mask, ids != 0)
    assert torch.equal(text.body(tokens, mask), text(ids).tokens)
    vit, pixels = ViT(dim=12, heads=3), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tokens, mask = attention.before_blocks(vit, pixels)
    assert mask is None and torch.equal(vit.body(tokens), vit(pixels).tokens)
    assert not text.body._forward_pre_hooks, "nothing is left in the encoder"
    with pytest.raises(IndexError):
        attention.before_blocks(text, ids + 9)
    assert not text.body._forward_pre_hooks, "nor after an error"


def test_heads_that_look_at_one_place_are_found():
    """Three heads: each looks at the token before, after, or first; the second text is one token shorter."""
    real, maps = torch.arange(4) < torch.tensor([[4], [3]]), torch.zeros(2, 1, 3, 4, 4)
    for asks in range(4):
        maps[:, 0, 0, asks, max(asks - 1, 0)] = 1
        maps[:, 0, 1, asks, min(asks + 1, 3)] = 1
        maps[:, 0, 2, asks, 0] = 1
    maps[1, 0, 1, 2] = torch.tensor([0.0, 0.0, 1.0, 0.0])  # nothing real comes after it
    found = attention.looks(maps, real)
    assert found["word before"][0, 0] == found["word after"][0, 1] == found["[CLS]"][0, 2] == 1
    assert found["word after"][0, 0] == 0 and found["word before"][0, 2] == 2 / 5, "of five, two stand after the first"


def test_words_are_shuffled_and_tokens_named():
    text = "one two three four five six"
    shuffled = attention.in_any_order(text, torch.Generator().manual_seed(0))
    assert shuffled != text and sorted(shuffled.split()) == sorted(text.split())
    names = attention.token_names("two sandcastles", lambda texts: torch.zeros(1, 2 + (len(texts[0]) + 4) // 5))
    assert names == ["[CLS]", "two", "sandcastles", "~", "~", "[SEP]"]


def test_maps_are_drawn_with_their_tokens(axes):
    attention.draw_maps(axes, {"left": torch.eye(2), "right": torch.ones(2, 2)}, ["a", "b"])
    assert [axis.get_title() for axis in axes] == ["left", "right"]
    assert [axis.images[0].get_array().tolist() for axis in axes] == [[[1, 0], [0, 1]], [[1, 1], [1, 1]]]
    assert [axis.images[0].get_clim() for axis in axes] == [(0, 1)] * 2, "one scale for all maps"
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes[1].get_yticklabels()] == ["", ""], "named once a row"


def test_what_is_left_is_drawn_for_each_item_with_its_mean(axes):
    rows = {"hidden": torch.tensor([0.5, 0.7]), "erased": torch.tensor([1.0, 1.0]), "other": torch.tensor([0.2, 0.4])}
    attention.draw_changes(axes[0], rows, reference="other")
    dots, diamonds, line = axes[0].lines[0:6:2], axes[0].lines[1:6:2], axes[0].lines[6]
    assert [list(row.get_xdata()) for row in dots] == [values.tolist() for values in rows.values()]
    assert [round(float(mean.get_xdata()[0]), 4) for mean in diamonds] == [0.6, 1.0, 0.3]
    assert [text.get_text() for text in axes[0].texts] == ["0.60", "1.00", "0.30"]
    assert round(float(line.get_xdata()[0]), 4) == 0.3
    low, high = axes[0].get_ylim()
    assert low > high, "the first row is on top"


def test_costs_are_drawn_as_counted_and_as_measured(axes):
    measured = {10: {"linear": (1e9, 1e6), "square": (2e9, 3e6)}, 20: {"linear": (2e9, 2e6), "square": (8e9, 12e6)}}

    def counted(tokens):
        return {"linear": (1e8 * tokens, 1e5 * tokens), "square": (2e7 * tokens**2, 3e4 * tokens**2)}

    assert attention.in_words(measured[20]) == "linear 2.0 GFLOP, 8.0 MB; square 8.0 GFLOP, 48.0 MB"
    attention.draw_costs(axes, counted, measured, longest=50, titles=("left", "right"))
    lines = [list(line.get_ydata()) for line in axes[1].lines]
    assert lines == [[4.0, 8.0, 16.0], [4.0, 8.0], [12.0, 48.0, 192.0], [12.0, 48.0]], "megabytes; counted on to 40"
    assert list(axes[0].lines[0].get_xdata()) == [10, 20, 40]
    assert [axis.get_title() for axis in axes] == ["left", "right"]
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["linear", "square"]


def test_a_place_is_marked_with_its_name(axes):
    attention.mark(axes[0], 3.0, "here")
    assert list(axes[0].lines[0].get_xdata()) == [3.0, 3.0] and axes[0].texts[0].get_text().strip() == "here"
