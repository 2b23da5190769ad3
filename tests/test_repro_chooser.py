"""The strategy chooser: what it says must be read off the records, and it must know when it does not know."""

import math

import numpy as np
import pytest
from repro_data import TUNED, Scores, result

from conftest import ROOT
from mmkit.errors import MmkitError
from mmkit.repro import chooser, records


@pytest.fixture(scope="module")
def published():
    return records.read(ROOT / "notebooks" / "records" / "head_to_head")


def made(means, *, higher=True, seeds=8, noise=0.003, flops=None, **fields):
    """Results of `{(arm, pairs): mean}`: items spread about the mean, seeds differ by the noise."""
    found = []
    for (arm, pairs), mean in means.items():
        rng = np.random.default_rng([*map(ord, arm), pairs])
        for seed in range(seeds):
            items = mean + rng.normal(0, noise) + np.roll(np.linspace(-0.01, 0.01, 20), seed)
            scores = {"accuracy": Scores(items, range(20), higher_is_better=higher)}
            cost = (flops or {}).get(arm, 1e9)
            found.append(result(arm, seed, scores, condition={"pairs": pairs}, flops=cost, **fields))
    return found


def relations(choice):
    return {row["arm"]: row["relation"] for row in choice.table}


def test_recorded_cases_are_found_and_their_tables_are_read_off_the_records(published):
    for case in chooser.cases(published, task="answering"):
        choice = chooser.choose(published, **case)
        assert choice.distance == 0 and choice.condition == case
        means = [row["mean"] for row in choice.table]
        assert means == sorted(means, reverse=True) and choice.table[0]["relation"] == "best"
        there = []
        for one in published:
            if (
                one.row["task"] == "answering"
                and one.condition["compute"] == "own"
                and case.items() <= one.condition.items()
            ):
                there.append(one.row)
        for row in choice.table:
            of = [found for found in there if found["arm"] == row["arm"]]
            assert row["mean"] == pytest.approx(np.mean([found["scores"]["accuracy"] for found in of]))
            assert row["flops"] == pytest.approx(np.mean([found["cost"]["flops"] for found in of]))
            assert row["difference"] == pytest.approx(row["mean"] - choice.table[0]["mean"])
            assert row["mean_low"] <= row["mean"] <= row["mean_high"] and row["low"] <= row["difference"] <= row["high"]


def test_records_that_were_not_tuned_alike_carry_no_verdict():
    means = {("a", 64): 0.5, ("b", 64): 0.7}
    tuned, once = (chooser.choose(made(means, settings=settings), pairs=64) for settings in (TUNED, {"lr": 0.1}))
    assert (tuned.answer, tuned.arm) == ("ahead", "b") and "ahead of all others" in tuned.reason
    assert (once.answer, once.arm) == ("inconclusive", "b")
    assert once.reason.endswith("no verdict rests on these runs: no rate chosen by its own validation")
    few = chooser.choose(made(means, seeds=3), pairs=64)
    assert few.answer == "inconclusive" and few.reason.endswith("3 seeds, at least 6 are needed")


def test_of_equivalent_arms_the_cheapest_is_taken_its_search_counted():
    means = {("a", 64): 0.700, ("b", 64): 0.699, ("c", 64): 0.6}
    found = made(means, noise=0.001, flops={"a": 3e9, "b": 1e9, "c": 1e8})
    choice = chooser.choose(found, pairs=64)
    assert relations(choice) == {"a": "best", "b": "equivalent", "c": "behind"}
    assert (choice.answer, choice.arm) == ("equivalent", "b") and "equivalent within 0.02: a" in choice.reason
    assert all(row["flops_with_search"] == 3e9 for row in choice.table) and "3e+09 with the search" in choice.reason
    narrow = chooser.choose(found, pairs=64, margin=1e-4)
    assert narrow.arm == "a" and relations(narrow)["b"] != "equivalent"
    for one in found:
        tuning = one.row["settings"]["tuning"]
        one.row["settings"] = {"tuning": tuning | {"flops": 9e9 if one.row["arm"] == "b" else 4e9}}
    assert chooser.choose(found, pairs=64).arm == "a", "with its search the other is dearer"


