"""Caption metrics, against the field's own scorer, its tokenizer's results and published correlations with judgement.

And captions that know nothing earn nothing.
"""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from scipy.stats import kendalltau

from mmkit.errors import MmkitError
from mmkit.metrics import caption_scores, caption_words

NAMES = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]


def tokenised(texts):
    """Number of an item -> its texts, words set apart by spaces, as the field's scorer takes them."""
    return {number: list(map(set_apart, some)) for number, some in enumerate(texts)}


def set_apart(text):
    return " ".join(caption_words(text))


def field(candidates, references):
    """Values, and the items of ROUGE-L, CIDEr-D and sentence BLEU, by the field's scorer.

    Its Cider is CIDEr-D: it clips and punishes length.
    """
    given, result = tokenised(references), tokenised([text] for text in candidates)
    bleus, sentences = Bleu(4).compute_score(given, result, verbose=0)
    rouge, rouges = Rouge().compute_score(given, result)
    cider, ciders = Cider().compute_score(given, result)
    items = {"rouge_l": rouges, "cider_d": ciders} | {f"bleu_{n + 1}": np.array(sentences[n]) for n in range(4)}
    return dict(zip(NAMES, [*bleus, rouge, cider], strict=True)), items


def assert_equal_to_the_field(candidates, references):
    scores = caption_scores(candidates, references)
    values, items = field(candidates, references)
    assert {name: score.value for name, score in scores.items()} == pytest.approx(values, abs=1e-12, rel=1e-9)
    for name in ("rouge_l", "cider_d"):
        assert scores[name].items == pytest.approx(items[name], abs=1e-12, rel=1e-9)
    return scores


# ---------------------------------------------------------------------------------------------- parity

REFERENCES = [
    ["A brown dog runs through the tall grass .", "The dog is running in a field .", "A dog"],
    ["Two men on a snow-covered mountain .", "Two men climb a mountain ."],
    ["A girl's red T-shirt", "a girl in red", "a girl wears a red shirt and does n't smile", "A girl , smiling"],
    ["A man sits on the bench with the man ."],
]
CASES = {
    "plain": ["a dog runs in the grass", "two men are climbing", "a girl in a red t-shirt", "a man on a bench"],
    "an empty caption": ["", "two men are climbing", "a girl in a red t-shirt", "a man on a bench"],
    "punctuation only": ["...", "two men are climbing", "a girl in a red t-shirt", "a man on a bench"],
    "all empty": ["", "", "", ""],
    "one word": ["dog", "mountain", "girl", "man"],
    "identical": [texts[0] for texts in REFERENCES],
    "a word repeated": ["the the the the the the", "men men men", "red red", "man man man man"],
    "much too long": ["a dog runs in the grass " * 6, "two men are climbing", "a girl in red", "a man"],
    "shorter than four": ["a dog", "two men", "in red", "the man"],
    "unknown words": ["zyx wvu", "tsr", "qpo nml kji hgf", "a man fed cba"],
}


@pytest.mark.parametrize("name", CASES)
def test_every_metric_equals_the_fields_scorer(name):
    assert list(assert_equal_to_the_field(CASES[name], REFERENCES)) == NAMES


TEXTS = st.lists(st.sampled_from("a b c dog man's 2.5 runs".split()), min_size=1, max_size=9).map(" ".join)
ITEMS = st.lists(
    st.tuples(st.one_of(st.just(""), TEXTS), st.lists(TEXTS, min_size=1, max_size=4)), min_size=1, max_size=6
)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(ITEMS)
def test_every_metric_equals_the_fields_scorer_on_random_words(items):
    assert_equal_to_the_field(*map(list, zip(*items, strict=True)))


def test_identical_captions_earn_the_most_and_empty_ones_nothing():
    distinct = [[f"{word} stands beside another {word} here"] for word in ("dog", "cat", "horse")]
    best = caption_scores([texts[0] for texts in distinct], distinct)
    none = caption_scores(["", "", ""], distinct)
    most = {**dict.fromkeys(NAMES[:5], 1.0), "cider_d": 10.0}
    assert {name: score.value for name, score in best.items()} == pytest.approx(most)
    assert all(score.items.tolist() == [0, 0, 0] for score in none.values())
    assert caption_scores(["dog", ""], [["dog"], ["cat"]])["rouge_l"].items.tolist() == [1, 0]


