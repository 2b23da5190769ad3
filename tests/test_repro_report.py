"""The report and its figures: one file that reads without a network, and no figure without words."""

import re
from dataclasses import replace

import pytest
from repro_data import batch_folder, claim, head_to_head

from mmkit.errors import MmkitError
from mmkit.published import held
from mmkit.repro import batches, report, runner
from mmkit.repro.claims import Claim
from mmkit.teach import plots

pytestmark = pytest.mark.slow

FAILURE = {
    "label": "06_head_to_head seed=8",
    "cell": "train-cell",
    "kind": "cell error",
    "message": "ValueError: boom",
    "attempts": 1,
    "key": "0",
}
DECLARED = [
    claim("C1", limits="One size of model."),
    claim(
        "C4",
        statement="component is cheaper",
        direction="greater",
        scale="log2",
        smallest_effect=0.1,
        unit="log2 FLOPs",
        family="cost",
        terms=[
            {"arm": arm, "cost": "flops", "condition": {"pairs": 64}, "weight": weight}
            for arm, weight in (("holistic", 1.0), ("component", -1.0))
        ],
    ),
    claim(
        "C5", statement="nothing was recorded for this", terms=[{"arm": "absent", "score": "accuracy", "weight": 1.0}]
    ),
]


@pytest.fixture
def batch(tmp_path):
    return batches.load(batch_folder(tmp_path / "toy", head_to_head(), DECLARED, failures=[FAILURE]))


@pytest.fixture
def shown(monkeypatch):
    """What figures hand to the notebook: (data, metadata) of each."""
    outputs = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, metadata=None, raw=False: outputs.append((data, metadata))
    )
    return outputs


def test_the_claims_table_says_what_must_be_said(batch):
    table = report.claims_table(report.verdicts(batch))
    assert (
        table.loc["C1", "verdict"] == "✔ supported"
        and table.loc["C4", "verdict"] == "✘ contradicted"
        and table.loc["C5", "verdict"] == "– not evidence"
    )
    assert re.fullmatch(r"\+0\.\d+ \[\+0\.\d+,\s\+0\.\d+\] accuracy", table.loc["C1", "effect [95 % interval]"])
    assert (
        table.loc["C4", "effect [95 % interval]"].startswith("x0.5 [0.5")
        and table.loc["C4", "smallest that matters"] == "x1.07"
    )
    assert report.effect_text(report.verdicts(batch)[1]).endswith("] FLOPs"), "a ratio is no logarithm"
    assert (
        table.loc["C1", "seeds"],
        table.loc["C1", "clusters"],
        table.loc["C1", "compute ratio"],
        table.loc["C1", "in how many seeds"],
    ) == (
        "8",
        "120",
        "x0.5",
        "8 of 8",
    )
    html = report.table_html(table)
    assert "<b>✔ supported</b>" in html and "nan" not in html.lower()


def test_the_rest_of_a_family_counts_where_another_plan_judges_it(batch, monkeypatch):
    alone = report.verdicts(batch)[0]
    monkeypatch.setattr(
        report, "read_claims", lambda: [Claim.model_validate(entry) for entry in (*DECLARED, claim("C6"))]
    )
    found = report.verdicts(batch)[0]
    assert (alone.p_holm, found.p_holm) == pytest.approx((2 * alone.p, 3 * alone.p)) and alone.p > 0


def test_all_cases_together_takes_what_every_arm_has(batch):
    own, together = report.across(batch.results)
    assert own == "accuracy" and {arm: scores.shape for arm, scores in together.items()} == dict.fromkeys(
        ("holistic", "component", "shuffled"), (2, 8)
    )
    assert together["holistic"][0, 3] in [
        r.row["scores"]["accuracy"] for r in batch.results if (r.row["arm"], r.row["seed"]) == ("holistic", 3)
    ]
    lacking = [
        r
        for r in batch.results
        if not (r.row["arm"] == "shuffled" and r.condition["pairs"] == 64)
        and not (r.row["arm"] == "holistic" and r.row["seed"] == 5)
    ]
    assert {arm: scores.shape for arm, scores in report.across(lacking)[1].items()} == dict.fromkeys(
        ("holistic", "component"), (2, 7)
    )
    assert report.across([r for r in batch.results if r.condition["pairs"] == 64])[1] == {}, "one case alone"
    assert report.across([]) == ("", {})


def test_a_condition_is_told_by_the_one_thing_that_tells_it_apart():
    among = [
        {"case": "few", "pairs": 64, "both": 0.0},
        {"case": "many", "pairs": 256, "both": 0.0},
        {"case": "hard", "pairs": 256, "both": 1.0},
    ]
    assert (
        report.condition_text(among[2], among) == "case hard"
        and report.condition_text(among[0], among[:1]) == "case few, pairs 64, both 0"
    )
    assert (
        report.condition_text(
            {"pairs": 256, "both": 0.0},
            [{"pairs": 64, "both": 0.0}, {"pairs": 256, "both": 1.0}, {"pairs": 64, "both": 1.0}],
        )
        == "pairs 256, both 0"
    )


def test_a_report_of_a_plan_that_is_not_there_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path))
    with pytest.raises(MmkitError, match="unknown plan 'head_too_head'.*did you mean 'head_to_head'"):
        report.export("head_too_head")


