"""Claims: what the file may say, what a term matches, and the verdict that follows."""

import json
import os
import re
import subprocess
from datetime import UTC, datetime

import numpy as np
import pytest
import yaml
from conftest import ROOT
from repro_data import Scores, claim, head_to_head, result

from mmkit import notebooks
from mmkit.errors import MmkitError
from mmkit.repro import claims, records, report
from mmkit.repro.claims import Claim, evaluate, history, read_claims, waiting
from mmkit.repro.plan import Plan, read_yaml
from mmkit.strategies.arms import ARMS, DERIVED


def terms(score="accuracy", pairs=64, arms=("holistic", "component"), factor=1.0, cost=None):
    what = {"cost": cost} if cost else {"score": score}
    return [{"arm": arm, **what, "condition": {"pairs": pairs}, "weight": sign * factor} for arm, sign in zip(arms, (1.0, -1.0), strict=True)]


def verdict(results, **changes):
    return evaluate([Claim.model_validate(claim(**changes))], results, draws=2000)[0]


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


def test_a_direction_without_size_is_no_support(results):
    found = verdict(results, smallest_effect=0.11)
    assert found.estimate.low > 0 and found.verdict == "inconclusive" and "below the smallest that matters" in found.reason


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
    assert [report.claims_table([one]).loc["C1", "smallest detectable"] == "–" for one in found.values()] == [True, False] and np.isnan(found[1].detectable)


def test_numbers_of_a_verdict_are_the_plain_ones(results):
    found = verdict(results)
    value = {arm: [r.row["scores"]["accuracy"] for r in results if r.row["arm"] == arm and r.condition["pairs"] == 64] for arm in ("holistic", "component")}
    differences = np.array(value["holistic"]) - np.array(value["component"])
    assert found.estimate.effect == pytest.approx(differences.mean()) and np.allclose(found.estimate.effects, differences)
    assert found.improvement == (differences > 0).mean() and found.seeds == tuple(range(8)) and found.estimate.clusters == 120
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
    assert found.estimate.effect == pytest.approx(-1.0) and found.verdict == "supported" and found.estimate.clusters == 0


def test_a_median_is_compared_over_seeds_alone():
    made = [
        result(arm, seed, {"median_rank": Scores([1.0, 5.0, 9.0 + seed + shift], [0, 1, 2], "median")})
        for seed in range(6)
        for arm, shift in (("a", 0), ("b", 0))
    ]
    found = verdict(made, terms=terms("median_rank", arms=("a", "b")))
    assert found.estimate.clusters == 0 and found.estimate.effect == 0.0 and found.verdict == "equivalent"


def test_holm_counts_the_family(results):
    weak = head_to_head(gain=0.045, seeds=8)
    alone = evaluate([Claim.model_validate(claim())], weak)[0]
    many = evaluate([Claim.model_validate(claim(f"C{n}", family="one")) for n in range(9)], weak)
    apart = evaluate([Claim.model_validate(claim(f"C{n}", family=str(n))) for n in range(9)], weak)
    assert all(v.p_holm == pytest.approx(min(1.0, 9 * alone.p)) for v in many) and all(v.p_holm == pytest.approx(alone.p) for v in apart)
    elsewhere = [Claim.model_validate(claim(*name, family=family)) for name, family in ((["C1"], "two"), (["D1"], "one"), (["D2"], "one"), (["D3"], "two"))]
    both = evaluate([Claim.model_validate(claim(f"C{n}", family="one" if n else "two")) for n in range(3)], weak, declared=elsewhere)
    assert [v.p_holm for v in both] == pytest.approx([2 * alone.p, 4 * alone.p, 4 * alone.p]), "the rest of a family is judged elsewhere, and counts"


def test_a_missing_seed_is_left_out_and_named(results):
    lacking = [r for r in results if not (r.row["arm"] == "component" and r.row["seed"] == 3)]
    found = verdict(lacking)
    assert 3 not in found.seeds and len(found.seeds) == 7 and found.left_out == (3,)