def test_clusters_are_the_items_own_or_those_given():
    scores = caption_scores(CASES["plain"], REFERENCES), caption_scores(CASES["plain"], REFERENCES, [7, 7, 8, 9])
    for name in NAMES:
        assert scores[0][name].clusters.tolist() == [0, 1, 2, 3] and scores[1][name].clusters.tolist() == [7, 7, 8, 9]
        assert np.array_equal(scores[0][name].items, scores[1][name].items) and scores[0][name].higher_is_better


# ---------------------------------------------------------------------------------------------- words

PTB = {  # as Stanford's PTBTokenizer (-preserveLines -lowerCase) and coco-caption's list of punctuation give them
    "A man's dog doesn't run .": "a man 's dog does n't run",
    "Two girls can't reach the T-shirt; they cannot swim!": "two girls ca n't reach the t-shirt they can not swim",
    '"Stop," said Mr. Brown -- he\'d been running...': "stop said mr. brown he 'd been running",
    "A crowd in Washington D.C. at 5:30": "a crowd in washington d.c. at 5:30",
    "1,000 people, 2.5 metres": "1,000 people 2.5 metres",
    "a snow-covered black-and-white dog": "a snow-covered black-and-white dog",
    "They're here and we've won": "they 're here and we 've won",
    "A five o'clock shadow": "a five o'clock shadow",
    "the boys' bikes": "the boys bikes",
    "player #28 eats 50% of an apple & $5": "player # 28 eats 50 % of an apple & $ 5",
    "don\u2019t": "do n't",
    "A boy , wearing a 4x4 cap , jumps": "a boy wearing a 4x4 cap jumps",
    "What? No!": "what no",
    "and/or": "and/or",
    "he'll go, I'm sure": "he 'll go i 'm sure",
    "`quoted' text": "quoted text",
    "St. Bernard vs. a pug": "st. bernard vs. a pug",
    "over - the - top": "over the top",
    "...": "",
}


@pytest.mark.parametrize("text", PTB)
def test_words_are_those_of_the_penn_treebank(text):
    assert caption_words(text) == PTB[text].split()


def test_brackets_are_dropped_where_the_fields_script_keeps_their_codes():
    assert caption_words("a lens ( almost fish eye )") == "a lens almost fish eye".split()


# ---------------------------------------------------------------------------------------------- intervals


def corpus(items=300, seed=0):
    """Captions that share words with their references, the first half of the items better than the second."""
    draw = random.Random(seed)
    words = [f"{letter}{number}" for letter in "wxyz" for number in range(8)]
    sentences = [draw.choices(words, k=draw.randint(5, 12)) for _ in range(items)]

    def change(sentence, share):
        return " ".join(draw.choice(words) if draw.random() < share else word for word in sentence)

    def others(sentence):
        return [change(sentence, 0.1) for _ in range(draw.randint(1, 5))]

    candidates = [change(sentence, 0.2 if i < items / 2 else 0.5) for i, sentence in enumerate(sentences)]
    return candidates, [others(sentence) for sentence in sentences]


@pytest.mark.slow
@pytest.mark.parametrize("shortened", [False, True], ids=["long enough", "brevity penalty"])
def test_items_of_a_corpus_bleu_give_the_interval_that_resampling_the_corpus_gives(shortened):
    candidates, references = corpus(items=120)
    if shortened:
        candidates = [" ".join(text.split()[:-2]) for text in candidates]
    scores, rng = caption_scores(candidates, references), np.random.default_rng(0)
    drawn = {name: [] for name in NAMES[:4]}
    for rows in rng.integers(0, len(candidates), size=(200, len(candidates))):
        again = caption_scores([candidates[i] for i in rows], [references[i] for i in rows])
        for name, values in drawn.items():
            values.append(again[name].value)
    for name in drawn:
        score = scores[name]
        error = score.items.std() / np.sqrt(len(candidates))
        assert error == pytest.approx(np.std(drawn[name]), rel=0.15), name
        assert abs(score.value - np.mean(drawn[name])) < error, name


def test_items_of_a_corpus_bleu_follow_the_corpus_when_an_item_counts_more():
    candidates, references = corpus(items=60)
    scores = caption_scores(candidates, references)
    for i in (0, 59):
        doubled = caption_scores([*candidates, candidates[i]], [*references, references[i]])
        for name in NAMES[:4]:
            score = scores[name]
            assert doubled[name].value - score.value == pytest.approx(
                (score.items[i] - score.value) / 61, rel=0.15, abs=2e-4
            ), name


