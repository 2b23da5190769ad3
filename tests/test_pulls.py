"""What a loss pulls on: the tools against sums written out."""

import torch
from torch import nn
from torch.nn import functional as F

from mmkit.explain.pulls import Watch, added, felt, flat, own_loss, pull, same_gradient, shares
from mmkit.models.encoded import Encoded
from mmkit.training import Batch, constant, train


class Summary(nn.Module):
    """An encoder whose summary is a linear map."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.map = nn.Linear(3, 2)

    def forward(self, x):
        return Encoded(x[:, None], torch.ones(len(x), 1, dtype=torch.bool), self.map(x))


def two_modalities():
    model = nn.Module()
    model.image, model.text = Summary(0), Summary(1)
    model.own_heads = nn.ModuleDict({"image": nn.Linear(2, 4), "text": nn.Linear(2, 4)})
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    return model, Batch(torch.arange(5), {"image": x[0], "text": x[1]}, torch.tensor([0, 1, 2, 3, 0]))


def test_a_pull_is_the_gradient_of_all_parameters_in_order():
    layer, x = nn.Linear(2, 1), torch.tensor([[3.0, 5.0]])
    assert pull(layer(x).sum(), layer).tolist() == [3.0, 5.0, 1.0]
    assert flat([torch.ones(2, 1), torch.zeros(1)]).tolist() == [1.0, 1.0, 0.0]


def test_a_wrong_gradient_is_told_from_the_right_one():
    x = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([2])
    right = x.softmax(1) - F.one_hot(y, 3)
    told = same_gradient(lambda x: F.cross_entropy(x, y), x, right)
    assert told == "by hand = library: True   pulled: 3 of 3 entries"
    assert "False" in same_gradient(lambda x: F.cross_entropy(x, y), x, x.softmax(1))
    assert "pulled: 1 of 3" in same_gradient(lambda x: x[0, 1] ** 2, x, torch.tensor([[0.0, -2.0, 0.0]]))


def test_own_losses_go_through_the_named_head_and_add_up():
    model, batch = two_modalities()
    summary = model.text.map(batch.inputs["text"])
    own = F.cross_entropy(model.own_heads["text"](summary), batch.target)
    borrowed = F.cross_entropy(model.own_heads["image"](summary), batch.target)
    assert torch.equal(own_loss("text")(model, batch), own)
    assert torch.equal(own_loss("text", head="image")(model, batch), borrowed)
    assert torch.equal(added(own_loss("text"), own_loss("text", head="image"))(model, batch), own + borrowed)


def test_a_watch_looks_before_the_steps_it_is_asked_for():
    model, batch = two_modalities()
    watch = Watch(lambda model: flat(model.image.parameters()), (0, 2, 9))
    start = flat(model.image.parameters())
    options = {"steps": 4, "lr": 0.1, "schedule": constant, "hooks": [watch]}
    train(model, own_loss("image"), iter([batch] * 4), **options)
    assert list(watch.seen) == [0, 2]
    assert torch.equal(watch.seen[0], start) and not torch.equal(watch.seen[2], start)


def test_wrong_partners_are_felt_alike_or_the_hardest_alone():
    even, labels = torch.zeros(5, 5), torch.arange(5)
    assert abs(felt(shares(lambda s: F.cross_entropy(s, labels), even)) - 4) < 1e-5
    steep = torch.eye(5).roll(1, 1) * 100
    assert abs(felt(shares(lambda s: F.cross_entropy(s, labels), steep)) - 1) < 1e-5
    assert not shares(lambda s: s.diag().sum(), even).any()
