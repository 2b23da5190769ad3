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
from mmkit.models import CNN, DualEncoder, FusionClassifier, SingleClassifier, TextTransformer, WordTokenizer
from mmkit.models.fusion import CrossAttentionFusion
from mmkit.tasks import TASKS, Answering, Captioning, Diagnosis, Retrieval, task
from mmkit.training import Inputs, seeded, stream

SMALL = {"train": 96, "val": 32, "test": 64, "ood": 32, "pool": 64}


@pytest.fixture(scope="module")
def scenes():
    return load("scenes", **SMALL)


def prepared(task):
    """The task's inputs and a model with small encoders."""
    words = WordTokenizer(task.dataset.texts["text"])
    encoders = seeded(0, "image", CNN), seeded(0, "text", TextTransformer, len(words))
    return Inputs.of(task.dataset, words, role=task.role, language=task.language), task.build(*encoders, seed=0)


def toy(labels, split=None, role="question"):
    """A set of one-colour images with the given labels."""

    def prepare(writer, sources):
        count = len(labels)
        rows = writer.items(pd.DataFrame({
            "id": [f"item-{n}" for n in range(count)],
            "image": writer.images(np.zeros((count, 16, 16, 3), np.uint8)),
            "split": split or ["train"] * count,
            "label_answer": labels,
        }))
        writer.texts(pd.DataFrame({"item": rows, "text": "which ?", "role": role}))

    name = "toy_" + "_".join(map(str, labels)) + "".join(split or [])
    return load(Recipe(name=name, title="", task="", licence="", terms="", citation="", version=1, prepare=prepare))


# ---------------------------------------------------------------------------------------------- by name


def test_tasks_by_name(scenes):
    assert TASKS == {"answering": Answering, "captioning": Captioning, "diagnosis": Diagnosis, "retrieval": Retrieval}
    assert {name: type(task(name, scenes)) for name in ("answering", "captioning", "retrieval")} == {name: TASKS[name] for name in TASKS if name != "diagnosis"}
    assert task("answering", scenes, fusion="product").settings() == {"label": "label_answer", "role": "question", "language": "en", "fusion": "product", "limit": None}
    with pytest.raises(MmkitError, match="unknown task 'retreival': did you mean 'retrieval'. there are answering, captioning, diagnosis, retrieval"):
        task("retreival", scenes)


@pytest.mark.parametrize("kind", [Answering, Retrieval])
def test_every_setting_that_changes_a_result_is_recorded(scenes, kind):
    made = kind(scenes, limit=3)
    attributes = {name for name, value in vars(made).items() if name not in ("dataset", "classes", "target")}
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
    inputs, model = prepared(made)
    rows = torch.tensor([3, 17, 80])
    assert [made.classes[code] for code in made.target[rows]] == scenes.items["label_answer"][rows.tolist()].tolist()
    logits = model(scenes.pixels(rows), inputs.text(inputs.one_text(rows)))
    assert made.loss(model, inputs, rows, stream(0, "texts")).item() == pytest.approx(F.cross_entropy(logits, made.target[rows]).item(), rel=1e-5)
    torch.testing.assert_close(made.logits(model, inputs, rows, batch=2), logits.detach(), rtol=1e-4, atol=1e-5)
    assert not model.training


def test_accuracy_of_answering_is_by_item_and_group(scenes):
    made = Answering(scenes)
    inputs, model = prepared(made)
    rows = made.rows("test")
    score = made.scores(model, inputs, rows)["accuracy"]
    assert score.value == (made.logits(model, inputs, rows).argmax(1) == made.target[rows]).double().mean().item()
    assert score.clusters.tolist() == scenes.clusters(rows).tolist()
    blank = made.blank_scores(model, inputs, rows)
    assert set(blank) == {"blank_image/accuracy", "blank_text/accuracy"} and all(len(score.items) == 64 for score in blank.values())


