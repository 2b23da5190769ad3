"""What is trained, how fast, and what may change on the way: groups, schedules and hooks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmkit.errors import MmkitError
from mmkit.models import CNN, Concat, Multimodal, TextTransformer
from mmkit.training import (
    EVERYTHING,
    Batch,
    EarlyStopping,
    Group,
    RankAllocation,
    Unfreeze,
    WeightAverage,
    constant,
    cross_entropy,
    flops_of,
    layerwise,
    parameter_groups,
    seeded,
    train,
    warmup_constant,
    warmup_cosine,
)
from mmkit.training.groups import assign, trains


def built():
    encoders = {"image": CNN(), "text": TextTransformer(20)}
    fusion = Concat(encoders, dim=8)
    return Multimodal(encoders, fusion, nn.Linear(8, 3))


@pytest.fixture
def model():
    return seeded(0, "model", built)


def batch(count=6):
    """The same batch each step."""
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=drawn, dtype=torch.uint8)
    ids = torch.randint(1, 20, (count, 5), generator=drawn)
    return Batch(torch.arange(count), {"image": pixels, "text": ids}, torch.arange(count) % 3)


def trained(model, *, steps=6, **options):
    """Train on it; options of `train`."""
    return train(model, cross_entropy, iter([batch()] * steps), steps=steps, lr=1e-2, **options)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model, before):
    return {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---------------------------------------------------------------------------------------------- groups


def test_the_first_group_that_matches_wins_and_what_none_names_is_frozen(model):
    slow, rest = Group("text.words.*", lr=0.1), Group("text.*")
    found = assign(model, (slow, rest))
    assert found["text.words.weight"] is slow and found["text.positions"] is rest and found["head.weight"] is None
    other = assign(model, (rest, slow))
    assert other["text.words.weight"] is rest, "the order decides"
    parameter_groups(model, (slow, rest), 1.0)
    assert learning(model) == {name for name in found if name.startswith("text.")}
    parameter_groups(model, EVERYTHING, 1.0)
    assert learning(model) == set(found), "what an earlier stage froze is thawed"


def test_only_what_a_group_names_changes(model):
    before = weights(model)
    trained(model, groups=(Group("image.to_summary.*"), Group("head.*")))
    named = {"image.to_summary.weight", "image.to_summary.bias", "head.weight", "head.bias"}
    assert changed(model, before) == named
    assert trains(model, (Group("*.weight"),), "head") and not trains(model, (Group("image.*"),), "head")


@pytest.mark.parametrize(
    "pattern, nearest",
    [("imge.*", "image.*"), ("text.body.block.*", "text.body.blocks.*"), ("haed.*", "head.*")],
)
def test_a_pattern_without_a_match_names_the_nearest(pattern, nearest, model):
    with pytest.raises(MmkitError, match=f"unknown pattern of parameters '{pattern}': did you mean '{nearest}'"):
        parameter_groups(model, (Group("image.*"), Group(pattern)), 1.0)


def test_a_pattern_that_comes_after_all_its_parameters_is_no_mistake(model):
    assert len(parameter_groups(model, (Group("*"), Group("head.*")), 1.0)) == 2


def test_nothing_to_train_is_refused(model):
    with pytest.raises(MmkitError, match="no parameter is trained: name at least one group, for example Group.'head"):
        parameter_groups(model, (), 1.0)


def test_vectors_are_exempt_from_decay_and_rates_are_multiples(model):
    made = parameter_groups(model, (Group("head.*", lr=0.5, weight_decay=0.3), Group("*")), 0.02)
    settings = {}
    for group in made:
        for parameter in group["params"]:
            settings[id(parameter)] = group
    for name, parameter in model.named_parameters():
        group = settings[id(parameter)]
        mine = name.startswith("head.")
        assert group["lr"] == group["initial_lr"] == pytest.approx(0.01 if mine else 0.02)
        assert group["weight_decay"] == ((0.3 if mine else 0.01) if parameter.ndim > 1 else 0.0), name
    assert sum(len(group["params"]) for group in made) == len(list(model.parameters()))


def test_the_loop_decays_matrices_alone(model):
    """With a gradient of zero, decay is all that moves a weight."""

    def objective(model, batch):
        return 0 * sum(parameter.sum() for parameter in model.parameters())

    before = weights(model)
    options = {"steps": 1, "lr": 0.1, "groups": (Group(weight_decay=0.5),), "schedule": constant}
    train(model, objective, iter([batch()]), **options)
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


def test_layerwise_rates_cover_every_parameter_once(model):
    groups = layerwise(["head.*", "fusion.*", "*.body.*", "*"], 0.5, weight_decay=0.1)
    assert [(group.lr, group.weight_decay) for group in groups] == [(1, 0.1), (0.5, 0.1), (0.25, 0.1), (0.125, 0.1)]
    found = assign(model, groups)
    assert all(group is not None for group in found.values())
    rates = {name: group.lr for name, group in found.items()}
    assert rates["head.bias"] == 1 and rates["fusion.mlp.0.weight"] == 0.5
    assert rates["text.body.norm.weight"] == 0.25 and rates["text.words.weight"] == 0.125
    made = parameter_groups(model, groups, 1.0)
    members = [id(parameter) for group in made for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------- schedules


def test_schedules_rise_alike_and_end_as_they_say():
    for steps in (1, 2, 7, 100):
        rise = max(1, round(0.1 * steps))
        for schedule in (warmup_cosine, warmup_constant):
            factors = [schedule(step, steps) for step in range(steps)]
            assert factors[:rise] == pytest.approx([(step + 1) / rise for step in range(rise)])
            assert max(factors) == 1 and min(factors) > 0, "no step is lost"
        assert warmup_constant(steps - 1, steps) == 1
        assert [constant(step, steps) for step in range(steps)] == [1.0] * steps
    assert warmup_cosine(9, 10) < 0.05 and warmup_cosine(99, 100) < 0.001


def test_a_warmup_may_last_to_the_end_or_a_single_step():
    assert [warmup_constant(step, 4, warmup=1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [warmup_cosine(step, 4, warmup=1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert warmup_cosine(0, 4, warmup=0.0) == warmup_constant(0, 4, warmup=0.0) == 1


def test_the_loop_follows_the_schedule_for_each_group(model):
    seen = []
    hook = SimpleNamespace(after_step=lambda state: seen.append([g["lr"] for g in state.optimizer.param_groups]))
    groups = (Group("head.*", lr=0.1), Group("fusion.*"))
    trained(model, steps=3, groups=groups, schedule=lambda step, steps: step / steps, hooks=[hook])
    for step, rates in enumerate(seen):
        matrices_and_vectors = [1e-2 * step / 3] * 2 + [1e-3 * step / 3] * 2  # in the model's order: fusion, head
        assert rates == pytest.approx(matrices_and_vectors)


# ---------------------------------------------------------------------------------------------- hooks


def test_hooks_are_called_at_their_moments_in_order(model):
    said = []

    class Said:
        def __init__(self, name):
            self.name = name

        def before_step(self, state):
            said.append(f"{self.name} before {state.step}")

        def after_backward(self, state):
            assert model.head.weight.grad is not None and state.loss.isfinite()
            said.append(f"{self.name} backward {state.step}")

        def after_step(self, state):
            said.append(f"{self.name} step {state.step}")

        def after_check(self, state):
            said.append(f"{self.name} check {state.history[-1]['step']}")

    trained(model, steps=2, hooks=[Said("a"), Said("b")], validate=lambda model: 0.0, checks=1)
    assert said == [
        "a before 0", "b before 0", "a backward 0", "b backward 0", "a step 0", "b step 0",
        "a before 1", "b before 1", "a backward 1", "b backward 1", "a step 1", "b step 1", "a check 2", "b check 2",
    ]  # fmt: skip


def test_a_hook_may_change_gradients_before_the_step(model):
    def zero(state):
        for parameter in state.trained:
            parameter.grad.zero_()

    before = weights(model)
    trained(model, groups=(Group(weight_decay=0.0),), hooks=[SimpleNamespace(after_backward=zero)])
    assert not changed(model, before)


@pytest.mark.parametrize("hook", [object(), SimpleNamespace(after_stepp=print), SimpleNamespace(after_step=3)])
def test_a_hook_without_a_known_moment_is_refused_before_anything_is_trained(hook, model):
    before = weights(model)
    message = "has none of the methods before_step, after_backward, after_step, after_check: name its method after a"
    with pytest.raises(MmkitError, match=f"the hook {type(hook).__name__} {message}"):
        trained(model, hooks=[hook])
    assert not changed(model, before)


@pytest.mark.parametrize(
    "patience, scores, steps",
    [
        (1, [0.5, 0.4, 0.9, 1.0, 1.0], 2),
        (2, [0.5, 0.4, 0.6, 0.6, 0.5], 5),
        (2, [0.5, 0.4, 0.3, 0.9, 0.9], 3),
        (3, [0.1, 0.2, 0.3, 0.4, 0.5], 5),
    ],
)
def test_training_stops_when_validation_has_not_risen_for_a_while(patience, scores, steps, model):
    """And an equal score is no rise."""
    left = iter(scores)
    stop = [EarlyStopping(patience)]
    phase, history = trained(model, steps=5, hooks=stop, validate=lambda _: next(left), checks=5)
    assert phase.steps == len(history) == steps
    assert phase.flops == steps * phase.flops_a_step, "steps that did not run cost nothing"


def test_a_patience_of_nothing_is_refused():
    with pytest.raises(MmkitError, match="patience=0 would stop before the first check: take 1 or more"):
        EarlyStopping(0)


def test_unfreezing_thaws_one_layer_after_another(model):
    seen = []
    watch = SimpleNamespace(after_step=lambda state: seen.append(changed(model, before)))
    before = weights(model)
    trained(model, hooks=[Unfreeze(["head.*", "fusion.*", "*"], every=2), watch])
    heads = {"head.weight", "head.bias"}
    fused = {name for name in before if name.startswith("fusion.")}
    assert seen[0] == seen[1] == heads and seen[2] == seen[3] == heads | fused
    assert seen[4] > heads | fused and "image.body.0.weight" in seen[4]


def test_a_layer_whose_turn_never_comes_is_refused(model):
    with pytest.raises(MmkitError, match=r"'\*' would thaw at step 6 of 6: lower every=3"):
        trained(model, hooks=[Unfreeze(["head.*", "fusion.*", "*"], every=3)])
    with pytest.raises(MmkitError, match="unknown pattern of parameters 'haed.*': did you mean 'head.*'"):
        trained(model, hooks=[Unfreeze(["haed.*", "*"], every=1)])
    for patterns, every in (([], 1), (["*"], 0)):
        with pytest.raises(MmkitError, match=f"unfreezing needs patterns and every >= 1, got .* and every={every}"):
            Unfreeze(patterns, every=every)


def test_flops_are_counted_again_when_what_is_trained_changes(model):
    def cost(groups):
        other = seeded(0, "model", built)
        parameter_groups(other, groups, 1.0)
        return flops_of(lambda: cross_entropy(other, batch()).backward())

    phase, _ = trained(model, steps=6, hooks=[Unfreeze(["head.*", "*"], every=2)])
    head, everything = cost((Group("head.*"),)), cost(EVERYTHING)
    assert phase.flops == 2 * head + 4 * everything and head < 0.6 * everything
    assert phase.parameters_trained == sum(parameter.numel() for parameter in model.parameters())


def test_the_average_of_weights_is_worked_by_hand(model):
    average, seen = WeightAverage(0.8), []
    watch = SimpleNamespace(after_step=lambda state: seen.append(weights(model)))
    trained(model, steps=4, hooks=[watch, average])
    for name, first in seen[0].items():
        expected = first
        for later in seen[1:]:
            expected = 0.8 * expected + 0.2 * later[name]
        torch.testing.assert_close(average.weights[name], expected)
    assert not average.weights["head.weight"].requires_grad
    model.load_state_dict(average.weights)


@pytest.mark.parametrize("decay", [0, 1, -0.1])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(MmkitError, match=f"decay={decay} is not between 0 and 1: take for example 0.99"):
        WeightAverage(decay)


def test_ranks_are_allocated_after_every_step_by_a_tuner_that_has_some(model):
    asked = []
    model.update_and_allocate = asked.append
    trained(model, steps=3, hooks=[RankAllocation(model)])
    assert asked == [0, 1, 2]
    with pytest.raises(MmkitError, match="CNN has no ranks to allocate: give peft's AdaLoraModel"):
        RankAllocation(CNN())