# ---------------------------------------------------------------------------- captions that know nothing


@pytest.mark.parametrize("name", ["shuffled pairs", "one caption for all", "random words"])
def test_captions_that_know_nothing_score_low(name):
    candidates, references = corpus()
    right = caption_scores(candidates, references)
    draw, words = random.Random(1), [f"{letter}{number}" for letter in "wxyz" for number in range(8)]
    wrong = {
        "shuffled pairs": draw.sample(candidates, len(candidates)),
        "one caption for all": [candidates[0]] * len(candidates),
        "random words": [" ".join(draw.choices(words, k=8)) for _ in candidates],
    }[name]
    scores = caption_scores(wrong, references)
    assert right["bleu_4"].value > 0.3 and right["cider_d"].value > 3
    assert (
        scores["bleu_4"].value < 0.05
        and scores["cider_d"].value < right["cider_d"].value / 5
        and scores["rouge_l"].value < right["rouge_l"].value / 2
    )


# ---------------------------------------------------------------------------------------------- bad input, cost

BAD = {
    "got 2 candidates and 1 lists of references": (["a", "b"], [["a"]]),
    "got 0 candidates and 0 lists of references": ([], []),
    "got 1 candidates and 1 lists": ("a", [["a"]]),
    "item 1 has [] for references: give a list of one text or more, each with words": (["a", "b"], [["a"], []]),
    "item 0 has 'dog' for references": (["a"], ["dog"]),
    "item 1 has ['a', '.'] for references": (["a", "b"], [["a"], ["a", "."]]),
}


@pytest.mark.parametrize("message", BAD)
def test_texts_that_cannot_be_scored_are_refused(message):
    with pytest.raises(MmkitError) as error:
        caption_scores(*BAD[message])
    assert message in str(error.value)


# ---------------------------------------------------------------------------------------------- Flickr8k

if os.environ.get("MMKIT_MIRROR"):  # where no mirror is named there is nothing to test
    TEXT = Path(os.environ["MMKIT_MIRROR"]) / "flickr8k" / "text"

    def flickr8k():
        """Caption key -> text, photo -> its captions."""
        by_key = dict(
            line.split("\t", 1) for line in (TEXT / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
        )
        by_photo: dict[str, list[str]] = {}
        for key, text in by_key.items():
            by_photo.setdefault(key.split("#")[0], []).append(text)
        return by_key, by_photo

    def test_one_person_against_four_others_scores_as_the_fields_scorer_says():
        photos = (TEXT / "Flickr_8k.testImages.txt").read_text(encoding="utf-8").split()
        by_photo = flickr8k()[1]
        captions = [by_photo[name] for name in photos]
        scores = assert_equal_to_the_field([texts[0] for texts in captions], [texts[1:] for texts in captions])
        assert 0.15 < scores["bleu_4"].value < 0.35 and 0.6 < scores["cider_d"].value < 1.2

    def test_correlations_with_experts_are_those_published():
        """Kendall's tau-c over 5,664 pairs of photo and caption, three experts each.

        Hessel et al., arXiv 2104.08718, table 1.
        """
        by_key, by_photo = flickr8k()
        rows = [line.split("\t") for line in (TEXT / "ExpertAnnotations.txt").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row[0] in by_photo and by_key[row[1]] not in by_photo[row[0]]]
        assert len(rows) == 5664
        pairs = [by_key[row[1]] for row in rows], [by_photo[row[0]] for row in rows]
        scores = caption_scores(*pairs)
        given, result = tokenised(pairs[1]), tokenised([text] for text in pairs[0])
        items = {name: scores[name].items for name in ("rouge_l", "cider_d")}
        items["bleu_1"] = Bleu(1).compute_score(given, result, verbose=0)[1][0]
        experts = np.array([row[2:] for row in rows], dtype=int).ravel()
        tau = {
            name: 100 * kendalltau(np.repeat(items[name], 3), experts, variant="c").statistic
            for name in ("bleu_1", "rouge_l", "cider_d")
        }
        assert tau == pytest.approx({"bleu_1": 32.3, "rouge_l": 32.3, "cider_d": 43.9}, abs=0.06)
        for i in range(0, 5664, 800):  # BLEU of one pair is the sentence BLEU of the field
            assert caption_scores(pairs[0][i : i + 1], pairs[1][i : i + 1])["bleu_1"].value == pytest.approx(
                items["bleu_1"][i]
            )
