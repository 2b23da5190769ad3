"""The strategy chooser on the published records: what it says must be read off them."""

import numpy as np
import pytest
from repro_data import Scores, result

from conftest import ROOT
from mmkit.errors import MmkitError
from mmkit.repro import chooser, records


@pytest.fixture(scope="module")
def published():
    return records.read(ROOT / "notebooks" / "records" / "head_to_head")


def test_a_recorded_case_is_found_and_its_cheapest_tied_arm_is_taken(published):
    choice = chooser.choose(published, pairs=512, both=1.0, image_share=0.5)
    assert choice.distance == 0 and choice.condition == {"pairs": 512, "both": 1.0, "image_share": 0.5}
    means = [row["mean"] for row in choice.table]
    assert means == sorted(means, reverse=True) and choice.table[0]["tied"]
    tied = {row["arm"]: row["flops"] for row in choice.table if row["tied"]}
    assert choice.arm == min(tied, key=tied.get)
    assert not next(row for row in choice.table if row["arm"] == "ensemble_single")["tied"]


def test_a_case_that_was_not_run_says_how_far_away_the_nearest_is(published):
    choice = chooser.choose(published, pairs=1024, both=1.0, image_share=0.5)
    assert choice.distance == pytest.approx(1.0) and "nearest recorded case" in str(choice)


def made(means, *, higher=True):
    """Results of `{(arm, pairs): mean}` over three seeds, near enough to their means to be told apart."""
    spread = np.linspace(-0.01, 0.01, 20)

    def scores(mean, seed):
        return {"accuracy": Scores(mean + np.roll(spread, seed), range(20), higher_is_better=higher)}

    return [
        result(arm, seed, scores(mean, seed), condition={"pairs": pairs})
        for (arm, pairs), mean in means.items()
        for seed in range(3)
    ]


@pytest.mark.parametrize("higher", [True, False])
def test_the_better_arm_is_taken_where_lower_is_better_too(higher):
    means = {("a", 64): 1.0, ("b", 64): 2.0, ("a", 256): 4.0, ("b", 256): 3.0}
    found = made(means, higher=higher)
    chosen = {pairs: chooser.choose(found, pairs=pairs) for pairs in (64, 256)}
    assert {pairs: choice.arm for pairs, choice in chosen.items()} == (
        {64: "b", 256: "a"} if higher else {64: "a", 256: "b"}
    )
    assert all(choice.table[0]["arm"] == choice.arm and not choice.table[1]["tied"] for choice in chosen.values())
    assert [(row["chosen"] != chosen[row["pairs"]].arm, row["regret"]) for row in chooser.regrets(found)] == [
        (True, pytest.approx(1.0))
    ] * 2


def test_a_case_without_the_knob_asked_for_is_not_near():
    found = made({("a", 64): 1.0, ("b", 64): 2.0})
    with pytest.raises(
        MmkitError, match="no recorded case of answering has all of pairs, both: leave out what is none of pairs"
    ):
        chooser.choose(found, pairs=64, both=0.5)
    other = made({("a", 64): 2.0, ("b", 64): 1.0})
    for one in other:
        one.row["condition"]["both"] = 1.0
    choice = chooser.choose(found + other, pairs=64, both=0.5)
    assert (choice.condition, choice.distance, choice.arm) == ({"pairs": 64, "both": 1.0}, 2.0, "a")


def test_unknown_knobs_and_tasks_are_refused(published):
    for pairs in (0, -64):
        with pytest.raises(MmkitError, match=f"pairs={pairs}: .* give a number above 0"):
            chooser.choose(published, pairs=pairs)
    with pytest.raises(MmkitError, match="did you mean 'pairs'"):
        chooser.choose(published, pair=3)
    with pytest.raises(MmkitError, match="unknown task with records 'captioning'"):
        chooser.choose(published, task="captioning")


def test_two_experiments_in_one_case_are_not_mixed():
    narrow_and_broad = records.read(ROOT / "notebooks" / "records" / "lp_ft")
    with pytest.raises(
        MmkitError,
        match="found two results of '.*', seed 10, in one case; they differ in case: give it the records of one of "
        "them",
    ):
        chooser.choose(narrow_and_broad, pairs=256, both=0.0, image_share=0.5)
    broad = [result for result in narrow_and_broad if result.condition["case"] == "broad pools"]
    assert chooser.choose(broad, pairs=256, both=0.0, image_share=0.5).distance == 0
