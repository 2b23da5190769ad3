"""From the terms of a claim to the results they ask for, and to sums over seeds and clusters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmkit import stats
from mmkit.errors import MmkitError
from mmkit.repro.records import Result

if TYPE_CHECKING:
    from mmkit.repro.claims import ClaimTerm

Asked = tuple[float, str | None, str | None, Sequence[Result]]
"""weight, score or None, cost or None, one result a seed"""


def match(claim: str, term: "ClaimTerm", results: Sequence[Result]) -> dict[int, Result]:
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


def what_exists(results: Sequence[Result]) -> str:
    """Arms, scores and condition values of the results, in one line."""
    values: dict[str, set[str]] = {"arm": set(), "score": set()}
    for result in results:
        values["arm"].add(result.row["arm"])
        values["score"].update(result.row["scores"])
        for name, value in result.condition.items():
            values.setdefault(name, set()).add(str(value))
    found = (f"{name} {', '.join(sorted(some))}" for name, some in values.items())
    return "; ".join(found) if results else "no results at all"


def aligned_terms(asked: Sequence[Asked]) -> list[stats.Term]:
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


def log2_term(claim: str, asked: "ClaimTerm", term: stats.Term) -> stats.Term:
    if term.total.min() <= 0:
        what = f"{asked} is {term.total.min():g} for a seed, and its logarithm is asked for"
        raise MmkitError(f"claim {claim}: {what}: claim it on the identity scale")
    return stats.Term(np.log2(term.total), term.count, term.weight, None)


def compute_ratio(terms: "Sequence[ClaimTerm]", matched: list[dict[int, Result]], seeds: list[int]) -> float | None:
    """FLOPs spent for the terms of positive weight over those of negative weight, the geometric mean over seeds.

    None where both sides hold the same arms, or one side is empty.
    """
    gains, losses = np.zeros((2, len(seeds)))
    arms = {True: set(), False: set()}
    for term, found in zip(terms, matched, strict=True):
        arms[term.weight > 0].add(term.arm)
        side = gains if term.weight > 0 else losses
        side += [found[seed].row["cost"]["flops"] for seed in seeds]
    if arms[True] == arms[False] or not (gains.min() > 0 and losses.min() > 0):
        return None
    return float(2 ** np.mean(np.log2(gains / losses)))
