"""Claims, written down before the run, and the verdicts their records earn."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator
from scipy.stats import t as student

from mmkit.errors import MmkitError, unknown
from mmkit.repro import paths, stats
from mmkit.repro.plan import STRICT, Plan
from mmkit.repro.records import Result
from mmkit.repro.stats import FEWEST_SEEDS
from mmkit.yamls import read_model

LEVEL = 0.05
RULE = (
    "The effect is the weighted sum of the terms' mean scores, paired by seed; its 95 % interval is a two-level "
    "bootstrap over seeds and clusters. There is evidence of a difference when the interval leaves 0 out and the "
    "claim's two-sided test, adjusted by Holm within its family, has p <= 0.05. "
    "In this order: not evidence - a smoke run, or fewer than 6 seeds; equivalent - the 90 % interval lies within the "
    "smallest effect that matters (TOST); "
    "supported - evidence in the claimed direction, and the effect is at least the smallest that matters; "
    "contradicted - evidence in the opposite direction; inconclusive - everything else. A claim of equality is "
    "supported when TOST passes, and contradicted by evidence of an effect at least as large as the smallest that "
    "matters."
)
COST = Literal["flops", "seconds", "peak_bytes", "parameters_trained", "parameters_total"]


class ClaimTerm(BaseModel):
    """A mean score, or a cost, of one arm under a condition; `condition` may also ask for `data` and `task`."""

    model_config = STRICT
    arm: str
    score: str | None = None
    cost: COST | None = None
    condition: dict[str, object] = {}
    weight: float

    @model_validator(mode="after")
    def _one_of(self):
        if (self.score is None) == (self.cost is None) or self.weight == 0:
            raise ValueError("a term needs either score or cost, and a weight that is not 0")
        return self

    def __str__(self) -> str:
        under = ", ".join(f"{name}={value}" for name, value in self.condition.items())
        return f"{self.arm} {self.score or self.cost}" + (f" ({under})" if under else "")


class Claim(BaseModel):
    """A claim declared before its runs.

    test: `sign-flip` takes the larger p-value of the sign-flip test over seeds and the two-way t test over seeds and
    clusters; `t` takes the latter alone (with 6 seeds the sign-flip test cannot pass Holm in a family of two).
    """

    model_config = STRICT
    id: str
    statement: str
    source: str
    family: str
    scope: str
    limits: str = ""
    direction: Literal["greater", "less", "equal"]
    smallest_effect: Annotated[float, Field(gt=0)]
    unit: str
    scale: Literal["identity", "log2"] = "identity"
    terms: Annotated[list[ClaimTerm], Field(min_length=1)]
    seeds: Annotated[int, Field(ge=FEWEST_SEEDS)] = 10
    test: Literal["sign-flip", "t"] = "sign-flip"

    @model_validator(mode="after")
    def _logarithms_of_costs(self):
        if self.scale == "log2" and any(term.cost is None for term in self.terms):
            raise ValueError("the scale log2 is for claims whose terms are all costs")
        return self

    @property
    def sign(self) -> int:
        """+1, or -1 when the claim is of a smaller value."""
        return -1 if self.direction == "less" else 1


class ClaimFile(BaseModel):
    """`claims.yaml`."""

    model_config = STRICT
    claims: list[Claim]

    @model_validator(mode="after")
    def _ids_differ(self):
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) < len(ids):
            raise ValueError(f"the claim {next(name for name in ids if ids.count(name) > 1)!r} is there twice")
        return self


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    estimate: None when no result matches it. p: of the claim's test; p_holm: adjusted within its family. improvement:
    the share of seeds whose effect has the claimed sign. compute_ratio: FLOPs of the terms with positive weight over
    those with negative weight, None without both. detectable: nan with one seed, which says nothing of their spread.
    left_out: seeds that not every term has.
    """

    claim: Claim
    verdict: str
    reason: str
    estimate: stats.Estimate | None = None
    p: float = 1.0
    p_holm: float = 1.0
    improvement: float = math.nan
    detectable: float = math.nan
    compute_ratio: float | None = None
    seeds: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()


def read_claims(ids: Sequence[str] | None = None, path: Path | None = None) -> list[Claim]:
    """Claims by their ids, in that order (default: all), from `notebooks/claims.yaml`. Raises: MmkitError."""
    claims = {claim.id: claim for claim in read_model(path or paths.notebooks() / "claims.yaml", ClaimFile).claims}
    for name in ids or ():
        if name not in claims:
            raise unknown("claim", name, claims)
    return [claims[name] for name in ids or claims]


def waiting(manifest: dict) -> dict[str, list[Claim]]:
    """The claims that neither a published run nor the manifest's own puts to the test.

    They are listed by the plan that would test them; `""` holds those without a plan.
    """
    folder, found = paths.notebooks(), {}
    published = map(paths.read_json, folder.glob("records/*/plan.json"))
    ran = {claim["id"] for run in (manifest, *published) for claim in run["claims"]}
    plans = {path.stem: read_model(path, Plan).claims for path in sorted(folder.glob("plans/*.yaml"))}
    planned = {name: plan for plan, names in plans.items() for name in names}
    for claim in read_claims():
        if claim.id not in ran:
            found.setdefault(planned.get(claim.id, ""), []).append(claim)
    return found


