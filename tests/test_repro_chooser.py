"""The strategy chooser on the published records: what it says must be read off them."""

import pytest

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


def test_unknown_knobs_and_tasks_are_refused(published):
    with pytest.raises(MmkitError, match="did you mean 'pairs'"):
        chooser.choose(published, pair=3)
    with pytest.raises(MmkitError, match="unknown task with records 'captioning'"):
        chooser.choose(published, task="captioning")


def test_two_experiments_in_one_case_are_not_mixed():
    narrow_and_broad = records.read(ROOT / "notebooks" / "records" / "lp_ft")
    with pytest.raises(MmkitError, match="found two results of '.*', seed 10, in one case; they differ in case: give it the records of one of them"):
        chooser.choose(narrow_and_broad, pairs=256, both=0.0, image_share=0.5)
    broad = [result for result in narrow_and_broad if result.condition["case"] == "broad pools"]
    assert chooser.choose(broad, pairs=256, both=0.0, image_share=0.5).distance == 0
