"""Retrieval: its losses and what is mined."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmkit.core import contrastive_loss, sigmoid_loss
from mmkit.data import load
from mmkit.errors import MmkitError
from mmkit.models import CNN, TextTransformer, WordTokenizer
from mmkit.strategies import Budget, Encoders, fit
from mmkit.strategies.tuned import learning_rate, table
from mmkit.tasks import Answering, Retrieval
from mmkit.tasks.retrieval import LOSSES, _walk, hinge_loss
from mmkit.training import Cost, RowBatches, seeded, stream

SMALL = {"train": 96, "val": 16, "test": 48, "ood": 16, "pool": 64}
QUICK = Encoders(epochs=1)


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


def units(count, seed, width=12):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def prepared(task):
    words = WordTokenizer(task.dataset.texts["text"])
    encoders = {"image": seeded(0, "image", CNN), "text": seeded(0, "text", TextTransformer, len(words))}
    return task.loader(words), task.build(encoders, seed=0)


# ---------------------------------------------------------------------------------------------- losses


def hinge_by_hand(image, text, margin, hardest):
    """Equations of VSE++ in loops."""
    scores, total = image @ text.T, 0.0
    for i in range(len(scores)):
        captions = [max(0.0, float(margin - scores[i, i] + scores[i, j])) for j in range(len(scores)) if j != i]
        images = [max(0.0, float(margin - scores[i, i] + scores[j, i])) for j in range(len(scores)) if j != i]
        total += max(captions) + max(images) if hardest else sum(captions) + sum(images)
    return total / len(scores)


@pytest.mark.parametrize("hardest", [False, True])
@pytest.mark.parametrize("margin", [0.2, 0.7])
def test_hinge_losses_are_those_of_the_loops(hardest, margin):
    image, text = units(9, 0).requires_grad_(), F.normalize(units(9, 0) + 1.2 * units(9, 1), dim=1)
    loss = hinge_loss(image, text, margin=margin, hardest=hardest)
    assert loss.item() == pytest.approx(hinge_by_hand(image.detach(), text, margin, hardest), rel=1e-5) and loss > 0
    assert torch.autograd.gradcheck(
        lambda x: hinge_loss(x, text.double(), margin=margin, hardest=hardest), image.detach().double().requires_grad_()
    )


def test_hinge_losses_at_their_ends():
    assert hinge_loss(torch.eye(5), torch.eye(5), margin=0.9) == 0
    point = torch.ones(6, 4) / 2
    assert hinge_loss(point, point, hardest=True).item() == pytest.approx(0.4), "collapse costs twice the margin"
    assert hinge_loss(point, point).item() == pytest.approx(0.4 * 5)
    assert hinge_loss(point[:1], point[:1], hardest=True) == 0, "one pair has no wrong ones"


def test_each_objective_is_its_own_loss(scenes):
    rows = torch.tensor([3, 17, 80, 5])
    expected = {
        "infonce": lambda image, text, head: contrastive_loss(image, text, head.logit_scale.exp()),
        "sigmoid": lambda image, text, head: sigmoid_loss(image, text, 10.0, -10.0),
        "hinge": lambda image, text, head: hinge_loss(image, text, margin=0.2),
        "hardest": lambda image, text, head: hinge_loss(image, text, margin=0.2, hardest=True),
    }
    assert set(expected) == set(LOSSES)
    for name, loss in expected.items():
        task = Retrieval(scenes, loss=name)
        loader, model = prepared(task)
        batch = loader(rows, stream(0, "texts"))
        by_hand = loss(
            model.embed("image", batch.inputs["image"]), model.embed("text", batch.inputs["text"]), model.head
        )
        assert task.objective(model, batch).item() == pytest.approx(by_hand.item(), rel=1e-5), name
        assert task.settings()["objective"] == name
        assert ("logit_bias" in dict(model.head.named_parameters())) == (name == "sigmoid")
    image, text, head = units(4, 0), units(4, 1), prepared(Retrieval(scenes))[1].head
    assert len({round(loss(image, text, head).item(), 4) for loss in expected.values()}) == 4


def test_a_fixed_temperature_is_used_and_not_learnt(scenes):
    rows = torch.arange(8)
    task = Retrieval(scenes, temperature=0.5)
    loader, model = prepared(task)
    batch = loader(rows, stream(0, "texts"))
    loss = task.objective(model, batch)
    assert loss.item() == pytest.approx(contrastive_loss(*model(batch.inputs).values(), 2.0).item(), rel=1e-5)
    loss.backward()
    assert model.head.logit_scale.grad is None


def test_the_sigmoid_losss_bias_is_learnt(scenes):
    task = Retrieval(scenes, loss="sigmoid")
    run = fit("scratch", task, budget=Budget(64, 2), seed=0, encoders=QUICK, evaluate=("test",))
    assert run.model.head.logit_bias.item() != -10 and abs(run.model.head.logit_bias.item() + 10) < 0.5


def test_each_objective_has_its_own_tuned_rate(scenes):
    assert Retrieval(scenes).tuned_as == "retrieval"
    assert Retrieval(scenes, loss="hinge").tuned_as == "retrieval, hinge"
    assert {f"retrieval, {name}" for name in LOSSES[1:]} <= set(table()["lr"])
    task = Retrieval(scenes, loss="sigmoid")
    settings = fit("scratch", task, budget=Budget(64, 1), seed=0, encoders=QUICK, evaluate=("test",)).settings
    assert settings["lr"] == learning_rate("retrieval, sigmoid", "scratch") and settings["lr_from"] == "tuned"
    assert settings["lr"] != learning_rate("retrieval", "scratch")


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("unknown loss 'infonec': did you mean 'infonce'", {"loss": "infonec"}),
        ("margin and temperature are above 0, got margin=-0.2 and temperature=None", {"margin": -0.2}),
        ("got margin=0.2 and temperature=0: take for example 0.2 and 0.07", {"temperature": 0}),
    ],
)
def test_what_retrieval_refuses(message, options, scenes):
    with pytest.raises(MmkitError) as error:
        Retrieval(scenes, **options)
    assert message in str(error.value)


# ---------------------------------------------------------------------------------------------- mining


def test_a_walk_visits_every_row_once_and_goes_to_the_nearest_left():
    near = [[1, 2], [0, 2], [1, 3], [0, 1], [4, 4]]
    for seed in range(20):
        order = _walk(near, torch.Generator().manual_seed(seed)).tolist()
        assert sorted(order) == [0, 1, 2, 3, 4]
        for place, (here, there) in enumerate(zip(order, order[1:])):
            left = [j for j in near[here] if j not in order[: place + 1]]
            assert not left or there == left[0]
    orders = {tuple(_walk(near, torch.Generator().manual_seed(seed)).tolist()) for seed in range(20)}
    assert len(orders) > 1


def test_mined_batches_hold_harder_negatives_and_every_row_once_a_pass(scenes):
    task = Retrieval(scenes)
    model = fit("scratch", task, budget=Budget(96, 12), seed=0, encoders=QUICK, batch=32, evaluate=("test",)).model
    fitting = SimpleNamespace(model=model, loader=task.loader(), rows=task.rows("train"), seed=0, cost=Cost())
    rows, mined = fitting.rows, RowBatches(fitting.rows, 16, stream(0, "order"), order=task.mined(fitting))
    batches = [next(mined) for _ in range(12)]
    assert fitting.cost.phases["mining for mined"].flops > 1e6, "the run pays for the search"
    assert all(len(batch) == 16 for batch in batches) and sorted(torch.cat(batches[:6]).tolist()) == rows.tolist()
    assert [b.tolist() for b in batches[:6]] != [b.tolist() for b in batches[6:]], "each pass has an order of its own"
    image, text, owner = task.embeddings(model, fitting.loader, rows)
    best = (image @ text.T).reshape(96, 96, 2).amax(2)

    def hardness(order):
        return np.mean([best[part][:, part].fill_diagonal_(-1).amax(1).mean().item() for part in order])

    place = {row: number for number, row in enumerate(rows.tolist())}
    mined = [torch.tensor(list(map(place.get, batch.tolist()))) for batch in batches]
    assert hardness(mined) > hardness(torch.randperm(96, generator=stream(0, "any")).split(16)) + 0.02


def test_mining_is_an_arm_whose_cost_counts_the_mining(scenes):
    options = {"budget": Budget(64, 4), "seed": 0, "encoders": QUICK, "batch": 16, "evaluate": ("test",), "lr": 1e-3}
    run, scratch = (fit(name, Retrieval(scenes), **options) for name in ("hard_negatives", "scratch"))
    assert list(run.cost.phases) == ["joint", "mining for mined", "mined"]
    assert run.cost.phases["joint"].steps == run.cost.phases["mined"].steps == 8
    forward = run.cost.phases["mining for mined"].flops
    assert 0.02 < forward / scratch.cost.flops < 0.2
    assert run.cost.flops == pytest.approx(scratch.cost.flops + forward, rel=0.05)
    message = "'hard_negatives' is not defined for answering: negatives are mined where a batch is ranked"
    with pytest.raises(MmkitError, match=message):
        fit("hard_negatives", Answering(scenes), budget=Budget(64, 1), seed=0, encoders=QUICK)
