"""The arms: what they share, what each trains, what each costs."""

import json
import sys
from itertools import product

import pytest
import torch
from watched import BUDGET, QUICK, SMALL, digest, same, watched

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.strategies import Budget, fit, pairs
from mmkit.strategies.balance import unimodal_heads
from mmkit.tasks import Answering, Retrieval
from mmkit.training import seeded

WHOLE = ("scratch", "holistic", "frozen", "component", "lp_ft")


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


@pytest.fixture(scope="module")
def runs(scenes):
    """Every arm on both tasks, seed 0: {(task, arm): (run, steps)}."""
    done = {}
    for kind, name in product((Answering, Retrieval), WHOLE):
        task = watched(kind, scenes)
        done[task.name, name] = fit(name, task, budget=BUDGET, seed=0, encoders=QUICK, lr=2e-3), task.steps
    return done


@pytest.fixture(params=["answering", "retrieval"])
def of_task(request, runs):
    return {name: runs[request.param, name] for name in WHOLE}


# ------------------------------------------------------------------------------------------ what arms of one seed share


def test_arms_of_one_seed_see_the_same_pairs_in_the_same_order_with_the_same_texts(of_task, scenes):
    first = of_task["scratch"][1]
    seen = sorted({row for step in first for row in step.rows})
    assert seen == sorted(pairs(Answering(scenes), 64, 0).tolist()) and set(seen) <= set(scenes.rows("train"))
    for run, steps in of_task.values():
        assert (
            len(steps)
            == len(TRAINED[run.arm])
            == sum(phase.steps for name, phase in run.cost.phases.items() if not name.startswith("pretrain"))
        )
        assert [step.rows for step in steps][:4] == [step.rows for step in first]
        assert [step.texts for step in steps][:4] == [step.texts for step in first]
    assert first[0].rows != first[1].rows, "but the order changes from pass to pass"


def test_arms_of_one_seed_share_the_first_weights_of_fusion_and_head(of_task):
    first = of_task["scratch"][1][0].parts
    for name, (_, steps) in of_task.items():
        assert same(steps[0].parts["head"], first["head"]) and same(steps[0].parts["fusion"], first["fusion"]), name


def test_pretrained_arms_share_their_encoders_and_random_ones_differ_from_them(of_task):
    encoders = {name: steps[0].parts for name, (_, steps) in of_task.items()}
    for part in ("image", "text"):
        for name in ("frozen", "component", "lp_ft"):
            assert same(encoders[name][part], encoders["holistic"][part])
        assert not same(encoders["scratch"][part], encoders["holistic"][part])


def test_another_seed_changes_everything_that_is_random(scenes, runs):
    task = watched(Answering, scenes)
    fit("scratch", task, budget=Budget(64, 1), seed=1, encoders=QUICK, lr=2e-3)
    mine, other = task.steps[0], runs["answering", "scratch"][1][0]
    assert set(mine.rows) != set(other.rows)
    assert not any(same(mine.parts[part], other.parts[part]) for part in mine.parts)


def test_the_same_seed_gives_the_same_run_whatever_the_global_generator_does(scenes):
    """Dropout, too, is drawn from the seed."""
    task = Retrieval(scenes, dropout=0.3)
    torch.manual_seed(1)
    one = fit("frozen", task, budget=BUDGET, seed=0, encoders=QUICK)
    torch.rand(100)
    after = torch.random.get_rng_state()
    two = fit("frozen", task, budget=BUDGET, seed=0, encoders=QUICK)
    assert torch.random.get_rng_state().equal(after)
    assert same(digest(one.model), digest(two.model)) and one.history == two.history
    assert {name: score.items.tolist() for name, score in one.scores.items()} == {
        name: score.items.tolist() for name, score in two.scores.items()
    }
    other = fit("frozen", Retrieval(scenes), budget=BUDGET, seed=0, encoders=QUICK)
    assert not same(digest(other.model), digest(one.model))


def test_more_pairs_of_a_seed_contain_the_fewer(scenes):
    task = Answering(scenes)
    assert set(pairs(task, 16, 3).tolist()) < set(pairs(task, 150, 3).tolist()) and set(
        pairs(task, 192, 3).tolist()
    ) == set(scenes.rows("train"))


# ---------------------------------------------------------------------------------------------- what each arm trains


