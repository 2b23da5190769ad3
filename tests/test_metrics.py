"""Metrics: against examples worked by hand, an independent implementation, and models that know nothing."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import accuracy_score
from torch.nn import functional as F

from mmkit.errors import MmkitError
from mmkit.metrics import Score, accuracy, retrieval_scores

# ---------------------------------------------------------------------------------------------- retrieval


def by_hand():
    """Three images on the axes of space, so that a caption's scores are its coordinates; the last has one caption."""
    image = torch.eye(3)
    text = torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.8, 0.2], [0.7, 0.6, 0.0], [0.2, 0.9, 0.1], [0.0, 0.1, 1.0]])
    return image, text, torch.tensor([0, 0, 1, 1, 2])


def test_recall_and_median_rank_of_an_example_worked_by_hand():
    scores = retrieval_scores(*by_hand(), ks=(1, 2))
    # image to text: image 0 ranks its .9 first; image 1 its .9 first; image 2 its 1.0 first
    assert scores["i2t/recall@1"].items.tolist() == [1, 1, 1]
    # text to image: captions 0, 3 and 4 find their image. Caption 1 finds image 1 (.8 over .1 and .2; its own is last),
    # caption 2 finds image 0.
    assert scores["t2i/recall@1"].items.tolist() == [1, 0, 0, 1, 1]
    assert scores["t2i/recall@2"].items.tolist() == [1, 0, 1, 1, 1]
    assert scores["t2i/median_rank"].items.tolist() == [1, 3, 2, 1, 1] and scores["t2i/median_rank"].value == 1
    assert scores["t2i/recall@1"].clusters.tolist() == [0, 0, 1, 1, 2] and scores["i2t/recall@1"].clusters.tolist() == [
        0,
        1,
        2,
    ]
    assert not scores["t2i/median_rank"].higher_is_better and scores["t2i/median_rank"].aggregate == "median"
    # both directions, an image at a time: (1 + mean of its captions) / 2
    assert scores["recall@1"].items.tolist() == [0.75, 0.75, 1.0] and scores["recall@1"].value == pytest.approx(5 / 6)


def independent(image, text, owner, ks):
    """Recall and median rank by sorting the whole matrix, as a script of the field would."""
    similarity = image.double().numpy() @ text.double().numpy().T
    owner = owner.numpy()
    i2t = np.array(
        [np.flatnonzero(owner[np.argsort(-row, kind="stable")] == i)[0] + 1 for i, row in enumerate(similarity)]
    )
    t2i = np.array(
        [np.flatnonzero(np.argsort(-column, kind="stable") == owner[j])[0] + 1 for j, column in enumerate(similarity.T)]
    )
    found = {f"{way}/recall@{k}": np.mean(ranks <= k) for way, ranks in (("i2t", i2t), ("t2i", t2i)) for k in ks}
    return found | {"i2t/median_rank": np.median(i2t), "t2i/median_rank": np.median(t2i)}


def embeddings(images=60, captions=5, noise=1.2, seed=0):
    """Captions near their image, `noise` away, dealt out of order; every image has at least one."""
    generator = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(images, 16, generator=generator), dim=1)
    owner = torch.cat([torch.arange(images), torch.randint(0, images, (images * (captions - 1),), generator=generator)])
    owner = owner[torch.randperm(len(owner), generator=generator)]
    return image, F.normalize(image[owner] + noise * torch.randn(len(owner), 16, generator=generator) / 4, dim=1), owner


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("noise", [0.5, 1.2, 3.0])
def test_retrieval_scores_equal_an_independent_implementation(captions, noise):
    given = embeddings(captions=captions, noise=noise)
    scores = retrieval_scores(*given)
    expected = independent(*given, (1, 5, 10))
    assert {name: score.value for name, score in scores.items() if name != "recall@1"} == pytest.approx(expected)
    if captions == 1:
        assert scores["recall@1"].value == pytest.approx((expected["i2t/recall@1"] + expected["t2i/recall@1"]) / 2)


def test_the_order_of_captions_changes_no_value():
    image, text, owner = embeddings()
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(1))
    one, two = retrieval_scores(image, text, owner), retrieval_scores(image, text[order], owner[order])
    assert {name: score.value for name, score in one.items()} == pytest.approx(
        {name: score.value for name, score in two.items()}
    )


IGNORANT = {
    "zero": lambda image, text, owner: (torch.zeros_like(image), torch.zeros_like(text)),
    "constant": lambda image, text, owner: (image[:1].expand_as(image), image[:1].expand_as(text)),
    "constant texts": lambda image, text, owner: (image, text[:1].expand_as(text)),
    "random": lambda image, text, owner: (
        image,
        F.normalize(torch.randn(text.shape, generator=torch.Generator().manual_seed(3)), dim=1),
    ),
    "shuffled pairs": lambda image, text, owner: (
        image,
        text[torch.randperm(len(text), generator=torch.Generator().manual_seed(3))],
    ),
}


