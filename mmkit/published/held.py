"""Published verdicts held against those of runs made here, or on another platform: same or different, and by how much.

The two estimates of an effect are compared by their difference and its 95 % interval. Runs of the same seeds share
data, split and order, so their difference is paired by seed: what is left is what another machine or release does. Runs
of other seeds are independent, and their errors add.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from mmkit.errors import printable
from mmkit.repro import paths, report, runner
from mmkit.repro.batches import Batch, load
from mmkit.repro.claims import Verdict
from mmkit.repro.report import SIGNS, effect_text

HERE = "here"
Places = dict[str, tuple[Batch, list[Verdict]]]


@dataclass(frozen=True)
class Held:
    """One claim's verdict from two places. difference: of the second effect from the first, nan without two."""

    first: Verdict
    second: Verdict
    paired: bool = False
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def same(self) -> bool:
        """The verdict came out again."""
        return self.first.verdict == self.second.verdict

    @property
    def within(self) -> bool:
        """The effects differ by no more than what running again does: their difference's interval holds 0."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        verdict = "same verdict" if self.same else "another verdict"
        if _tests(self.first) != _tests(self.second):
            return f"{verdict}, on another claim: its terms or smallest effect changed"
        if math.isnan(self.difference):
            return f"{verdict}, one without a result"
        if self.paired and self.low == self.high == 0:
            return f"{verdict}, the same effect in every seed"
        what = "what running again does" if self.within else "MORE than running again does"
        if not self.within and max(abs(self.low), abs(self.high)) < self.first.claim.smallest_effect:
            what += ", too little to matter"
        seeds = "same seeds" if self.paired else "other seeds"
        interval = f"{self.difference:+.2g} [{self.low:+.2g}, {self.high:+.2g}]"
        return f"{verdict}; {interval} apart ({seeds}): {what}"


def _tests(verdict: Verdict) -> tuple:
    claim = verdict.claim
    return claim.terms, claim.direction, claim.smallest_effect, claim.scale


def hold(first: Sequence[Verdict], second: Sequence[Verdict]) -> list[Held]:
    """The claims that both places have, each held against the other."""
    others = {verdict.claim.id: verdict for verdict in second}
    return [_held(verdict, others[verdict.claim.id]) for verdict in first if verdict.claim.id in others]


def _held(first: Verdict, second: Verdict) -> Held:
    one, other = first.estimate, second.estimate
    if one is None or other is None or _tests(first) != _tests(second):
        return Held(first, second)
    difference, paired = float(other.effect - one.effect), first.seeds == second.seeds
    if paired:
        apart = np.asarray(other.effects) - np.asarray(one.effects)
        variance, df = float(apart.var(ddof=1)) / len(apart) if len(apart) > 1 else math.nan, len(apart) - 1
    else:
        parts = [(one.error**2, one.df), (other.error**2, other.df)]
        variance = sum(part for part, _ in parts)
        squares = sum(part**2 / df for part, df in parts)
        df = variance**2 / squares if squares else 1.0
    half = float(student.ppf(0.975, df) * math.sqrt(variance)) if df > 0 else math.nan
    return Held(first, second, paired, difference, difference - half, difference + half)


def places(found: Sequence[Verdict], batch: Batch, folder: Path) -> Places:
    """Where a plan's verdicts are from -> its batch and verdicts: published, published elsewhere (`@NAME`), here.

    found, batch, folder: the verdicts of the runs at hand, these runs, and where they lie.
    """
    name, known = batch.manifest["plan"]["name"], {}
    records, here = (paths.notebooks() / "records").resolve(), Path(folder).resolve()
    for published in [records / name, *sorted(records.glob(f"{name}@*"))]:
        if (published / "plan.json").exists():
            label = "published" if published.name == name else f"published @{published.name.partition('@')[2]}"
            theirs = batch if published == here else load(published)
            known[label] = theirs, list(found) if published == here else report.verdicts(theirs)
    if here.parent != records:
        known[HERE] = batch, list(found)
    return known


def table(known: Places) -> pd.DataFrame:
    """A line a claim and place: verdict, effect with interval, and how it compares with what is published.

    Empty where there is nothing to hold it against.
    """
    if len(known) < 2 or "published" not in known:
        return pd.DataFrame()
    first, lines = known["published"][1], []
    for label, (_, verdicts) in known.items():
        held = {each.first.claim.id: str(each) for each in hold(first, verdicts)} if label != "published" else {}
        for verdict in verdicts:
            name = verdict.claim.id
            line = {"claim": name, "where": label, "verdict": f"{SIGNS[verdict.verdict]} {verdict.verdict}"}
            line["effect [95 % interval]"] = effect_text(verdict)
            lines.append(line | {"against what is published": held.get(name, "–" if held else "")})
    order = {verdict.claim.id: number for number, verdict in enumerate(first)}
    frame = pd.DataFrame(lines).sort_values("claim", kind="stable", key=lambda ids: ids.map(order))
    return frame.set_index(["claim", "where"])


def summary(held: Sequence[Held]) -> str:
    """How many verdicts came out again, and how many effects differ by more than running again does."""
    compared = [each for each in held if not math.isnan(each.difference)]
    same, within = sum(each.same for each in held), sum(each.within for each in compared)
    chance = "one in twenty is expected to differ by more, by chance alone"
    effects = f"{within} of {len(compared)} effects differ by what running again does ({chance})"
    return f"{same} of {len(held)} verdicts are the same; {effects}"


def reproduce(
    plan: str = "head_to_head", *, workers: int | None = None, scheduler: str | None = None, dry_run: bool = False
) -> int:
    """Run a plan, write its report and say what was found beside what is published.

    Returns the exit code, 1 when runs are missing or failed.
    """
    batch = runner.run_plan(plan, workers=workers, scheduler=scheduler, dry_run=dry_run)
    if dry_run:
        return 0
    found, folder = report.verdicts(batch), paths.batch(batch.manifest["plan"]["name"])
    for verdict in found:
        what = f"{verdict.claim.id} {verdict.verdict}: {verdict.claim.statement}"
        print(printable(f"{SIGNS[verdict.verdict]} {what} ({effect_text(verdict)}; {verdict.reason})"))
    for failure in batch.failures:
        print(printable(f"FAILED {failure['label']}: {failure['message']}", 300))
    print(comparison(places(found, batch, folder)), end="")
    print(f"the report: {report.export(plan, batch=batch)}")
    return 0 if batch.complete else 1


def comparison(known: Places) -> str:
    """`table` and `summary` for a terminal, with what made each; empty where there is nothing to hold it against."""
    frame = table(known).reset_index()
    if frame.empty:
        return ""
    lines = ["", "held against what is published:"]
    for label, (batch, _) in known.items():
        lines.append(f"  {label}: {made(batch)}")
    widths = [frame[column].str.len().max() for column in frame]
    for *row, said in frame.itertuples(index=False):
        lines.append("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)).rstrip())
        lines += [f"    {said}"] if len(said) > 1 else []
    for label, (_, verdicts) in list(known.items())[1:]:
        lines.append(f"{label}: {summary(hold(known['published'][1], verdicts))}")
    return printable("\n".join(lines)) + "\n"


def made(batch: Batch) -> str:
    """When, by which code and release, on which processor a batch was made."""
    if not batch.headers:
        return "no run finished"
    header = batch.headers[0]
    torch, processor = header["versions"].get("torch", "?"), header["hardware"]["processor"]
    return f"{header['finished'][:10]}, code {batch.manifest['code_hash'][:12]}, torch {torch}, {processor}"
