"""Work shared out over threads: the same digits for any number of them, and nothing left behind."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mmkit.core import (
    contrastive_loss,
    linear_cross_entropy,
    ranks_both_ways,
    reference,
    retrieval_ranks,
    sigmoid_loss,
    topk,
)
from mmkit.core.workers import shared, strips, tiles

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """Sets PyTorch's number of threads; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def unit(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def gradients(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    value.backward()
    return [value.detach(), *(x.grad for x in inputs)]


def everything(n, d):
    """Every shared computation of the core on ragged sizes: a list of tensors."""
    image, text, scale, bias = unit(n, d, 0), unit(n, d, 1), torch.tensor(30.0), torch.tensor(-3.0)
    weight, target, owner = 4 * unit(5000, d, 2), torch.arange(n) * 7 % 5000, torch.arange(n).repeat_interleave(2)
    many = unit(2 * n, d, 3)
    found = gradients(contrastive_loss, image, text, scale) if n > 1448 else []  # below it is parallel inside
    found += gradients(lambda *x: contrastive_loss(*x, tile=100), image, text, scale)
    found += gradients(lambda *x: sigmoid_loss(*x, tile=100), image, text, scale, bias)
    found += gradients(lambda h, w: linear_cross_entropy(h, w, target, label_smoothing=0.1, chunk=90), image, weight)
    found += ranks_both_ways(image, many, owner, tile=100)
    found += [retrieval_ranks(image, many, torch.arange(n), owner), *topk(image, many, 5)]
    return found


@pytest.mark.parametrize("n, d", [(33, 64), (701, 64), (1025, 384), (1601, 640)])
def test_the_digits_are_the_same_for_any_number_of_threads(threads, n, d):
    threads(1)
    expected = everything(n, d)
    for count in (2, 3, 5):
        threads(count)
        for number, (a, b) in enumerate(zip(everything(n, d), expected)):
            assert a.equal(b), (count, number)


def test_a_small_batch_is_repeatable_at_one_number_of_threads(threads):
    image, text, scale = unit(1024, 64, 0), unit(1024, 64, 1), torch.tensor(30.0)
    exact = gradients(reference.contrastive_loss, image.double(), text.double(), scale.double())
    for count in (1, 2, 3):
        threads(count)
        one, two = (gradients(contrastive_loss, image, text, scale) for _ in range(2))
        assert all(a.equal(b) for a, b in zip(one, two))
        assert all((a - b).norm() <= 2e-6 * b.norm() for a, b in zip(one, exact))


def test_threads_of_ones_own_do_not_disturb_each_other(threads):
    threads(2)
    expected, found = everything(1601, 64), {}

    def work(name):
        found[name] = everything(1601, 64)

    running = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(found) == 3 and all(a.equal(b) for results in found.values() for a, b in zip(results, expected))


def test_number_of_threads_gradient_mode_and_inference_mode_are_left_as_they_were(threads):
    threads(3)
    image, text = unit(700, 16, 0), unit(700, 16, 1)
    expected = contrastive_loss(image, text, 20.0)
    with torch.inference_mode():
        assert contrastive_loss(image.clone(), text.clone(), 20.0).equal(expected)
        assert sigmoid_loss(image.clone(), text, 20.0).isfinite()
    assert torch.is_grad_enabled() and torch.get_num_threads() == 3
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [3], "a thread begun later has the caller's number, not a helper's"


def test_each_worker_has_one_thread_and_no_gradients(threads):
    threads(3)
    seen, meeting = set(), threading.Barrier(3, timeout=60)

    def work(number):
        meeting.wait()  # all three are at work at once
        seen.add((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))

    shared(CPU, work, [(number,) for number in range(3)])
    assert len(seen) == 3 and {said[1:] for said in seen} == {(1, False)}


