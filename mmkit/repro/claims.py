"""Claims, written down before the run, and the verdicts their records earn."""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field, model_validator

from mmkit import stats
from mmkit.errors import MmkitError, unknown
from mmkit.repro import guards, paths
from mmkit.repro.matching import Asked, aligned_terms, compute_ratio, log2_term, match, what_exists
from mmkit.repro.plan import STRICT, Plan
from mmkit.repro.records import Result
from mmkit.stats import FEWEST_SEEDS
from mmkit.yamls import read_model

LEVEL = 0.05
RULE = (
    "The effect is the weighted sum of the terms' mean scores, paired by seed; its 95 % interval is a two-level "
    "bootstrap over seeds and clusters. There is evidence of a difference when the interval leaves 0 out and the "
    "claim's two-sided test has p <= 0.05, and evidence of equality when the 90 % interval lies within the smallest "
    "effect that matters and two one-sided tests (TOST) have p <= 0.05; both p-values are adjusted by Holm within the "
    "claim's family. In this order: "
    "not evidence - a smoke run, fewer than 6 seeds, or fewer than 10 effective clusters (1 / the sum of their squared "
    "shares of the items); "
    "not tuned alike - a run did not choose its learning rate by its own seed's validation, from the grid of the "
    "others, or the rate lies on the edge of that grid; "
    "unstable - an arm fell to chance in some of its runs and not in all: the shares of collapsed runs are compared; "
    "nothing learned to compare - all scores lie within noise of chance, or of a model that never joins the "
    "modalities; nothing left to tell apart - all lie within noise of an oracle; "
    "equivalent - evidence of equality; "
    "supported - evidence in the claimed direction, and the whole interval lies beyond the smallest effect that "
    "matters; direction only - evidence in the claimed direction alone; "
    "contradicted - evidence in the opposite direction; "
    "excluded - the interval holds no effect as large as the smallest that matters; "
    "inconclusive - everything else. A claim of equality is supported by evidence of equality, and contradicted by an "
    "interval wholly beyond the smallest effect that matters and p <= 0.05 for a difference larger than that. "
    "A verdict comes out again with the stated probability on as many new seeds as the claim declares, and as large a "
    "test set, by the predictive distribution of the effects; cost is not tuned, so only scores have to be."
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

    estimate: None when no result matches it. p: of the claim's test (of equality, for such a claim); p_holm: adjusted
    within its family. replication: how likely the same verdict is on other seeds, nan where no effect is judged.
    improvement: the share of seeds whose effect has the claimed sign. passes: which arms had not converged.
    compute_ratio: FLOPs of the terms with positive weight over those with negative weight, None without both.
    detectable: nan with one seed, which says nothing of their spread. left_out: seeds that not every term has.
    """

    claim: Claim
    verdict: str
    reason: str
    estimate: stats.Estimate | None = None
    p: float = 1.0
    p_holm: float = 1.0
    replication: float = math.nan
    improvement: float = math.nan
    detectable: float = math.nan
    compute_ratio: float | None = None
    seeds: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    passes: str = ""

    @property
    def in_favour(self) -> str:
        """In how many seeds the effect has the claimed sign, ties as half: `7.5 of 10`."""
        return f"{self.improvement * len(self.seeds):g} of {len(self.seeds)}"


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
    which makes the others' p no smaller than its own would; so does one that a guard keeps from a verdict.
    incomplete: runs of the plan are missing, so that a claim without results is a row of the table and not an error.
    Raises: MmkitError when a term matches no result, or several of one seed; it lists what there is.
    """
    measured = [_measure(claim, results, incomplete=incomplete, draws=draws) for claim in claims]
    given = {verdict.claim.id for verdict in measured}
    elsewhere = [claim.family for claim in declared if claim.id not in given]
    judged = {}
    for family in {verdict.claim.family for verdict in measured}:
        members = [verdict for verdict in measured if verdict.claim.family == family]
        for verdict in _judge(members, elsewhere.count(family)):
            judged[verdict.claim.id] = verdict
    return [judged[verdict.claim.id] for verdict in measured]


def _judge(members: Sequence[Verdict], others: int) -> list[Verdict]:
    """The verdicts of one family, which has `others` more claims."""
    open_ = [verdict for verdict in members if not verdict.verdict]
    if not open_:
        return list(members)
    now, again = [], []
    for verdict in open_:
        now.append(p_values(verdict.claim, verdict.estimate)[..., None])
        drawn = stats.replicates(verdict.estimate, verdict.claim.seeds, seed=zlib.crc32(verdict.claim.id.encode()))
        again.append((drawn, p_values(verdict.claim, drawn, draws=4000)))
    others += len(members) - len(open_)
    adjusted, adjusted_again = _holm(now, others), _holm([p for _, p in again], others)
    done = {}
    for verdict, (p,), (drawn, _), of_drawn in zip(
        open_, adjusted.transpose(0, 2, 1), again, adjusted_again, strict=True
    ):
        name, reason = decide(verdict.claim, verdict.estimate, *p)
        same = float((outcome(verdict.claim, drawn, *of_drawn) == name).mean())
        reason = "; ".join(filter(None, [reason, verdict.passes]))
        p_holm = float(p[int(verdict.claim.direction == "equal")])
        done[verdict.claim.id] = replace(verdict, verdict=name, reason=reason, p_holm=p_holm, replication=same)
    return [done.get(verdict.claim.id, verdict) for verdict in members]


def _holm(p: Sequence[np.ndarray], others: int) -> np.ndarray:
    """(claims, 2, R) p-values adjusted within their family; each of the others has p = 1."""
    return stats.holm([*p, *[np.ones_like(one) for one in p[:1] for _ in range(others)]])[: len(p)]


def p_values(claim: Claim, estimate: stats.Estimate, *, draws: int = 100_000) -> np.ndarray:
    """(2,) p-values of a difference and of equality; (2, R) of an estimate of arrays.

    The difference is from 0 or, for a claim of equality, from the smallest effect that matters, on either side.
    """
    beyond = claim.smallest_effect if claim.direction == "equal" else 0.0
    p = stats.two_way_p(estimate, beyond)
    if claim.test == "sign-flip":
        shift = beyond * np.sign(estimate.effects.mean(axis=-1, keepdims=True))
        p = np.maximum(p, stats.sign_flip(estimate.effects - shift, draws=draws))
    return np.array([p, stats.tost_p(estimate, claim.smallest_effect)])


def outcome(claim: Claim, estimate: stats.Estimate, p: float, p_equal: float) -> np.ndarray:
    """The verdict by the part of `RULE` that is on the effect. p, p_equal: adjusted, of difference and equality."""
    margin = claim.smallest_effect
    low, high = (estimate.low, estimate.high) if claim.sign > 0 else (-estimate.high, -estimate.low)
    equal = stats.tost(estimate, margin) & (p_equal <= LEVEL)
    if claim.direction == "equal":
        beyond = (p <= LEVEL) & ((low > margin) | (high < -margin))
        return np.select([equal, beyond], ["supported", "contradicted"], "inconclusive")
    evidence = (p <= LEVEL) & ((low > 0) | (high < 0))
    rules = {
        "equivalent": equal,
        "supported": evidence & (low > margin),
        "direction only": evidence & (low > 0),
        "contradicted": evidence,
        "excluded": high < margin,
    }
    return np.select(list(rules.values()), list(rules), "inconclusive")


def decide(claim: Claim, estimate: stats.Estimate, p: float, p_equal: float) -> tuple[str, str]:
    """`outcome` of one estimate, with its reason."""
    name = str(outcome(claim, estimate, p, p_equal))
    equality = "the 90 % interval lies within the smallest effect that matters"
    if claim.direction == "equal":
        reasons = {
            "supported": equality,
            "contradicted": "evidence of a difference that matters",
            "inconclusive": "neither equality nor a difference that matters is shown",
        }
        return name, reasons[name]
    zero = estimate.low <= 0 <= estimate.high
    reasons = {
        "equivalent": equality,
        "supported": "evidence in the claimed direction, and the whole interval is of a size that matters",
        "direction only": "evidence in the claimed direction, but the interval holds effects too small to matter",
        "contradicted": "evidence in the opposite direction",
        "excluded": "the interval leaves out every effect in the claimed direction that would matter",
        "inconclusive": "the interval holds 0" if zero else f"p = {p:.3f} after Holm's adjustment",
    }
    return name, reasons[name]


def _measure(claim: Claim, results: Sequence[Result], *, incomplete: bool, draws: int) -> Verdict:
    """A claim's numbers; its verdict is left empty when its effect must decide."""
    matched = [match(claim.id, term, results) for term in claim.terms]
    seeds = sorted(set.intersection(*map(set, matched)))
    left_out = tuple(sorted(set.union(*map(set, matched)) - set(seeds)))
    if not seeds:
        absent = [term for term, found in zip(claim.terms, matched, strict=True) if not found]
        lack = (
            f"no result matches {absent[0]}; there are {what_exists(results)}" if absent else "its terms share no seed"
        )
        if not incomplete:
            raise MmkitError(f"claim {claim.id}: {lack}")
        return Verdict(claim, "not evidence", f"claim {claim.id}: {lack}", left_out=left_out)
    asked = []
    for term, found in zip(claim.terms, matched, strict=True):
        asked.append((term.weight, term.score, term.cost, [found[seed] for seed in seeds]))
    terms = aligned_terms(asked)
    if claim.scale == "log2":
        terms = [log2_term(claim.id, *pair) for pair in zip(claim.terms, terms, strict=True)]
    estimate = stats.paired_bootstrap(terms, draws=draws)
    verdict, reason, replication = _guarded(claim, asked, estimate)
    return Verdict(
        claim,
        verdict,
        reason,
        estimate,
        p=float(p_values(claim, estimate)[int(claim.direction == "equal")]),
        replication=replication,
        improvement=stats.probability_of_improvement(claim.sign * estimate.effects),
        detectable=stats.smallest_detectable(estimate) if len(seeds) > 1 else math.nan,
        compute_ratio=compute_ratio(claim.terms, matched, seeds),
        seeds=tuple(seeds),
        left_out=left_out,
        passes=guards.unconverged(asked),
    )


def _guarded(claim: Claim, asked: Sequence[Asked], estimate: stats.Estimate) -> tuple[str, str, float]:
    """Verdict, reason and replication where a guard decides; empty where the effect does."""
    if reason := guards.no_evidence(asked, estimate):
        return "not evidence", reason, math.nan
    if reason := guards.tuned_apart(asked):
        return "not tuned alike", reason, math.nan
    reason, again = guards.unstable(asked, claim.seeds)
    return ("unstable", reason, again) if reason else guards.no_room(asked, claim.smallest_effect)
