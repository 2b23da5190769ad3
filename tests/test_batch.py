"""Views and loaders: what a batch shows of its rows, what is drawn, what is empty, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from mmkit.data import Recipe, load
from mmkit.errors import MmkitError
from mmkit.models import Encoded, WordTokenizer
from mmkit.pretraining import Part
from mmkit.strategies import Budget, Encoders, Stage, Strategy, fit
from mmkit.tasks import Answering, Captioning, Retrieval
from mmkit.training import Batch, Batches, Group, Loader, RowBatches, array_view, batches, stream, text_view

ABOUT = {"title": "", "task": "", "licence": "CC0", "terms": "", "citation": "", "version": 1}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", train=96, val=32, test=64, ood=32, pool=64)


@pytest.fixture(scope="module")
def loader(scenes):
    """Of images and captions, two an image."""
    return Retrieval(scenes).loader()


HAS = ("image audio text", "audio", "text", "image", "image text", "audio text", "clip")  # in turns


def fill_street(writer, sources):
    """28 items, of which each has some of image, audio and text; every seventh has a clip and nothing else."""
    for n in range(28):
        has = HAS[n % 7].split()
        given = {}
        if "image" in has:
            given["image"] = writer.image(np.full((16, 16, 3), n, np.uint8))
        for name in ("audio", "clip"):
            if name in has:
                given[name] = writer.array(name, np.full((1, 4), n + 1, np.float32))[0]
        split = ("train", "train", "val", "test")[n // 7]
        row = writer.item(f"item-{n}", split=split, label_answer=n % 2, **given)
        if "text" in has:
            writer.text(row, f"car number {n}", role="question")


@pytest.fixture(scope="module")
def street():
    return load(Recipe(name="street_with_gaps", prepare=fill_street, **ABOUT))


def asked(street, modalities=("image", "audio", "text")):
    return Answering(street, modalities=modalities)


# ---------------------------------------------------------------------------------------------- what rows show


def test_a_batch_shows_the_images_texts_and_targets_of_its_rows(scenes):
    rows, words = torch.tensor([40, 3, 80]), WordTokenizer(scenes.texts["text"])
    task = Answering(scenes)
    batch = task.loader(words)(rows)
    assert batch.rows.equal(rows) and list(batch.inputs) == ["image", "text"] and not batch.present
    assert batch.inputs["image"].equal(scenes.pixels(rows)) and batch.target.equal(task.target[rows])
    assert batch.inputs["text"].equal(words(scenes.texts_of(rows, role="question")[0])) and batch.weight is None
    assert batch.with_input("image", batch.inputs["text"]).inputs["image"].equal(batch.inputs["text"])
    assert batch.inputs["image"].equal(scenes.pixels(rows)), "the batch itself stays"


def test_all_entries_of_rows_come_with_their_owners(scenes, loader):
    words = WordTokenizer(scenes.texts["text"])
    loader, rows = Retrieval(scenes).loader(words), torch.tensor([40, 3, 80])
    entries, owner = loader.entries("text", rows)
    texts, expected = scenes.texts_of(rows)
    assert owner.tolist() == expected.tolist() == [0, 0, 1, 1, 2, 2]
    shown = loader.of_entries("text", entries)
    assert shown.equal(words(texts)[:, : shown.shape[1]])
    assert loader.input("text", rows).equal(words(texts[::2])), "without a generator the first of each"


def test_a_batch_of_texts_is_cut_to_its_longest(loader):
    lengths = loader.view("text").lengths
    shortest, longest = int(lengths.min()), int(lengths.max())
    assert loader.of_entries("text", lengths.argmin()[None]).shape == (1, shortest) and shortest < longest
    assert loader.of_entries("text", torch.stack([lengths.argmin(), lengths.argmax()])).shape == (2, longest)


def test_texts_are_made_ids_once_for_a_tokenizer_and_again_for_another(scenes):
    made = []

    def tokenizer(texts):
        made.append(len(texts))
        return torch.ones(len(texts), 3, dtype=torch.int64)

    def other(texts):
        return torch.full((len(texts), 2), 5)

    def questions(words):
        return text_view(scenes, words, role="question", language="en")

    first, second = questions(tokenizer), questions(tokenizer)
    assert len(made) == 1 and first.lengths is second.lengths
    captions = text_view(scenes, tokenizer, role="caption", language="en")
    assert len(captions.lengths) == 2 * len(first.lengths)
    assert questions(other)(torch.tensor([0])).tolist() == [[5, 5]]


# ---------------------------------------------------------------------------------------------- what is drawn


def test_one_of_several_entries_is_drawn_with_equal_chances_and_no_other_rows(loader):
    rows, drawn = torch.tensor([5, 60]), generator()
    view = loader.view("text")
    seen = torch.stack([view.draw(rows, drawn) for _ in range(400)])
    for column, row in enumerate(rows):
        entries, counts = seen[:, column].unique(return_counts=True)
        assert entries.equal(view.entries(row[None])[0]) and len(entries) == 2
        assert 160 < int(counts[0]) < 240, "four standard deviations of a fair coin"


def test_a_draw_is_repeated_by_its_generator_alone(loader):
    rows = torch.arange(50)
    torch.manual_seed(1)
    first = loader(rows, generator(3)).inputs["text"]
    torch.rand(100)
    assert loader(rows, generator(3)).inputs["text"].equal(first)
    assert not loader.view("text").draw(rows, generator(4)).equal(loader.view("text").draw(rows, generator(3)))
    assert loader.view("text").draw(rows).equal(loader.view("text").start[:50]), "without one, the first entries"


def test_rows_with_one_entry_draw_nothing_from_the_generator(scenes):
    drawn = generator()
    before = drawn.get_state()
    Answering(scenes).loader()(torch.arange(8), drawn)
    assert drawn.get_state().equal(before)


def test_a_target_that_is_a_view_is_drawn_as_often_as_asked(scenes):
    task = Captioning(scenes, captions=3)
    rows = torch.arange(40)
    batch = task.loader()(rows, generator())
    assert batch.target.shape[0] == 120 and list(batch.inputs) == ["image"]
    own = task.words(scenes.texts_of(rows)[0])[:, : batch.target.shape[1]]
    by_item = own.unflatten(0, (40, 2))
    for caption, row in zip(batch.target, torch.arange(120) % 40):
        assert (caption == by_item[row]).all(1).any(), "image by image, over and over"


# ---------------------------------------------------------------------------------------------- what is changed


def test_a_blank_modality_tells_nothing(scenes):
    loader, rows = Answering(scenes).loader(), torch.arange(6)
    whole, blank = loader(rows).inputs, loader.blanked("image")(rows).inputs
    assert blank["image"].unique().tolist() == [127] and blank["text"].equal(whole["text"])
    blank = loader.blanked("text")(rows).inputs
    assert blank["text"].tolist() == [[1]] * 6 and blank["image"].equal(whole["image"])
    assert loader.blanked("text").blanked("image").blank == {"image", "text"}, "what was blank stays so"
    features = Encoded(torch.ones(6, 2, 3), torch.ones(6, 2, dtype=torch.bool), torch.ones(6, 3))
    views = {name: view.with_features(features, view.start[rows]) for name, view in loader.views.items()}
    encoded = Loader(scenes, views)
    for modality in ("image", "text"):
        shown = encoded.blanked(modality)(rows).inputs
        assert not shown[modality].summary.any() and not shown[modality].tokens.any()
        assert all(shown[other].summary.all() for other in {"image", "text"} - {modality})


def test_shuffled_pairs_are_a_rearrangement_within_the_rows(scenes, loader):
    rows = torch.from_numpy(scenes.rows("train"))[:40]
    dealt = loader.shuffled(rows, generator())
    own, partner = loader.entries("text", rows)[0], dealt.entries("text", rows)[0]
    assert sorted(partner.tolist()) == sorted(own.tolist()) and (partner == own).float().mean() < 0.2
    others = torch.from_numpy(scenes.rows("test"))
    assert dealt.input("text", others).equal(loader.input("text", others)), "other rows keep their own"
    assert dealt.input("image", rows).equal(loader.input("image", rows)), "and the first modality stays"
    assert dealt.shuffled(rows, generator()).partner["text"].equal(loader.shuffled(rows, generator()).partner["text"])


def test_captions_are_dealt_out_anew_where_they_are_the_target(scenes):
    loader, rows = Captioning(scenes).loader(), torch.arange(30)
    dealt = loader.shuffled(rows, generator())
    own, partner = loader(rows).target, dealt(rows).target
    assert dealt.input("image", rows).equal(loader.input("image", rows))
    assert sorted(own.tolist()) == sorted(partner.tolist()) and not own.equal(partner)


def test_evaluation_leaves_out_what_is_for_training_alone(scenes, loader):
    rows = torch.arange(10)
    changed = Loader(
        scenes, loader.views, transforms=(lambda batch, _: batch.with_input("image", batch.inputs["image"] * 0),)
    )
    changed = changed.shuffled(rows, generator()).blanked("text")
    batch = changed.evaluation()(rows, generator())
    assert batch.inputs["image"].equal(loader.input("image", rows)) and batch.inputs["text"].eq(1).all()
    assert changed(rows, generator()).inputs["image"].eq(0).all() and not changed.evaluation().partner


def test_transforms_come_in_order_and_only_where_there_is_a_generator(scenes):
    def louder(batch, generator):
        return batch.with_input("image", batch.inputs["image"].float() + torch.rand(1, generator=generator))

    def doubled(batch, generator):
        return batch.with_input("image", 2 * batch.inputs["image"])

    loader = Loader(scenes, {"image": array_view(scenes, "image")}, transforms=(louder, doubled))
    rows = torch.arange(4)
    assert loader(rows).inputs["image"].dtype == torch.uint8
    expected = 2 * (scenes.pixels(rows).float() + torch.rand(1, generator=generator()))
    assert loader(rows, generator()).inputs["image"].equal(expected)


def test_weights_and_several_targets_go_with_their_rows(scenes):
    targets = {"one": torch.arange(len(scenes)), "two": -torch.arange(len(scenes))}
    weight = torch.rand(len(scenes), generator=generator())
    batch = Loader(scenes, {"image": array_view(scenes, "image")}, targets, weight)(torch.tensor([7, 2]))
    assert {name: target.tolist() for name, target in batch.target.items()} == {"one": [7, 2], "two": [-7, -2]}
    assert batch.weight.equal(weight[[7, 2]])


# ---------------------------------------------------------------------------------------------- any modality, or none


def test_a_third_modality_is_shown_by_its_name(street):
    batch = asked(street).loader()(torch.tensor([0, 7]))
    assert list(batch.inputs) == ["image", "audio", "text"] and not batch.present
    assert batch.inputs["audio"].tolist() == [[1] * 4, [8] * 4] and batch.inputs["image"].shape == (2, 3, 16, 16)
    assert list(asked(street).loader().only(("audio", "text")).views) == ["audio", "text"]


def test_an_item_that_lacks_a_modality_is_shown_an_empty_one_and_the_batch_says_so(street):
    batch = asked(street).loader()(torch.tensor([0, 1, 2, 3]))
    assert {name: there.tolist() for name, there in batch.present.items()} == {
        "image": [True, False, False, True],
        "audio": [True, True, False, False],
        "text": [True, False, True, False],
    }
    assert [image.unique().tolist() for image in batch.inputs["image"]] == [[0], [127], [127], [3]]
    assert batch.inputs["audio"].tolist() == [[1] * 4, [2] * 4, [0] * 4, [0] * 4]
    text = batch.inputs["text"]
    assert text[[1, 3]].tolist() == [[1, 0, 0]] * 2 and text[[0, 2]].ne(0).all(), "one unknown word, and padding"
    assert batch.target.tolist() == [0, 1, 0, 1]


def test_a_missing_modality_is_blank_among_features_too(street):
    task = asked(street)
    loader, rows = task.loader(), torch.arange(4)
    entries = loader.entries("audio", rows)[0]
    ones = Encoded(torch.ones(2, 1, 3), torch.ones(2, 1, dtype=torch.bool), torch.ones(2, 3))
    view = loader.view("audio").with_features(ones, entries)
    shown = view(view.draw(rows))
    assert shown.summary.tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3] and not shown.tokens[2:].any()


def test_an_item_with_none_of_the_tasks_modalities_is_refused_by_name(street):
    with pytest.raises(MmkitError) as error:
        asked(street).loader().require(torch.tensor([0, 6, 13]))
    assert str(error.value) == (
        "item 'item-6' of 'street_with_gaps' has no image and no audio and no text: "
        "leave it out, or read another modality"
    )
    assert asked(street, ("image", "audio", "clip")).loader()(torch.tensor([0, 6])).inputs["clip"].sum() == 28


def test_retrieval_and_captioning_cannot_do_without(street):
    for task, row, lacks in (
        (Retrieval(street, role="question"), 1, "image"),
        (Retrieval(street, role="question"), 3, "text of role 'question' in 'en'"),
        (Captioning(street, role="question"), 1, "image"),
        (Captioning(street, role="question"), 3, "text of role 'question' in 'en'"),
    ):
        message = f"item 'item-{row}' of 'street_with_gaps' has no {lacks}: choose another, or leave such items out"
        with pytest.raises(MmkitError, match=message):
            task.loader()(torch.tensor([0, row]))


def test_a_row_without_a_text_is_an_error_where_the_set_promises_one_and_not_the_next_ones_text(scenes, loader):
    """A set of pairs says nothing of gaps, and an item of a pool is no pair."""
    alone = torch.from_numpy(scenes.rows("pool_image"))[:1]
    message = "item 'pool_image-.*' of 'scenes' has no text of role '.*' in 'en': choose another, or leave such items"
    for shown in (loader, Answering(scenes).loader()):
        for ask in (shown, lambda rows, shown=shown: shown.entries("text", rows)):
            with pytest.raises(MmkitError, match=message):
                ask(torch.cat([torch.tensor([0, 1]), alone]))


@pytest.mark.parametrize("ask", ["view", "blanked", "input", "only", "task"])
def test_an_unknown_modality_names_the_nearest(ask, street):
    task = asked(street)
    loader = task.loader()
    asks = {
        "view": lambda: loader.view("adio"),
        "blanked": lambda: loader.blanked("adio"),
        "input": lambda: loader.input("adio", torch.arange(2)),
        "only": lambda: loader.only(("image", "adio")),
        "task": lambda: asked(street, ("image", "adio")).loader(),
    }
    with pytest.raises(MmkitError, match="unknown modality.* 'adio': did you mean 'audio'. there are audio, .*image"):
        asks[ask]()


class Sound(nn.Module):
    dim = summary_dim = 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        tokens = self.layer(x)[:, None]
        return Encoded(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens[:, 0])


@pytest.mark.parametrize("groups", [(Group(),), (Group("fusion.*"), Group("head.*"))], ids=["raw", "features"])
def test_a_set_with_gaps_is_trained_and_scored_on_end_to_end(groups, street, monkeypatch):
    """Items without anything the task reads are left out of the splits by whoever asks."""
    task = asked(street)
    whole = np.flatnonzero(street.items["clip"].to_numpy() < 0)
    monkeypatch.setattr(street, "rows", lambda split: np.intersect1d(whole, type(street).rows(street, split)))
    encoders = Encoders(size=16, others={"audio": Part(Sound)})
    strategy = Strategy("mine", "a test", stages=(Stage("joint", groups),))
    run = fit(strategy, task, budget=Budget(12, 2), seed=0, encoders=encoders, batch=4)
    assert len(run.scores["accuracy"].items) == 6 and np.isfinite([entry["loss"] for entry in run.history]).all()
    assert ("encode" in run.cost.phases) == (len(groups) == 2)


# ---------------------------------------------------------------------------------------------- rows, pass by pass


def test_row_batches_are_kept_and_restored_in_the_middle_of_a_pass():
    rows = torch.arange(20)
    going = batches(rows, 6, generator())
    for _ in range(4):  # three a pass: one batch into the second
        next(going)
    state = going.state()
    expected = [next(going).tolist() for _ in range(8)]
    other = batches(rows, 6, generator(9))
    other.restore(state)
    assert [next(other).tolist() for _ in range(8)] == expected
    other.restore(state)
    assert next(other).tolist() == expected[0], "what was kept is not changed by going on"


def test_batches_are_kept_and_restored_with_what_they_draw(loader):
    def made(seed):
        return Batches(loader, batches(torch.arange(40), 8, generator(seed)), generator(seed + 1))

    going = made(0)
    for _ in range(3):
        next(going)
    state = going.state()
    assert all(isinstance(value, torch.Tensor) for value in state.values()), "as a checkpoint keeps them"
    expected = [next(going) for _ in range(7)]
    other = made(5)
    other.restore(state)
    for one in expected:
        again = next(other)
        assert again.rows.equal(one.rows) and again.inputs["text"].equal(one.inputs["text"])


def test_an_order_of_ones_own_is_asked_for_once_a_pass():
    asked_for = []

    def order(generator):
        asked_for.append(len(asked_for))
        return torch.arange(10).roll(len(asked_for))

    rows = RowBatches(torch.arange(10), 5, generator(), order=order)
    assert [next(rows).tolist() for _ in range(3)] == [[9, 0, 1, 2, 3], [4, 5, 6, 7, 8], [8, 9, 0, 1, 2]]
    assert asked_for == [0, 1]


def test_a_batch_without_a_target_has_none(scenes):
    batch = Retrieval(scenes).loader()(torch.arange(3), stream(0, "texts"))
    assert isinstance(batch, Batch) and batch.target is None