def evaluate(
    claims: Iterable[Claim],
    results: Sequence[Result],
    *,
    declared: Iterable[Claim] = (),
    incomplete: bool = False,
    draws: int = 10_000,
) -> list[Verdict]:
    """The verdict on each claim, by `RULE`. Families are those among the given claims.

    declared: all claims there are; one of the same family that is not given counts in Holm's adjustment with p = 1,
    which makes the others' p no smaller than its own would. incomplete: runs of the plan are missing, so that a claim
    without results is a row of the table and not an error.
    Raises: MmkitError when a term matches no result, or several of one seed; it lists what there is.
    """
    measured = [_measure(claim, results, incomplete=incomplete, draws=draws) for claim in claims]
    given, adjusted = {verdict.claim.id for verdict in measured}, {}
    elsewhere = [claim for claim in declared if claim.id not in given]
    for family in {verdict.claim.family for verdict in measured}:
        known = {verdict.claim.id: verdict.p for verdict in measured if verdict.claim.family == family}
        known |= {claim.id: 1.0 for claim in elsewhere if claim.family == family}
        adjusted |= dict(zip(known, map(float, stats.holm(list(known.values()))), strict=True))
    verdicts = []
    for verdict in measured:
        p = adjusted[verdict.claim.id]
        name, reason = (
            (verdict.verdict, verdict.reason) if verdict.verdict else decide(verdict.claim, verdict.estimate, p)
        )
        verdicts.append(replace(verdict, p_holm=p, verdict=name, reason=reason))
    return verdicts


def decide(claim: Claim, estimate: stats.Estimate, p: float) -> tuple[str, str]:
    """Verdict and its reason, by `RULE`, for runs that can be evidence. p: the adjusted p-value."""
    margin = claim.smallest_effect
    evidence = p <= LEVEL and not estimate.low <= 0 <= estimate.high
    large = abs(estimate.effect) >= margin
    if stats.tost(estimate, margin):
        return (
            "supported" if claim.direction == "equal" else "equivalent"
        ), "the 90 % interval lies within the smallest effect that matters"
    if claim.direction == "equal":
        if evidence and large:
            return "contradicted", "evidence of a difference that matters"
        return "inconclusive", "neither equality nor a difference that matters is shown"
    if evidence and estimate.effect * claim.sign < 0:
        return "contradicted", "evidence in the opposite direction"
    if evidence and large:
        return "supported", "evidence in the claimed direction, of a size that matters"
    if evidence:
        small = "the effect is below the smallest that matters and equivalence is not shown"
        return "inconclusive", f"the direction is as claimed, but {small}"
    if estimate.low <= 0 <= estimate.high:
        return "inconclusive", "the interval holds 0"
    return "inconclusive", f"p = {p:.3f} after Holm's adjustment"


def _measure(claim: Claim, results: Sequence[Result], *, incomplete: bool, draws: int) -> Verdict:
    """A claim's numbers; its verdict is left empty when the rule must decide."""
    matched = [match(claim.id, term, results) for term in claim.terms]
    seeds = sorted(set.intersection(*map(set, matched)))
    left_out = tuple(sorted(set.union(*map(set, matched)) - set(seeds)))
    if not seeds:
        absent = [term for term, found in zip(claim.terms, matched, strict=True) if not found]
        lack = (
            f"no result matches {absent[0]}; there are {_what_exists(results)}" if absent else "its terms share no seed"
        )
        if not incomplete:
            raise MmkitError(f"claim {claim.id}: {lack}")
        return Verdict(claim, "inconclusive", f"claim {claim.id}: {lack}", left_out=left_out)
    asked = []
    for term, found in zip(claim.terms, matched, strict=True):
        asked.append((term.weight, term.score, term.cost, [found[seed] for seed in seeds]))
    terms = aligned_terms(asked)
    if claim.scale == "log2":
        terms = [_log2(claim, number, term) for number, term in enumerate(terms)]
    estimate = stats.paired_bootstrap(terms, draws=draws)
    p = two_way_p(estimate)
    if claim.test == "sign-flip":
        p = max(p, stats.sign_flip(estimate.effects))
    smoke = any(result.row["profile"] == "smoke" for _, _, _, found in asked for result in found)
    few = f"{len(seeds)} seeds, at least {FEWEST_SEEDS} are needed" if len(seeds) < FEWEST_SEEDS else ""
    barred = "a smoke run" if smoke else few
    return Verdict(
        claim,
        "not evidence" if barred else "",
        barred,
        estimate,
        p=p,
        improvement=stats.probability_of_improvement(claim.sign * estimate.effects),
        detectable=stats.smallest_detectable(estimate) if len(seeds) > 1 else math.nan,
        compute_ratio=_compute_ratio(claim, matched, seeds),
        seeds=tuple(seeds),
        left_out=left_out,
    )


