"""What a computation keeps and moves, against counts by hand."""

import torch

from mmkit.deploy.measure import Saved, moved_bytes


def test_what_autograd_keeps_is_counted_once_and_without_leaves():
    weight = torch.ones(8, 8, requires_grad=True)
    with Saved() as saved:
        hidden = torch.tanh(weight @ weight)  # the product's inputs are leaves; tanh keeps its own output
        _ = hidden * hidden  # keeps it again
    assert saved.sizes == [8 * 8 * 4] and saved.total == 8 * 8 * 4


def test_bytes_that_a_product_moves_are_its_three_matrices():
    a, b = torch.zeros(4, 8, device="meta"), torch.zeros(8, 16, device="meta")
    assert moved_bytes(lambda: a @ b) == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert moved_bytes(lambda: a @ b, cached=4 * 4 * 16) == 4 * 8 * 16, "smaller operands stay in the cache"
    assert moved_bytes(lambda: a.T) == 0, "a view moves nothing"
