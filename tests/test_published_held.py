"""What is published is held against what comes out here, verdict by verdict and effect beside effect."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from repro_data import batch_folder, claim, head_to_head

from mmkit import stats
from mmkit.published import held
from mmkit.repro import batches, claims, paths, report

pytestmark = pytest.mark.slow
CLAIM = claims.Claim.model_validate(claim())


def verdict(effects, *, name="supported", seeds=None, of_clusters=0.0, of=CLAIM):
    """A verdict whose effects are given; of_clusters: what clusters add to the variance of their mean."""
    effects = np.asarray(effects, dtype=float)
    error = float(np.sqrt(effects.var(ddof=1) / len(effects) + of_clusters))
    centre = float(effects.mean())
    ends = (centre - 2 * error, centre + 2 * error) * 2
    estimate = replace(ESTIMATE, effect=centre, error=error, df=len(effects) - 1.0, effects=effects)
    estimate = replace(estimate, low=ends[0], high=ends[1], low90=ends[0], high90=ends[1])
    return claims.Verdict(of, name, "as said", estimate, seeds=tuple(seeds or range(len(effects))))


ESTIMATE = stats.paired_bootstrap([stats.Term(np.arange(6.0)[:, None], np.ones((6, 1)), 1.0, None)], draws=10)
EFFECTS = np.random.default_rng(0).normal(0.1, 0.05, 10)


def one(first, second):
    (found,) = held.hold([first], [second])
    return found


def test_the_same_numbers_are_called_that():
    found = one(verdict(EFFECTS), verdict(EFFECTS))
    assert found.same and found.within and str(found) == "same verdict, the same effect in every seed"


def test_the_same_seeds_are_paired_so_a_small_shift_of_all_is_seen():
    noise = np.random.default_rng(1).normal(0, 0.002, 10)
    found = one(verdict(EFFECTS), verdict(EFFECTS + noise - noise.mean() + 0.0005, name="inconclusive"))
    assert found.paired and found.within and not found.same and found.difference == pytest.approx(0.0005)
    assert str(found).startswith("another verdict; +0.0005 [-0.0") and "(same seeds): what running again does" in str(
        found
    )
    shifted = one(verdict(EFFECTS), verdict(EFFECTS + noise + 0.01))
    assert str(shifted).endswith("MORE than running again does, too little to matter")
    assert not shifted.within and "(same seeds): MORE than running again does" in str(shifted)
    apart = one(verdict(EFFECTS), verdict(EFFECTS + noise + 0.01, seeds=range(10, 20)))
    assert apart.within and "(other seeds): what running again does" in str(apart), "the same shift, unpaired"


def test_other_seeds_add_their_errors_clusters_included():
    first, second = verdict(EFFECTS), verdict(EFFECTS + 0.08, seeds=range(10, 20))
    assert not one(first, second).within
    wide = verdict(EFFECTS + 0.08, seeds=range(10, 20), of_clusters=0.003)
    found = one(first, wide)
    assert found.within and found.high - found.low > 2 * np.sqrt(first.estimate.error**2 + 0.003)


@pytest.mark.parametrize("paired", [True, False])
def test_where_nothing_differs_one_in_twenty_is_told_to(paired):
    rng, outside, repeats = np.random.default_rng(2), 0, 2000
    for _ in range(repeats):
        first = rng.normal(0.1, 0.05, 10)
        second = first + rng.normal(0, 0.01, 10) if paired else rng.normal(0.1, 0.05, 10)
        outside += not one(
            verdict(first), verdict(second, seeds=range(0 if paired else 10, 10 if paired else 20))
        ).within
    assert 0.035 < outside / repeats < 0.065


def test_another_claim_and_a_lost_result_are_not_compared():
    changed = CLAIM.model_copy(update={"smallest_effect": 0.5})
    found = one(verdict(EFFECTS), verdict(EFFECTS, of=changed))
    assert str(found) == "same verdict, on another claim: its terms or smallest effect changed"
    lost = replace(verdict(EFFECTS), estimate=None, verdict="not evidence")
    assert str(one(verdict(EFFECTS), lost)) == "another verdict, one without a result"
    other = verdict(EFFECTS, of=CLAIM.model_copy(update={"id": "C9"}))
    assert held.hold([verdict(EFFECTS)], [other]) == []
    said = held.summary([found, one(verdict(EFFECTS), lost), one(verdict(EFFECTS), verdict(EFFECTS))])
    assert said.startswith(
        "2 of 3 verdicts are the same; 1 of 1 effects differ by what running again does (one in twenty"
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Published records of a toy plan, and another platform's; returns the folder of runs of one's own."""
    folder = tmp_path / "notebooks"
    (folder / "records").mkdir(parents=True)
    (folder / "claims.yaml").write_bytes((ROOT / "notebooks" / "claims.yaml").read_bytes())
    monkeypatch.setattr(paths, "notebooks", lambda: folder)
    batch_folder(folder / "records" / "toy", head_to_head(), [claim()])
    batch_folder(folder / "records" / "toy@torch-2.11", head_to_head(gain=-0.1), [claim()])
    return batch_folder(tmp_path / "runs" / "toy", head_to_head(), [claim()])


def test_the_terminal_shows_published_platforms_and_here_one_under_the_other(place):
    batch = batches.load(place)
    known = held.places(report.verdicts(batch), batch, place)
    assert list(known) == ["published", "published @torch-2.11", "here"]
    lines = held.comparison(known).splitlines()
    assert lines[1] == "held against what is published:" and lines[2].startswith("  published: 2026-01-01, code 0000")
    assert lines[4].startswith("  here: 2026-01-01, code 000000000000, torch ")
    published, elsewhere, moved, here, same = lines[-7:-2]
    assert [line.split()[:2] for line in (published, elsewhere, here)] == [
        ["C1", "published"],
        ["C1", "published"],
        ["C1", "here"],
    ]
    assert "✔ supported" in published and "✘ contradicted" in elsewhere and "✔ supported" in here
    assert moved.startswith("    another verdict; -0.") and moved.endswith("(same seeds): MORE than running again does")
    assert same == "    same verdict, the same effect in every seed"
    assert lines[-1].startswith("here: 1 of 1 verdicts are the same; 1 of 1 effects")
    assert lines[-2].startswith("published @torch-2.11: 0 of 1 verdicts are the same; 0 of 1 effects")


def test_without_anything_to_hold_against_nothing_is_said(place):
    records = paths.notebooks() / "records"
    shutil.rmtree(records / "toy@torch-2.11")
    published = batches.load(records / "toy")
    assert held.comparison(held.places(report.verdicts(published), published, records / "toy")) == ""
    shutil.rmtree(records / "toy")
    assert held.comparison(held.places(report.verdicts(published), published, place)) == ""


def test_the_report_shows_both_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path))
    shutil.copytree(ROOT / "notebooks" / "records" / "lp_ft", tmp_path / "lp_ft")
    text = report.export("lp_ft").read_text(encoding="utf-8")
    shown = text[text.index("Does it come out again?") :]
    assert ">published</th>" in shown and ">here</th>" in shown and "the same effect in every seed" in shown
    assert (
        "here: 2026-" in shown
        and "7 of 7 verdicts are the same; 7 of 7 effects differ by what running again does" in shown
    )
    assert "Verdicts it was given" in text and "2026-11-22 supported, -0.009" in text
