"""The history of claims by git, as the test of what is published asks for it."""

import json
import os
import subprocess
from datetime import UTC, datetime

import pytest
import yaml
from claim_history import history
from repro_data import claim

from mmkit.repro.claims import Claim


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
        path.write_text(
            json.dumps(entries) if file.endswith("json") else yaml.safe_dump({"claims": entries}), encoding="utf-8"
        )
        git("add", ".")
        git("commit", "-m", "a change", hour=hour)

    git("init")
    commit.folder = tmp_path / "notebooks"
    return commit


def run_at(hour, *entries, results=None):
    """The manifest of a plan that was started at that hour, with results that were there since another."""
    asked, begun = (datetime(2026, 3, 1, when, tzinfo=UTC).isoformat() for when in (hour, results or hour))
    since = {"declared": asked} if results else {}
    return {
        "plan": {"name": "toy"},
        "started": begun,
        "claims": [Claim.model_validate(entry).model_dump() for entry in entries],
    } | since


def test_the_history_of_a_claim_is_that_of_git(checkout):
    first = claim("C1")
    checkout(1, [first, claim("C2")])
    checkout(2, [first, claim("C2"), claim("C3")])
    checkout(3, [first | {"limits": "toys"}, claim("C2"), claim("C3")])
    last = first | {"limits": "toys", "smallest_effect": 0.05}
    checkout(6, [last, claim("C2"), claim("C3")])
    told = history(run_at(5, first | {"limits": "toys"}, claim("C2")), folder=checkout.folder)
    assert told[
        "C2"
    ] == "declared on 2026-03-01 01:00 UTC, before its first run on record (2026-03-01 05:00 UTC)" and set(told) == {
        "C1",
        "C2",
    }
    assert told["C1"] == (
        f"{told['C2']}; wording changed on 2026-03-01 03:00 UTC, before its first run on record; terms changed on "
        f"2026-03-01 06:00 UTC, after its first run on record"
    )


def test_an_earlier_published_run_counts_although_the_plan_was_run_again(checkout):
    weak = claim("C1", smallest_effect=0.05)
    checkout(1, [weak])
    checkout(3, run_at(2, weak), file="records/toy/plan.json")
    checkout(4, [claim("C1")])
    told = history(run_at(7, claim("C1")), folder=checkout.folder)["C1"]
    assert (
        "first run on record (2026-03-01 02:00 UTC); terms changed on 2026-03-01 04:00 UTC, after its first run" in told
    )


def test_what_was_declared_or_changed_after_the_first_result_is_told_as_that_when_the_plan_is_run_again(checkout):
    weak = claim("C1", smallest_effect=0.05)
    checkout(1, [weak])
    said = (
        "declared on 2026-03-01 01:00 UTC, before its first run on record (2026-03-01 05:00 UTC); terms changed on "
        "2026-03-01 0{}:00 UTC, after its first run on record"
    )
    assert history(run_at(7, claim("C1"), results=5), folder=checkout.folder)["C1"] == said.format(7), "not in git yet"
    checkout(6, [claim("C1"), claim("C2")])
    told = history(run_at(7, claim("C1"), claim("C2"), results=5), folder=checkout.folder)
    assert told == {
        "C1": said.format(6),
        "C2": "declared on 2026-03-01 06:00 UTC, after its first run on record (2026-03-01 05:00 UTC)",
    }
    begun = {
        "started": run_at(5)["started"],
        "declared": run_at(4)["started"],
    }  # written down by a call that made no run
    assert history(run_at(5, claim("C2")) | begun, folder=checkout.folder)["C2"].startswith(
        "declared with its first run on record"
    )


def test_a_claim_committed_with_its_records_is_told_as_that(checkout):
    checkout(1, [claim("C2")])
    checkout(4, [claim("C2"), claim("C1")])
    told = history(run_at(3, claim("C1")), folder=checkout.folder)["C1"]
    assert told == "declared with its first run on record, in git since 2026-03-01 04:00 UTC (2026-03-01 03:00 UTC)", (
        "what a run wrote down was declared then"
    )


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
    subprocess.run(
        ["git", "clone", "--depth", "1", f"file://{tmp_path}", str(tmp_path / "shallow")],
        check=True,
        capture_output=True,
    )
    assert "declared on" in history(manifest, folder=checkout.folder)["C1"]
    assert history(manifest, folder=tmp_path / "shallow" / "notebooks") == {"C1": unknown}, (
        "half a history would give wrong dates"
    )
    monkeypatch.setenv("PATH", str(tmp_path / "plain"))
    assert history(manifest, folder=checkout.folder) == {"C1": unknown}, "no git at all"
