"""Every verdict that was ever published, one line each, in `notebooks/records/history.jsonl`: lines are only added.

A line: claim, plan (`PLAN@NAME` on another platform), date, verdict, effect with its interval, p (Holm), unit and
scale, seeds, compute ratio, code hash, versions, platform, and why the verdict is another than the one before.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mmkit.errors import MmkitError, printable
from mmkit.files import write_whole
from mmkit.repro import paths
from mmkit.repro.batches import Batch
from mmkit.repro.claims import Verdict
from mmkit.repro.execute import now
from mmkit.repro.report import interval_text

FIELDS = (
    "claim", "plan", "date", "verdict", "effect", "low", "high", "p", "unit", "scale", "seeds", "ratio", "code",
    "versions", "platform", "why",
)  # fmt: skip
PACKAGES = ("python", "torch", "numpy", "transformers", "timm")
FIRST, SAME = "first published", "published again; the verdict stays"


def path() -> Path:
    """Where the history is. Raises: MmkitError without a checkout."""
    return paths.notebooks() / "records" / "history.jsonl"


def read(file: Path | None = None) -> list[dict]:
    """Every line, in the order they were published. Raises: MmkitError for a damaged one, with its number."""
    file, found = file or path(), []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else (), start=1):
        try:
            entry = json.loads(line)
            lacks = set(FIELDS) - entry.keys()
            if lacks or entry["verdict"] == "":
                raise ValueError(f"it has no {', '.join(sorted(lacks)) or 'verdict'}")
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            remedy = "restore it from version control; lines are only added, by 'mmkit report PLAN --publish'"
            raise MmkitError(f"{file}, line {number} is damaged ({printable(error)}): {remedy}") from error
        found.append(entry)
    return found


def latest(entries: Sequence[dict], plan: str) -> dict[str, dict]:
    """claim id -> the last line of a plan."""
    return {entry["claim"]: entry for entry in entries if entry["plan"] == plan}


def lines(name: str, batch: Batch, found: Sequence[Verdict], why: str = "", file: Path | None = None) -> list[dict]:
    """The lines that publishing these verdicts adds; none for a claim of which the last line says the same.

    name: the plan, or `PLAN@NAME`. why: a sentence for the verdicts that changed.
    Raises: MmkitError when a verdict changed and no `why` is given.
    """
    before, added, changed = latest(read(file), name), [], []
    for verdict in found:
        old = before.get(verdict.claim.id)
        entry = _entry(name, batch, verdict, why.strip() or (SAME if old else FIRST))
        if not old or any(old[field] != entry[field] for field in ("verdict", "effect", "low", "high", "code")):
            added.append(entry)
        if old and old["verdict"] != entry["verdict"]:
            changed.append(f"{entry['claim']} was {old['verdict']} and is {entry['verdict']}")
    if changed and not why.strip():
        raise MmkitError(f"{'; '.join(changed)}: say why, for the card: --why 'rates are tuned for each seed now'")
    return added


def append(added: Sequence[dict], file: Path | None = None) -> None:
    """Add lines at the end."""
    entries, file = read(file), file or path()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(f"{json.dumps(entry)}\n" for entry in [*entries, *added]))


def _entry(name: str, batch: Batch, verdict: Verdict, why: str) -> dict:
    claim, estimate, header = verdict.claim, verdict.estimate, batch.headers[0]
    numbers = {field: _six(getattr(estimate, field)) if estimate else None for field in ("effect", "low", "high")}
    told = {"claim": claim.id, "plan": name, "date": now()[:10]}
    told |= {"verdict": verdict.verdict, **numbers, "p": _six(verdict.p_holm), "unit": claim.unit, "scale": claim.scale}
    told |= {"seeds": list(verdict.seeds), "ratio": _six(verdict.compute_ratio) if verdict.compute_ratio else None}
    told |= {"code": batch.manifest["code_hash"][:16]}
    told |= {"versions": {name: header["versions"][name] for name in PACKAGES if name in header["versions"]}}
    return told | {"platform": f"{header['hardware']['processor']}, {header['hardware']['system']}", "why": why}


def _six(value: float) -> float:
    return float(f"{value:.6g}")


def given(entries: Sequence[dict], plan: str = "") -> Callable[[str], str]:
    """A function from a claim's id to every verdict it was given and why, a line each.

    plan: the one whose name need not be told.
    """

    def of(claim: str) -> str:
        lines = []
        for entry in entries:
            if entry["claim"] == claim:
                where = "" if entry["plan"] == plan else f" ({entry['plan']})"
                lines.append(f"{entry['date']}{where} {entry['verdict']}, {effect_of(entry)}: {entry['why']}")
        return "\n".join(lines)

    return of


def effect_of(entry: dict) -> str:
    """Effect and interval of a line, as reports write them."""
    if entry["effect"] is None:
        return "no result"
    return interval_text(*(entry[name] for name in ("effect", "low", "high", "unit", "scale")))
