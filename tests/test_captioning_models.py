"""Captioning's decoders and objective, against slow twins and by hand."""

import pytest
import torch
from captioners import captioner, images, one
from torch.nn import functional as F

from mmkit.errors import MmkitError
from mmkit.models import CNN
from mmkit.models.captioner import (
    DECODERS,
    END,
    IGNORED,
    START,
    AttentionGRU,
    Captioner,
    EachFeature,
    caption_loss,
    targets,
)
from mmkit.models.encoded import Encoded
from mmkit.models.text import UNKNOWN
from mmkit.training import flops_of, stream

each_decoder = pytest.mark.parametrize("kind", DECODERS)


# ---------------------------------------------------------------------------------------------- decoders


@each_decoder
def test_a_word_at_a_time_gives_what_the_whole_caption_gives(kind):
    model = captioner(kind, dropout=0.5)
    memory, ids = model.memory(images(4)), torch.randint(0, 9, (4, 8), generator=stream(0, "ids"))
    whole, state = model.head(ids, memory), None
    for place in range(8):
        step = model.head(ids[:, place : place + 1], memory, state)
        state = step.state
        torch.testing.assert_close(step.hidden[:, 0], whole.hidden[:, place])
        torch.testing.assert_close(step.attention[:, 0], whole.attention[:, place])
    for mine, theirs in zip(state, whole.state, strict=True):
        torch.testing.assert_close(mine, theirs)


@each_decoder
def test_a_word_does_not_see_those_after_it(kind):
    model = captioner(kind)
    memory, ids = model.memory(images(2)), torch.randint(3, 9, (2, 6), generator=stream(0, "ids"))
    changed = ids.clone()
    changed[:, 3] = (ids[:, 3] - 2) % 6 + 3
    one, two = model.head(ids, memory).hidden, model.head(changed, memory).hidden
    assert one[:, :3].equal(two[:, :3]) and not one[:, 3].allclose(two[:, 3])


@each_decoder
def test_attention_is_a_distribution_over_real_tokens(kind):
    model = captioner(kind)
    tokens = torch.randn(2, 5, 16, generator=stream(0, "tokens"))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]]).bool()
    ids = torch.randint(0, 9, (2, 4))
    seen = []
    for t in (tokens, tokens.masked_fill(~mask[..., None], 100.0)):
        seen.append(model.head(ids, model.head.remember(Encoded(t, mask, t[:, 0]))))
    assert seen[0].hidden.equal(seen[1].hidden), "what is masked changes nothing"
    attention = seen[0].attention
    torch.testing.assert_close(attention.sum(2), torch.ones(2, 4))
    if kind == "gru_without_attention":
        assert attention.eq(1).all() and attention.shape[2] == 1
    else:
        assert attention.shape[2] == 5 and attention[1, :, 2:4].eq(0).all()
        assert (attention[mask[:, None].expand(-1, 4, -1)] > 0).all()


def test_additive_attention_by_hand():
    head = captioner("gru").head
    tokens = torch.randn(1, 3, 16, generator=stream(0, "tokens"))
    memory = head.remember(Encoded(tokens, torch.ones(1, 3, dtype=torch.bool), tokens.mean(1)))
    step = head(torch.tensor([[START]]), memory)
    mean = tokens[0].mean(0)
    state = head.body(head.words.weight[START] + mean[None], torch.tanh(head.first(mean))[None])[0][0]
    energy = torch.stack(
        [(head.energy.weight[0] * torch.tanh(head.query(state) + head.key(token))).sum() for token in tokens[0]]
    )
    weights = energy.exp() / energy.exp().sum()
    torch.testing.assert_close(step.attention[0, 0], weights)
    torch.testing.assert_close(step.hidden[0, 0], state + sum(w * t for w, t in zip(weights, tokens[0])))


def test_without_attention_only_the_summary_counts():
    model = captioner("gru_without_attention")
    encoded, ids = model.encode(images(2)), torch.randint(3, 9, (2, 4))
    moved = {"image": encoded["image"]._replace(tokens=encoded["image"].tokens.flip(1))}
    assert model(encoded, ids).equal(model(moved, ids))
    assert not captioner("gru")(encoded, ids).equal(captioner("gru")(moved, ids)), "attention knows where a token is"


# ---------------------------------------------------------------------------------------------- the objective


def test_targets_are_the_words_and_one_end():
    ids = torch.tensor([[5, 6, 7, END, END, END], [5, UNKNOWN, 8, 4, 3, END], [END] * 6])
    assert targets(ids).tolist() == [
        [5, 6, 7, END, IGNORED, IGNORED],
        [5, IGNORED, 8, 4, 3, END],
        [END] + [IGNORED] * 5,
    ]


