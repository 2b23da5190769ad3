"""Objectives, and those that are made of another: by hand, and what they leave alone and refuse."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmkit.errors import MmkitError
from mmkit.models import CNN, Concat, Multimodal
from mmkit.training import Batch, adversarial, cross_entropy, distilled, flops_of, multi_task, mutual, seeded, train


def built(classes=4):
    encoders = {"image": CNN()}
    fusion = Concat(encoders, dim=8)
    return Multimodal(encoders, fusion, nn.Linear(8, classes))


def made(seed=0, classes=4):
    return seeded(seed, "model", built, classes)


def batch(count=6, **options):
    drawn = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (count, 3, 4, 4), generator=drawn, dtype=torch.uint8)
    pixels = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return Batch(torch.arange(count), {"image": pixels}, torch.arange(count) % 4, **options)


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------- cross-entropy


def test_cross_entropy_is_the_mean_or_the_weighted_mean_over_items():
    model = made()
    given = batch(weight=torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 0.5]))
    logits = model(given.inputs)
    losses = -F.log_softmax(logits, 1)[torch.arange(6), given.target]
    close(cross_entropy(model, batch()), losses.mean())
    close(cross_entropy(model, given), (losses * given.weight).sum() / 4)
    without = replace(given, inputs={"image": given.inputs["image"][[0, 2, 3, 5]]}, target=given.target[[0, 2, 3, 5]])
    without.weight = given.weight[[0, 2, 3, 5]]
    close(cross_entropy(model, without), cross_entropy(model, given))


@pytest.mark.parametrize("target", [None, torch.zeros(6, 4), torch.zeros(5, dtype=torch.int64)])
def test_a_target_of_another_shape_is_refused(target):
    shape = None if target is None else tuple(target.shape)
    with pytest.raises(MmkitError) as error:
        cross_entropy(made(), replace(batch(), target=target))
    message = f"cross-entropy of logits (6, 4) needs targets (6,), got {shape}: check the loader's target"
    assert str(error.value) == message


# ---------------------------------------------------------------------------------------------- distillation


def test_distillation_mixes_the_loss_with_the_divergence_from_the_teacher():
    student, teacher, given = made(), made(1), batch()
    with torch.no_grad():
        p = F.softmax(teacher.eval()(given.inputs) / 3, 1)
    q = F.softmax(student(given.inputs) / 3, 1)
    divergence = 9 * (p * (p / q).log()).sum(1).mean()
    for alpha in (0.0, 0.3, 1.0):
        found = distilled(cross_entropy, teacher, alpha=alpha, temperature=3.0)(student, given)
        close(found, (1 - alpha) * cross_entropy(student, given) + alpha * divergence)


def test_a_distilled_student_runs_once_unless_the_objective_changes_what_it_sees():
    student, teacher, given, runs = made(), made(1), batch(), []
    student.register_forward_hook(lambda *passed: runs.append(passed[1][0]))
    once = distilled(cross_entropy, teacher)
    loss = once(student, given)
    loss.backward()
    assert len(runs) == 1 and all(parameter.grad.isfinite().all() for parameter in student.parameters())
    again = once(student, given)
    assert again == loss and len(runs) == 2, "nothing is left on the model"

    def darker(model, batch):
        return cross_entropy(model, batch.with_input("image", batch.inputs["image"] // 2))

    found = distilled(darker, teacher, alpha=1.0)(student, given)
    assert found == distilled(cross_entropy, teacher, alpha=1.0)(student, given), "compared on the batch as it came"


def test_a_teacher_stays_as_it_is_while_the_student_comes_nearer():
    student, teacher, given = made(), made(1), batch()
    before, start = deepcopy(teacher.state_dict()), deepcopy(student)
    objective = distilled(cross_entropy, teacher, alpha=1.0)
    train(student, objective, iter([given] * 30), steps=30, lr=5e-3)
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training and all(parameter.grad is None for parameter in teacher.parameters())
    with torch.no_grad():
        assert objective(student, given) < 0.5 * objective(start, given)


def test_a_teacher_of_other_classes_is_refused():
    objective = distilled(cross_entropy, made(1, classes=7))
    message = r"the teacher gives \(6, 7\) and the student \(6, 4\): take a teacher of the same classes"
    with pytest.raises(MmkitError, match=message):
        objective(made(), batch())


# ---------------------------------------------------------------------------------------------- adversarial training


def moved_inputs(model, given, size):
    """FGSM by hand: the input along the sign of the loss's gradient, within the pixels' range."""
    x = given.inputs["image"].float().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model, given.with_input("image", x)), x)
    return given.with_input("image", (x + size * slope.sign()).clamp(0, 255).detach())


def test_adversarial_training_is_the_mean_of_the_loss_on_clean_and_on_moved_inputs():
    model, given = made(), batch()
    for size in (2.0, 16.0):
        moved = moved_inputs(model, given, size)
        assert cross_entropy(model, moved) > cross_entropy(model, given), "the moved input is harder"
        assert moved.inputs["image"].min() >= 0 and moved.inputs["image"].max() <= 255
        assert (moved.inputs["image"] - given.inputs["image"]).abs().max() <= size
        expected = (cross_entropy(model, given) + cross_entropy(model, moved)) / 2
        found = adversarial(cross_entropy, modality="image", size=size)(model, given)
        close(found, expected)
    assert given.inputs["image"].dtype == torch.uint8, "the batch itself stays"


def test_the_gradient_of_an_attack_reaches_the_weights_and_its_flops_are_counted():
    model, given = made(), batch()
    plain = flops_of(lambda: cross_entropy(model, given).backward())
    attacked = adversarial(cross_entropy, modality="image", size=4.0)
    model.zero_grad()
    assert 2 * plain < flops_of(lambda: attacked(model, given).backward()) < 3.2 * plain
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_what_cannot_be_attacked_is_refused():
    model, given = made(), batch()
    with pytest.raises(MmkitError, match="unknown modality to attack 'imgae': did you mean 'image'"):
        adversarial(cross_entropy, modality="imgae", size=1.0)(model, given)
    encoded = given.with_input("image", model.image(given.inputs["image"]))
    with pytest.raises(MmkitError, match="'image' comes encoded from a frozen encoder: an attack needs its raw input"):
        adversarial(cross_entropy, modality="image", size=1.0)(model, encoded)


# ---------------------------------------------------------------------------------------------- several models or tasks


@pytest.mark.parametrize("count", [2, 3])
def test_mutual_learning_is_each_models_loss_and_its_divergence_from_the_others(count):
    models, given = nn.ModuleDict({f"m{n}": made(n) for n in range(count)}), batch()
    logs = {name: F.log_softmax(model(given.inputs), 1) for name, model in models.items()}
    expected = 0.0
    for name, own in logs.items():
        expected = expected + F.nll_loss(own, given.target)
        for other in (logs[key] for key in logs if key != name):
            divergence = (other.exp() * (other - own)).sum(1).mean()
            expected = expected + divergence / (count - 1)
    close(mutual(models, given), expected)


def test_a_peer_is_a_constant_in_its_neighbours_loss():
    """The gradient of one model is that of its own terms alone."""
    models, given = nn.ModuleDict({"one": made(), "two": made(1)}), batch()
    mutual(models, given).backward()
    found = models["one"].head.weight.grad.clone()
    models.zero_grad()
    own = F.log_softmax(models["one"](given.inputs), 1)
    with torch.no_grad():
        peer = F.log_softmax(models["two"](given.inputs), 1)
    (F.nll_loss(own, given.target) + (peer.exp() * (peer - own)).sum(1).mean()).backward()
    close(models["one"].head.weight.grad, found)


def test_mutual_learning_needs_a_peer():
    with pytest.raises(
        MmkitError, match="mutual learning needs two models or more, got 1: give an nn.ModuleDict of th"
    ):
        mutual(nn.ModuleDict({"one": made()}), batch())


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = made(classes=5)

    def forward(self, inputs):
        logits = self.body(inputs)
        return {"kind": logits[:, :2], "colour": logits[:, 2:]}


def test_several_tasks_are_summed_by_weight_and_unknown_targets_left_out():
    model, given = TwoHeads(), batch()
    targets = {"kind": torch.tensor([0, 1, -1, 1, -1, 0]), "colour": torch.tensor([0, 1, 2, 0, 1, 2])}
    logits, given = model(given.inputs), replace(given, target=targets)
    known = targets["kind"] >= 0
    kind = F.cross_entropy(logits["kind"][known], targets["kind"][known])
    colour = F.cross_entropy(logits["colour"], targets["colour"])
    close(multi_task({"kind": 2.0, "colour": 0.5})(model, given), 2 * kind + 0.5 * colour)


def test_a_batch_in_which_a_task_has_no_target_counts_nothing_for_it():
    model, given = TwoHeads(), batch()
    targets = {"kind": torch.full((6,), -1), "colour": torch.tensor([0, 1, 2, 0, 1, 2])}
    loss = multi_task({"kind": 1.0, "colour": 1.0})(model, replace(given, target=targets))
    close(loss, F.cross_entropy(model(given.inputs)["colour"], targets["colour"]))


def test_an_unknown_task_names_the_nearest():
    given = replace(batch(), target={"kind": torch.zeros(6), "colour": torch.zeros(6)})
    with pytest.raises(MmkitError, match="unknown task 'color': did you mean 'colour'. there are colour, kind"):
        multi_task({"color": 1.0})(TwoHeads(), given)
