"""The Triton kernels without a GPU, for tests/test_core_kernels.py, which reads the JSON line that this prints.

core_kernels.py interpret | compile
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from mmkit.core import contrastive_loss, linear_cross_entropy, reference, retrieval_ranks, sigmoid_loss
from mmkit.core.kernels import ranks as ranks_kernels


def run(loss, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    value.backward()
    gradients = [x.grad for x in inputs]
    return [x.double() for x in (value.detach(), *gradients)]


def interpret() -> dict:
    """Largest relative difference between the kernels and the formulas in float64, over loss and gradients, by case."""
    generator, found = torch.Generator().manual_seed(0), {}
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    image = F.normalize(draw(41, 24), dim=1)
    text = F.normalize(image + 0.3 * draw(41, 24), dim=1)
    apart = text.clone()
    apart[7], apart[30] = image[20], -text[4]
    target = torch.randint(70, (41,), generator=generator)
    target[3] = -100
    weight, bias = draw(70, 24), draw(70)
    scale, steep, shift = (torch.tensor(x) for x in (20.0, 300.0, -10.0))

    def words(function):
        return lambda h, w, b, **options: function(h, w, target, b, **options)

    pairwise, layer = (contrastive_loss, reference.contrastive_loss), (6 * image, weight, bias)
    word_losses = words(linear_cross_entropy), words(reference.linear_cross_entropy)
    cases = {
        "contrastive": (*pairwise, (image, text, scale), {}),
        "contrastive, far apart": (*pairwise, (image, apart, steep), {}),
        "sigmoid": (sigmoid_loss, reference.sigmoid_loss, (image, text, scale, shift), {}),
        "cross entropy": (*word_losses, layer, {}),
        "cross entropy, smoothed": (*word_losses, layer, {"label_smoothing": 0.1}),
    }
    for name, (loss, formula, inputs, options) in cases.items():
        for kind in (torch.float32, torch.float16):
            typed = [x.to(kind) if x.ndim == 2 else x for x in inputs]
            ours = run(partial(loss, backend="triton", **options), *typed)
            expected = run(partial(formula, **options), *(x.double() for x in typed))
            found[f"{name}, {kind}"] = max(float((a - b).norm() / b.norm()) for a, b in zip(ours, expected))
    with torch.no_grad():
        value = sigmoid_loss(image, text, 20.0, -10.0, backend="triton")
        found["sigmoid, no gradient"] = abs(float(value / reference.sigmoid_loss(image, text, 20.0, -10.0) - 1))
    return found | {f"ranks, {name}": float(share) for name, share in interpreted_ranks(draw).items()}


def interpreted_ranks(draw) -> dict:
    """The share of ranks that differ from those of the formula, by case."""
    queries, gallery = F.normalize(draw(37, 24), dim=1), F.normalize(draw(101, 24), dim=1)
    owner, owners = torch.arange(37) % 30, torch.randint(33, (101,))
    owners[:30] = torch.arange(30)  # each query has positives, most several, and some rows are nobody's
    near = F.normalize(torch.ones(1, 24) + 1e-3 * gallery, dim=1)
    near[60:] = near[:41]
    whole, unsure = (torch.randint(-1, 2, (n, 3)).float() for n in (37, 101)), []
    counts = ranks_kernels.counts

    def watched(*given):
        maybe, surely = counts(*given)
        unsure.append(float((maybe > surely).double().mean()))
        return maybe, surely

    ranks_kernels.counts, found = watched, {}
    for name, (x, y) in {
        "apart": (queries, gallery),
        "crowded, with ties": (F.normalize(torch.ones(1, 24) + 1e-3 * queries, dim=1), near),
        "whole numbers": whole,
    }.items():
        for kind in (torch.float32, torch.float16):
            a, b = x.to(kind), y.to(kind)
            expected = retrieval_ranks(a.double(), b.double(), owner, owners, backend="torch")
            found[f"{name}, {kind}"] = (
                (retrieval_ranks(a, b, owner, owners, backend="triton") != expected).double().mean()
            )
    assert unsure[0] < 0.2 < unsure[2] and len(set(expected.tolist())) > 5, (
        "the kernel decides what can be decided",
        unsure,
    )
    return found


def compile_for_hopper() -> dict:
    """Registers and bytes spilled of each kernel in bfloat16, compiled for sm_90 by Triton."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmkit.core.kernels import contrastive, cross_entropy, ranks, sigmoid

    tile = {"D": 512, "BM": 128, "BN": 128, "BK": 64}
    types = {
        "a": "*bf16",
        "b": "*bf16",
        "unit": "*fp32",
        "shift": "*fp32",
        "out": "*bf16",
        "n": "i32",
        "N": "i32",
        "V": "i32",
        "first": "i32",
        "lift": "fp32",
        "smoothing": "fp32",
        "owner": "*i32",
        "owners": "*i32",
        "most": "*i32",
        "least": "*i32",
        "target": "*i64",
        "slopes": "*bf16",
    }
    kernels = {
        "contrastive sums": (contrastive.sums_kernel, {**tile, "GROUP": contrastive.GROUP}, 8),
        "contrastive slopes": (contrastive.slopes_kernel, tile, 8),
        "sigmoid": (sigmoid.sigmoid_kernel, {**tile, "WANTED": True}, 8),
        "ranks": (ranks.counts_kernel, {**tile, "GROUP": ranks.GROUP}, 8),
        "cross entropy": (cross_entropy.rows_kernel, {"BLOCK": 4096}, 4),
    }
    found, tool = {}, Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for name, (kernel, constants, warps) in kernels.items():
        names = inspect.signature(kernel.fn).parameters
        signature = {x: "constexpr" if x in constants else types.get(x, "*fp32") for x in names}
        divisible = {
            (k,): [["tt.divisibility", 16]]
            for k, x in enumerate(names)
            if signature[x].startswith("*") or x in ("n", "N", "V")
        }
        source = ASTSource(
            kernel, signature, {(list(names).index(x),): value for x, value in constants.items()}, divisible
        )
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": 3})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(built.asm["cubin"])
            said = subprocess.run(
                [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", said))
        found[name] = {
            "registers": int(usage["REG"]),
            "spilled": int(usage["STACK"]) + int(usage["LOCAL"]),
            "wgmma": "wgmma" in built.asm["ptx"],
        }
    return found


if __name__ == "__main__":
    print(json.dumps({"interpret": interpret, "compile": compile_for_hopper}[sys.argv[1]]()))