def test_arms_that_are_not_told_apart_are_not_called_equal():
    choice = chooser.choose(made({("a", 64): 0.7, ("b", 64): 0.69, ("c", 64): 0.3}, noise=0.1), pairs=64)
    assert choice.answer == "inconclusive" and set(relations(choice).values()) == {"best", "not told apart", "behind"}
    assert choice.arm == choice.table[0]["arm"] and "not told apart from the best" in choice.reason


def test_what_nobody_learned_is_no_reason_to_take_anything():
    levels = {"levels": {"accuracy": {"chance": 0.25, "alone": 0.44, "oracle": 1.0}}}
    floor = chooser.choose(made({("a", 64): 0.442, ("b", 64): 0.437}, **levels), pairs=64)
    assert (floor.answer, floor.arm) == ("nobody learned it", None) and "never joins the modalities" in floor.reason
    assert str(floor).startswith("nobody learned it (recorded: pairs=64)")
    one_did = chooser.choose(made({("a", 64): 0.442, ("b", 64): 0.6}, **levels), pairs=64)
    assert (one_did.answer, one_did.arm) == ("ahead", "b")
    top = made({("a", 64): 0.995, ("b", 64): 0.982}, noise=0.001, flops={"b": 1e8}, **levels)
    for one in top:
        one.row["settings"] = {"tuning": one.row["settings"]["tuning"] | {"flops": None}}
    ceiling = chooser.choose(top, pairs=64)
    assert (ceiling.answer, ceiling.arm) == ("equivalent", "b"), "at the ceiling the cheapest is as good"


@pytest.mark.parametrize("higher", [True, False])
def test_the_better_arm_is_taken_where_lower_is_better_too(higher):
    means = {("a", 64): 1.0, ("b", 64): 2.0, ("a", 256): 4.0, ("b", 256): 3.0}
    found = made(means, higher=higher)
    chosen = {pairs: chooser.choose(found, pairs=pairs) for pairs in (64, 256)}
    assert {pairs: choice.arm for pairs, choice in chosen.items()} == (
        {64: "b", 256: "a"} if higher else {64: "a", 256: "b"}
    )
    assert [(row["chosen"] != chosen[row["pairs"]].arm, row["regret"]) for row in chooser.regrets(found)] == [
        (True, pytest.approx(1.0, abs=0.01))
    ] * 2


def test_regret_is_measured_beside_always_taking_the_same_arm():
    means = {("scratch", 64): 0.5, ("frozen", 64): 0.7, ("scratch", 128): 0.6, ("frozen", 128): 0.8}
    means |= {("scratch", 2048): 0.9, ("holistic", 2048): 0.7}
    rows = chooser.regrets(made(means, noise=1e-6))
    assert [row["pairs"] for row in rows] == [64, 128, 2048]
    assert [row["chosen"] for row in rows] == ["frozen", "frozen", "abstains"], "four doublings are too far"
    near, far = rows[0], rows[2]
    assert near["regret"] == 0 and near["always frozen"] == 0 and near["always scratch"] == pytest.approx(0.2, abs=1e-3)
    assert math.isnan(far["regret"]) and math.isnan(far["always frozen"]) and far["always scratch"] == 0
    with pytest.raises(MmkitError, match="at least two recorded cases"):
        chooser.regrets(made({("a", 64): 0.5, ("b", 64): 0.7}))


def test_a_case_away_from_the_records_gets_the_nearest_and_a_far_one_no_advice():
    found = made({("a", 64): 0.5, ("b", 64): 0.7})
    near = chooser.choose(found, pairs=128)
    assert near.distance == pytest.approx(1.0) and near.arm == "b" and "nearest recorded case, 1.0 away" in str(near)
    far = chooser.choose(found, pairs=64 * 2**2.1)
    assert (far.answer, far.arm, far.condition) == ("abstains", None, {"pairs": 64}) and far.table
    assert "further than 2 away: run this one" in str(far)
    assert chooser.choose(found, pairs=256).arm == "b", "two doublings are not too far"


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


