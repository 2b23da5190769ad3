"""Reports, read by rules and written by a template.

The rules were written for the generated sentences of `phantoms`; on real reports they have not been tested."""

import re
from collections.abc import Sequence

import numpy as np

DOUBT = re.compile(r"possible|cannot exclude|may be|not excluded")
DENIAL = re.compile(r"\bno\b|\bnot\b|without|clear|normal")


def affirmed(report: str, findings: Sequence[str]) -> set[str]:
    """The findings that a report names in a sentence that neither denies nor hedges."""
    found = set()
    for sentence in report.lower().split("."):
        if not DOUBT.search(sentence) and not DENIAL.search(sentence):
            found |= {finding for finding in findings if finding in sentence}
    return found


def written(chances: Sequence[float], findings: Sequence[str], *, low: float = 0.35, high: float = 0.65) -> str:
    """A plain report from the chance of each finding: denied, hedged between low and high, or affirmed."""
    words = ["" if p > high else "possible " if p > low else "no " for p in chances]
    return " ".join(f"{word}{finding} ." for word, finding in zip(words, findings, strict=True))


def finding_f1(reports: Sequence[str], truth: np.ndarray, findings: Sequence[str]) -> float:
    """F1 of affirmed findings over all reports; truth (N, F) of 0 and 1."""
    told = np.zeros(truth.shape, dtype=bool)
    for row, report in zip(told, reports, strict=True):
        said = affirmed(report, findings)
        row[:] = [finding in said for finding in findings]
    return 2 * (told & (truth == 1)).sum() / max(told.sum() + truth.sum(), 1)
