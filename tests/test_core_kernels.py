"""The Triton kernels without a GPU: their results in Triton's interpreter, and what the compiler makes of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmkit.core.backend import HAS_TRITON

pytestmark = pytest.mark.slow


def told(what, **environment):
    script = Path(__file__).with_name("core_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script), what], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_triton_is_not_imported_until_it_is_used():
    script = "import sys, torch, mmkit.core as core\n"
    script += "x = torch.eye(3); core.contrastive_loss(x, x, 1.0); print('triton' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


if HAS_TRITON:  # Triton has no package for every system

    def test_the_kernels_agree_with_plain_pytorch():
        found = told("interpret", TRITON_INTERPRET="1")
        assert len(found) == 17
        for case, error in found.items():
            assert error <= (0 if "ranks" in case else 2e-3 if "16" in case else 5e-5), (case, error)

    def test_the_kernels_compile_for_hopper_and_stay_in_registers(tmp_path):
        found = told("compile", TRITON_CACHE_DIR=str(tmp_path))
        assert len(found) == 5
        for name, kernel in found.items():
            assert kernel["registers"] <= 255 and kernel["spilled"] == 0, (name, kernel)
            assert kernel["wgmma"] == (name != "cross entropy"), "products belong on the tensor cores"
