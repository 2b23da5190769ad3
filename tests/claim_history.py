"""When claims were declared and changed, by the history that git keeps of `claims.yaml`; for the tests of what is
published."""

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

import yaml

from mmkit.repro import paths
from mmkit.repro.claims import Claim

WORDING = ("statement", "source", "scope", "limits", "unit")  # the rest of a claim is what it tests


def history(manifest: dict, *, folder: Path | None = None) -> dict[str, str]:
    """For each claim of a plan's manifest, in a sentence: when it was declared and changed, by git, and what of that
    came after its first published run.

    What a run says of a claim counts as a version, since the file may be committed after the run that used it."""
    folder = folder or paths.notebooks()
    files = [(when, yaml.safe_load(text)["claims"]) for when, text in _versions(folder / "claims.yaml")]
    runs = [
        manifest,
        *(json.loads(text) for _, text in _versions(folder / "records" / manifest["plan"]["name"] / "plan.json")),
    ]
    ran = [
        (
            datetime.fromisoformat(run.get("declared", run["started"])),
            datetime.fromisoformat(run["started"]),
            run["claims"],
        )
        for run in runs
    ]
    versions = sorted([(when, None, claims) for when, claims in files] + ran, key=itemgetter(0))
    states = {claim["id"]: [] for claim in manifest["claims"]}
    for when, begun, claims in versions:
        for claim in claims:
            if claim["id"] in states:
                states[claim["id"]].append((when, begun, _full(claim)))
    return {name: _told(found) for name, found in states.items()}


def _full(claim: dict) -> dict:
    """A claim with its defaults, since what is not written is as if it were."""
    full = {name: claim.get(name, field.default) for name, field in Claim.model_fields.items()}
    full["terms"] = []
    for term in claim["terms"]:
        full["terms"].append({key: value for key, value in term.items() if value not in (None, {})})
    return full


def _told(states: list[tuple[datetime, datetime | None, dict]]) -> str:
    """The history of one claim, from its versions: when, when the run began that says so, and what it said."""
    day = lambda when: f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"  # noqa: E731
    first, committed = min(begun for _, begun, _ in states if begun), [when for when, begun, _ in states if not begun]
    if not committed:
        return f"not known: git has no history of this claim here; it was run as it stands on {day(first)}"
    late = (
        f"declared on {day(states[0][0])}, after its first run on record"
        if states[0][0] > first
        else f"declared with its first run on record, in git since {day(committed[0])}"
    )
    said = [
        (f"declared on {day(committed[0])}, before its first run on record" if committed[0] < first else late)
        + f" ({day(first)})"
    ]
    for (_, _, old), (when, _, new) in pairwise(states):
        if old != new:
            what = "wording" if all(old[key] == new[key] for key in old if key not in WORDING) else "terms"
            said.append(
                f"{what} changed on {day(when)}, {'after' if when > first else 'before'} its first run on record"
            )
    return "; ".join(said)


def _versions(path: Path) -> Iterator[tuple[datetime, str]]:
    """Time and text of every committed version of a file, oldest first; none outside of a git checkout, without git, or
    where the checkout is shallow."""
    git = partial(subprocess.run, cwd=path.parent, capture_output=True, encoding="utf-8", timeout=20, check=True)
    try:
        if git(["git", "rev-parse", "--is-shallow-repository"]).stdout.strip() == "false":
            for line in git(
                ["git", "log", "--reverse", "--diff-filter=AM", "--format=%H %cI", "--", path.name]
            ).stdout.splitlines():
                commit, when = line.split()
                yield datetime.fromisoformat(when), git(["git", "show", f"{commit}:./{path.name}"]).stdout
    except (OSError, subprocess.SubprocessError):  # no git, no repository or no such folder: nothing is known
        return