def test_answering_builds_the_fusion_asked_for(scenes):
    inputs, model = prepared(Answering(scenes, fusion="cross_attention"))
    assert isinstance(model, FusionClassifier) and isinstance(model.fusion, CrossAttentionFusion) and model.head.out_features == 4
    assert isinstance(Answering(scenes).build_single("text", TextTransformer(9), seed=0), SingleClassifier)


def test_other_labels_of_a_set_can_be_asked_for(scenes):
    assert len(Answering(scenes, label="label_kind", role="caption").classes) == 3


def test_what_answering_refuses(scenes):
    for message, ask in {
        "unknown label of 'scenes' 'label_anser': did you mean 'label_answer'?": lambda: Answering(scenes, label="label_anser"),
        "unknown fusion 'concta': did you mean 'concat'?": lambda: Answering(scenes, fusion="concta"),
        "unknown text role of 'scenes' 'questions': did you mean 'question'?": lambda: prepared(Answering(scenes, role="questions")),
        "unknown text language of 'scenes' 'zh': there are en": lambda: prepared(Answering(scenes, language="zh")),
        "answering needs a label with at least two classes; 'label_answer' of 'toy_yes_yes' has ['yes']": lambda: Answering(toy(["yes", "yes"])),
        "1 items of 'toy_yes__no' have no 'label_answer', first 'item-1': label them, or leave them out of the set": lambda: Answering(toy(["yes", "", "no"])),
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
    inputs, model = prepared(made)
    assert isinstance(model, DualEncoder)
    rows = torch.tensor([3, 17, 80])
    text = inputs.text(inputs.one_text(rows, stream(0, "texts")))
    expected = contrastive_loss(*model(scenes.pixels(rows), text), model.logit_scale)
    assert made.loss(model, inputs, rows, stream(0, "texts")).item() == pytest.approx(expected.item(), rel=1e-5)


def test_retrieval_is_scored_on_all_captions_of_the_rows(scenes):
    made = Retrieval(scenes, dim=16, hidden=24)
    inputs, model = prepared(made)
    rows = made.rows("test")
    image, text, owner = made.embeddings(model, inputs, rows, batch=7)
    assert image.shape == (64, 16) and text.shape == (128, 16) and owner.tolist() == [row // 2 for row in range(128)]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(image, model.embed_image(scenes.pixels(rows)), rtol=1e-4, atol=1e-5)
        caption = inputs.text(inputs.all_texts(rows[9:10])[0])
        torch.testing.assert_close(text[18:20], model.embed_text(caption), rtol=1e-4, atol=1e-5)
    scores = made.scores(model, inputs, rows)
    given = made.embeddings(model, inputs, rows)
    expected = retrieval_scores(*given, ks=(1, 5, 10)) | mean_average_precision(*given)
    assert {name: score.items.tolist() for name, score in scores.items()} == {name: score.items.tolist() for name, score in expected.items()}
    assert made.blank_scores(model, inputs, rows) == {}


def test_an_unknown_role_names_the_nearest(scenes):
    with pytest.raises(MmkitError, match="unknown text role of 'scenes' 'captoin': did you mean 'caption'"):
        prepared(Retrieval(scenes, role="captoin"))


def test_texts_are_made_ids_once_for_a_tokenizer_and_again_for_another():
    dataset = load("scenes", train=16, val=8, test=8, ood=8, pool=16)
    met = []

    def tokenizer(texts):
        met.append(len(texts))
        return torch.ones(len(texts), 3, dtype=torch.int64)

    def other(texts):
        return torch.full((len(texts), 2), 5)

    first, second = (Inputs.of(dataset, tokenizer, role="question") for _ in range(2))
    assert len(met) == 1 and first.ids is second.ids
    assert Inputs.of(dataset, tokenizer, role="caption").ids.shape[0] == 2 * first.ids.shape[0]
    assert Inputs.of(dataset, other, role="question").ids.eq(5).all()
