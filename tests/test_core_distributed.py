"""A batch spread over two processes costs and teaches what the whole batch does in one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import core_processes as twin

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    script = [sys.executable, str(Path(twin.__file__))]
    running = [
        subprocess.Popen(
            [*script, str(rank), str(folder / "rendezvous"), str(folder / "out")], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said
    return [torch.load(folder / f"out{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    "name, objective", [("contrastive", "contrastive"), ("sigmoid", "sigmoid"), ("gradient cache", "contrastive")]
)
def test_two_processes_are_one_batch(processes, name, objective):
    model = twin.Towers()
    loss = twin.OBJECTIVES[objective](*model(twin.inputs()), None)
    loss.backward()
    expected, gradients = twin.result(loss, model)
    for rank in range(2):
        found, parameters = processes[rank][name]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        for parameter, gradient in gradients.items():
            said = lambda text, parameter=parameter: f"{parameter}: {text}"  # noqa: E731
            torch.testing.assert_close(parameters[parameter], gradient, rtol=1e-4, atol=1e-7, msg=said)
    half = twin.OBJECTIVES[objective](*twin.Towers()([x[:12] for x in twin.inputs()]), None)
    assert abs(half - expected) > 1e-2, "the example tells a whole batch from half of it"
