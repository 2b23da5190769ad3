"""The published records say what the README says of them, and keep the names that claims and readers know."""

import json
from collections import defaultdict
from datetime import UTC, datetime
from statistics import mean

import pytest
from claim_history import history
from conftest import ROOT

from mmkit.repro import batches, browse, claims, records, report
from mmkit.repro.plan import code_hash

RECORDS = [path.parent for path in sorted((ROOT / "notebooks" / "records").glob("*/plan.json"))]

# A contract with every claim, plot and reader: a name that is published is never given up, or given another meaning.
TASKS = {"answering", "captioning", "diagnosis", "retrieval"}
ARMS = set(
    """best_single blank_image blank_text component ensemble_single frozen frozen_image frozen_text frozen_then_all
    grad_blend holistic image_only joint_plus_unimodal lit_LU lit_Lu lit_UL lit_Uu lit_uL lit_uU lp_ft ogm_ge probe_own
    probe_paired probe_random scratch shuffled_pairs text_only wise_ft""".split()
)
CONDITIONS = set(
    """alpha batch both case compute decoder epochs fusion image_share labels objective pairs pool pools precision
    pretraining pretraining_steps study temperature words""".split()
)
SPLITS = {"", "blank_image", "blank_text", "shuffled_text", "ood_composition", "ood_hospital", "ood_style"}
METRICS = set(
    """accuracy auroc average_precision bleu_1 bleu_2 bleu_3 bleu_4 brier calibration_error cider_d exact fact/arrow
    fact/ground fact/heading fact/landmark fact/relation fact/shape fact/size facts i2t/map i2t/median_rank i2t/recall@1
    i2t/recall@10 i2t/recall@5 pointing pointing_other pointing_random recall@1 rouge_l sensitivity specificity t2i/map
    t2i/median_rank t2i/recall@1 t2i/recall@10 t2i/recall@5""".split()
)
COSTS = {"flops", "seconds", "peak_bytes", "parameters_trained", "parameters_total"}


def rows():
    for folder in RECORDS:
        yield from map(json.loads, (folder / "results.jsonl").read_text(encoding="utf-8").splitlines())


def split_of(score):
    first, slash, rest = score.partition("/")
    return (first, rest) if slash and first in SPLITS else ("", score)


def test_the_names_of_what_is_published_are_known():
    found = {"tasks": set(), "arms": set(), "conditions": set(), "scores": set()}
    for row in rows():
        assert row["schema"] == records.SCHEMA == "mmkit.record/1" and row["cost"].keys() >= COSTS
        found["tasks"].add(row["task"])
        found["arms"].add(row["arm"])
        found["conditions"].update(row["condition"])
        found["scores"].update(map(split_of, row["scores"]))
    assert found["tasks"] == TASKS and found["arms"] == ARMS and found["conditions"] == CONDITIONS
    assert {split for split, _ in found["scores"]} == SPLITS and {metric for _, metric in found["scores"]} == METRICS


def test_what_claims_ask_for_is_published_under_these_names():
    asked = [term for claim in claims.read_claims() for term in claim.terms]
    published = {claim["id"] for folder in RECORDS for claim in batches.manifest(folder)["claims"]}
    for claim in claims.read_claims():
        for term in claim.terms if claim.id in published else ():
            assert term.arm in ARMS and term.condition.keys() <= CONDITIONS | {"data", "task"}
            assert term.cost in COSTS or split_of(term.score)[1] in METRICS
    assert asked


def scores(plan, metric):
    found = defaultdict(list)
    for result in records.read(ROOT / "notebooks" / "records" / plan):
        found[result.row["arm"]].append(result.row["scores"][metric])
    return found


def test_frozen_encoders_on_flickr8k_reach_the_figures_asked_for_over_three_seeds():
    least = {"i2t/recall@1": 0.23, "i2t/recall@5": 0.48, "i2t/recall@10": 0.60}
    least |= {"t2i/recall@1": 0.18, "t2i/recall@5": 0.44, "t2i/recall@10": 0.57}
    for metric, value in least.items():
        found = scores("flickr8k", metric)
        assert len(found["frozen"]) >= 3 and mean(found["frozen"]) >= value, metric


