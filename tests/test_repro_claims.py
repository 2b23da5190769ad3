"""Claims: what the file may say, what a term matches, and the verdict that follows."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import ROOT
from repro_data import terms, verdict, Scores, claim, head_to_head, result

from mmkit import notebooks
from mmkit.errors import MmkitError
from mmkit.repro import claims, records, report
from mmkit.repro.claims import Claim, evaluate, read_claims, waiting
from mmkit.repro.plan import Plan
from mmkit.strategies.arms import ARMS, DERIVED
from mmkit.teach import plots
from mmkit.yamls import read_model


@pytest.fixture(scope="module")
def results():
    return head_to_head()


def test_the_four_verdicts(results):
    assert verdict(results).verdict == "supported"
    assert verdict(results, direction="less").verdict == "contradicted"
    assert verdict(results, smallest_effect=0.5).verdict == "equivalent"
    assert verdict(results, smallest_effect=0.5, direction="equal").verdict == "supported"
    assert verdict(results, direction="equal").verdict == "contradicted"
    none = verdict(head_to_head(gain=0.0))
    assert none.verdict == "inconclusive" and none.reason == "the interval holds 0"


def test_support_needs_the_whole_interval_beyond_the_smallest_effect(results):
    plain = verdict(results).estimate
    assert 0 < plain.low < plain.effect < plain.high
    sizes = {
        plain.low - 0.001: "supported",
        plain.low + 0.001: "direction only",
        plain.effect - 0.001: "direction only",
        plain.high + 0.03: "equivalent",
    }
    assert {size: verdict(results, smallest_effect=size).verdict for size in sizes} == sizes
    assert "too small to matter" in verdict(results, smallest_effect=plain.low + 0.001).reason
    assert verdict(results, smallest_effect=plain.low + 0.001, direction="less").verdict == "contradicted"


def test_an_effect_that_the_interval_leaves_out_is_excluded():
    weak = head_to_head(gain=-0.01, images=60)
    found = verdict(weak, smallest_effect=0.06)
    assert found.estimate.low < -0.06 and 0 < found.estimate.high < 0.06
    assert found.verdict == "excluded" and "leaves out every effect in the claimed direction" in found.reason
    assert verdict(weak, smallest_effect=0.06, direction="less").verdict == "inconclusive"


def test_a_verdict_says_how_likely_it_comes_out_again(results):
    found, low = verdict(results), verdict(results).estimate.low
    assert found.verdict == "supported" and 0.8 < found.replication < 0.95
    assert found.replication == verdict(results).replication, "by a fixed seed"
    assert verdict(head_to_head(gain=0.2)).replication > 0.99
    edge = verdict(results, smallest_effect=low - 1e-4)
    assert edge.verdict == "supported" and 0.4 < edge.replication < 0.6, "an interval that only just passes"
    assert np.isnan(verdict(head_to_head(seeds=5)).replication)


def test_equalities_of_one_family_are_adjusted():
    close = head_to_head(gain=0.0, images=400)
    alone = verdict(close, smallest_effect=0.045, direction="equal")
    family = [Claim.model_validate(claim(f"C{n}", smallest_effect=0.045, direction="equal")) for n in range(30)]
    found = evaluate(family, close, draws=2000)
    assert alone.verdict == "supported" and alone.p == alone.p_holm < 0.05
    assert all(one.p_holm == pytest.approx(min(1, 30 * alone.p)) for one in found)
    assert {one.verdict for one in found} == {"inconclusive" if 30 * alone.p > 0.05 else "supported"}


def test_seeds_in_favour_are_counted():
    made = []
    for seed, gain in enumerate((0.1, 0.1, 0.1, 0.0, -0.1, 0.1, 0.1, 0.1)):
        for arm, shift in (("holistic", gain), ("component", 0.0)):
            made.append(result(arm, seed, {"accuracy": Scores(np.full(20, 0.5 + shift), np.arange(20))}))
    found = verdict(made)
    assert found.in_favour == "6.5 of 8" and found.improvement == 6.5 / 8


def test_smoke_runs_and_few_seeds_are_no_evidence(results):
    smoke = verdict(head_to_head(profile="smoke"))
    assert (smoke.verdict, smoke.reason) == ("not evidence", "a smoke run")
    few = verdict(head_to_head(seeds=5))
    assert (few.verdict, few.reason) == ("not evidence", "5 seeds, at least 6 are needed")
    assert verdict(results, smallest_effect=0.5).verdict == "equivalent"
    assert verdict(head_to_head(seeds=5), smallest_effect=0.5).verdict == "not evidence", "not even of equality"


@pytest.mark.filterwarnings("error")
def test_one_seed_says_nothing_of_power():
    found = {seeds: verdict(head_to_head(seeds=seeds)) for seeds in (1, 2)}
    assert ["<dt>Power</dt>" in report.claim_cards([one]) for one in found.values()] == [False, True]
    assert [report.claims_table([one]).loc["C1", "smallest detectable"] == "–" for one in found.values()] == [
        True,
        False,
    ] and np.isnan(found[1].detectable)


def test_numbers_of_a_verdict_are_the_plain_ones(results):
    found = verdict(results)
    value = {"holistic": [], "component": [], "shuffled": []}
    for r in results:
        if r.condition["pairs"] == 64:
            value[r.row["arm"]].append(r.row["scores"]["accuracy"])
    differences = np.array(value["holistic"]) - np.array(value["component"])
    assert found.estimate.effect == pytest.approx(differences.mean()) and np.allclose(
        found.estimate.effects, differences
    )
    assert (
        found.improvement == (differences > 0).mean()
        and found.seeds == tuple(range(8))
        and found.estimate.clusters == 120
    )
    assert found.compute_ratio == pytest.approx(0.5)
    assert verdict(results, direction="less").improvement == (differences < 0).mean()


def test_an_interaction_over_splits_and_conditions(results):
    both = [*terms("accuracy", 64), *terms("ood_style/accuracy", 256, factor=-1.0)]
    found = verdict(results, terms=both)
    parts = [verdict(results, terms=terms("accuracy", 64)), verdict(results, terms=terms("ood_style/accuracy", 256))]
    assert found.estimate.effect == pytest.approx(parts[0].estimate.effect - parts[1].estimate.effect)
    assert found.estimate.clusters == 240
    assert found.estimate.error == pytest.approx(np.hypot(*(part.estimate.error for part in parts)), rel=0.5)


def test_costs_are_compared_as_ratios(results):
    found = verdict(results, terms=terms(cost="flops"), scale="log2", direction="less", unit="FLOPs")
    assert (
        found.estimate.effect == pytest.approx(-1.0) and found.verdict == "supported" and found.estimate.clusters == 0
    )


def test_a_median_is_compared_over_seeds_alone():
    made = [
        result(arm, seed, {"median_rank": Scores([*range(10), 9.0 + seed + shift], range(11), "median")})
        for seed in range(6)
        for arm, shift in (("a", 0), ("b", 0))
    ]
    found = verdict(made, terms=terms("median_rank", arms=("a", "b")))
    assert found.estimate.clusters == 0 and found.estimate.effect == 0.0 and found.verdict == "equivalent"
    few = [replace(one, items=one.items.set_column(1, "cluster", pa.array(np.arange(11) % 9))) for one in made]
    assert verdict(few, terms=terms("median_rank", arms=("a", "b"))).verdict == "not evidence", "nine clusters"


def test_holm_counts_the_family(results):
    weak = head_to_head(gain=0.045, seeds=8)
    alone = evaluate([Claim.model_validate(claim())], weak)[0]
    many = evaluate([Claim.model_validate(claim(f"C{n}", family="one")) for n in range(9)], weak)
    apart = evaluate([Claim.model_validate(claim(f"C{n}", family=str(n))) for n in range(9)], weak)
    assert all(v.p_holm == pytest.approx(min(1.0, 9 * alone.p)) for v in many) and all(
        v.p_holm == pytest.approx(alone.p) for v in apart
    )
    elsewhere = [
        Claim.model_validate(claim(*name, family=family))
        for name, family in ((["C1"], "two"), (["D1"], "one"), (["D2"], "one"), (["D3"], "two"))
    ]
    both = evaluate(
        [Claim.model_validate(claim(f"C{n}", family="one" if n else "two")) for n in range(3)], weak, declared=elsewhere
    )
    assert [v.p_holm for v in both] == pytest.approx([2 * alone.p, 4 * alone.p, 4 * alone.p]), (
        "the rest of a family is judged elsewhere, and counts"
    )


def test_a_missing_seed_is_left_out_and_named(results):
    lacking = [r for r in results if not (r.row["arm"] == "component" and r.row["seed"] == 3)]
    found = verdict(lacking)
    assert 3 not in found.seeds and len(found.seeds) == 7 and found.left_out == (3,)


def test_a_term_must_match_one_result(results):
    loose = [{"arm": "holistic", "score": "accuracy", "weight": 1.0}]
    with pytest.raises(
        MmkitError,
        match=r"claim C1: holistic accuracy matches several results of seed 0; they differ in \{'pairs': \(64, "
        r"256\)\}: name one in the term's condition",
    ):
        verdict(results, terms=loose)
    with pytest.raises(MmkitError, match="recorded twice under one condition"):
        verdict([*results, *results[:1]], terms=terms())
    with pytest.raises(
        MmkitError,
        match=r"no result matches holstic accuracy \(pairs=64\); there are arm component, holistic, shuffled; score "
        r"accuracy, ood_style/accuracy; pairs 256, 64; data toy",
    ):
        verdict(results, terms=terms(arms=("holstic", "component")))
    rows = evaluate([Claim.model_validate(claim(terms=terms(pairs=1)))], results, incomplete=True)
    assert rows[0].verdict == "not evidence" and "no result matches" in rows[0].reason and rows[0].p_holm == 1.0


def test_the_data_a_result_is_of_can_be_asked_for(results):
    scores = {"accuracy": Scores(np.ones(240), np.arange(240) // 2)}
    other = [
        result(r.row["arm"], r.row["seed"], scores, data="other", data_hash="i", condition=r.row["condition"])
        for r in results
    ]
    wanted = [{**t, "condition": t["condition"] | {"data": "toy"}} for t in terms()]
    assert verdict([*results, *other], terms=wanted).estimate.effect == verdict(results).estimate.effect


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smallest_efect": 0.1}, "unknown key 'smallest_efect': did you mean 'smallest_effect'?"),
        ({"terms": [{"arm": "a", "scores": "accuracy", "weight": 1.0}]}, "unknown key 'scores': did you mean 'score'?"),
        ({"terms": [{"arm": "a", "weight": 1.0}]}, "a term needs either score or cost"),
        ({"smallest_effect": 0}, "greater than 0"),
        ({"seeds": 5}, "greater than or equal to 6"),
        ({"direction": "more"}, "'greater', 'less' or 'equal'"),
        ({"scale": "log2"}, "log2 is for claims whose terms are all costs"),
    ],
)
def test_a_wrong_claim_is_refused(tmp_path, changes, message):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": [claim(**changes)]}), encoding="utf-8")
    with pytest.raises(MmkitError, match="claims.yaml") as caught:
        read_claims(path=path)
    assert message in str(caught.value)


def test_claims_by_id(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"claims": [claim("C1"), claim("C2")]}), encoding="utf-8")
    assert [c.id for c in read_claims(["C2"], path)] == ["C2"] and len(read_claims(path=path)) == 2
    with pytest.raises(MmkitError, match="unknown claim 'C3': did you mean 'C"):
        read_claims(["C3"], path)
    path.write_text(yaml.safe_dump({"claims": [claim("C1"), claim("C1")]}), encoding="utf-8")
    with pytest.raises(MmkitError, match="the claim 'C1' is there twice"):
        read_claims(path=path)


def test_the_rule_is_written_where_it_is_applied():
    assert report.SIGNS.keys() == plots.VERDICTS.keys() and len(set(report.SIGNS.values())) == len(report.SIGNS)
    places = [claims.RULE.index(f"{name} - ") for name in reversed(report.SIGNS)]
    assert all(f"{name} - " in claims.RULE for name in report.SIGNS) and len(places) == 11
    assert {sign for _, sign in plots.VERDICTS.values()} == set(report.SIGNS.values())


PLANS = {path.stem: read_model(path, Plan) for path in sorted((ROOT / "notebooks" / "plans").glob("*.yaml"))}
JUDGED = {plan.name: read_claims(plan.claims) for plan in PLANS.values() if plan.claims}
NO_RUNS = {"claims": []}


def test_every_claim_has_a_plan_or_is_said_to_be_not_run():
    declared, planned = {c.id for c in read_claims()}, [name for plan in PLANS.values() for name in plan.claims]
    assert set(planned) <= declared and len(set(planned)) == len(planned), (
        "a plan names a claim that is not there, or two plans judge the same"
    )
    published = {
        c["id"]
        for path in (ROOT / "notebooks" / "records").glob("*/plan.json")
        for c in json.loads(path.read_text(encoding="utf-8"))["claims"]
    }
    not_run = waiting(NO_RUNS)
    assert {c.id for c in not_run.get("", [])} == declared - set(planned) - published, (
        "no plan and no run: said to be declared and not run"
    )
    assert all(c.id in PLANS[plan].claims for plan, found in not_run.items() if plan for c in found)
    assert {c.id for found in not_run.values() for c in found} == declared - published


def test_a_claim_of_a_plan_names_arms_that_can_be_trained():
    for plan, judged in JUDGED.items():
        for named in judged:
            unknown = {term.arm for term in named.terms} - {*ARMS, *DERIVED}
            if unknown:  # an arm that the plan's notebook makes itself is known by its records
                unknown -= {found.row["arm"] for found in records.read(ROOT / "notebooks" / "records" / plan)}
            assert not unknown, f"{plan}: {named.id}"


def seeds_of(plan):
    found = set()
    for entry in plan.notebooks:
        found.update(range(entry.seeds) if isinstance(entry.seeds, int) else entry.seeds or ())
    return found


def test_a_claim_of_a_plan_is_judged_on_the_seeds_it_asks_for():
    for plan, judged in JUDGED.items():
        assert all(named.seeds == len(seeds_of(PLANS[plan])) for named in judged), plan


def test_later_plans_over_the_head_to_head_take_seeds_of_their_own():
    used = seeds_of(PLANS["head_to_head"])
    for name in ("shares", "lp_ft", "documents"):
        assert all(isinstance(entry.seeds, list) and not used & set(entry.seeds) for entry in PLANS[name].notebooks), (
            name
        )


def test_the_conditions_of_notebook_06s_claims_are_cases_it_has():
    """A claim may be declared before its experiment, but not past it: what a plan over notebook 06 judges is what that
    notebook records."""
    code = "\n".join(cell["source"] for cell in notebooks.code_cells(notebooks.read(notebooks.resolve("06"))))
    shares = {f"share {share:g}" for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    for name in ("head_to_head", "pretraining", "labels", "shares", "lp_ft", "documents"):
        asked = {case for entry in PLANS[name].notebooks for case in entry.parameters["cases"]}
        wanted = {term.condition["case"] for named in JUDGED[name] for term in named.terms}
        assert wanted <= asked and all(f'"{case}"' in code or case in shares for case in asked), name


def test_the_documents_claims_and_the_papers_are_all_there():
    found = read_claims()
    assert {f"C{number}" for number in range(1, 16)} <= {re.match(r"C\d+|", c.id)[0] for c in found}
    papers = (
        "2111.07991 1905.12681 2203.15332 2305.01233 2202.10054 2109.01903 2106.09685 1706.00384 1502.03044 "
        "1707.05612 2303.15343 2010.00747"
    )
    sources = " ".join(c.source for c in found)
    assert not [paper for paper in papers.split() if paper not in sources]
    assert all(c.scope and c.limits for c in found)
    kinds = {
        "weight-decay",
        "dropout",
        "augmentation",
        "early-stopping",
        "mixed-precision",
        "distillation",
        "adversarial",
    }
    assert {c.id for c in found if c.family == "C9"} == {f"C9-{kind}" for kind in kinds}


def test_claims_that_wait_are_listed_folded():
    text = report.waiting_claims(NO_RUNS)
    count = sum(map(len, waiting(NO_RUNS).values()))
    assert text.startswith(f"<details><summary>Declared, not run yet: {count} claims") and text.count("<dt>") == count
    assert "<dt>C7, no experiment yet</dt><dd>Partial fine-tuning keeps the quality of full fine-tuning.</dd>" in text
    assert re.search(r"no experiment yet.*<dt>[^<]*plan ", text) is None, "those without a plan come last"
    everything = {"claims": [c.model_dump() for c in read_claims()]}
    assert waiting(everything) == {} and report.waiting_claims(everything) == ""


def test_a_card_says_whether_its_claim_was_declared_before_the_first_run(results):
    entry = Claim.model_validate(claim("C1"))
    found = evaluate([entry], results, draws=200)
    for since, said in (("2026-03-01", "before the first run"), ("2026-03-03", "AFTER the first run")):
        text = report.claim_cards(found, {"declared": since, "started": "2026-03-02"})
        assert f"<dt>Declared</dt><dd>as it stands since {since}, {said} on record (2026-03-02)</dd>" in text
    assert "the records do not say when" in report.claim_cards(found, {"started": "2026-03-02"})
    assert "<dt>Declared</dt>" not in report.claim_cards(found)
