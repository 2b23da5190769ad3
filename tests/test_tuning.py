"""Every run looks for its own learning rate: by validation alone, one grid, kept, widened; and what that is worth."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from watched import SMALL

from mmkit.data import load
from mmkit.errors import Diverged, MmkitError
from mmkit.metrics import Score
from mmkit.strategies import ARMS, Budget, Encoders, Run
from mmkit.strategies import fit as real_fit
from mmkit.tasks import Answering
from mmkit.training import Cost, Phase
from mmkit.tuning import GRID, nested
from mmkit.tuning.nested import converged, slowed

OPTIONS = {"budget": Budget(64, 2), "seed": 3, "encoders": Encoders(steps=5)}
MODULE = sys.modules["mmkit.tuning.nested"]  # the package has the function by that name


@pytest.fixture(scope="module")
def task():
    return Answering(load("scenes", **SMALL))


@pytest.fixture
def world(monkeypatch):
    """`fit` by a table of validation scores; the cache is empty."""

    def make(score, flat=True):
        asked = []

        def fit(strategy, task, *, budget, seed, encoders, lr, batch, evaluate):
            asked.append((strategy.name, lr))
            if score(lr) is None:
                raise Diverged("the loss became nan")
            value = score(lr)
            history = [{"where": "joint", "validation": value - (0 if flat else 0.1 * (5 - k))} for k in range(1, 6)]
            scores = {"accuracy": Score(np.full(4, value), np.arange(4))}
            cost = Cost({"joint": Phase(flops=10.0)})
            return Run(strategy.name, "answering", "scenes", "", seed, budget, {"validation": value, "lr": lr}, scores,
                       cost, history)  # fmt: skip

        monkeypatch.setattr(MODULE, "fit", fit)
        monkeypatch.setattr(MODULE, "cached", lambda key, compute: compute())
        return asked

    return make


def peak(at):
    return lambda lr: 0.9 - 0.1 * abs(math.log2(lr / at))


def test_the_best_rate_of_the_grid_by_validation(world, task):
    asked = world(peak(0.004))
    run = nested("scratch", task, **OPTIONS)
    assert [lr for _, lr in asked] == list(GRID), "the same grid, once each, and the best is not trained again"
    tuning = run.settings["tuning"]
    assert tuning["lr"] == run.settings["lr"] == 0.004 and not tuning["edge"] and tuning["nested"]
    assert tuning["flops"] == 40 and run.cost.flops == 10, "the search is told beside the run's own cost"
    assert tuning["trials"] == {f"{lr:g}": pytest.approx(peak(0.004)(lr)) for lr in GRID}


@pytest.mark.parametrize("at, more", [(0.032, [0.032, 0.064]), (0.001, [0.001, 0.0005])])
def test_a_grid_widens_until_its_best_lies_inside(world, task, at, more):
    asked = world(peak(at))
    run = nested("scratch", task, **OPTIONS)
    assert [lr for _, lr in asked] == [*GRID, *more] and run.settings["tuning"]["lr"] == at
    assert not run.settings["tuning"]["edge"]


def test_five_widenings_and_then_it_is_said(world, task, capsys):
    asked = world(lambda lr: lr)
    run = nested("scratch", task, **OPTIONS)
    assert len(asked) == len(GRID) + 5 and run.settings["tuning"]["edge"]
    assert "lies on the grid's edge after 5 widenings; no verdict will rest on it" in capsys.readouterr().out


def test_of_equals_the_middle_one(world, task):
    world(lambda lr: 1.0)
    assert nested("scratch", task, **OPTIONS).settings["tuning"] | {"trials": 0} == {
        "nested": True, "grid": list(GRID), "trials": 0, "lr": 0.008, "edge": False, "flops": 40.0, "trunk": 1.0
    }  # fmt: skip


def test_a_rate_that_diverges_is_the_worst_and_all_of_them_are_an_error(world, task):
    world(lambda lr: None if lr > 0.005 else lr)
    run = nested("scratch", task, **OPTIONS)
    assert run.settings["tuning"]["lr"] == 0.004 and set(run.settings["tuning"]["trials"]) == {"0.002", "0.004"}
    world(lambda lr: None)
    with pytest.raises(MmkitError, match="scratch: the loss was not finite at any of"):
        nested("scratch", task, **OPTIONS)


def test_another_error_is_no_bad_rate(world, task, monkeypatch):
    def broken(*args, **options):
        raise MmkitError("the disk is full")

    world(peak(0.004))
    monkeypatch.setattr(MODULE, "fit", broken)
    with pytest.raises(MmkitError, match="the disk is full"):
        nested("scratch", task, **OPTIONS)


def test_encoders_get_a_rate_of_their_own_where_they_learn(world, task):
    asked = world(peak(0.004))
    nested("scratch", task, trunks=(0.1,), **OPTIONS)
    assert len(asked) == len(GRID) + 1
    asked.clear()
    nested("frozen", task, trunks=(0.1,), **OPTIONS)
    assert len(asked) == len(GRID), "frozen trains none"
    groups = slowed(ARMS["component"], task, 0.1).stages[1].groups
    assert {group.match: group.lr for group in groups} == {"image.*": 0.1, "text.*": 0.1, "*": 1.0}
    assert slowed(ARMS["component"], task, 0.1).stages[0] == ARMS["component"].stages[0]


def test_each_member_of_a_combination_looks_for_its_own(world, task, monkeypatch):
    world(peak(0.004))
    run = nested("best_single", task, **OPTIONS)
    tuning = run.settings["tuning"]
    assert set(tuning["members"]) == {"image_only", "text_only"} and not tuning["edge"] and tuning["flops"] == 80


def test_a_curve_that_still_rises_has_not_converged(world, task):
    world(peak(0.004), flat=False)
    assert not nested("scratch", task, **OPTIONS).settings["converged"]
    world(peak(0.004))
    assert nested("scratch", task, **OPTIONS).settings["converged"]
    short = SimpleNamespace(history=[{"where": "a", "validation": 0.1}, {"where": "b", "validation": 0.9}])
    assert converged(short), "one check says nothing of a slope"


def test_a_killed_search_goes_on_where_it_was(task, monkeypatch, tmp_path):
    """The third trial is interrupted; begun again, only it and the fourth are made, and the result is the same."""
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path))
    task = Answering(load("scenes", **SMALL))
    made = []

    def fit(*args, **options):
        made.append(options["lr"])
        if len(made) == 3:
            raise KeyboardInterrupt
        return real_fit(*args, **options)

    grid = {"grid": (1e-3, 2e-3, 4e-3), **OPTIONS, "evaluate": ("test",)}
    monkeypatch.setattr(MODULE, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        nested("scratch", task, **grid)
    resumed = nested("scratch", task, **grid)
    assert made[:4] == [1e-3, 2e-3, 4e-3, 4e-3], "the first two came from the cache"
    monkeypatch.setenv("MMKIT_DATA", str(tmp_path / "fresh"))
    whole = nested("scratch", Answering(load("scenes", **SMALL)), **grid)
    assert whole.settings["tuning"] == resumed.settings["tuning"]
    assert whole.scores["accuracy"].items.tolist() == resumed.scores["accuracy"].items.tolist()


@pytest.mark.parametrize("grid", [(0.1,), (0.2, 0.1), (0.1, 0.1), (-0.1, 0.1)])
def test_a_grid_that_is_none_is_refused(task, grid):
    with pytest.raises(MmkitError, match="a grid holds two or more rising rates above 0"):
        nested("scratch", task, grid=grid, **OPTIONS)


def test_how_often_two_equal_arms_differ():
    """Two arms of equal quality over ten seeds; an arm's mean depends on how well its rate was chosen. With one rate
    for all seeds, from one tuning seed, they differ "significantly" far more often than in 5 %; nested they do not."""
    rng = np.random.default_rng(0)
    worlds, seeds, rates = 2000, 10, 4
    wide, noise = 0.03, 0.02  # spread of a rate's own quality, and of a run about it
    quality = rng.normal(0, wide, size=(worlds, 1, rates))  # both arms have the same: they are equal

    def chosen(tuning_seeds):
        shown = quality + rng.normal(0, noise, size=(worlds, tuning_seeds, rates))
        return quality[:, 0][np.arange(worlds), shown.mean(1).argmax(1)][:, None]

    def searched():
        shown = quality + rng.normal(0, noise, size=(worlds, seeds, rates))
        return np.take_along_axis(np.broadcast_to(quality, shown.shape), shown.argmax(2)[..., None], 2)[..., 0]

    def significant(first, second):
        runs = [arm + rng.normal(0, noise, size=(worlds, seeds)) for arm in (first, second)]
        return float((stats.ttest_rel(*runs, axis=1).pvalue < 0.05).mean())

    once, ten, every = significant(chosen(1), chosen(1)), significant(chosen(10), chosen(10)), None
    every = significant(searched(), searched())
    print(f"equal arms differ: one tuning seed {once:.3f}, ten {ten:.3f}, nested {every:.3f}")
    assert once > 0.12 and once > ten > every - 0.02 and abs(every - 0.05) < 0.02
