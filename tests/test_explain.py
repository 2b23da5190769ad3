"""What a prediction depends on."""

import numpy as np
import torch

from mmkit.explain import occlusion, probe, some_of_each, standardised


def test_occlusion_finds_the_only_pixel_that_counts():
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[0, :, 5, 9] = 200
    heat = occlusion(lambda x: x[:, 0, 5, 9].float(), image, torch.zeros(3, 16, 16), window=4, step=1)
    assert divmod(int(heat.argmax()), 16) == (5, 9), "only squares that hide it cost, and it is in all of them"
    assert heat[5, 9] == 200 * 4 * 4 and heat[15, 0] == 0


def test_what_is_hidden_shows_the_background():
    image, background = torch.full((1, 1, 8, 8), 9, dtype=torch.uint8), torch.full((1, 8, 8), 4.0)
    heat = occlusion(lambda x: x.float().sum((1, 2, 3)), image, background, window=8, step=8)
    assert torch.equal(heat, torch.full((8, 8), (9.0 - 4.0) * 64))


def test_probes_learn_from_some_of_each_class():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [190, 10])
    chosen = some_of_each(labels, 0.1, [0, 1])
    assert np.bincount(labels[chosen]).tolist() == [19, 4], "a tenth, but at least four"
    assert np.array_equal(chosen, some_of_each(labels, 0.1, [0, 1])), "the same for every encoder"
    known = standardised({"train": 5 + rng.normal(size=(200, 3)) + labels[:, None], "test": np.full((1, 3), 5.0)})
    assert abs(known["train"].mean()) < 1e-6 and abs(known["train"].std(0) - 1).max() < 1e-3
    assert probe(known["train"], labels).score(known["train"], labels) > 0.9
