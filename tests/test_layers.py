"""Attention and the Transformer block against PyTorch's own and by hand; FLOPs of a step counted from shapes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmkit.errors import MmkitError
from mmkit.models import CNN, GRU, Attention, Block, TextTransformer, Transformer, ViT
from mmkit.models.adapters import add_lora
from mmkit.training import flops_of, seeded

DIM, HEADS, TOKENS = 16, 4, 5
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [0, 0, 1, 0, 0]]).bool()


def tokens(count=TOKENS, seed=0):
    return torch.randn(3, count, DIM, generator=torch.Generator().manual_seed(seed))


def attention(**options):
    return seeded(0, "attention", Attention, DIM, HEADS, **options).eval()


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def theirs(ours):
    """PyTorch's attention with the same weights."""
    made = nn.MultiheadAttention(DIM, HEADS, batch_first=True).eval()
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        made.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        made.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    made.out_proj.load_state_dict(ours.out.state_dict())
    return made


def by_hand(ours, x, context, mask):
    """Head by head and query by query, from the formula."""
    size = DIM // HEADS
    query, key, value = ours.query(x), ours.key(context), ours.value(context)
    mixed = torch.zeros_like(x)
    for item in range(len(x)):
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            real = mask[item].nonzero()[:, 0]
            for place in range(x.shape[1]):
                scores = key[item, real, part] @ query[item, place, part] / math.sqrt(size)
                weights = scores.exp() / scores.exp().sum()
                mixed[item, place, part] = weights @ value[item, real, part]
    return ours.out(mixed)


# ---------------------------------------------------------------------------------------------- attention


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_pytorchs_and_the_formula(masked):
    ours, x = attention(), tokens()
    mask = MASK if masked else torch.ones_like(MASK)
    found = ours(x, mask=mask if masked else None)
    close(found, theirs(ours)(x, x, x, key_padding_mask=~mask, need_weights=False)[0])
    close(found, by_hand(ours, x, x, mask))


@torch.no_grad()
def test_a_context_answers_the_queries_of_another_modality():
    ours, x, context = attention(), tokens(3), tokens(seed=1)
    found = ours(x, context, MASK)
    assert found.shape == x.shape
    close(found, theirs(ours)(x, context, context, key_padding_mask=~MASK, need_weights=False)[0])
    close(found, by_hand(ours, x, context, MASK))
    close(ours(x, x), ours(x))


@torch.no_grad()
def test_what_is_masked_changes_nothing():
    ours, x = attention(), tokens()
    noisy = torch.where(MASK[..., None], x, 100.0)
    close(ours(tokens(3), noisy, MASK), ours(tokens(3), x, MASK))
    assert not ours(tokens(3), noisy).allclose(ours(tokens(3), x))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(MmkitError, match="dim=16 cannot be split among heads=3: take a number of heads that divides"):
        Attention(16, 3)


# ---------------------------------------------------------------------------------------------- block


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_a_block_is_pytorchs_layer_normalised_first(masked):
    ours = seeded(0, "block", Block, DIM, HEADS, hidden=24).eval()
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, dim_feedforward=24, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    layer.self_attn.load_state_dict(theirs(ours.attention).state_dict())
    pairs = ((layer.norm1, ours.norm1), (layer.norm2, ours.norm2), (layer.linear1, ours.mlp[0]))
    for part, own in (*pairs, (layer.linear2, ours.mlp[3])):
        part.load_state_dict(own.state_dict())
    mask = MASK if masked else None
    found = ours(tokens(), mask)
    expected = layer(tokens(), src_key_padding_mask=None if mask is None else ~mask)
    close(found[MASK], expected[MASK])


@torch.no_grad()
def test_a_row_without_any_real_token_is_finite_and_changes_no_other():
    model = seeded(0, "model", Transformer, DIM, 2, HEADS).eval()
    empty = MASK.clone()
    empty[1] = False
    found = model(tokens(), empty)
    assert found.isfinite().all()
    close(found[[0, 2]], model(tokens(), MASK)[[0, 2]])


@pytest.mark.parametrize("make", [lambda: TextTransformer(20), ViT], ids=["text", "vit"])
def test_training_and_evaluation_take_one_path(make):
    """Without dropout the numbers are the same, to the last bit: nothing is fused away in evaluation."""
    encoder = seeded(0, "encoder", make)
    given = torch.randint(1, 20, (3, 7)) if isinstance(encoder, TextTransformer) else torch.zeros(3, 3, 32, 32).byte()
    trained = encoder.train()(given)
    with torch.inference_mode():
        evaluated = encoder.eval()(given)
    assert trained.tokens.equal(evaluated.tokens) and trained.summary.equal(evaluated.summary)


