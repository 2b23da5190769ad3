"""Encoders, fusion modules and heads: shapes, masks, and what must not change an encoding."""

import pytest
import torch
from torch import nn

from mmkit.errors import MmkitError
from mmkit.models import (
    CNN,
    GRU,
    Average,
    Concat,
    DualEncoder,
    Encoded,
    Multimodal,
    TextTransformer,
    ViT,
    WordTokenizer,
)
from mmkit.models.encoded import masked_mean
from mmkit.models.fusion import FUSIONS, fusion
from mmkit.models.vision import scaled
from mmkit.training import seeded

IMAGE = {"cnn": (CNN, 16, 64, 128), "vit": (ViT, 16, 64, 64)}
TEXT = {"transformer": TextTransformer, "gru": GRU}
IDS = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12], [3, 0, 0, 0, 0]])


def pixels(n=3, size=32, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def build(kind, *arguments, **options):
    return seeded(0, "model", kind, *arguments, **options).eval()


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------- what an encoder hands on


def test_rows_and_blank_of_an_encoding():
    encoded = Encoded(torch.randn(4, 2, 3), torch.tensor([[True, False]] * 4), torch.randn(4, 5))
    picked = encoded.rows(torch.tensor([2, 0]))
    assert all(part.equal(whole[[2, 0]]) for part, whole in zip(picked, encoded))
    assert encoded.rows(slice(1, 2)).summary.shape == (1, 5)
    blank = encoded.blank()
    assert not blank.tokens.any() and not blank.summary.any() and blank.mask.equal(encoded.mask)
    assert blank.tokens.shape == encoded.tokens.shape and encoded.summary.any()


def test_masked_mean_by_hand():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]], [[5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(tokens, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]


# ---------------------------------------------------------------------------------------------- image encoders


@pytest.mark.parametrize("name", IMAGE)
def test_image_encoders(name):
    kind, tokens, dim, summary = IMAGE[name]
    encoder = build(kind)
    encoded = encoder(pixels())
    assert encoded.tokens.shape == (3, tokens, dim) == (3, tokens, encoder.dim)
    assert encoded.mask.shape == (3, tokens) and encoded.mask.dtype == torch.bool and encoded.mask.all()
    assert encoded.summary.shape == (3, summary) == (3, encoder.summary_dim)
    close(encoder(pixels()[1:2]).summary, encoded.summary[1:2])  # an image is encoded as it is alone
    assert (encoded.summary[0] - encoded.summary[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", IMAGE)
def test_image_encoders_tell_where_things_are(name):
    encoder = build(IMAGE[name][0])
    image = torch.full((2, 3, 32, 32), 220, dtype=torch.uint8)
    image[0, :, :8, :8] = image[1, :, 24:, 24:] = 20
    one, two = encoder(image).summary
    assert (one - two).abs().max() > 1e-3


def test_pixels_are_scaled_and_larger_images_averaged():
    assert scaled(
        torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2), 2
    ).unique().tolist() == [-1, 1]
    blocks = pixels(size=8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert scaled(blocks, 8).shape == (3, 3, 8, 8) and scaled(pixels(), 16).abs().max() <= 1
    assert scaled(torch.full((1, 3, 48, 32), 255, dtype=torch.uint8), 32).shape == (1, 3, 32, 32)
    for kind, *_ in IMAGE.values():
        assert build(kind, size=64)(pixels(size=128)).summary.shape[0] == 3


@pytest.mark.parametrize("size", [8, 20, 0])
def test_a_size_that_does_not_suit_the_cnn(size):
    with pytest.raises(MmkitError, match=f"size={size} does not suit the CNN: give a power of two from 16 on"):
        CNN(size=size)


# ---------------------------------------------------------------------------------------------- text encoders


@pytest.mark.parametrize("name", TEXT)
def test_text_encoders(name):
    encoder = build(TEXT[name], 20)
    encoded = encoder(IDS)
    assert encoded.tokens.shape == (3, 5, 64) == (3, 5, encoder.dim) and encoded.summary.shape == (
        3,
        encoder.summary_dim,
    )
    assert encoded.mask.equal(IDS != 0)
    close(encoded.summary, masked_mean(encoded.tokens, encoded.mask))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TEXT)
def test_padding_never_changes_an_encoding(name, train):
    encoder = build(TEXT[name], 20).train(train)
    encoded, longer = encoder(IDS), encoder(torch.cat([IDS, IDS.new_zeros(3, 4)], 1))
    close(longer.summary, encoded.summary)
    close(longer.tokens[:, :5][encoded.mask], encoded.tokens[encoded.mask])
    for row, length in enumerate((3, 5, 1)):
        close(
            encoder(IDS[row : row + 1, :length]).summary, encoded.summary[row : row + 1]
        )  # nor does the company of longer texts


@pytest.mark.parametrize("name", TEXT)
def test_the_order_of_words_matters(name):
    encoder = build(TEXT[name], 20)
    one, two = encoder(torch.tensor([[5, 6, 7], [7, 6, 5]])).summary
    assert (one - two).abs().max() > 1e-4


# ---------------------------------------------------------------------------------------------- words


def test_word_tokenizer():
    words = WordTokenizer(["A red Arrow .", "a blue arrow , turning"], length=4)
    ids = words(["a RED arrow", "arrow zebra", "a , . a red blue"])
    assert ids.shape == (3, 4) and ids.dtype == torch.int64
    assert words.words(ids[0]) == ["a", "red", "arrow", "[PAD]"] and ids[0, 3] == 0
    assert ids[1].tolist()[1:] == [1, 0, 0], "an unknown word is 1, padding 0"
    assert words.words(ids[2]) == ["a", ",", ".", "a"], "cut to its length"
    assert len(words) == 3 + len({"a", "red", "arrow", ".", "blue", ",", "turning"})
    assert words(["a"]).shape == (1, 1), "as long as the longest of these texts"


def test_word_tokenizers_of_one_corpus_are_equal_and_keep_the_frequent_words():
    corpus = ["b b b c c a", "d"]
    assert WordTokenizer(corpus)(corpus).equal(WordTokenizer(list(reversed(corpus)))(corpus))
    few = WordTokenizer(corpus, max_words=5)
    assert few.words(few(["a b c d"])[0]) == ["[UNK]", "b", "c", "[UNK]"]
    assert few.words(WordTokenizer(corpus, min_count=2)(["a b c d"])[0]) == ["[UNK]", "b", "c", "[UNK]"]


def test_a_tokenizer_needs_words():
    with pytest.raises(MmkitError, match="a tokenizer needs a corpus with words in it, got none"):
        WordTokenizer(["  "])


# ---------------------------------------------------------------------------------------------- modalities joined


def inputs(**changed):
    """Three images and their texts."""
    return {"image": pixels(), "text": IDS} | changed


def joined(name, classes=4, **encoders):
    encoders = encoders or {"image": build(CNN), "text": build(TextTransformer, 20)}

    def made():
        mixed = fusion(name, encoders, dim=32)
        return Multimodal(encoders, mixed, nn.Linear(mixed.dim, classes))

    return build(made)


def three(name):
    """A third modality beside image and text."""
    return joined(name, image=build(CNN), sound=build(ViT), text=build(GRU, 20))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_model_takes_raw_and_encoded_inputs_alike(name):
    model = joined(name)
    image, text = model.image(pixels()), model.text(IDS)
    logits = model(inputs())
    assert logits.shape == (3, 4)
    for given in (inputs(image=image, text=text), inputs(text=text), inputs(image=image)):
        close(model(given), logits)
    assert {part for part, _ in model.named_children()} == {"image", "text", "fusion", "head"}


@pytest.mark.parametrize("name", FUSIONS)
def test_fusion_looks_at_every_modality_and_at_no_padding(name):
    model = joined(name)
    encoded = model.encode(inputs())
    image, text = encoded["image"], encoded["text"]
    logits = model(encoded)
    for modality, x in encoded.items():
        assert (model(encoded | {modality: x.blank()}) - logits).abs().max() > 1e-3
    noisy = text._replace(tokens=torch.where(text.mask[..., None], text.tokens, 1e3))
    close(model(encoded | {"text": noisy}), logits)
    extra = Encoded(
        torch.cat([image.tokens, torch.full((3, 2, 64), 50.0)], 1),
        torch.cat([image.mask, torch.zeros(3, 2, dtype=torch.bool)], 1),
        image.summary,
    )
    close(model(encoded | {"image": extra}), logits)


@pytest.mark.parametrize("name", FUSIONS)
def test_any_number_of_modalities_is_fused(name):
    given = inputs(sound=pixels(seed=1))
    model = three(name)
    encoded = model.encode(given)
    assert list(encoded) == ["image", "sound", "text"] and model(given).shape == (3, 4)
    for modality, x in encoded.items():
        assert (model(encoded | {modality: x.blank()}) - model(given)).abs().max() > 1e-4, modality


def test_only_cross_attention_reads_tokens():
    for name in FUSIONS:
        model = joined(name)
        encoded = model.encode(inputs())
        other = encoded["image"]._replace(tokens=encoded["image"].tokens.flip(0))
        same = torch.equal(model(encoded | {"image": other}), model(encoded))
        assert same == (name != "cross_attention")


@pytest.mark.parametrize("make", [joined, three])
@pytest.mark.parametrize("name", FUSIONS)
def test_gradients_reach_every_parameter_of_every_fusion(name, make):
    model = make(name).train()
    model(inputs(sound=pixels(seed=1))).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if not parameter_name.endswith("key.bias"):  # it moves all scores of a query alike: softmax does not see it
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


def test_fusion_of_one_modality_is_a_hidden_layer_and_of_unknown_names_is_refused():
    encoders = {"image": build(CNN)}
    assert all(isinstance(fusion(name, encoders), Concat) for name in FUSIONS)
    with pytest.raises(MmkitError, match="cross-attention needs two modalities or more, got image: take fusion='conca"):
        FUSIONS["cross_attention"](encoders)
    message = (
        "unknown fusion 'crossattention': did you mean 'cross_attention'. there are concat, cross_attention, product"
    )
    with pytest.raises(MmkitError, match=message):
        fusion("crossattention", encoders)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_model_of_one_modality_looks_at_no_other(modality):
    encoder = build(CNN) if modality == "image" else build(GRU, 20)
    model = joined("concat", **{modality: encoder})
    logits = model(inputs())
    assert logits.shape == (3, 4) and model.modalities == (modality,)
    close(model({modality: encoder(inputs()[modality])}), logits)
    others = model(inputs(image=pixels(seed=1))), model(inputs(text=IDS.flip(0)))
    assert [torch.equal(other, logits) for other in others] == [modality == "text", modality == "image"]


@pytest.mark.parametrize("name", ["head", "fusion", "modalities", "train", "values", "two words", "sound.left"])
def test_a_name_that_a_module_needs_for_itself_is_no_modality(name):
    with pytest.raises(MmkitError, match=f"{name!r} cannot name a modality: take a name like 'audio' that no module"):
        joined("concat", **{"image": build(CNN), name: build(CNN)})


def test_an_input_that_is_missing_is_named():
    with pytest.raises(
        MmkitError, match="the model reads image, text, the batch has no 'text': add it to the loader's"
    ):
        joined("concat")({"image": pixels()})


def test_average_is_the_mean_of_log_probabilities():
    class Fixed(nn.Module):
        def __init__(self, probabilities):
            super().__init__()
            self.logits = torch.tensor(probabilities).log() + 7

        def forward(self, inputs):
            return self.logits

    one, two = [[0.7, 0.2, 0.1]], [[0.1, 0.3, 0.6]]
    expected = torch.tensor(one).log() / 2 + torch.tensor(two).log() / 2
    torch.testing.assert_close(Average([Fixed(one), Fixed(two)])({}), expected)


def test_dual_encoder_gives_unit_vectors():
    encoders = {"image": build(ViT), "text": build(GRU, 20), "sound": build(CNN)}
    model = build(DualEncoder, encoders, dim=16, hidden=24)
    given = inputs(sound=pixels(seed=1))
    vectors = model(given)
    assert list(vectors) == ["image", "text", "sound"]
    for modality, vector in vectors.items():
        assert vector.shape == (3, 16)
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(3))
        close(model.embed(modality, given[modality]), vector)
        close(model.embed(modality, encoders[modality](given[modality])), vector)
    assert model.logit_scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.head.logit_scale.fill_(50.0)
    assert model.logit_scale.item() == 100, "the scale is held below CLIP's ceiling"


def test_batch_norm_scales_each_given_feature_by_itself_and_an_unknown_norm_is_refused():
    encoders = {"image": build(CNN, size=32), "text": build(TextTransformer, 20)}
    model = build(DualEncoder, encoders, norm="batch", hidden=24, dim=16)
    unequal = torch.randn(64, 128) * torch.logspace(-2, 2, 128)
    model.train()
    scaled_alike = model.fusion.layers["image"][0](unequal)
    torch.testing.assert_close(scaled_alike[:, -64:].std(0, correction=0), torch.ones(64), rtol=1e-3, atol=1e-3)
    with pytest.raises(MmkitError, match="unknown norm 'bach': did you mean 'batch'"):
        DualEncoder(encoders, norm="bach")
