"""The frozen image encoder by ONNX Runtime: the same features, or PyTorch in its place, which is said."""

import pytest
import torch

from mmkit.models import CNN, fast, pretrained
from mmkit.models.fast import quick
from mmkit.training import encode_all


@pytest.fixture
def encoder(monkeypatch):
    torch.manual_seed(0)
    made = pretrained("efficientnet_lite0")
    made.size = 96
    monkeypatch.setattr(fast, "FEWEST", 3)
    return made


def pixels(count):
    return torch.randint(0, 256, (count, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_few_images_and_other_encoders_stay_with_pytorch_in_silence(encoder, monkeypatch, capsys):
    monkeypatch.setattr(fast, "_session", lambda encoder: pytest.fail("exported"))
    for given, count in ((encoder, 2), (CNN(size=32), 100)):
        with quick(given, count) as said:
            assert said.startswith("PyTorch")
    assert not capsys.readouterr().out


def test_what_is_not_installed_is_named_with_its_remedy(encoder, monkeypatch, capsys):
    monkeypatch.setattr(fast, "find_spec", lambda name: None)
    with quick(encoder, 3) as said:
        assert "maps" not in vars(encoder)
    assert (
        said == "PyTorch: onnxruntime and onnxscript not installed, pip install -e '.[fast]'"
        and said in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "wrong, taken", [(0.0, "ONNX Runtime"), (1e-4, "ONNX Runtime"), (1e-2, "PyTorch: ONNX Runtime's maps differ")]
)
def test_another_encoder_is_not_taken_for_the_same(encoder, monkeypatch, capsys, wrong, taken):
    plain = type(encoder).maps
    monkeypatch.setattr(fast, "find_spec", lambda name: name)
    monkeypatch.setattr(fast, "_session", lambda encoder: lambda x: (1 + wrong) * plain(encoder, x))
    with quick(encoder, 3) as said, torch.inference_mode():
        changed = not encoder(pixels(3)).summary.equal(
            encoder.body.forward_features((pixels(3).float() - 127) / 128).mean((2, 3))
        )
    assert said.startswith(taken) and said in capsys.readouterr().out and changed == (wrong == 1e-4)
    assert "maps" not in vars(encoder), "outside the block the encoder is itself"


@pytest.mark.slow
def test_features_by_onnx_runtime_are_those_of_pytorch(encoder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path))
    images = pixels(21)
    for flip in (False, True):
        encoder.flip = flip
        found = encode_all(encoder, 21, lambda rows: images[rows], tokens=False).summary
        with torch.inference_mode():
            expected = encoder(images).summary
        assert 0 < (found - expected).norm() / expected.norm() < 1e-4
    assert capsys.readouterr().out.count("image encoder by ONNX Runtime") == 2
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1, "exported once"
