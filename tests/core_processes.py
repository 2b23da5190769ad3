"""Two processes of a gloo group on the CPU, for tests/test_core_distributed.py.

core_processes.py RANK FILE OUT
"""

import sys

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from mmkit.core import average_gradients, contrastive_loss, gradient_cache, sigmoid_loss


class Towers(nn.Module):
    """Two linear encoders, a scale and a bias; forward takes a pair of inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(10, 6), nn.Linear(7, 6)
        self.scale, self.bias = nn.Parameter(torch.tensor(12.0)), nn.Parameter(torch.tensor(-2.0))

    def forward(self, pair):
        return (
            F.normalize(self.image(pair[0]), dim=1),
            F.normalize(self.text(pair[1]), dim=1),
            self.scale * 1,
            self.bias * 1,
        )


def contrastive(image, text, scale, bias, group):
    return contrastive_loss(image, text, scale, tile=8, group=group) + 0 * bias


def sigmoid(image, text, scale, bias, group):
    return sigmoid_loss(image, text, scale, bias, tile=8, group=group)


OBJECTIVES = {"contrastive": contrastive, "sigmoid": sigmoid}


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 10, generator=generator), torch.randn(24, 7, generator=generator)


def result(loss, model):
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def main(rank: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    own, group = [x.chunk(2)[rank] for x in inputs()], dist.group.WORLD
    found = {}
    for name, objective in OBJECTIVES.items():
        model = nn.parallel.DistributedDataParallel(Towers())
        loss = objective(*model(own), group)
        loss.backward()
        found[name] = result(loss, model.module)
    model = nn.parallel.DistributedDataParallel(Towers())
    chunks = list(zip(*(x.split(5) for x in own)))
    with model.no_sync():
        loss = gradient_cache(
            lambda pair: model(pair)[:2],
            chunks,
            lambda *x: contrastive_loss(*x, model.module.scale, group=group) + 0 * model.module.bias,
        )
    average_gradients(model.parameters())
    found["gradient cache"] = result(loss, model.module)
    torch.save(found, f"{out}{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
