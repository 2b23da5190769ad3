"""Attention, seen: a block's twin in PyTorch, where the heads of a model look, and figures of both.

Legend: B batch, T tokens, H heads.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F

from mmkit.models import Block

PYTORCH_NAMES = {
    "attention.out": "self_attn.out_proj",
    "mlp.0": "linear1",
    "mlp.3": "linear2",
    "norm1": "norm1",
    "norm2": "norm2",
}


def pytorch_layer(block: Block) -> nn.TransformerEncoderLayer:
    """PyTorch's own encoder layer, in training mode, with the weights of a block and no dropout."""
    state, weights = {}, block.state_dict()
    for kind in ("weight", "bias"):
        joined = [weights[f"attention.{name}.{kind}"] for name in ("query", "key", "value")]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(joined)
        state |= {f"{theirs}.{kind}": weights[f"{ours}.{kind}"] for ours, theirs in PYTORCH_NAMES.items()}
    hidden, dim = block.mlp[0].weight.shape
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    layer = nn.TransformerEncoderLayer(dim, block.attention.heads, hidden, **options)
    layer.load_state_dict(state)  # refuses a missing or a left-over weight
    return layer


def before_blocks(encoder: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """What an encoder of the kit hands to its Transformer: tokens with their positions (B, T, D), and the mask."""
    handed = []
    hook = encoder.body.register_forward_pre_hook(lambda body, given: handed.extend(given))
    try:
        encoder(inputs)
    finally:
        hook.remove()
    tokens, mask = [*handed, None][:2]
    return tokens, mask


def looks(maps: Tensor, real: Tensor) -> dict[str, Tensor]:
    """The mean weight that a real token gives to the token before it, to the one after it and to the first, which is
    `[CLS]`: (layers, H) each.

    maps: (B, layers, H, T, T), each row adds up to 1. real: (B, T) bool, True where a token is no padding."""
    before = F.pad(maps.diagonal(-1, -2, -1), (1, 0))
    after = F.pad(maps.diagonal(1, -2, -1), (0, 1))
    tokens, found = real.sum(), {}
    neighbours = tokens - len(real)  # one token of each text has none before it, one none after it
    places = {"word before": (before, neighbours), "word after": (after, neighbours), "[CLS]": (maps[..., 0], tokens)}
    for name, (weight, count) in places.items():
        found[name] = (weight * real[:, None, None]).sum((0, 3)) / count
    return found


def in_any_order(text: str, generator: torch.Generator) -> str:
    """The words of a text, shuffled."""
    words = text.split()
    return " ".join(words[i] for i in torch.randperm(len(words), generator=generator))


def token_names(text: str, tokenizer: Callable[[list[str]], Tensor]) -> list[str]:
    """A name for each token of a text: its word, then `~` for every further piece of it; `[CLS]` and `[SEP]` at the
    ends, which the tokenizer adds to each text."""
    names = ["[CLS]"]
    for word in text.split():
        names += [word] + ["~"] * (tokenizer([word]).shape[1] - 3)
    return [*names, "[SEP]"]


def draw_maps(axes: Sequence[Axes], maps: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Attention maps (T, T) by title, side by side: rows ask, columns answer, bright is 1."""
    for axis, (title, weights) in zip(axes, maps.items()):
        axis.imshow(weights.numpy(), vmin=0, vmax=1, aspect="auto")
        axis.set(title=title, xlabel="is looked at")
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
        axis.grid(visible=False)
    axes[0].set_ylabel("looks")


def draw_changes(axis: Axes, rows: Mapping[str, Tensor], *, reference: str) -> None:
    """A row for each change of a model, from the top: one dot for each item, a diamond and a number for the mean.

    rows: what is left of each item, (B,). reference: the row whose mean is drawn as a line through all."""
    for place, values in enumerate(rows.values()):
        spread = place + torch.linspace(-0.2, 0.2, len(values))  # so that equal values do not hide one another
        axis.plot(values, spread, "o", color="C0", alpha=0.25, markersize=4)
        axis.plot(values.mean(), place, "D", color="black")
        axis.annotate(f"{values.mean():.2f}", (1.02, place), xycoords=("axes fraction", "data"), va="center")
    axis.axvline(rows[reference].mean(), color="C1", linestyle="--", linewidth=1.2)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)


Costs = dict[str, tuple[float, float]]
"""layer -> FLOPs of the forward pass, floats of 4 bytes kept for the backward pass"""


def in_words(costs: Costs) -> str:
    """Costs in a sentence, in GFLOP and MB."""
    return "; ".join(
        f"{name} {flops / 1e9:.1f} GFLOP, {floats * 4e-6:.1f} MB" for name, (flops, floats) in costs.items()
    )


def draw_costs(
    axes: Sequence[Axes],
    counted: Callable[[int], Costs],
    measured: Mapping[int, Costs],
    *,
    longest: int,
    titles: Sequence[str],
) -> None:
    """Two log-log panels, FLOPs and memory against tokens: marks as measured, lines as counted, up to `longest`."""
    tokens = sorted(measured)
    while tokens[-1] * 2 <= longest:
        tokens.append(tokens[-1] * 2)
    units = (1e-9, "forward pass (GFLOP)"), (4e-6, "kept for backward (MB)")
    first, *_ = measured.values()
    for name, marker, width in zip(first, "sD^ov", (4.5, 1.8, 1.8, 1.8, 1.8)):  # the first may lie under the second
        for place, (axis, title, (scale, unit)) in enumerate(zip(axes, titles, units)):
            (line,) = axis.plot(tokens, [counted(T)[name][place] * scale for T in tokens], linewidth=width)
            marks = [costs[name][place] * scale for costs in measured.values()]
            look = {"color": line.get_color(), "fillstyle": "none", "markersize": 8}
            axis.plot(list(measured), marks, marker, label=name, **look)
            axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=unit, title=title)
            axis.set_xticks(tokens[::2], [f"{T:,}" for T in tokens[::2]])
            axis.minorticks_off()
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def mark(axis: Axes, x: float, name: str) -> None:
    """A dashed line at x, with its name beside its top."""
    axis.axvline(x, color="0.5", linestyle="--", linewidth=1.2)
    axis.annotate(f"{name} ", (x, 0.94), xycoords=("data", "axes fraction"), ha="right")