TRAINED = {
    "scratch": [{"image", "text", "fusion", "head"}] * 4,
    "holistic": [{"image", "text", "fusion", "head"}] * 4,
    "frozen": [{"fusion", "head"}] * 4,
    "component": [{"fusion", "head"}] + [{"image", "text", "fusion", "head"}] * 4,  # the head's stage on top
    "lp_ft": [{"head"}] + [{"image", "text", "fusion", "head"}] * 4,
}


@pytest.mark.parametrize("name", WHOLE)
def test_each_arm_trains_what_its_table_says(of_task, name):
    run, steps = of_task[name]
    assert [step.trained for step in steps] == TRAINED[name]
    for before, after in zip(steps, steps[1:]):
        changed = {part for part in before.parts if not same(before.parts[part], after.parts[part])}
        assert changed == before.trained, "a part changes exactly when it is trained"
    untouched = {part for part in steps[0].parts if same(steps[0].parts[part], digest(getattr(run.model, part)))}
    assert untouched == ({"image", "text"} if name == "frozen" else set())
    assert all(p.requires_grad for p in run.model.parameters()) and not run.model.training


def test_the_weights_kept_are_the_best_of_the_last_stage(of_task, scenes):
    for name, (run, _) in of_task.items():
        task = {"answering": Answering, "retrieval": Retrieval}[run.task](scenes)
        last = [entry["validation"] for entry in run.history if entry["where"] == run.history[-1]["where"]]
        assert run.settings["validation"] == max(last)
        assert task.scores(run.model, task.loader(), task.rows("val"))[task.metric].value == pytest.approx(
            max(last), abs=1e-9
        ), name


def test_a_runs_scores_cover_the_test_split_and_every_shift(of_task, scenes):
    run = of_task["component"][0]
    metric = {"answering": "accuracy", "retrieval": "recall@1"}[run.task]
    assert {f"{prefix}{metric}" for prefix in ("", "ood_composition/", "ood_style/")} <= set(run.scores)
    assert len(run.scores[metric].items) == 64 and len(run.scores[f"ood_style/{metric}"].items) == 32
    assert ("blank_image/accuracy" in run.scores) == (run.task == "answering")
    assert (run.arm, run.data, run.data_hash, run.seed, run.budget) == (
        "component",
        "scenes",
        scenes.content,
        0,
        BUDGET,
    )
    settings = run.settings
    assert (
        settings["start"] == "self-supervised on the unpaired pools, cost counted"
        and (settings["lr"], settings["lr_from"]) == (2e-3, "given")
        and settings["epochs"] == 4
    )
    json.dumps(settings), json.dumps(run.cost.as_dict()), json.dumps(run.history)


def test_joint_plus_unimodal_trains_a_head_of_each_modality_besides(scenes):
    run = fit("joint_plus_unimodal", Answering(scenes), budget=BUDGET, seed=0, encoders=QUICK)
    first = unimodal_heads(run.model, 4, seed=0)
    assert first["image"].weight.equal(seeded(0, "own heads", torch.nn.Linear, 128, 4).weight)
    assert all(not same(digest(run.model.own_heads[m]), digest(first[m])) for m in first)
    scratch = fit("scratch", Answering(scenes), budget=BUDGET, seed=0, encoders=QUICK)
    extra = (128 + 64 + 2) * 4
    assert run.cost.parameters_trained == run.cost.parameters_total == scratch.cost.parameters_total + extra
    assert run.cost.flops > scratch.cost.flops
    assert run.history[0]["loss"] > scratch.history[0]["loss"] + 1, "three losses, not one"


# ---------------------------------------------------------------------------------------------- what an arm costs


def test_pretraining_is_counted(of_task):
    flops = {name: run.cost.flops for name, (run, _) in of_task.items()}
    for name, (run, _) in of_task.items():
        phases = run.cost.phases
        assert run.cost.flops == sum(phase.flops for phase in phases.values())
        assert run.cost.seconds == sum(phase.seconds for phase in phases.values())
        assert ({"pretrain_image", "pretrain_text"} <= set(phases)) == (name != "scratch")
        assert ("encode" in phases) == (name == "frozen")
        assert all(phase.flops > 0 and phase.seconds > 0 for phase in phases.values())
        assert run.cost.parameters_total == sum(p.numel() for p in run.model.parameters()) and run.cost.peak_bytes > 2e8
    assert flops["holistic"] > flops["scratch"] and flops["component"] > flops["frozen"]
    on_pairs = {}
    for name, (run, _) in of_task.items():
        on_pairs[name] = sum(phase.flops for key, phase in run.cost.phases.items() if not key.startswith("pretrain"))
    assert on_pairs["frozen"] < on_pairs["holistic"] == on_pairs["scratch"] < on_pairs["component"]


