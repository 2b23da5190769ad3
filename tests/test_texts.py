"""Texts that limit what a score can be: without words, cut, equal, unknown; counted, told, or refused first."""

import csv
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from mmkit.data import add, load
from mmkit.errors import MmkitError
from mmkit.metrics import retrieval_scores
from mmkit.models import WordTokenizer
from mmkit.models.text import vocabulary
from mmkit.strategies import Budget, Encoders, fit
from mmkit.strategies.encoders import tokenizer
from mmkit.tasks import Answering, Captioning, Retrieval

QUICK, BUDGET = Encoders(epochs=1), Budget(pairs=12, epochs=1)
SPLITS = ["train"] * 12 + ["val"] * 6 + ["test"] * 6
THINGS = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("shoe", "bag", "hat", "cup", "pen", "box")]
KNOWN = [f"a {thing}" for thing in THINGS] + [f"{thing} a" for thing in THINGS]  # no word is the test split's alone
LONG = " ".join(f"w{n}" for n in range(40))


@pytest.fixture
def shop(tmp_path):
    """Makes a set of one's own: 24 pictures with these captions in English; more: (picture, caption, language)."""

    def make(captions, more=(), language="en"):
        photos = tmp_path / "photos"
        photos.mkdir()
        for n in range(24):
            Image.fromarray(np.full((16, 16, 3), 10 * n, np.uint8)).save(photos / f"p{n:02}.png")
        with open(tmp_path / "table.csv", "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["image", "caption", "language", "split", "label_kind"])
            for n, caption, other in [*((n, caption, language) for n, caption in enumerate(captions)), *more]:
                out.writerow([f"p{n:02}.png", caption, other, SPLITS[n], ("old", "new")[n % 2]])
        add("shop", images=photos, table=tmp_path / "table.csv", size=16, force=True)
        return load("shop")

    return make


def counts(task, encoders=QUICK):
    """What the task says of its texts; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return task.texts_read(tokenizer(task, encoders))["texts"]


@pytest.fixture
def no_training(monkeypatch):
    def train(*arguments, **options):
        raise AssertionError("it trained before it looked")

    monkeypatch.setattr(import_module("mmkit.strategies.fit"), "train", train)


# ---------------------------------------------------------------------------------------------- without words


@pytest.mark.parametrize("bare", ["\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "...", "!?", "-- ♥ --"])
@pytest.mark.parametrize("place", [3, 15, 21])
def test_a_caption_without_words_is_refused_before_training(shop, bare, place):
    captions = list(KNOWN)
    captions[place] = bare
    with pytest.raises(MmkitError) as error:
        Captioning(shop(captions))
    said = str(error.value)
    assert said.startswith("1 texts of role 'caption' of 'shop' have no words, first ")
    assert f" of 'p{place:02}.png': say it in words, or leave them out of the set" in said and "\n" not in said


def test_words_of_any_script_are_words(shop):
    assert Captioning(shop(["红色的鞋子" if n % 2 else "أحمر" for n in range(24)])).words("红色的鞋子") is not None


def test_a_text_that_an_item_lacks_in_one_language_is_missed_before_training(shop, no_training):
    """Each picture has an English caption; the last, of the test split, has no German one."""
    data = shop(KNOWN, more=[(n, f"ein {text}", "de") for n, text in enumerate(KNOWN[:23])])
    with pytest.raises(MmkitError, match="item 'p23.png' of 'shop' has no text of role 'caption' in 'de': choose"):
        fit("scratch", Retrieval(data, language="de"), budget=BUDGET, seed=0, encoders=QUICK)


def test_a_caption_that_an_item_lacks_is_missed_before_training(shop, no_training):
    """Captions are targets of captioning, not inputs."""
    data = shop(KNOWN[:23], more=[(23, "ein Hut", "de")])
    with pytest.raises(MmkitError, match="item 'p23.png' of 'shop' has no text of role 'caption' in 'en': choose"):
        fit("scratch", Captioning(data), budget=BUDGET, seed=0, encoders=QUICK)


# ---------------------------------------------------------------------------------------------- cut, equal, shared


def test_captions_that_the_cut_makes_equal_are_counted_and_told_once(shop):
    task = Retrieval(shop([f"{LONG} number {n}" for n in range(24)]))
    said = "of the 24 texts of role 'caption' in 'en' of 'shop', 24 are cut .*; 24 become equal to a different"
    with pytest.warns(UserWarning, match=said):
        task.loader()
    assert counts(task) == {"cut": 24, "made_equal": 24, "shared": 0, "alike": 12, "unknown": 0}


def test_a_caption_that_just_fits_is_not_cut(shop):
    task = Retrieval(shop([" ".join([*LONG.split()[:31], word]) for word in KNOWN for word in [word.split()[1]]][:24]))
    data = task.dataset
    length = vocabulary(data).length
    assert {len(text.split()) for text in data.texts["text"]} == {32} == {length}
    with pytest.warns(UserWarning, match="are also another item's"):
        task.loader()
    assert counts(task)["cut"] == 0


def test_captions_of_several_items_are_shared_and_two_of_one_item_are_not(shop):
    captions = list(KNOWN)
    captions[0] = captions[20] = "one of a kind"
    captions[7] = "One of  a kind"
    task = Retrieval(shop(captions, more=[(2, KNOWN[2], "en")]))
    with pytest.warns(UserWarning, match=", 3 are also another item's: reword them"):
        task.loader()
    assert counts(task) == {"cut": 0, "made_equal": 0, "shared": 3, "alike": 0, "unknown": 0}


def test_questions_may_be_the_same_for_all_and_are_counted_all_the_same(shop):
    assert counts(Answering(shop(["old or new?"] * 24), label="label_kind", role="caption")) == {
        "cut": 0,
        "made_equal": 0,
        "shared": 24,
        "alike": 0,
        "unknown": 0,
    }


def test_captioning_counts_what_it_learns_of_a_caption(shop):
    """Of 20 words; the tokenizer keeps one more."""
    words = LONG.split()
    cut = [" ".join(words[:20]), " ".join(words[:21]), " ".join([*words[:20], "x"])]
    task = Captioning(shop([*KNOWN[:9], *cut, *KNOWN[12:]]))
    with pytest.warns(UserWarning, match="2 are cut .*; 3 become equal"):
        task.loader()
    assert counts(task) == {"cut": 2, "made_equal": 3, "shared": 0, "alike": 0, "unknown": 0}


def test_a_real_text_encoder_counts_its_word_pieces(shop):
    real = Encoders(image="efficientnet_lite0", text="minilm")
    captions = [*KNOWN[:22], "word " * 39 + "a", "word " * 39 + "b"]  # two more pieces mark the ends
    task = Retrieval(shop(captions))
    with pytest.warns(UserWarning, match="2 are cut .*; 2 become equal"):
        task.loader(tokenizer(task, real))
    assert counts(task, real) == {"cut": 2, "made_equal": 2, "shared": 0, "alike": 0, "unknown": 0}


# ---------------------------------------------------------------------------------------------- unknown words


def test_a_split_of_unknown_words_is_refused_before_training(shop, no_training):
    """Words of no space: each caption is a word of its own, and no test caption was seen."""
    data = shop([f"红色的鞋子第{'一二三四五六七八九十百千万元角分年月日时天地人上'[n]}双" for n in range(24)])
    with pytest.raises(MmkitError) as error:
        fit("scratch", Retrieval(data), budget=BUDGET, seed=0, encoders=QUICK)
    said = str(error.value)
    assert said.startswith(
        "all 6 texts of role 'caption' in 'en' of split 'val' of 'shop', first of 'p12.png', have no"
    )
    assert "WordTokenizer(texts, split=list)" in said and "\n" not in said
    task = Retrieval(data)
    task.words = WordTokenizer(data.texts["text"], split=list)
    assert counts(task) == {"cut": 0, "made_equal": 0, "shared": 0, "alike": 0, "unknown": 0}, "the remedy is one"


def test_some_reports_of_one_unknown_word_are_counted(shop):
    reports = ["normal", "effusion", "fracture"] * 8
    reports[14], reports[21] = "pneumothorax", "nodule"
    task = Answering(shop(reports), label="label_kind", role="caption")
    with pytest.warns(UserWarning, match="2 differ from another .*; 2 have no word that the texts to learn from have"):
        task.loader()
    assert counts(task) == {"cut": 0, "made_equal": 0, "shared": 22, "alike": 2, "unknown": 2}


def test_captions_that_differ_in_unknown_words_alone_are_alike(shop):
    """As most captions of a language without spaces are, of which only the punctuation is known."""
    task = Retrieval(shop([f"{'红蓝绿白黑黄紫橙灰金银粉青棕褐米杏藏酒墨碧翠丹赤'[n]}色的鞋子，好" for n in range(24)]))
    with pytest.warns(UserWarning, match="of 'shop', 12 differ from another in unknown words alone"):
        task.loader()
    assert counts(task) == {"cut": 0, "made_equal": 0, "shared": 0, "alike": 12, "unknown": 0}


def test_a_tokenizer_that_is_a_function_tells_what_it_can(shop):
    task = Retrieval(shop(KNOWN))
    task.words = lambda texts: torch.tensor([[3 + len(text)] for text in texts])
    with pytest.warns(UserWarning, match="24 become equal"):
        task.loader()
    assert counts(task) == {"made_equal": 24, "shared": 0}


def test_texts_of_a_generated_set_are_counted_and_not_told():
    """They are made from patterns; the questions of the arrows are four."""
    data = load("scenes", train=24, val=8, test=8, ood=8, pool=16)
    task = Retrieval(data, role="question")
    assert counts(task)["shared"] > 24 and task.told == ("cut", "made_equal", "shared", "alike", "unknown")


# ---------------------------------------------------------------------------------------------- where it is kept


def test_every_task_keeps_the_counts_in_its_record(shop):
    data = shop(KNOWN)
    expected = {"cut": 0, "made_equal": 0, "shared": 0, "alike": 0, "unknown": 0}
    for task in (Retrieval(data), Captioning(data), Answering(data, label="label_kind", role="caption")):
        run = fit("scratch", task, budget=BUDGET, seed=0, encoders=QUICK)
        assert run.settings["texts"] == expected, task.name
    alone = Answering(data, label="label_kind", role="caption", modalities=("image",))
    assert "texts" not in fit("scratch", alone, budget=BUDGET, seed=0, encoders=QUICK).settings


def test_a_shared_caption_is_right_for_its_own_image_alone():
    """As the docstring of `mmkit.metrics.retrieval` says: two images, one caption, perfect vectors."""
    image = text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scores = retrieval_scores(image, text, torch.arange(3))
    assert scores["i2t/recall@1"].items.tolist() == scores["t2i/recall@1"].items.tolist() == [0, 0, 1]
    apart = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    scores = retrieval_scores(apart, text, torch.arange(3))
    assert scores["i2t/recall@1"].items.tolist() == [0, 0, 1] and scores["t2i/recall@1"].items.tolist() == [1, 0, 1]
