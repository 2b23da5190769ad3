"""The tasks: what they read, what they optimise, what they refuse."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from mmkit.core import contrastive_loss
from mmkit.data import Recipe, load
from mmkit.errors import MmkitError
from mmkit.metrics import mean_average_precision, retrieval_scores
from mmkit.models import CNN, CrossAttention, DualEncoder, Multimodal, TextTransformer, WordTokenizer
from mmkit.tasks import TASKS, Answering, Captioning, Diagnosis, Retrieval, Task, task
from mmkit.training import Batch, seeded, stream

SMALL = {"train": 96, "val": 32, "test": 64, "ood": 32, "pool": 64}


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


def prepared(task):
    """The task's loader and a model with small encoders."""
    words = WordTokenizer(task.dataset.texts["text"])
    encoders = {"image": seeded(0, "image", CNN), "text": seeded(0, "text", TextTransformer, len(words))}
    return task.loader(words), task.build(encoders, seed=0)


def toy(labels, split=None, role="question"):
    """A set of one-colour images with the given labels."""

    def prepare(writer, sources):
        count = len(labels)
        rows = writer.items(
            pd.DataFrame(
                {
                    "id": [f"item-{n}" for n in range(count)],
                    "image": writer.images(np.zeros((count, 16, 16, 3), np.uint8)),
                    "split": split or ["train"] * count,
                    "label_answer": labels,
                }
            )
        )
        writer.texts(pd.DataFrame({"item": rows, "text": "which ?", "role": role}))

    name = "toy_" + "_".join(map(str, labels)) + "".join(split or [])
    return load(Recipe(name=name, title="", task="", licence="", terms="", citation="", version=1, prepare=prepare))


# ---------------------------------------------------------------------------------------------- by name


def test_tasks_by_name(scenes):
    assert TASKS == {"answering": Answering, "captioning": Captioning, "diagnosis": Diagnosis, "retrieval": Retrieval}
    for name in ("answering", "captioning", "retrieval"):
        assert type(task(name, scenes)) is TASKS[name]
    expected = {"label": "label_answer", "role": "question", "language": "en", "fusion": "product", "limit": None}
    assert task("answering", scenes, fusion="product").settings() == expected
    there = "there are answering, captioning, diagnosis, retrieval"
    with pytest.raises(MmkitError, match=f"unknown task 'retreival': did you mean 'retrieval'. {there}"):
        task("retreival", scenes)


@pytest.mark.parametrize("kind", [Answering, Retrieval])
def test_every_setting_that_changes_a_result_is_recorded(scenes, kind):
    made = kind(scenes, limit=3)
    no_settings = {"dataset", "classes", "target", "modalities"}
    attributes = {name.replace("loss", "objective") for name in vars(made)} - no_settings
    assert attributes <= set(made.settings())


@pytest.mark.parametrize("kind", [Answering, Retrieval])
def test_rows_of_a_split(scenes, kind):
    assert kind(scenes).rows("test").tolist() == scenes.rows("test").tolist()
    assert kind(scenes, limit=5).rows("test").tolist() == scenes.rows("test")[:5].tolist()
    with pytest.raises(MmkitError, match="unknown split of 'scenes' 'tset': did you mean 'test'"):
        kind(scenes).rows("tset")


# ---------------------------------------------------------------------------------------------- answering


def test_answering_asks_the_question_of_the_row_and_wants_its_label(scenes):
    made = Answering(scenes)
    loader, model = prepared(made)
    rows = torch.tensor([3, 17, 80])
    assert [made.classes[code] for code in made.target[rows]] == scenes.items["label_answer"][rows.tolist()].tolist()
    logits = model({"image": scenes.pixels(rows), "text": loader.input("text", rows)})
    loss = made.objective(model, loader(rows, stream(0, "texts")))
    assert loss.item() == pytest.approx(F.cross_entropy(logits, made.target[rows]).item(), rel=1e-5)
    torch.testing.assert_close(made.logits(model, loader, rows, batch=2), logits.detach(), rtol=1e-4, atol=1e-5)
    assert not model.training


def test_accuracy_of_answering_is_by_item_and_group(scenes):
    made = Answering(scenes)
    loader, model = prepared(made)
    rows = made.rows("test")
    score = made.scores(model, loader, rows)["accuracy"]
    assert score.value == (made.logits(model, loader, rows).argmax(1) == made.target[rows]).double().mean().item()
    assert score.clusters.tolist() == scenes.clusters(rows).tolist()
    blank = made.blank_scores(model, loader, rows)
    assert set(blank) == {"blank_image/accuracy", "blank_text/accuracy"}
    for modality in ("image", "text"):
        expected = made.scores(model, loader.blanked(modality), rows)["accuracy"].items
        assert blank[f"blank_{modality}/accuracy"].items.tolist() == expected.tolist() and len(expected) == 64


def test_answering_builds_the_fusion_asked_for(scenes):
    _, model = prepared(Answering(scenes, fusion="cross_attention"))
    assert isinstance(model, Multimodal) and isinstance(model.fusion, CrossAttention) and model.head.out_features == 4