@pytest.mark.parametrize("name", IGNORANT)
def test_a_model_that_knows_nothing_scores_at_or_below_chance(name):
    image, text, owner = embeddings(images=100, captions=1, noise=0.3)
    assert retrieval_scores(image, text, owner)["recall@1"].value > 0.95, (
        "the same embeddings, paired, are nearly perfect"
    )
    scores = retrieval_scores(*IGNORANT[name](image, text, owner), owner)
    for k in (1, 5, 10):
        highest = binom.ppf(0.9999, 100, k / 100) / 100
        assert scores[f"i2t/recall@{k}"].value <= highest and scores[f"t2i/recall@{k}"].value <= highest
    assert scores["recall@1"].value <= 0.05
    assert min(scores["i2t/median_rank"].value, scores["t2i/median_rank"].value) > 30


def test_an_image_without_a_caption_cannot_be_scored():
    image, text, owner = embeddings(images=5, captions=1)
    with pytest.raises(ValueError, match="query 4 has no positive in the gallery"):
        retrieval_scores(image, text, torch.where(owner == 4, 0, owner))


# ---------------------------------------------------------------------------------------------- accuracy


def test_accuracy_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(200, 4, generator=generator), torch.randint(0, 4, (200,), generator=generator)
    score = accuracy(logits, target, np.arange(200) // 2)
    assert score.value == accuracy_score(target, logits.argmax(1)) and score.clusters.tolist() == [
        i // 2 for i in range(200)
    ]
    assert score.items.tolist() == (logits.argmax(1) == target).double().tolist()
    assert accuracy(F.one_hot(target, 4).float(), target, np.arange(200)).value == 1


def test_a_tie_is_wrong_and_so_a_constant_model_earns_nothing():
    target = torch.tensor([0, 1, 0])
    logits = torch.tensor([[2.0, 2.0, 1.0], [0.0, 3.0, 3.0], [1.0, 0.0, 0.0]])
    assert accuracy(logits, target, np.arange(3)).items.tolist() == [0, 0, 1]
    for constant in (0.0, 5.0):
        assert accuracy(torch.full((3, 4), constant), target, np.arange(3)).value == 0


@pytest.mark.parametrize("name", ["always one class", "random", "shuffled targets"])
def test_accuracy_of_ignorant_logits_is_chance(name):
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(400) % 4
    logits = {
        "always one class": torch.tensor([9.0, 0, 0, 0]).expand(400, 4),
        "random": torch.randn(400, 4, generator=generator),
        "shuffled targets": F.one_hot(target[torch.randperm(400, generator=generator)], 4).float(),
    }[name]
    assert accuracy(logits, target, np.arange(400)).value == pytest.approx(0.25, abs=0.08)


def test_logits_that_are_not_finite_are_no_wrong_answers():
    logits = torch.zeros(3, 2)
    logits[1, 0] = torch.nan
    with pytest.raises(
        MmkitError, match="logits are not finite, first at item 1: look for NaN in the inputs or weights"
    ):
        accuracy(logits, torch.zeros(3, dtype=torch.int64), np.arange(3))


# ---------------------------------------------------------------------------------------------- a score


def test_a_score_aggregates_its_items():
    assert Score(np.array([0, 1, 1]), np.array([0, 0, 1])).value == pytest.approx(2 / 3)
    assert Score([1, 2, 9], [0, 1, 2], aggregate="median", higher_is_better=False).value == 2
    score = Score(torch.tensor([1.0]), torch.tensor([4]))
    assert score.items.dtype == np.float64 and score.clusters.dtype == np.int64 and isinstance(score.value, float)


BAD_SCORES = {
    "matching, non-empty items and clusters, got (0,) and (0,)": ([], []),
    "matching, non-empty items and clusters, got (2,) and (3,)": ([1, 2], [0, 1, 2]),
    "matching, non-empty items and clusters, got (1, 2) and (1, 2)": ([[1, 2]], [[0, 1]]),
    "holds 2 values that are not finite, first at item 1": ([0.0, np.nan, 1.0, np.inf], [0, 1, 2, 3]),
}


@pytest.mark.parametrize("message", BAD_SCORES)
def test_a_score_refuses_what_is_none(message):
    with pytest.raises(MmkitError) as error:
        Score(*map(np.array, BAD_SCORES[message]))
    assert message in str(error.value)
