"""What is published keeps its past: verdicts, why they changed, what was superseded; and the pages say what it says."""

import json

import pytest
from conftest import ROOT
from repro_data import batch_folder, claim, head_to_head
from typer.testing import CliRunner

from mmkit.errors import MmkitError
from mmkit.published import history, pages, publishing
from mmkit.repro import batches, paths, report

pytestmark = pytest.mark.slow
DECLARED = [claim("C1"), claim("C2", family="other", direction="less")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout with no records, and runs of its own."""
    folder = tmp_path / "notebooks"
    (folder / "records" / "archive").mkdir(parents=True)
    (folder / "claims.yaml").write_bytes((ROOT / "notebooks" / "claims.yaml").read_bytes())
    for page in (tmp_path / "README.md", folder / "records" / "archive" / "README.md"):
        page.write_text(f"# Before\n\n{pages.START}\n{pages.END}\n\nAfter.\n")
    monkeypatch.setattr(paths, "notebooks", lambda: folder)
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    return tmp_path


def ran(place, claims=DECLARED, **options):
    return batch_folder(place / "runs" / "toy", head_to_head(**options), claims)


def test_publishing_adds_a_line_for_each_verdict_and_none_twice(place):
    ran(place)
    publishing.replace_published("toy")
    first = history.read()
    assert [(line["claim"], line["verdict"], line["why"]) for line in first] == [
        ("C1", "supported", "first published"),
        ("C2", "contradicted", "first published"),
    ]
    assert set(first[0]) == set(history.FIELDS) and first[0]["seeds"] == list(range(8)) and first[0]["plan"] == "toy"
    verdict = report.verdicts(batches.load(place / "notebooks" / "records" / "toy"))[0]
    assert history.effect_of(first[0]) == report.effect_text(verdict) and first[0]["p"] == pytest.approx(verdict.p_holm)
    publishing.replace_published("toy")
    assert history.read() == first, "what the last line says is not said again"


def test_a_changed_verdict_needs_a_reason_and_stands_on_the_card(place):
    ran(place)
    folder = publishing.replace_published("toy")
    ran(place, gain=-0.1)
    before = (folder / "plan.json").read_bytes()
    with pytest.raises(
        MmkitError, match="C1 was supported and is contradicted; C2 was contradicted and is supported: say"
    ):
        publishing.replace_published("toy")
    assert (folder / "plan.json").read_bytes() == before and len(history.read()) == 2, "nothing is published"
    publishing.replace_published("toy", why="the <arms> were mixed up")
    entries = history.read()
    assert [line["verdict"] for line in entries] == ["supported", "contradicted", "contradicted", "supported"]
    found = report.verdicts(batches.load(folder))
    cards = report.claim_cards(found, given=history.given(entries, "toy"))
    for text in ("supported, +0.", "contradicted, -0.", "first published", "the &lt;arms&gt; were mixed up"):
        assert text in cards
    other = history.given([entries[0] | {"plan": "before"}, entries[1]], "toy")
    assert " (before) supported" in other("C1") and "(" not in other("C2").split(":")[0] and other("C3") == ""


@pytest.mark.parametrize("change", ["claims", "seeds", "wording"])
def test_what_is_superseded_goes_to_the_archive_without_its_items(place, change):
    ran(place)
    folder = publishing.replace_published("toy")
    old = {name: (folder / name).read_bytes() for name in publishing.KEPT}
    changes = {"claims": {"smallest_effect": 0.03}, "wording": {"scope": "toys"}, "seeds": {}}[change]
    changed = [claim("C1", **changes), DECLARED[1]]
    ran(place, changed, seeds=9 if change == "seeds" else 8)
    publishing.replace_published("toy")
    kept = folder.parent / "archive" / "toy"
    if change == "wording":
        assert not kept.exists()
        return
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == old
    page = (kept.parent / "README.md").read_text()
    assert "- `toy`: A toy plan; 1 runs of 2026-01-01, code 000000000000\n" in page
    assert publishing.archive(folder).name == "toy-2", "an older one is kept"
    assert folder in [path.parent for path in folder.parent.glob("*/plan.json")], "it is read as before"


def test_another_platform_is_published_beside_with_a_history_of_its_own(place):
    ran(place)
    publishing.replace_published("toy")
    ran(place, gain=-0.1)
    folder = publishing.replace_published("toy", platform="torch-2.11")
    assert folder.name == "toy@torch-2.11" and len(batches.load(folder).results) == 48
    assert [line["plan"] for line in history.read()] == ["toy", "toy", "toy@torch-2.11", "toy@torch-2.11"]
    readme = (place / "README.md").read_text()
    assert "**toy on torch-2.11**: 0 of 2 verdicts are those of toy; C1 supported there, contradicted here" in readme
    with pytest.raises(MmkitError, match="--platform 'a/b' is no name: use small letters"):
        publishing.replace_published("toy", platform="a/b")


def test_runs_that_are_missing_are_not_published(place):
    failure = {"label": "seed=8", "cell": "c", "kind": "cell error", "message": "boom", "attempts": 1, "key": "0"}
    batch_folder(place / "runs" / "toy", head_to_head(), DECLARED, failures=[failure])
    with pytest.raises(MmkitError, match="toy: of its runs 1 failed and 0 were not made: 'mmkit reproduce toy' makes"):
        publishing.replace_published("toy")
    assert not history.read()


def test_a_damaged_line_of_the_history_is_named(place):
    ran(place)
    publishing.replace_published("toy")
    path = history.path()
    first, second = path.read_text().splitlines()
    lacking = json.dumps({name: value for name, value in json.loads(second).items() if name != "why"})
    for damaged, said in ((second[:40], "Unterminated"), (lacking, "it has no why"), ("[]", "has no")):
        path.write_text(f"{first}\n{damaged}\n")
        with pytest.raises(MmkitError, match=f"line 2 is damaged .*{said}.*restore it from version control"):
            history.read()


# --- pages ------------------------------------------------------------------------------------------------------------


def test_the_pages_say_what_is_published_between_their_marks(place):
    ran(place)
    publishing.replace_published("toy")
    text = (place / "README.md").read_text()
    assert text.startswith("# Before") and text.endswith("After.\n") and not pages.refresh()
    assert "<b>toy</b>: A toy plan. 2 claims: 1 supported, 1 contradicted.</summary>" in text
    assert (
        "- **C1, supported.** holistic is more accurate Effect +0." in text and "8 seeds; compute ratio x0.5." in text
    )
    archive = place / "notebooks" / "records" / "archive" / "README.md"
    assert "| C1 |" not in archive.read_text()
    ran(place, gain=-0.1)
    publishing.replace_published("toy", why="a | b")
    assert archive.read_text().count("| C1 | toy |") == 1 and "| a / b |" in archive.read_text()
    assert "claims it no longer" not in archive.read_text()
    ran(place, [claim("C1")], gain=-0.1)
    publishing.replace_published("toy", why="one is enough")
    assert f"| C2 | toy | {history.read()[-1]['date']} | supported, -0." in archive.read_text()
    assert archive.read_text().count("| none | the plan claims it no longer |") == 1
    archive.write_text("no marks")
    with pytest.raises(MmkitError, match="README.md lacks its marks: put <!-- written by"):
        pages.refresh()


def test_readme_and_the_archive_say_what_is_published_here():
    for page, text in pages.texts().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is stale: run 'mmkit report --readme'"
    assert len(pages.texts()) == 2


def test_the_command_writes_them_and_knows_what_belongs_together(place):
    from mmkit.cli import app

    ran(place)
    said = CliRunner().invoke(app, ["report", "toy", "--readme"])
    assert said.output.count("written: ") == 2 and said.exit_code == 0
    said = CliRunner().invoke(app, ["report", "toy", "--readme"])
    assert said.output == "the pages say already what is published\n"
    with pytest.raises(MmkitError, match="--why and --platform say how records are published: add --publish"):
        CliRunner().invoke(app, ["report", "toy", "--why", "x"], catch_exceptions=False)


def test_the_history_ends_with_the_verdicts_that_are_published():
    """A rule that changed, or records that did, without `mmkit report PLAN --publish`."""
    entries = history.read()
    for folder in sorted(path.parent for path in (ROOT / "notebooks" / "records").glob("*/plan.json")):
        latest = history.latest(entries, folder.name)
        for verdict in report.verdicts(batches.load(folder)):
            told = latest[verdict.claim.id]
            again = f"{folder.name}: run 'mmkit report {folder.name} --publish --why ...'"
            assert told["verdict"] == verdict.verdict, again
            numbers = [getattr(verdict.estimate, name) for name in ("effect", "low", "high")]
            assert [told[name] for name in ("effect", "low", "high")] == pytest.approx(numbers, abs=1e-4), again