def test_answering_reads_the_modalities_asked_for(scenes):
    made = Answering(scenes, modalities=("text",))
    loader, rows = made.loader(), made.rows("test")
    model = made.build({"text": seeded(0, "text", TextTransformer, 200)}, seed=0)
    assert model.modalities == ("text",) and list(loader.views) == ["text"]
    assert set(made.scores(model, loader, rows)) == {"accuracy"}
    assert set(made.blank_scores(model, loader, rows)) == {"blank_text/accuracy"}
    assert made.settings()["modalities"] == ["text"] and "modalities" not in Answering(scenes).settings()
    message = "unknown modality of 'scenes' 'sound': there are image, text"
    with pytest.raises(MmkitError, match=message):
        Answering(scenes, modalities=("image", "sound")).loader()


def test_the_heads_first_weights_depend_on_the_seed_alone(scenes):
    made = Answering(scenes)
    heads = []
    for drawn, seed in ((0, 5), (1, 5), (0, 6)):
        torch.manual_seed(drawn)
        heads.append(made.build({"image": CNN(), "text": TextTransformer(9)}, seed=seed).head.weight)
    assert heads[0].equal(heads[1]) and not heads[0].equal(heads[2])


def test_other_labels_of_a_set_can_be_asked_for(scenes):
    assert len(Answering(scenes, label="label_kind", role="caption").classes) == 3


def test_what_answering_refuses(scenes):
    for message, ask in {
        "unknown label of 'scenes' 'label_anser': did you mean 'label_answer'?": lambda: Answering(
            scenes, label="label_anser"
        ),
        "unknown fusion 'concta': did you mean 'concat'?": lambda: Answering(scenes, fusion="concta"),
        "unknown text role of 'scenes' 'questions': did you mean 'question'?": lambda: Answering(
            scenes, role="questions"
        ).loader(),
        "unknown text language of 'scenes' 'zh': there are en": lambda: prepared(Answering(scenes, language="zh")),
        "answering needs a label with at least two classes; 'label_answer' of 'toy_yes_yes' has ['yes']": lambda: (
            Answering(toy(["yes", "yes"]))
        ),
        "1 items of 'toy_yes__no' have no 'label_answer', first 'item-1': label them, or leave them out": lambda: (
            Answering(toy(["yes", "", "no"]))
        ),
        "2 items of 'toy_1_0_-1_-1' have no 'label_answer', first 'item-2'": lambda: Answering(toy([1, 0, -1, -1])),
    }.items():
        with pytest.raises(MmkitError) as error:
            ask()
        assert message in str(error.value)


def test_items_that_are_neither_trained_nor_scored_on_need_no_label():
    assert len(Answering(toy(["yes", "no", ""], split=["train", "test", "extra"])).classes) == 2


# ---------------------------------------------------------------------------------------------- retrieval


def test_retrieval_optimises_the_contrastive_loss_of_matching_pairs(scenes):
    made = Retrieval(scenes)
    loader, model = prepared(made)
    assert isinstance(model, DualEncoder)
    rows = torch.tensor([3, 17, 80])
    drawn = loader.view("text").draw(rows, stream(0, "texts"))
    vectors = model({"image": scenes.pixels(rows), "text": loader.of_entries("text", drawn)})
    expected = contrastive_loss(vectors["image"], vectors["text"], model.logit_scale)
    loss = made.objective(model, loader(rows, stream(0, "texts")))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_retrieval_is_scored_on_all_captions_of_the_rows(scenes):
    made = Retrieval(scenes, dim=16, hidden=24)
    loader, model = prepared(made)
    rows = made.rows("test")
    image, text, owner = made.embeddings(model, loader, rows, batch=7)
    assert image.shape == (64, 16) and text.shape == (128, 16) and owner.tolist() == [row // 2 for row in range(128)]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(image, model.embed("image", scenes.pixels(rows)), rtol=1e-4, atol=1e-5)
        caption = loader.of_entries("text", loader.entries("text", rows[9:10])[0])
        torch.testing.assert_close(text[18:20], model.embed("text", caption), rtol=1e-4, atol=1e-5)
    scores = made.scores(model, loader, rows)
    given = made.embeddings(model, loader, rows)
    expected = retrieval_scores(*given, ks=(1, 5, 10)) | mean_average_precision(*given)
    assert scores.keys() == expected.keys()
    for name, score in scores.items():
        assert score.items.tolist() == expected[name].items.tolist()
    assert made.blank_scores(model, loader, rows) == {}


def test_an_unknown_role_names_the_nearest(scenes):
    with pytest.raises(MmkitError, match="unknown text role of 'scenes' 'captoin': did you mean 'caption'"):
        prepared(Retrieval(scenes, role="captoin"))


# ---------------------------------------------------------------------------------------------- a task of one's own


def test_a_task_that_lacks_a_method_says_which():
    class Mine(Task):
        name = "mine"

    batch = Batch(torch.arange(1), {})
    for method, ask in {
        "build": lambda: Mine().build({}, seed=0),
        "objective": lambda: Mine().objective(None, batch),
        "scores": lambda: Mine().scores(None, None, None),
    }.items():
        with pytest.raises(MmkitError, match=f"the task 'mine' has no {method}: write it, as mmkit.tasks.Answering"):
            ask()
