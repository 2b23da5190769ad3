"""Training curves: asked for by one setting, they hold what training did; not asked for, nothing is imported, written
or changed."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from repro_stub import make_plan, quiet, rows, write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mmkit import cli
from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.repro import plan, runner
from mmkit.strategies import Budget, Encoders, fit
from mmkit.tasks import Answering
from mmkit.training import Batch, batches, train, warmup_cosine

TRAIN = """
import torch
from mmkit.training import Batch, train
line, batch = torch.nn.Linear(2, 1), Batch(torch.arange(8), {"x": torch.rand(8, 2)})

def loss(model, batch):
    return model(batch.inputs["x"]).square().mean()

train(line, loss, iter([batch] * 3), steps=3, lr=0.01, where="toy, fitting a line")
"""


def read(folder):
    """tag -> {step: value} of the one event file of a folder."""
    (file,) = folder.glob("events.*")
    held = EventAccumulator(str(file))
    held.Reload()
    curves = {}
    for tag in held.Tags()["scalars"]:
        curves[tag] = {event.step: event.value for event in held.Scalars(tag)}
    return curves


def line(steps, **options):
    """A small training; its losses as they come."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.rand(12, 3)
    losses = []

    def objective(model, batch):
        loss = model(batch.inputs["x"]).square().mean() / options.get("spoil", 1)
        losses.append(loss.item())
        return loss

    shown = (Batch(part, {"x": x[part]}) for part in batches(torch.arange(12), 4, torch.Generator().manual_seed(0)))
    train(model, objective, shown, steps=steps, lr=0.1, where="toy arm, a/b")
    return losses


@pytest.mark.slow
def test_every_stage_of_an_arm_has_its_curves_and_the_scores_stay(tmp_path, monkeypatch):
    task = Answering(load("scenes", train=96, val=32, test=32, ood=32, pool=32))
    made = []
    for folder in (None, tmp_path):
        if folder:
            monkeypatch.setenv("MMKIT_TENSORBOARD", str(folder))
        budget = Budget(pairs=64, epochs=2)
        made.append(fit("lp_ft", task, budget=budget, seed=0, encoders=Encoders(epochs=1), evaluate=("test",)))
    plain, logged = made
    assert plain.scores.keys() == logged.scores.keys()
    assert all(score.value == logged.scores[name].value for name, score in plain.scores.items())
    assert plain.history == logged.history and plain.settings == logged.settings
    assert plain.cost.flops == logged.cost.flops
    stages = {entry["where"] for entry in logged.history}
    found = {str(file.parent.relative_to(tmp_path)): read(file.parent) for file in tmp_path.rglob("events.*")}
    assert set(found) >= {where.replace(", ", "/").replace(" ", "_") for where in stages} and len(stages) == 2
    for where in stages:
        curves = found[where.replace(", ", "/").replace(" ", "_")]
        kept = {entry["step"]: entry for entry in logged.history if entry["where"] == where}
        steps = list(range(1, max(kept) + 1))
        assert set(curves) == {"loss", "learning_rate", "validation"}
        assert list(curves["loss"]) == list(curves["learning_rate"]) == steps
        assert curves["validation"] == pytest.approx({step: entry["validation"] for step, entry in kept.items()})
        assert all(curves["loss"][step] == pytest.approx(entry["loss"]) for step, entry in kept.items())


def test_every_step_is_there_and_nothing_is_written_over(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_TENSORBOARD", str(tmp_path))
    losses = line(7)
    curves = read(tmp_path / "toy_arm" / "a_b")
    assert curves["loss"] == pytest.approx(dict(enumerate(losses, start=1)))
    assert curves["learning_rate"] == pytest.approx({step + 1: 0.1 * warmup_cosine(step, 7) for step in range(7)})
    line(3), line(2)
    assert [len(read(tmp_path / "toy_arm" / name)["loss"]) for name in ("a_b", "a_b-2", "a_b-3")] == [7, 3, 2]
    with pytest.raises(MmkitError, match="the loss became inf in toy arm"):
        line(4, spoil=1e-45)
    kept = read(tmp_path / "toy_arm" / "a_b-4")["loss"]
    assert kept == {1: float("inf")}, "a training that breaks off keeps its curve"


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_TENSORBOARD", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MmkitError, match="TensorBoard is not installed: pip install -e '..tensorboard.', or unset it"):
        line(1)
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(MmkitError, match="--tensorboard needs TensorBoard: pip install -e '..tensorboard.'"):
        cli.reproduce("head_to_head", tensorboard=tmp_path)


def test_not_asked_for_nothing_is_imported_or_written(tmp_path):
    script = "import sys, torch\n" + TRAIN + "print([name for name in sys.modules if 'tensorboard' in name])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[]\n", done
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_plan_carries_it_to_the_kernels_and_no_key_changes(tmp_path, monkeypatch, mmkit):
    stub, folder = write(tmp_path / "20_stub.ipynb", act=TRAIN), tmp_path / "curves"
    whole = make_plan(stub, grid={"mode": ["a/b"]}, seeds=2)
    made, keys = {}, []
    for way in ("plain", "logged"):
        monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / way))
        if way == "logged":
            monkeypatch.setenv("MMKIT_TENSORBOARD", str(folder))
        without = {"initializer": os.environ.pop, "initargs": ("MMKIT_TENSORBOARD", None)}
        with ProcessPoolExecutor(1, **without) as elsewhere:  # a worker has not its runner's environment
            made[way] = runner.run_plan(whole, executor=elsewhere, say=quiet)
        with monkeypatch.context() as patch:
            patch.setattr(plan, "code_hash", lambda: "the same code")
            keys.append([run.key for run in plan.expand(whole)])
    assert rows(made["plain"]) == rows(made["logged"]) and len(rows(made["plain"])) == 4 and keys[0] == keys[1]
    changing = dict.fromkeys(("key", "seconds", "finished", "sha256", "digest"))
    for plain, logged in zip(made["plain"].headers, made["logged"].headers, strict=True):
        assert plain | changing == logged | changing
    names = set()
    for seed, header in enumerate(made["logged"].headers):
        names.add(f"20_stub_mode=a_b_seed={seed}-{header['key'][:8]}/toy/fitting_a_line")
    assert {str(file.parent.relative_to(folder)) for file in folder.rglob("events.*")} == names
    assert all(list(read(folder / name)["loss"]) == [1, 2, 3] for name in names)

    monkeypatch.delenv("MMKIT_TENSORBOARD")
    mmkit("run", stub, "--out", tmp_path / "mine.ipynb", "--tensorboard", folder, check=0)
    assert len(read(folder / "mine" / "toy" / "fitting_a_line")["loss"]) == 3