def test_random_weights_are_far_behind_and_the_slow_arms_are_one_seed():
    found = scores("flickr8k", "recall@1")
    assert mean(found["frozen"]) > 10 * max(mean(found["scratch"]), mean(found["component"]))
    assert min(found["scratch"]) > 1 / 1000, "chance is one photo in a thousand"
    assert len(found["holistic"]) == len(found["lp_ft"]) == 1


def test_a_frozen_encoder_captions_photographs_as_well_as_was_asked_and_far_better_than_without_the_photograph():
    names = ("bleu_4", "cider_d", "blank_image/cider_d")
    bleu, cider, blank = (scores("flickr8k_captioning", name) for name in names)
    assert max(bleu["frozen"]) >= 0.20 and max(cider["frozen"]) >= 0.50
    for arm in cider:
        for told, empty in zip(cider[arm], blank[arm], strict=True):
            assert told > 1.4 * empty, "chance is the caption of an empty picture"


@pytest.mark.slow
@pytest.mark.parametrize("folder", RECORDS, ids=lambda path: path.name)
def test_a_published_plan_is_whole_and_its_claims_are_those_declared(folder):
    batch = batches.load(folder)
    assert batch.complete and not batch.failures and not batch.missing, "every run of the plan is there"
    assert {result.row["profile"] for result in batch.results} <= {"lab", "full"}, "smoke is no evidence"
    ran, declared = batch.manifest["claims"], {claim.id: claim for claim in claims.read_claims()}
    stand = [declared[claim["id"]] for claim in ran]
    assert [claims.Claim.model_validate(claim) for claim in ran] == stand, "a claim changed after its runs: run again"
    told = "; ".join(history(batch.manifest).values()).split("; ")
    late = [part for part in told if part.startswith(("declared", "terms changed")) and "after its first run" in part]
    began = f"{datetime.fromisoformat(batch.manifest['started']).astimezone(UTC):%Y-%m-%d %H:%M}"
    late = [part for part in late if part.partition(" on ")[2] > began]  # before it, the seeds have to be fresh: below
    assert not late, "a claim, or what it tests, was written after this run of it: declare another"
    for verdict in report.verdicts(batch):
        assert verdict.verdict != "not evidence" and len(verdict.seeds) >= claims.FEWEST_SEEDS


ARCHIVED = sorted((ROOT / "notebooks" / "records" / "archive").glob("*/plan.json"))


@pytest.mark.parametrize("path", ARCHIVED, ids=lambda path: path.parent.name)
def test_a_claim_that_was_declared_anew_was_run_on_fresh_seeds(path):
    """Whoever changes what a claim tests has seen its runs: the new verdict comes from seeds that none of them used."""
    old = json.loads(path.read_text(encoding="utf-8"))
    tested = {claim["id"]: [claim["terms"], claim["smallest_effect"], claim["direction"]] for claim in old["claims"]}
    used = {row["seed"] for row in map(json.loads, path.with_name("results.jsonl").read_text("utf-8").splitlines())}
    again = 0
    for folder in RECORDS:
        for claim in batches.manifest(folder)["claims"]:
            now = [claim["terms"], claim["smallest_effect"], claim["direction"]]
            if tested.get(claim["id"], now) != now:
                again += 1
                seeds = {json.loads(line)["seed"] for line in (folder / "results.jsonl").open(encoding="utf-8")}
                assert not seeds & used, f"{claim['id']} was declared anew and run on seeds of its first run"
    assert again, "an archived plan whose claims did not change need not be archived"


def test_it_is_said_which_code_made_each_published_record(record_property):
    older = [folder.name for folder in RECORDS if batches.manifest(folder)["code_hash"] != code_hash()]
    if older:  # no failure: it is said in the summary, on each report, and by `mmkit runs list`
        told = f"{len(older)} of {len(RECORDS)} published plans were run by other code than the one that is here"
        record_property("older", f"{told}: {', '.join(older)}")
    lines = list(browse.published())
    assert len(lines) == len(RECORDS)
    for line, folder in zip(lines, RECORDS, strict=True):
        asked = batches.manifest(folder)
        assert line.startswith(f"{folder.name}: commit {asked['commit'][:12]}") and asked["code_hash"][:12] in line
        here = "the code that is here" if folder.name not in older else "not the code that is here now"
        assert line.endswith(f"({here})")
        assert batches.made_by(asked) in report.provenance(batches.load(folder)).loc["made by", ""]
