"""Objectives and exact search, each against a slow and obvious twin."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmkit.core import contrastive_loss, ranks_both_ways, reference, retrieval_ranks, topk
from mmkit.core import ranks as core_ranks


def unit(n, d, seed, dtype=torch.float64):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


# ---------------------------------------------------------------------------------------------- the contrastive loss


@pytest.mark.parametrize("n, d, scale", [(1, 3, 10.0), (2, 4, 1.0), (7, 5, 14.3), (16, 8, 40.0)])
def test_contrastive_loss_is_its_formula(n, d, scale):
    image, text = unit(n, d, 0), unit(n, d, 1)
    expected = reference.contrastive_loss(image, text, scale).item()
    assert contrastive_loss(image, text, scale).item() == pytest.approx(expected, rel=1e-12)
    found = contrastive_loss(image.float(), text.float(), torch.tensor(scale)).item()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_contrastive_loss_where_it_is_known():
    same = torch.ones(6, 4) / 2
    assert contrastive_loss(same, same, 20.0).item() == pytest.approx(math.log(6)), "nothing told apart costs log N"
    assert contrastive_loss(torch.eye(5), torch.eye(5), 100.0).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(torch.eye(5), torch.eye(5).roll(1, 0), 100.0).item() == pytest.approx(100, rel=1e-3), (
        "shuffled pairs cost the whole scale"
    )


def test_contrastive_loss_does_not_depend_on_the_order_of_pairs_nor_on_which_side_is_first():
    image, text = unit(9, 6, 0), unit(9, 6, 1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    expected = contrastive_loss(image, text, 7.0).item()
    assert contrastive_loss(image[order], text[order], 7.0).item() == pytest.approx(expected, rel=1e-12)
    assert contrastive_loss(text, image, 7.0).item() == pytest.approx(expected, rel=1e-12)
    assert contrastive_loss(image[order], text, 7.0).item() != pytest.approx(expected, rel=1e-3)


def test_gradients_of_the_contrastive_loss():
    image, text, scale = unit(5, 3, 0), unit(5, 3, 1), torch.tensor(6.0, dtype=torch.float64)
    for tensor in (image, text, scale):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(contrastive_loss, (image, text, scale))


@pytest.mark.parametrize("image, text", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)), ((0, 3), (0, 3))])
def test_contrastive_loss_refuses_what_is_not_pairs(image, text):
    with pytest.raises(ValueError, match="two non-empty .N, D. tensors of one shape"):
        contrastive_loss(torch.zeros(image), torch.zeros(text), 1.0)


# ---------------------------------------------------------------------------------------------- ranks


def setting(name):
    """Queries, gallery and their groups. Whole numbers: each way of adding gives the same, and ties are ties."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n, d, high: torch.randint(-high, high + 1, (n, d), generator=generator).double()  # noqa: E731
    if name == "one positive each":
        return draw(40, 6, 9), draw(40, 6, 9), torch.arange(40), torch.arange(40)
    if name == "five positives each, out of order":
        queries, gallery = draw(20, 6, 9), draw(100, 6, 9)
        return queries, gallery, torch.arange(20), torch.arange(20).repeat(5)[torch.randperm(100, generator=generator)]
    if name == "many queries, one positive":
        return draw(100, 6, 9), draw(20, 6, 9), torch.arange(20).repeat_interleave(5), torch.arange(20)
    if name == "unequal counts and rows of nobody":
        owner = torch.repeat_interleave(torch.arange(15), torch.arange(15) % 4 + 1)
        return draw(15, 6, 9), draw(len(owner) + 9, 6, 9), torch.arange(15), torch.cat([owner, torch.full((9,), 99)])
    if name == "many ties":
        return draw(30, 3, 1), draw(60, 3, 1), torch.arange(30), torch.arange(30).repeat(2)
    raise AssertionError(name)


SETTINGS = (
    "one positive each",
    "five positives each, out of order",
    "many queries, one positive",
    "unequal counts and rows of nobody",
    "many ties",
)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_ranks_are_those_of_the_formula(name, chunk):
    given = setting(name)
    ranks = retrieval_ranks(*given, chunk=chunk)
    assert ranks.dtype == torch.int64 and ranks.equal(reference.retrieval_ranks(*given))
    assert len(set(ranks.tolist())) > 3, "the example tells ranks apart"


