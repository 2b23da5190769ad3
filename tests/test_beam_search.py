"""Beam search against a search without caches, one image at a time."""

import math

import numpy as np
import pytest
import torch
from captioners import captioner, images, one
from PIL import Image
from torch.nn import functional as F

from mmkit.data import read_image
from mmkit.errors import MmkitError
from mmkit.models.captioner import DECODERS, END, START
from mmkit.models.decoding import beam_search
from mmkit.models.text import UNKNOWN

each_decoder = pytest.mark.parametrize("kind", DECODERS)


def slow_search(model, inputs, beams, penalty):
    """One image, lists, the whole prefix read anew for every word: [(score, words)], best first."""
    memory, length = model.memory(inputs), model.head.length
    kept = [(0.0, [], False)]  # log-probability, words with END, over
    while not all(over for _, _, over in kept):
        grown = []
        for total, words, over in kept:
            if over:
                grown.append((total, words, True))
                continue
            logits = model.head.out(model.head(torch.tensor([[START, *words]]), memory).hidden[0, -1]).double()
            logits[[UNKNOWN, START]] = -math.inf
            chances = torch.log_softmax(logits, 0).tolist()
            for word, chance in enumerate(chances):
                if chance > -math.inf and (word == END or len(words) < length):
                    grown.append((total + chance, [*words, word], word == END))
        kept = sorted(grown, key=lambda entry: -entry[0] / len(entry[1]) ** penalty)[:beams]
    return [(total / len(words) ** penalty, words[:-1]) for total, words, _ in kept]


@torch.inference_mode()
@each_decoder
@pytest.mark.parametrize(("beams", "penalty"), [(1, 0.7), (2, 0.0), (3, 0.7), (4, 1.0)])
def test_beam_search_is_the_slow_search(kind, beams, penalty):
    model = captioner(kind)
    found = beam_search(model, images(12), beams=beams, length_penalty=penalty)
    lengths = set()
    for row in range(12):
        expected = slow_search(model, one(row, 12), beams, penalty)
        for beam, (score, words) in enumerate(expected):
            ids = found.ids[row, beam]
            assert ids[: len(words)].tolist() == words and ids[len(words) :].eq(END).all()
            assert found.score[row, beam].item() == pytest.approx(score, abs=1e-4)
            lengths.add(len(words))
    assert len(lengths) > 1, "captions of several lengths, or the test sees little"


@torch.inference_mode()
def test_a_wide_beam_finds_the_best_caption_of_all():
    model = captioner("gru", words=5, length=3)
    memory, best = model.memory(images(1)), {}
    for length in range(4):
        for code in range(2**length):
            words = [3 + (code >> place & 1) for place in range(length)]
            logits = model.head.out(model.head(torch.tensor([[START, *words]]), memory).hidden[0])
            logits[:, [UNKNOWN, START]] = -math.inf
            best[tuple(words)] = torch.log_softmax(logits, 1)[range(length + 1), [*words, END]].sum().item()
    winner = max(best, key=best.get)
    found = beam_search(model, images(1), beams=16, length_penalty=0)
    assert tuple(x for x in found.ids[0, 0].tolist() if x) == winner
    assert found.score[0, 0].item() == pytest.approx(best[winner], abs=1e-4)
    total = sum(map(math.exp, found.score[0, :15].tolist()))
    assert total == pytest.approx(sum(map(math.exp, best.values())), abs=1e-3), "15 captions are all there are"


@torch.inference_mode()
@each_decoder
def test_attention_stays_with_its_words(kind):
    model = captioner(kind)
    found = beam_search(model, images(6), beams=3)
    for row in range(6):
        for ids, seen in zip(found.ids[row], found.attention[row]):
            words = ids[ids != END]
            read = F.pad(words, (1, 0), value=START)[None]
            whole = model.head(read, model.memory(one(row, 6))).attention[0]
            torch.testing.assert_close(seen[: len(words)], whole[: len(words)])


def test_what_is_never_said_and_where_it_stops():
    model = captioner("gru")
    with torch.no_grad():
        model.head.out.bias[[UNKNOWN, START]] = 50.0
        model.head.out.bias[END] = -50.0
    found = beam_search(model, images(5), beams=3, length=4)
    assert found.ids.shape == (5, 3, 4) and not torch.isin(found.ids, torch.tensor([UNKNOWN, START, END])).any()
    with torch.no_grad():
        model.head.out.bias[END] = 50.0
    assert beam_search(model, images(5), beams=1).ids.shape == (5, 1, 0), "an empty caption is one too"


def test_a_larger_length_penalty_gives_longer_captions():
    model = captioner("transformer")
    words = []
    for penalty in (0.0, 1.0, 2.0):
        said = beam_search(model, images(24), beams=3, length_penalty=penalty).ids[:, 0]
        words.append(float(said.ne(END).sum(1).float().mean()))
    assert words[0] < words[1] < words[2]


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"length": 0}, {"length": 8}, {"length_penalty": -0.1}])
def test_beam_search_refuses_what_makes_no_sense(wrong):
    with pytest.raises(MmkitError, match="beam search needs 1 <= length <= 7, beams >= 1 and length_penalty >= 0"):
        beam_search(captioner("gru"), images(1), **wrong)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "1", "P", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (50, 31)])
def test_images_of_any_mode_and_size_get_a_caption(mode, size, tmp_path):
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    (Image.fromarray(np.full(size[::-1], 40_000, np.uint16)) if mode == "I;16" else Image.new(mode, size)).save(path)
    pixels = torch.from_numpy(read_image(path).copy()).permute(2, 0, 1)[None]
    assert pixels.shape[2:] == size[::-1]
    assert beam_search(captioner("gru"), {"image": pixels}, beams=2).score.isfinite().all()
