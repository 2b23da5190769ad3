"""The published records say what the README says of them."""

from collections import defaultdict
from statistics import mean

import pytest
from conftest import ROOT
from mmkit.repro import claims, records, report, runner


def scores(plan, metric):
    found = defaultdict(list)
    for result in records.read(ROOT / "notebooks" / "records" / plan):
        found[result.row["arm"]].append(result.row["scores"][metric])
    return found


def test_frozen_encoders_on_flickr8k_reach_the_figures_asked_for_over_three_seeds():
    for metric, least in {"i2t/recall@1": 0.23, "i2t/recall@5": 0.48, "i2t/recall@10": 0.60, "t2i/recall@1": 0.18, "t2i/recall@5": 0.44, "t2i/recall@10": 0.57}.items():
        found = scores("flickr8k", metric)
        assert len(found["frozen"]) >= 3 and mean(found["frozen"]) >= least, metric


def test_random_weights_are_far_behind_and_the_slow_arms_are_one_seed():
    found = scores("flickr8k", "recall@1")
    assert mean(found["frozen"]) > 10 * max(mean(found["scratch"]), mean(found["component"]))
    assert min(found["scratch"]) > 1 / 1000, "chance is one photo in a thousand"
    assert len(found["holistic"]) == len(found["lp_ft"]) == 1


def test_a_frozen_encoder_captions_photographs_as_well_as_was_asked_and_far_better_than_without_the_photograph():
    bleu, cider, blank = (scores("flickr8k_captioning", name) for name in ("bleu_4", "cider_d", "blank_image/cider_d"))
    assert max(bleu["frozen"]) >= 0.20 and max(cider["frozen"]) >= 0.50
    assert all(told > 1.4 * empty for arm in cider for told, empty in zip(cider[arm], blank[arm], strict=True)), "chance is the caption of an empty picture"


@pytest.mark.slow
@pytest.mark.parametrize("folder", [path.parent for path in sorted((ROOT / "notebooks" / "records").glob("*/plan.json"))], ids=lambda path: path.name)
def test_a_published_plan_is_whole_and_its_claims_are_those_declared(folder):
    batch = runner.load(folder)
    assert batch.complete and not batch.failures and not batch.missing, "every run of the plan is there"
    assert {result.row["profile"] for result in batch.results} <= {"lab", "full"}, "smoke is no evidence"
    ran, declared = batch.manifest["claims"], {claim.id: claim for claim in claims.read_claims()}
    assert [claims.Claim.model_validate(claim) for claim in ran] == [declared[claim["id"]] for claim in ran], "a claim was changed after its runs: run them again"
    told = [part for line in claims.history(batch.manifest).values() for part in line.split("; ") if part.startswith(("declared", "terms changed"))]
    assert not [part for part in told if "after its first run" in part], "a claim, or what it tests, was written after a run of it: declare another"
    assert all(verdict.verdict != "not evidence" and len(verdict.seeds) >= claims.FEWEST_SEEDS for verdict in report.verdicts(batch))