def test_a_batch_without_a_result_leaves_what_was_published(batch, tmp_path):
    folder = tmp_path / "published"
    batches.publish(batch, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(MmkitError, match="nothing to publish: no run of 'toy' has a result; what was published stays"):
        batches.publish(replace(batch, results=[]), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and [
        path.name for path in folder.parent.iterdir() if path.name.startswith(".")
    ] == []


def test_arms_panels_failures_and_provenance(batch):
    points = report.arm_points(batch.results, "accuracy", {"pairs": 64, "data": "toy", "task": "answering"})
    assert (
        set(points) == {"holistic", "component", "shuffled"}
        and points["holistic"]["low"] < points["holistic"]["mean"] < points["holistic"]["high"]
    )
    assert [
        (score, condition["pairs"]) for score, condition in report.panels(report.verdicts(batch), batch.results)
    ] == [("accuracy", 64)]
    score, condition = report.panels([], batch.results)[
        0
    ]  # no claims: the task's own score; here arms share conditions, so a panel each
    assert score == "accuracy" and condition["pairs"] in (64, 256)
    apart = [
        result for result in batch.results if (result.row["arm"] == "holistic") == (result.condition["pairs"] == 64)
    ]
    assert report.panels([], apart) == [("accuracy", None)] and len(report.arm_points(apart, "accuracy", None)) > 1
    tables = report.arm_tables(batch.results)
    assert tables.count("<details>") == 2 and "pairs 256" in tables and "ood_style/accuracy" in tables
    failed = report.failures_table(batch)
    assert failed.loc[0, "cell"] == "train-cell" and "boom" in failed.loc[0, "message"] and not batch.complete
    facts = report.provenance(batch)[""]
    assert "1 finished, 1 failed" in facts["runs"] and "toy h" in facts["data"] and "python" in facts["versions"]


def test_a_figure_carries_alt_text_and_a_stamp(shown, monkeypatch):
    texts = []
    monkeypatch.setattr(plots.Figure, "text", lambda self, *place, **options: texts.append(place))
    for profile in ("lab", "smoke"):
        monkeypatch.setenv("MMKIT_PROFILE", profile)
        with plots.figure(alt="A line that\n  rises from 0 to 1.", caption="It rises.") as axes:
            axes.plot([0, 1], **plots.arm("holistic"))
    data, metadata = shown[0]
    assert (
        metadata["image/png"]["alt"] == "A line that rises from 0 to 1."
        and data["text/plain"] == "[figure: A line that rises from 0 to 1.]"
    )
    assert [place[2] for place in texts] == ["smoke run, not evidence"], "only the smoke run is stamped"
    assert shown[1][0].data == "*It rises.*"
    with pytest.raises(ValueError, match="needs alt text"), plots.figure(alt=" ") as axes:
        axes.plot([0, 1])


def test_every_arm_has_a_look_of_its_own(shown):
    looks = [(look["color"], look["marker"]) for look in map(plots.arm, plots.ARMS)]
    assert (
        len(set(looks)) == len(plots.ARMS)
        and plots.arm("joint_plus_unimodal")["label"] == "from scratch, own losses added"
    )
    with plots.figure(1, 2, alt="Both figures of the report, for a wide range and a free arm.") as axes:
        rows = [
            {
                "label": name,
                "effect": 5.0,
                "low": -1.0,
                "high": 40.0,
                "smallest_effect": 0.5,
                "sign": -1,
                "verdict": name,
                "text": "t",
            }
            for name in plots.VERDICTS
        ]
        plots.forest(axes[0], rows)
        assert axes[0].get_xscale() == "symlog" and [t.get_text() for t in axes[0].get_yticklabels()] == list(
            reversed(plots.VERDICTS)
        )
        plots.cost_quality(
            axes[1],
            {
                "a": {"flops": 1e9, "mean": 0.5, "low": 0.4, "high": 0.6},
                "free": {"flops": 0.0, "mean": 0.5, "low": 0.4, "high": 0.6},
            },
            score="accuracy",
        )
        assert axes[1].get_xscale() == "log"


def test_one_html_file_without_code_or_network(tmp_path, batch, monkeypatch, capsys):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path))
    monkeypatch.setattr(runner, "run_plan", lambda plan, workers, scheduler, dry_run: batch)
    assert held.reproduce("toy") == 1, "a run failed"
    said = capsys.readouterr().out
    assert (
        "✔ C1 supported: holistic is more accurate (+0." in said
        and "FAILED 06_head_to_head seed=8: ValueError: boom" in said
    )
    path = tmp_path / "toy" / "report.html"
    assert said.endswith(f"the report: {path}\n")
    text = path.read_text(encoding="utf-8")
    assert (
        text.startswith("<!doctype html>")
        and "✔ supported" in text
        and "nothing was recorded for this" in text
        and "boom" in text
    )
    assert not re.search(r"https?://|<script|<link|import numpy|BEGIN SOLUTION|You will learn|sign_flip_p", text)
    images = re.findall(r"<img[^>]*>", text)
    assert len(images) == 4 and all(
        'src="data:image/png' in image and len(re.search(r'alt="([^"]*)"', image)[1]) > 40 for image in images
    )
    assert re.findall(r"<h2[^>]*>(.*?)<", text)[:2] == ["The verdicts", "What it costs"]


def test_a_claim_that_was_changed_after_its_runs_says_so(batch, monkeypatch):
    found = report.verdicts(batch)
    monkeypatch.setattr(report, "read_claims", lambda: [verdict.claim for verdict in found])
    assert "reads differently" not in report.claim_cards(found)
    monkeypatch.setattr(
        report,
        "read_claims",
        lambda: [found[0].claim.model_copy(update={"smallest_effect": 0.5}), *(verdict.claim for verdict in found[1:])],
    )
    assert report.claim_cards(found).count("reads differently now") == 1