@pytest.mark.parametrize("rows, columns, side", [(1, 1, 4), (10, 10, 3), (7, 23, 4), (23, 7, 4)])
def test_tiles_cover_a_matrix_once_and_add_in_the_order_of_the_list(threads, rows, columns, side):
    threads(4)
    covered, order, grid = torch.zeros(rows, columns), {}, tiles(rows, columns, side)

    def work(i, j):
        covered[i, j] += 1
        time.sleep(0.001 * ((i.start + 3 * j.start) % 3))
        for key in strips((i, j)):
            order.setdefault(key, []).append((i, j))

    shared(CPU, work, grid, adds_to=strips)
    assert covered.equal(torch.ones(rows, columns))
    for key, done in order.items():
        assert done == [tile for tile in grid if key in strips(tile)]


def test_an_error_stops_the_rest_and_is_raised(threads):
    threads(2)
    done = []

    def work(number):
        if number == 3:
            raise ValueError("number 3")
        done.append(number)
        time.sleep(0.002)

    with pytest.raises(ValueError, match="number 3"):
        shared(CPU, work, [(number,) for number in range(100)], adds_to=lambda task: (task[0] % 2,))
    assert len(done) < 20 and torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="not finite"):
        contrastive_loss(unit(700, 8, 0) * torch.nan, unit(700, 8, 1), 5.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.slow
def test_a_forked_process_computes_and_helping_threads_end_before_a_fork_or_by_themselves():
    script = """
import os, time, torch
from mmkit.core import contrastive_loss, workers
torch.set_num_threads(3)
x = torch.nn.functional.normalize(torch.randn(1601, 16, generator=torch.Generator().manual_seed(0)), dim=1)
native = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
before, value = native(), contrastive_loss(x, x.roll(1, 0), 9.0)
assert len(workers._idle) == 2
for _ in range(3):
    child = os.fork()
    if not child:
        os._exit(0 if contrastive_loss(x, x.roll(1, 0), 9.0).equal(value) else 3)
    assert not workers._idle
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert contrastive_loss(x, x.roll(1, 0), 9.0).equal(value)
deadline = time.time() + 60
while native() > before and time.time() < deadline:
    time.sleep(0.05)
assert native() <= before and not workers._idle, (native(), before)
assert contrastive_loss(x, x.roll(1, 0), 9.0).equal(value)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
@pytest.mark.slow
@pytest.mark.parametrize("n, most", [(1024, 24), (4096, 36)])
def test_memory_is_that_of_the_gradients_and_a_tile_a_thread(n, most):
    """The matrix of 4,096 pairs alone takes 64 MB, of which the plain form holds several; the gradients take 16."""
    script = f"""
import re, torch
from pathlib import Path
from mmkit.core import contrastive_loss
torch.set_num_threads(2)
def step(n):
    x, y = (torch.nn.functional.normalize(torch.randn(n, 512), dim=1).requires_grad_() for _ in range(2))
    s = torch.tensor(100.0, requires_grad=True)
    Path("/proc/self/clear_refs").write_text("5")
    status = lambda key: int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
    before = status("VmRSS")
    contrastive_loss(x, y, s).backward()
    return (status("VmHWM") - before) / 1024
step(600)
print(step({n}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
    assert float(done.stdout) <= most


@pytest.mark.parametrize("regime", ["cone", "hard", "saturated"])
def test_kept_tiles_and_recomputed_ones_give_the_same(regime, monkeypatch):
    from mmkit.core import contrastive
    from test_core_losses import batch

    image, text, scale = batch(regime, 200, 64)
    kept = gradients(contrastive_loss, image, text, torch.tensor(scale))
    monkeypatch.setattr(contrastive, "KEPT", 0)
    again = gradients(contrastive_loss, image, text, torch.tensor(scale))
    exact = gradients(reference.contrastive_loss, image.double(), text.double(), torch.tensor(scale).double())
    for a, b, c in zip(kept, again, exact):
        assert (a - c).norm() <= 1e-5 * c.norm() and (b - c).norm() <= 1e-5 * c.norm()
