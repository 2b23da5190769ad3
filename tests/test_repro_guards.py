"""What keeps a claim from a verdict on its effect: each guard on made-up results, and when it holds its tongue."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from repro_data import Scores, claim, head_to_head, result, terms, verdict

from mmkit.repro.claims import Claim, evaluate


@pytest.fixture(scope="module")
def results():
    return head_to_head()


def changed(results, which, **fields):
    """Results with fields of the rows of some arms changed; `settings` adds to the settings."""
    made = []
    for one in results:
        row = one.row
        if row["arm"] in which:
            row = row | fields | {"settings": row["settings"] | fields.get("settings", {})}
        made.append(replace(one, row=row))
    return made


def test_arms_that_were_tuned_apart_get_no_verdict(results):
    tuning = results[0].row["settings"]["tuning"]
    cases = {
        "no rate chosen by its own validation: component in 8 runs": {"tuning": None},
        "a rate on the edge of its grid: component in 8 runs": {"tuning": tuning | {"edge": True}},
        "rates chosen from different grids: holistic from [0.001, 0.003, 0.01]; component from [0.1]": {
            "tuning": tuning | {"grid": [0.1]}
        },
    }
    for reason, settings in cases.items():
        found = verdict(changed(results, {"component"}, settings=settings))
        assert (found.verdict, found.reason, found.p_holm) == ("not tuned alike", reason, 1.0)
        assert np.isnan(found.replication) and found.estimate.low > 0, "its numbers are still shown"
    once = verdict(changed(results, {"component"}, settings={"tuning": tuning | {"nested": False}}))
    assert once.verdict == "not tuned alike", "one rate for all seeds is not nested"
    costs = {"terms": terms(cost="flops"), "scale": "log2", "direction": "less"}
    assert verdict(changed(results, {"component"}, settings={"tuning": None}), **costs).verdict == "supported"


def test_a_claim_without_a_verdict_counts_in_its_family(results):
    shuffled = terms(arms=("holistic", "shuffled"))
    family = [Claim.model_validate(claim("C1", test="t")), Claim.model_validate(claim("C2", test="t", terms=shuffled))]
    both = evaluate(family, results, draws=500)
    assert both[1].p < both[0].p == both[0].p_holm, "tuned alike, the smaller p is adjusted and the larger is not"
    one, barred = evaluate(family, changed(results, {"shuffled"}, settings={"tuning": None}), draws=500)
    assert (one.p_holm, barred.verdict) == (pytest.approx(2 * one.p), "not tuned alike")


def test_few_or_lopsided_clusters_are_no_evidence(results):
    def cut(one, columns):
        clusters = np.minimum(one.items["cluster"].to_numpy(), columns)
        return replace(one, items=one.items.set_column(1, "cluster", pa.array(clusters)))

    lopsided = verdict([cut(one, 30) for one in results])  # the last cluster holds three quarters
    assert lopsided.estimate.clusters == 31 and 1 < lopsided.estimate.effective < 3
    assert lopsided.verdict == "not evidence" and "effective clusters, at least 10 are needed" in lopsided.reason
    assert verdict(results).estimate.effective == pytest.approx(120)


def test_runs_that_collapsed_are_counted_and_compared():
    level = {"levels": {"accuracy": {"chance": 0.25}}}
    rng, made = np.random.default_rng(0), []
    for seed in range(8):
        for arm, share in (("holistic", 0.25 if seed < 3 else 0.8), ("component", 0.7)):
            scores = {"accuracy": Scores(rng.random(400) < share, np.arange(400))}
            made.append(result(arm, seed, scores, **level))
    found = verdict(made)
    told = "collapsed to chance: holistic in 3 of 8 runs, component in 0 of 8 runs; the shares are not told apart"
    assert found.verdict == "unstable" and found.reason.startswith(told) and 0.9 < found.replication < 1
    always = [one for one in made if one.row["seed"] < 3]
    always += [replace(one, row=one.row | {"seed": 3 + one.row["seed"]}) for one in always]
    assert verdict(always).verdict == "contradicted", "an arm that always collapses is a weak arm"
    assert verdict(changed(made, {"holistic", "component"}, levels={})).verdict != "unstable", "no level, no guard"


def at_levels(first, second, levels):
    rng, made = np.random.default_rng(1), []
    for seed in range(8):
        for arm, share in (("holistic", first), ("component", second)):
            scores = {"accuracy": Scores(rng.random(400) < share, np.arange(400))}
            made.append(result(arm, seed, scores, levels={"accuracy": levels}))
    return made


def test_nothing_is_compared_at_a_floor_or_a_ceiling():
    levels = {"chance": 0.25, "alone": 0.44, "oracle": 1.0}
    found = verdict(at_levels(0.44, 0.44, levels))
    assert found.verdict == "nothing learned to compare" and 0.3 < found.replication < 0.95
    assert found.reason.startswith("every score is within noise of a model that never joins the modalities: holistic 0")
    assert verdict(at_levels(0.25, 0.25, levels), direction="equal").verdict == "nothing learned to compare"
    top = verdict(at_levels(1.0, 0.99, levels))
    assert top.verdict == "nothing left to tell apart" and "an oracle: holistic 1.000 beside 1.000" in top.reason
    assert verdict(at_levels(0.44, 0.25, levels)).verdict == "supported", "not the same floor"
    assert "nothing" not in verdict(at_levels(0.44, 0.44, {"chance": 0.25})).verdict, "a missing level is no guard"


def test_a_reason_names_arms_that_had_not_converged(results):
    unfinished = changed(results, {"component"}, settings={"converged": False}, budget={"pairs": 64, "epochs": 20})
    assert verdict(unfinished).reason.endswith("; at 20 passes, where component had not converged")
    assert "passes" not in verdict(changed(results, {"component"}, settings={"converged": True})).reason