def test_more_passes_are_an_option_and_one_arm_alone_is_no_case():
    found = made({("scratch", 64): 0.5, ("frozen", 64): 0.6, ("scratch", 512): 0.9})
    longer = made({("scratch", 64): 0.8}, flops={"scratch": 4e9})
    for results, epochs in ((found, 20), (longer, 80)):
        for one in results:
            one.row["condition"]["epochs"] = epochs
            if one.row["arm"] == "frozen":  # what only some arms have does not set cases apart
                one.row["condition"]["pool"] = 30
    assert chooser.cases(found + longer, task="answering") == [{"pairs": 64}]
    choice = chooser.choose(found + longer, pairs=64)
    assert [row["arm"] for row in choice.table] == ["scratch, epochs=80", "frozen", "scratch, epochs=20"]
    assert choice.arm == "scratch, epochs=80" and choice.table[0]["flops"] == 4e9
    assert chooser._regret("scratch", choice.table) == 0, "always scratch has the choice of passes, too"
    assert math.isnan(chooser._regret("holistic", choice.table))


def test_data_sets_are_not_mixed():
    scenes = made({("a", 64): 0.5, ("b", 64): 0.7})
    photos = made({("a", 64): 0.9, ("b", 64): 0.4}, data="flickr8k", data_hash="p")
    for data, arm in (("toy", "b"), ("flickr8k", "a")):
        assert chooser.choose(scenes + photos, data=data, pairs=64).arm == arm
    with pytest.raises(MmkitError, match="records of answering on flickr8k, toy: say which with data="):
        chooser.choose(scenes + photos, pairs=64)
    assert chooser.cases(scenes + photos, task="answering") == [
        {"data": "flickr8k", "pairs": 64},
        {"data": "toy", "pairs": 64},
    ]
    away = chooser.choose(scenes, data="speech", pairs=64)
    assert str(away) == "abstains; no run of answering on speech is recorded, only on toy: run it there"
    assert [row["chosen"] for row in chooser.regrets(scenes + photos)] == ["abstains"] * 2, "no other case of its own"


def test_a_strategys_own_conditions_are_options():
    found = made({("a", 64): 0.5, ("component", 64): 0.6})
    other = made({("component", 64): 0.9})
    for results, objective in ((found[8:], "masked"), (other, "supervised")):
        for one in results:
            one.row["condition"]["objective"] = objective
    choice = chooser.choose(found + other, pairs=64, choices=["objective"])
    assert choice.arm == "component, objective=supervised" and len(choice.table) == 3
    with pytest.raises(MmkitError, match="they differ in objective"):
        chooser.choose(found + other, pairs=64)


def test_unknown_knobs_and_tasks_are_refused(published):
    for pairs in (0, -64):
        with pytest.raises(MmkitError, match=f"pairs={pairs}: .* give a number above 0"):
            chooser.choose(published, pairs=pairs)
    with pytest.raises(MmkitError, match="did you mean 'pairs'"):
        chooser.choose(published, pair=3)
    with pytest.raises(MmkitError, match="unknown task with records 'captioning'"):
        chooser.choose(published, task="captioning")
    with pytest.raises(MmkitError, match="the chooser needs at least two arms to choose from"):
        chooser.choose(made({("a", 64): 0.5}), pairs=64)


def test_two_experiments_in_one_case_are_not_mixed():
    one, two = made({("a", 64): 0.5, ("b", 64): 0.7}), made({("a", 64): 0.5, ("b", 64): 0.7})
    for results, case in ((one, "broad"), (two, "narrow")):
        for found in results:
            found.row["condition"]["case"] = case
    with pytest.raises(
        MmkitError,
        match="found two results of 'a', seed 0, in one case; they differ in case: give it the records of one of them",
    ):
        chooser.choose(one + two, pairs=64)
    assert chooser.choose(one, pairs=64).distance == 0


def test_the_advice_differs_between_the_published_cases(published):
    """A chooser that always says the same is none."""
    chosen = {chooser.choose(published, **case).arm for case in chooser.cases(published, task="answering")}
    assert len(chosen) > 1