@each_decoder
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_each_next_word(kind, smoothing):
    """Caption by caption, word by word, with plain PyTorch; the last is longer than the decoder and so has no end."""
    model = captioner(kind)
    captions = [[5, 6, 7], [8, UNKNOWN, 4, 3], [], [3, 4, 5, 6, 7, 8, 3, 4]]
    ids = torch.zeros(4, 8, dtype=torch.int64)
    for row, words in enumerate(captions):
        ids[row, : len(words)] = torch.tensor(words, dtype=torch.int64)
    losses = []
    for row, words in enumerate(captions):
        memory = model.memory(one(row, 4))
        said = [START, *words, END][: model.head.length + 2]
        logits = model.head.out(model.head(torch.tensor([said[:-1]]), memory).hidden[0])
        for i, word in enumerate(said[1:]):
            if word != UNKNOWN:
                losses.append(F.cross_entropy(logits[i], torch.tensor(word), label_smoothing=smoothing))
    assert len(losses) == 4 + 4 + 1 + 8
    torch.testing.assert_close(model(images(4), ids, label_smoothing=smoothing), torch.stack(losses).mean())


@each_decoder
def test_padding_changes_nothing_and_several_captions_share_their_image(kind):
    model, ids = captioner(kind), torch.tensor([[5, 6, 7], [8, 4, END]])
    torch.testing.assert_close(model(images(2), ids), model(images(2), F.pad(ids, (0, 3))))
    other = torch.tensor([[3, 3, END], [4, 4, 4]])
    both = model(images(2), torch.cat([ids, other]))
    torch.testing.assert_close(both, (model(images(2), ids) * 7 + model(images(2), other) * 7) / 14)


def test_a_decoder_is_a_language_model_too():
    for kind in DECODERS:
        head, ids = captioner(kind).head, torch.tensor([[5, 6, END], [7, 8, 3]])
        loss = caption_loss(head, None, ids)
        loss.backward()
        assert loss.isfinite() and head.words.weight.grad[5].abs().sum() > 0


def test_the_transformer_refuses_more_words_than_it_has_places():
    model = captioner("transformer", length=3)
    message = "5 words exceed the decoder's length=3: cut the captions, or build a longer decoder"
    with pytest.raises(MmkitError, match=message):
        model.head(torch.full((1, 6), 4), None)
    assert model(images(1), torch.full((1, 20), 4)).isfinite(), "the loss reads a caption up to the limit"


def test_the_output_layer_is_counted():
    model = captioner("gru", words=500, dim=16)
    encoded, ids = model.encode(images(2)), torch.randint(3, 500, (2, 7))
    forward = flops_of(lambda: caption_loss(model.head, None, ids))
    assert forward > 2 * 2 * 8 * 16 * 500 * 3 > 0.6 * forward
    assert flops_of(lambda: model(encoded, ids).backward()) > forward


def test_captions_of_unknown_words_alone_teach_nothing():
    model = captioner("gru")
    assert targets(torch.tensor([[UNKNOWN, UNKNOWN, END]])).tolist() == [[IGNORED, IGNORED, END]]
    loss = model(images(1), torch.tensor([[UNKNOWN] * 9]))
    assert loss.item() == 0, "nine unknown words, cut at eight, have no target"


def test_given_batch_statistics_stay_as_they_were_given():
    class Given(CNN):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

    model = Captioner("image", Given(), AttentionGRU(9, dim=16), norm="batch").train()
    assert model.training and model.image.training and not model.image.norm.training
    assert model.fusion.tokens[0].training, "those of the fusion follow the training"


def test_features_of_unequal_scale_are_scaled_each_by_itself():
    x = torch.randn(6, 5, 3, generator=stream(0, "x")) * torch.tensor([1.0, 10.0, 100.0]) + 7
    layer = EachFeature(3)
    y = x.double()
    expected = (y - y.mean((0, 1))) / y.std((0, 1), correction=0)
    torch.testing.assert_close(layer(x), expected.float(), atol=1e-3, rtol=1e-3)
    model = Captioner("image", CNN(), AttentionGRU(9, dim=16), norm="batch")
    assert model.fusion.tokens[0].running_var.shape == (64,)
    with pytest.raises(MmkitError, match="unknown norm 'bach': did you mean 'batch'"):
        Captioner("image", CNN(), AttentionGRU(9, dim=16), norm="bach")