def test_a_term_must_match_one_result(results):
    loose = [{"arm": "holistic", "score": "accuracy", "weight": 1.0}]
    with pytest.raises(
        MmkitError,
        match=r"claim C1: holistic accuracy matches several results of seed 0; they differ in \{'pairs': \(64, 256\)\}: name one in the term's condition",
    ):
        verdict(results, terms=loose)
    with pytest.raises(MmkitError, match="recorded twice under one condition"):
        verdict([*results, *results[:1]], terms=terms())
    with pytest.raises(
        MmkitError,
        match=r"no result matches holstic accuracy \(pairs=64\); there are arm component, holistic, shuffled; score accuracy, ood_style/accuracy; pairs 256, 64; data toy",
    ):
        verdict(results, terms=terms(arms=("holstic", "component")))
    rows = evaluate([Claim.model_validate(claim(terms=terms(pairs=1)))], results, incomplete=True)
    assert rows[0].verdict == "inconclusive" and "no result matches" in rows[0].reason and rows[0].p_holm == 1.0


def test_the_data_a_result_is_of_can_be_asked_for(results):
    scores = {"accuracy": Scores(np.ones(240), np.arange(240) // 2)}
    other = [result(r.row["arm"], r.row["seed"], scores, data="other", data_hash="i", condition=r.row["condition"]) for r in results]
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
    for name in ("supported", "contradicted", "equivalent", "inconclusive", "not evidence"):
        assert name in claims.RULE


PLANS = {path.stem: read_yaml(path, Plan) for path in sorted((ROOT / "notebooks" / "plans").glob("*.yaml"))}
JUDGED = {plan.name: read_claims(plan.claims) for plan in PLANS.values() if plan.claims}
NO_RUNS = {"claims": []}


def test_every_claim_has_a_plan_or_is_said_to_be_not_run():
    declared, planned = {c.id for c in read_claims()}, [name for plan in PLANS.values() for name in plan.claims]
    assert set(planned) <= declared and len(set(planned)) == len(planned), "a plan names a claim that is not there, or two plans judge the same"
    not_run = waiting(NO_RUNS)
    assert {c.id for c in not_run.get("", [])} == declared - set(planned), "no plan: said to be declared and not run"
    assert all(c.id in PLANS[plan].claims for plan, found in not_run.items() if plan for c in found)
    published = {c["id"] for path in (ROOT / "notebooks" / "records").glob("*/plan.json") for c in json.loads(path.read_text(encoding="utf-8"))["claims"]}
    assert {c.id for found in not_run.values() for c in found} == declared - published


def test_a_claim_of_a_plan_names_arms_that_can_be_trained():
    for plan, judged in JUDGED.items():
        for named in judged:
            unknown = {term.arm for term in named.terms} - {*ARMS, *DERIVED}
            if unknown:  # an arm that the plan's notebook makes itself is known by its records
                unknown -= {found.row["arm"] for found in records.read(ROOT / "notebooks" / "records" / plan)}
            assert not unknown, f"{plan}: {named.id}"


def test_a_claim_of_a_plan_is_judged_on_the_seeds_it_asks_for():
    for plan, judged in JUDGED.items():
        seeds = {seed for entry in PLANS[plan].notebooks for seed in (range(entry.seeds) if isinstance(entry.seeds, int) else entry.seeds or ())}
        assert all(named.seeds == len(seeds) for named in judged), plan


def test_later_plans_over_the_head_to_head_take_seeds_of_their_own():
    used = set(range(PLANS["head_to_head"].notebooks[0].seeds))
    for name in ("shares", "lp_ft", "documents"):
        assert all(isinstance(entry.seeds, list) and not used & set(entry.seeds) for entry in PLANS[name].notebooks), name


def test_the_conditions_of_notebook_06s_claims_are_cases_it_has():
    """A claim may be declared before its experiment, but not past it: what a plan over notebook 06 judges is what that notebook records."""
    code = "\n".join(cell["source"] for cell in notebooks.code_cells(notebooks.read(notebooks.resolve("06"))))
    shares = {f"share {share:g}" for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    for name in ("shares", "lp_ft", "documents"):
        asked = {case for entry in PLANS[name].notebooks for case in entry.parameters["cases"]}
        wanted = {term.condition["case"] for named in JUDGED[name] for term in named.terms}
        assert wanted <= asked and all(f'"{case}"' in code or case in shares for case in asked), name


def test_the_documents_claims_and_the_papers_are_all_there():
    found = read_claims()
    assert {f"C{number}" for number in range(1, 16)} <= {re.match(r"C\d+|", c.id)[0] for c in found}
    papers = "2111.07991 1905.12681 2203.15332 2305.01233 2202.10054 2109.01903 2106.09685 1706.00384 1502.03044 1707.05612 2303.15343 2010.00747"
    assert not [paper for paper in papers.split() if not any(paper in c.source for c in found)]
    assert all(c.scope and c.limits for c in found)
    kinds = {"weight-decay", "dropout", "augmentation", "early-stopping", "mixed-precision", "distillation", "adversarial"}
    assert {c.id for c in found if c.family == "C9"} == {f"C9-{kind}" for kind in kinds}


def test_claims_that_wait_are_listed_folded():
    text = report.waiting_claims(NO_RUNS)
    count = sum(map(len, waiting(NO_RUNS).values()))
    assert text.startswith(f"<details><summary>Declared, not run yet: {count} claims") and text.count("<dt>") == count
    assert "<dt>C7, no experiment yet</dt><dd>Partial fine-tuning keeps the quality of full fine-tuning.</dd>" in text
    assert re.search(r"no experiment yet.*<dt>[^<]*plan ", text) is None, "those without a plan come last"
    everything = {"claims": [c.model_dump() for c in read_claims()]}
    assert waiting(everything) == {} and report.waiting_claims(everything) == ""


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with a claims file, and `commit(hour, entries)` to change it at that hour."""
    at = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def git(*words, hour=0):
        dates = {f"GIT_{who}_DATE": f"2026-03-01T{hour:02}:00:00+00:00" for who in ("AUTHOR", "COMMITTER")}
        subprocess.run(["git", *words], cwd=tmp_path, env=os.environ | at | dates, check=True, capture_output=True)

    def commit(hour, entries, file="claims.yaml"):
        path = tmp_path / "notebooks" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries) if file.endswith("json") else yaml.safe_dump({"claims": entries}), encoding="utf-8")
        git("add", ".")
        git("commit", "-m", "a change", hour=hour)

    git("init")
    commit.folder = tmp_path / "notebooks"
    return commit


def run_at(hour, *entries, results=None):
    """The manifest of a plan that was started at that hour, with results that were there since another."""
    asked, begun = (datetime(2026, 3, 1, when, tzinfo=UTC).isoformat() for when in (hour, results or hour))
    since = {"declared": asked} if results else {}
    return {"plan": {"name": "toy"}, "started": begun, "claims": [Claim.model_validate(entry).model_dump() for entry in entries]} | since


def test_the_history_of_a_claim_is_that_of_git(checkout):
    first = claim("C1")
    checkout(1, [first, claim("C2")])
    checkout(2, [first, claim("C2"), claim("C3")])
    checkout(3, [first | {"limits": "toys"}, claim("C2"), claim("C3")])
    last = first | {"limits": "toys", "smallest_effect": 0.05}
    checkout(6, [last, claim("C2"), claim("C3")])
    told = history(run_at(5, first | {"limits": "toys"}, claim("C2")), folder=checkout.folder)
    assert told["C2"] == "declared on 2026-03-01 01:00 UTC, before its first run on record (2026-03-01 05:00 UTC)" and set(told) == {"C1", "C2"}
    assert told["C1"] == (
        f"{told['C2']}; wording changed on 2026-03-01 03:00 UTC, before its first run on record; terms changed on 2026-03-01 06:00 UTC, after its first run on record"
    )


def test_an_earlier_published_run_counts_although_the_plan_was_run_again(checkout):
    weak = claim("C1", smallest_effect=0.05)
    checkout(1, [weak])
    checkout(3, run_at(2, weak), file="records/toy/plan.json")
    checkout(4, [claim("C1")])
    told = history(run_at(7, claim("C1")), folder=checkout.folder)["C1"]
    assert "first run on record (2026-03-01 02:00 UTC); terms changed on 2026-03-01 04:00 UTC, after its first run" in told


def test_what_was_declared_or_changed_after_the_first_result_is_told_as_that_when_the_plan_is_run_again(checkout):
    weak = claim("C1", smallest_effect=0.05)
    checkout(1, [weak])
    said = "declared on 2026-03-01 01:00 UTC, before its first run on record (2026-03-01 05:00 UTC); terms changed on 2026-03-01 0{}:00 UTC, after its first run on record"
    assert history(run_at(7, claim("C1"), results=5), folder=checkout.folder)["C1"] == said.format(7), "not in git yet"
    checkout(6, [claim("C1"), claim("C2")])
    told = history(run_at(7, claim("C1"), claim("C2"), results=5), folder=checkout.folder)
    assert told == {"C1": said.format(6), "C2": "declared on 2026-03-01 06:00 UTC, after its first run on record (2026-03-01 05:00 UTC)"}
    begun = {"started": run_at(5)["started"], "declared": run_at(4)["started"]}  # written down by a call that made no run
    assert history(run_at(5, claim("C2")) | begun, folder=checkout.folder)["C2"].startswith("declared with its first run on record")


def test_a_claim_committed_with_its_records_is_told_as_that(checkout):
    checkout(1, [claim("C2")])
    checkout(4, [claim("C2"), claim("C1")])
    told = history(run_at(3, claim("C1")), folder=checkout.folder)["C1"]
    assert told == "declared with its first run on record, in git since 2026-03-01 04:00 UTC (2026-03-01 03:00 UTC)", "what a run wrote down was declared then"


def test_writing_out_a_default_is_no_change(checkout):
    checkout(1, [claim("C1")])
    checkout(2, [claim("C1") | {"test": "sign-flip", "scale": "identity"}])
    assert "changed" not in history(run_at(3, claim("C1")), folder=checkout.folder)["C1"]


def test_without_git_the_history_is_not_known(checkout, tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    manifest = run_at(3, claim("C1"))
    unknown = "not known: git has no history of this claim here; it was run as it stands on 2026-03-01 03:00 UTC"
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert history(manifest, folder=tmp_path / "plain") == {"C1": unknown}, "a folder that git knows, without the file"
    checkout(1, [claim("C1")])
    subprocess.run(["git", "clone", "--depth", "1", f"file://{tmp_path}", str(tmp_path / "shallow")], check=True, capture_output=True)
    assert "declared on" in history(manifest, folder=checkout.folder)["C1"]
    assert history(manifest, folder=tmp_path / "shallow" / "notebooks") == {"C1": unknown}, "half a history would give wrong dates"
    monkeypatch.setenv("PATH", str(tmp_path / "plain"))
    assert history(manifest, folder=checkout.folder) == {"C1": unknown}, "no git at all"


def test_a_card_tells_the_history(checkout, results):
    entry = claim("C1")
    checkout(1, [entry])
    found = evaluate([Claim.model_validate(entry)], results, draws=500)
    assert "<dt>History</dt>" not in report.claim_cards(found)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "history", lambda manifest: history(manifest, folder=checkout.folder))
        assert "<dt>History</dt><dd>declared on 2026-03-01 01:00 UTC, before its first run on record" in report.claim_cards(found, run_at(2, entry))