def test_pretraining_sees_every_item_of_both_pools_once_an_epoch(of_task, scenes):
    phases = of_task["component"][0].cost.phases
    assert phases["pretrain_image"].steps == 96 // 64 and phases["pretrain_text"].steps == 3 * 96 // 64


def test_what_is_cached_knows_the_code_that_made_it(tmp_path, monkeypatch):
    """The rooms core, models and training; not the strategies', in which an arm is added every week."""
    module = sys.modules["mmkit.training.code"]
    for name in ("core/loss.py", "models/vision.py", "training/loop.py", "strategies/arms.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a = 1")
    monkeypatch.setattr(module.mmkit, "__file__", str(tmp_path / "__init__.py"))
    made = module.sources.__wrapped__
    seen, of_training = [made()], [made("training")]
    for changed in ("strategies/arms.py", "training/loop.py", "models/vision.py", "core/loss.py"):
        (tmp_path / changed).write_text("a = 2")
        seen.append(made())
        of_training.append(made("training"))
    assert seen[0] == seen[1] and len(set(seen)) == 4
    assert of_training[0] == of_training[1] != of_training[2] == of_training[3] == of_training[4]


def test_cost_is_the_same_from_the_cache(runs, scenes):
    """All arms of one seed, on both tasks, share one pretraining; its price is what was paid once, digit by digit."""
    paid = [run.cost.phases for (_, name), (run, _) in runs.items() if name != "scratch"]
    assert len(paid) == 8
    for phases in paid:
        for name in ("pretrain_image", "pretrain_text"):
            assert phases[name] == paid[0][name]
    again = fit("frozen", Answering(scenes), budget=BUDGET, seed=0, encoders=QUICK, lr=2e-3)
    assert again.cost.phases["encode"] == runs["answering", "frozen"][0].cost.phases["encode"]


def test_one_pretraining_serves_every_setting_of_the_knobs(runs):
    run = fit("frozen", Answering(load("scenes", both=1.0, **SMALL)), budget=Budget(64, 1), seed=0, encoders=QUICK)
    assert run.cost.phases["pretrain_text"] == runs["answering", "frozen"][0].cost.phases["pretrain_text"]
    assert same(digest(run.model.image), digest(runs["answering", "frozen"][0].model.image))


def test_encoding_is_paid_for_the_pairs_and_not_for_evaluation(runs, scenes):
    once = runs["answering", "frozen"][0].cost.phases["encode"]
    twice = fit("frozen", Answering(scenes), budget=Budget(128, 1), seed=0, encoders=QUICK).cost.phases["encode"]
    assert twice.flops == pytest.approx(2 * once.flops, rel=0.05)
    image = 64 * 2 * (8 * 8 * 48 * 32 + 4 * 4 * 9 * 32 * 64 + 16 * 64 * 64 + 16 * 64 * 128)
    assert image < once.flops < 2 * image, "64 images and their questions, by the formula of the CNN"


@pytest.mark.parametrize(
    "name, times",
    [("scratch", 5), ("frozen", 1), ("component", 4), ("lp_ft", 4), ("joint_plus_unimodal", 4), ("ensemble_single", 4)],
)
def test_a_budget_of_flops_is_spent(name, times, scenes, runs):
    flops = times * runs["answering", "holistic"][0].cost.flops
    run = fit(name, Answering(scenes), budget=Budget(64, 4, flops=flops), seed=0, encoders=QUICK, evaluate=("val",))
    assert run.cost.flops == pytest.approx(flops, rel=0.03)
    if name == "component":
        fusion, joint = run.cost.phases["fusion"].steps, run.cost.phases["joint"].steps
        assert fusion / joint == pytest.approx(0.3, rel=0.25), "the stages keep their shares"


def test_a_budget_below_the_pretraining_is_refused(scenes):
    message = (
        "budget.flops leaves -.* FLOPs for training on pairs, less than a step of each stage; raise it above the pre"
    )
    with pytest.raises(MmkitError, match=message):
        fit("component", Answering(scenes), budget=Budget(64, 4, flops=1e8), seed=0, encoders=QUICK)