def two_way_p(estimate: stats.Estimate) -> float:
    """Two-sided p-value of effect / error on Student's t; the error holds seeds and clusters."""
    if estimate.error == 0:
        return 1.0 if estimate.effect == 0 else 0.0
    return float(2 * student.sf(abs(estimate.effect) / estimate.error, estimate.df))


def match(claim: str, term: ClaimTerm, results: Sequence[Result]) -> dict[int, Result]:
    """seed -> the one result a term asks for. Raises: MmkitError when several of one seed fit, saying what differs."""
    found: dict[int, Result] = {}
    for result in results:
        condition = result.condition
        fits = all(name in condition and condition[name] == value for name, value in term.condition.items())
        if (
            result.row["arm"] != term.arm
            or not fits
            or (term.score is not None and term.score not in result.row["scores"])
        ):
            continue
        seed = result.row["seed"]
        if seed in found:
            other = found[seed].condition
            differ = {name: (other.get(name), value) for name, value in condition.items() if other.get(name) != value}
            hint = f"they differ in {differ}: name one in the term's condition"
            same = "they do not differ: the arm was recorded twice under one condition"
            several = f"claim {claim}: {term} matches several results of seed {seed}"
            raise MmkitError(f"{several}; {hint if differ else same}")
        found[seed] = result
    return found


def _what_exists(results: Sequence[Result]) -> str:
    """Arms, scores and condition values of the results, in one line."""
    values: dict[str, set[str]] = {"arm": set(), "score": set()}
    for result in results:
        values["arm"].add(result.row["arm"])
        values["score"].update(result.row["scores"])
        for name, value in result.condition.items():
            values.setdefault(name, set()).add(str(value))
    found = (f"{name} {', '.join(sorted(some))}" for name, some in values.items())
    return "; ".join(found) if results else "no results at all"


def aligned_terms(asked: Sequence[tuple[float, str | None, str | None, Sequence[Result]]]) -> list[stats.Term]:
    """(weight, score or None, cost or None, one result a seed) as terms.

    A score gives (S, C) sums and counts of its items, with common cluster columns where data and split are the same.
    A cost, or a median, gives one number a seed.
    """
    built: list[stats.Term | None] = [None] * len(asked)
    spaces: dict[tuple, list[int]] = {}
    for number, (weight, score, cost, results) in enumerate(asked):
        if cost is None and all(result.row["metrics"][score]["aggregate"] == "mean" for result in results):
            data = tuple(result.row["data_hash"] for result in results)
            spaces.setdefault((data, score.rpartition("/")[0]), []).append(number)
        else:
            values = [result.row["scores"][score] if cost is None else result.row["cost"][cost] for result in results]
            column = np.array(values, dtype=float)[:, None]
            built[number] = stats.Term(column, np.ones_like(column), weight, None)
    for space, members in spaces.items():
        blocks = np.unique(space[0], return_inverse=True)[1]  # clusters of different data are different clusters
        parts = []
        for number in members:
            _, score, _, results = asked[number]
            parts += [(block, *result.items_of(score)) for block, result in zip(blocks, results, strict=True)]
        total, count = _by_cluster(parts)
        for place, number in enumerate(members):
            rows = slice(place * len(blocks), (place + 1) * len(blocks))
            built[number] = stats.Term(total[rows], count[rows], asked[number][0], space)
    return built


def _by_cluster(parts: list[tuple[int, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(block, values, clusters) of each part -> sums and counts, (parts, C), over the clusters of all."""
    codes = np.unique(np.concatenate([clusters for _, _, clusters in parts]), return_inverse=True)[1]
    lengths = [len(values) for _, values, _ in parts]
    blocks = np.repeat([block for block, _, _ in parts], lengths)
    labels, columns = np.unique(blocks * (codes.max() + 1) + codes, return_inverse=True)
    total, count = np.zeros((2, len(parts), len(labels)))
    for number, mine in enumerate(np.split(columns, np.cumsum(lengths)[:-1])):
        total[number] = np.bincount(mine, parts[number][1], len(labels))
        count[number] = np.bincount(mine, minlength=len(labels))
    return total, count


def _log2(claim: Claim, number: int, term: stats.Term) -> stats.Term:
    if term.total.min() <= 0:
        what = f"{claim.terms[number]} is {term.total.min():g} for a seed, and its logarithm is asked for"
        raise MmkitError(f"claim {claim.id}: {what}: claim it on the identity scale")
    return stats.Term(np.log2(term.total), term.count, term.weight, None)


def _compute_ratio(claim: Claim, matched: list[dict[int, Result]], seeds: list[int]) -> float | None:
    """FLOPs spent for the terms of positive weight over those of negative weight, the geometric mean over seeds.

    None where both sides hold the same arms, or one side is empty.
    """
    gains, losses = np.zeros((2, len(seeds)))
    arms = {True: set(), False: set()}
    for term, found in zip(claim.terms, matched, strict=True):
        arms[term.weight > 0].add(term.arm)
        side = gains if term.weight > 0 else losses
        side += [found[seed].row["cost"]["flops"] for seed in seeds]
    if arms[True] == arms[False] or not (gains.min() > 0 and losses.min() > 0):
        return None
    return float(2 ** np.mean(np.log2(gains / losses)))