def test_dropout_is_for_training_alone():
    ours = seeded(0, "block", Block, DIM, HEADS, dropout=0.5)
    assert not ours.train()(tokens()).equal(ours(tokens()))
    assert ours.eval()(tokens()).equal(ours(tokens()))


@torch.no_grad()
@pytest.mark.parametrize("target", ["query", "key", "value", "out"])
def test_a_changed_adapter_is_heard_in_evaluation_mode(target):
    encoder = seeded(0, "text", TextTransformer, 20)
    ids = torch.randint(1, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    before = encoder.eval()(ids).summary
    seeded(0, "lora", add_lora, encoder, rank=2, targets=(target,))
    close(encoder.eval()(ids).summary, before)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    assert (encoder.eval()(ids).summary - before).abs().max() > 1e-2


# ---------------------------------------------------------------------------------------------- FLOPs of a step

B, L = 3, 11  # items, words


def product(*sizes):
    """FLOPs of a matrix product: a multiply-add is two."""
    return 2 * math.prod(sizes)


def block_flops(count, dim):
    """Forward pass of one block over `count` tokens an item: four maps of width D, two products of attention, the MLP
    of width 2 D."""
    maps = 4 * product(B * count, dim, dim)
    attention = 2 * product(B, count, count, dim)
    return maps + attention + 2 * product(B * count, dim, 2 * dim)


def test_flops_of_a_step_of_the_cnn():
    """Three times the forward pass, but for the first layer, whose input needs no gradient."""
    first = product(B * 8 * 8, 3 * 4 * 4, 32)
    second = product(B * 4 * 4, 32 * 3 * 3, 64)
    third = product(B * 4 * 4, 64, 64)
    summary = product(B, 16 * 64, 128)
    pixels = torch.zeros(B, 3, 32, 32, dtype=torch.uint8)
    step = flops_of(lambda: CNN()(pixels).summary.sum().backward())
    assert step == 2 * first + 3 * (second + third + summary)


def test_flops_of_a_step_of_the_vision_transformer():
    patches = product(B * 16, 3 * 8 * 8, 64)
    pixels = torch.zeros(B, 3, 32, 32, dtype=torch.uint8)
    step = flops_of(lambda: ViT(layers=2)(pixels).summary.sum().backward())
    assert step == 2 * patches + 3 * 2 * block_flops(16, 64)


@pytest.mark.parametrize("layers", [1, 3])
def test_flops_of_a_step_of_the_text_transformer(layers):
    """Looking up words and positions is no product; with padding or without, the same count."""
    ids = torch.randint(1, 20, (B, L), generator=torch.Generator().manual_seed(0))
    for padded in (0, 4):
        given = ids.clone()
        given[0, L - padded :] = 0
        step = flops_of(lambda given=given: TextTransformer(20, layers=layers)(given).summary.sum().backward())
        assert step == 3 * layers * block_flops(L, 64)


def test_flops_of_a_step_of_the_gru():
    """Two directions of width 32, three gates each, over the real words alone.

    Going back, a state that nothing came before needs no gradient: the first of each sequence and direction."""
    ids = torch.randint(1, 20, (B, L), generator=torch.Generator().manual_seed(0))
    inputs, states = 2 * product(B * L, 64, 3 * 32), 2 * product(B * L, 32, 3 * 32)
    step = flops_of(lambda: GRU(20)(ids).summary.sum().backward())
    assert step == 3 * (inputs + states) - 2 * product(B, 32, 3 * 32)
    ids[:, -1] = 0
    with torch.no_grad():
        assert flops_of(lambda: GRU(20)(ids)) == (inputs + states) * (L - 1) / L


@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "MATH"])
def test_flops_of_attention_do_not_depend_on_the_kernel(backend):
    """The formula in plain products, PyTorch's product by product, and its kernel in one: one number."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query, key, value = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (6, 9, 9))

    def plain():
        weights = (query @ key.transpose(2, 3) / math.sqrt(8)).softmax(-1)
        (weights @ value).sum().backward()

    def kernel():
        F.scaled_dot_product_attention(query, key, value).sum().backward()

    with sdpa_kernel(getattr(SDPBackend, backend)):
        assert flops_of(kernel) == flops_of(plain) == 3 * 2 * product(2 * 4, 6, 9, 8)
