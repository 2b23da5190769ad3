"""Reports are read sentence by sentence, and scored by what they affirm."""

import numpy as np

from mmkit.tasks.reports import affirmed, finding_f1, written

FINDINGS = ("opacity", "effusion")


def test_denied_and_hedged_findings_are_not_affirmed():
    report = "Small opacity in the left lung . No effusion ."
    assert affirmed(report, FINDINGS) == {"opacity"}
    assert affirmed("possible opacity . effusion cannot exclude .", FINDINGS) == set()


def test_a_written_report_says_what_it_was_given():
    report = written([0.9, 0.5], FINDINGS)
    assert report == "opacity . possible effusion ." and affirmed(report, FINDINGS) == {"opacity"}
    assert written([0.1, 0.7], FINDINGS) == "no opacity . effusion ."


def test_f1_counts_affirmed_findings():
    truth = np.array([[1, 0], [0, 1]])
    assert finding_f1(["opacity .", "effusion ."], truth, FINDINGS) == 1
    assert finding_f1(["opacity . effusion .", "no opacity ."], truth, FINDINGS) == 0.5
    assert finding_f1(["", ""], truth, FINDINGS) == 0