@pytest.mark.parametrize("kind", ["apart", "whole numbers", "near together", "all alike"])
@pytest.mark.parametrize("tile", [7, 512])
def test_ranks_both_ways_are_those_of_the_formula(kind, tile, monkeypatch):
    draw = torch.Generator().manual_seed(2)
    image, text, images = torch.randn(31, 6, generator=draw), torch.randn(90, 6, generator=draw), torch.arange(31)
    owner = torch.cat([images, torch.randint(31, (59,), generator=draw)])[torch.randperm(90, generator=draw)]
    if kind == "whole numbers":
        image, text = image.round(), text.round()
    if kind == "near together":  # closer than float32 tells, and some equal
        image, text = 1 + 1e-6 * image, (1 + 1e-6 * text)[torch.arange(90) // 2]
    if kind == "all alike":
        image, text = torch.ones_like(image), torch.ones_like(text)
    there = reference.retrieval_ranks(image, text, images, owner)
    back = reference.retrieval_ranks(text, image, owner, images)
    found = ranks_both_ways(image, text, owner, tile=tile)
    assert found[0].equal(there) and found[1].equal(back)
    monkeypatch.setattr(core_ranks, "CROWDED", 1.0)  # each open pair by itself, however many they are
    monkeypatch.setattr(core_ranks, "retrieval_ranks", None)
    found = ranks_both_ways(image, text, owner, tile=tile)
    assert found[0].equal(there) and found[1].equal(back)


def test_ranks_both_ways_refuse_what_one_way_refuses():
    eye, rows = torch.eye(4), torch.arange(4)
    with pytest.raises(ValueError, match="query 2 has no positive in the gallery"):
        ranks_both_ways(eye, eye, torch.tensor([0, 1, 3, 3]))
    with pytest.raises(ValueError, match="shapes do not match"):
        ranks_both_ways(eye, eye, rows[:3])
    with pytest.raises(ValueError, match="not finite"):
        ranks_both_ways(eye * torch.nan, eye, rows)


def test_ties_count_against_the_model():
    flat = torch.ones(6, 4)
    assert retrieval_ranks(flat, flat, torch.arange(6), torch.arange(6)).tolist() == [6] * 6
    captions = torch.arange(6).repeat(3)
    assert retrieval_ranks(flat, torch.ones(18, 4), torch.arange(6), captions).tolist() == [16] * 6, (
        "all fifteen wrong captions come first"
    )
    assert retrieval_ranks(torch.zeros(6, 4), torch.randn(6, 4), torch.arange(6), torch.arange(6)).tolist() == [6] * 6


def test_ranks_of_perfect_and_of_reversed_embeddings():
    eye = torch.eye(8)
    assert retrieval_ranks(eye, eye, torch.arange(8), torch.arange(8)).tolist() == [1] * 8
    assert retrieval_ranks(eye, -eye, torch.arange(8), torch.arange(8)).tolist() == [8] * 8


def test_a_common_reordering_of_the_gallery_changes_nothing():
    queries, gallery, one, two = setting("five positives each, out of order")
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    assert retrieval_ranks(queries, gallery[order], one, two[order]).equal(retrieval_ranks(queries, gallery, one, two))


def test_ranks_refuse_what_has_no_answer():
    eye, rows = torch.eye(4), torch.arange(4)
    with pytest.raises(ValueError, match="query 2 has no positive in the gallery"):
        retrieval_ranks(eye, eye, rows, torch.tensor([0, 1, 3, 3]))
    with pytest.raises(ValueError, match="query 3 has no positive"):
        retrieval_ranks(eye, eye, rows, torch.tensor([0, 1, 2, 2]), chunk=3)
    for bad in (torch.nan, torch.inf):
        damaged = eye.clone()
        damaged[1, 1] = bad
        with pytest.raises(ValueError, match="not finite: the embeddings hold NaN or infinity"):
            retrieval_ranks(eye, damaged, rows, rows)
    with pytest.raises(ValueError, match="shapes do not match: queries .4, 4. with 3 groups"):
        retrieval_ranks(eye, eye, rows[:3], rows)
    with pytest.raises(ValueError, match="shapes do not match"):
        retrieval_ranks(eye, torch.ones(4, 3), rows, rows)
    with pytest.raises(ValueError, match="at least one query"):
        retrieval_ranks(eye[:0], eye, rows[:0], rows)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6], ids=["apart", "crowded", "collapsed"])
def test_ranks_are_those_of_float64_whatever_the_rounding(spread, kind):
    """Scores that float32 cannot tell apart, equal rows among them, are told apart or tied as float64 has it."""
    rows = torch.arange(60)
    queries, gallery = (F.normalize(1 + spread * unit(n, 96, n, torch.float32), dim=1).to(kind) for n in (60, 240))
    gallery[200:] = gallery[:40]
    owner = rows.repeat(4)
    expected = reference.retrieval_ranks(queries, gallery, rows, owner)
    assert retrieval_ranks(queries, gallery, rows, owner).equal(expected)
    for k in (1, 7, 240):
        values, found = topk(queries, gallery, k, chunk=25)
        scores, order = reference.topk(queries, gallery, k)
        assert found.equal(order) and values.equal(scores)


def test_topk_of_whole_numbers_with_ties_takes_the_earlier_row_and_refuses_what_has_no_answer():
    queries, gallery, *_ = setting("many ties")
    for query, values, found in zip(queries, *topk(queries, gallery, 9)):
        expected = sorted(range(60), key=lambda row: (-float(gallery[row] @ query), row))[:9]  # noqa: B023
        assert found.tolist() == expected and values.tolist() == [float(gallery[row] @ query) for row in expected]
    for k in (0, 61):
        with pytest.raises(ValueError, match=f"k={k} does not lie between 1 and the 60 rows"):
            topk(queries, gallery, k)
    with pytest.raises(ValueError, match="not finite"):
        topk(queries * torch.nan, gallery, 1)
    with pytest.raises(ValueError, match="one type and device"):
        topk(queries, gallery.float(), 1)


def test_a_kernel_that_is_not_there_or_cannot_run_is_refused_and_not_replaced_in_silence():
    x, rows = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match="topk has no Triton kernel; pass backend='auto'"):
        topk(x, x, 1, backend="triton")
    with pytest.raises(ValueError, match="backend='triton' cannot run: .*pass backend='auto'"):
        retrieval_ranks(x, x, rows, rows, backend="triton")
    for search in (lambda **o: topk(x, x, 1, **o), lambda **o: retrieval_ranks(x, x, rows, rows, **o)):
        with pytest.raises(ValueError, match="backend='cuda' is unknown"):
            search(backend="cuda")
