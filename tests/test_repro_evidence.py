"""Finished work is not lost or taken over, and what was edited by hand is seen when it is read."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from repro_data import batch_folder, head_to_head
from repro_stub import make_plan, quiet, rows, undisturbed, write

from mmkit.errors import MmkitError
from mmkit.files import new_file
from mmkit.repro import batches, browse, records, report, runner

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    return tmp_path


def plan_file(folder, stub, name="base", seeds=1):
    folder.mkdir(exist_ok=True)
    path = folder / "plan.yaml"
    entry = {"notebook": str(stub), "seeds": seeds}
    path.write_text(yaml.safe_dump({"name": name, "title": "t", "notebooks": [entry]}), encoding="utf-8")
    return path


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_runs_belongs_to_the_plan_that_made_it(place):
    stub = write(place / "20_stub.ipynb")
    mine, other = plan_file(place / "mine", stub), plan_file(place / "other", stub, seeds=3)
    made = runner.run_plan(mine, say=quiet)
    before = (place / "runs" / "base" / "plan.json").read_bytes()
    for dry_run in (True, False):
        with pytest.raises(
            MmkitError, match="holds the runs of another plan of this name, .*mine/plan.yaml: give your"
        ):
            runner.run_plan(other, say=quiet, dry_run=dry_run)
    assert (place / "runs" / "base" / "plan.json").read_bytes() == before
    assert rows(runner.run_plan(mine, say=quiet)) == rows(made) == undisturbed([0])
    with pytest.raises(MmkitError, match="or move that folder away"):
        runner.run_plan(other.rename(place / "other.yaml"), say=quiet)
    mine = mine.rename(place / "renamed.yaml")
    assert rows(runner.run_plan(mine, say=quiet)) == rows(made), "the same plan, moved"
    (place / "mine" / "plan.yaml").write_bytes(mine.read_bytes())
    with pytest.raises(MmkitError, match="another plan of this name, .*renamed.yaml"):
        runner.run_plan(place / "mine" / "plan.yaml", say=quiet)
    mine = mine.rename(place / "mine" / "plan.yaml")
    plan_file(place / "mine", stub, seeds=2)
    with pytest.raises(MmkitError, match="another plan of this name"):
        runner.run_plan(mine, say=quiet), "moved and changed at once"
    plan_file(place / "mine", stub)
    runner.run_plan(mine, say=quiet)
    plan_file(place / "mine", stub, seeds=2)
    assert rows(runner.run_plan(mine, workers=2, say=quiet)) == undisturbed([0, 1]), "a plan may change"


def test_a_plan_from_elsewhere_does_not_take_the_name_of_one_of_the_kit(place):
    file = plan_file(place / "mine", write(place / "20_stub.ipynb"), name="head_to_head")
    with pytest.raises(MmkitError, match="says 'name: head_to_head', which is the name of a plan of this kit: give"):
        runner.run_plan(file, say=quiet)
    assert not (place / "runs").exists()


@pytest.mark.parametrize("name", ["../x", "..", ".", "/", "a/../../x", "", "x\n", "X", "~"])
def test_no_name_of_a_plan_leads_out_of_the_folder(place, name):
    outside = place / "x"
    for folder in (outside, outside / "0123456789abcdef"):
        folder.mkdir()
    (outside / "plan.json").write_text(json.dumps({"runs": [], "plan": {"profile": "lab"}, "started": "now"}))
    (place / "runs").mkdir()
    calls = (browse.tidy, browse.runs, report.export, report.open_batch)
    for call in calls:
        with pytest.raises(MmkitError, match="unknown plan"):
            list(call(name, really=True) if call is browse.tidy else call(name))
    assert (outside / "0123456789abcdef").is_dir()


# --- replacement ------------------------------------------------------------------------------------------------------

PUBLISH = """
import os, signal, sys
from pathlib import Path
from mmkit.repro import batches
rename, calls = os.rename, []
def deadly(*names):
    calls.append(names)
    if len(calls) == {at} and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*names)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = deadly
batches.publish(batches.load(Path({new!r})), Path({folder!r}))
"""


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_while_it_is_published_leaves_the_old_or_the_new(tmp_path, at, before):
    folder = batch_folder(tmp_path / "records" / "toy", head_to_head(seeds=2))
    new = batch_folder(tmp_path / "new" / "toy", head_to_head(seeds=3))
    script = PUBLISH.format(at=at, before=before, new=str(new), folder=str(folder))
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert len(batches.load(folder).results) == (3 if at == 2 and not before else 2) * 6
    batches.publish(batches.load(new), folder)
    assert len(batches.load(folder).results) == 18
    left = {path.name for path in folder.parent.iterdir()} - {"toy"}
    assert all(name.startswith(".toy.tmp-") for name in left), "of the killed one; the old folder is gone"


def test_nothing_is_written_over_unasked(tmp_path):
    path = tmp_path / "out.ipynb"
    with new_file(path) as made:
        made.write_text("x")
    with pytest.raises(MmkitError, match="out.ipynb is there already: give another name, or remove it"), new_file(path):
        pass
    for number in (2, 3):
        with new_file(path, numbered=True) as made:
            assert made.name == f"out-{number}.ipynb"
            made.write_text("y")
    with new_file(tmp_path / "empty.ipynb"):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out-2.ipynb", "out-3.ipynb", "out.ipynb"]


def test_a_report_does_not_take_the_place_of_another_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    batch_folder(tmp_path / "runs" / "toy", head_to_head(seeds=2))
    (tmp_path / "thesis.html").write_text("<html>my thesis</html>")
    with pytest.raises(MmkitError, match="thesis.html is there already and is no report of mmkit: give --out another"):
        report.export("toy", out=tmp_path / "thesis.html")


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A plan of two seeds that was run; `restore` brings its folder back to what it was."""
    base = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMKIT_RUNS", str(base / "runs"))
        runner.run_plan(make_plan(write(base / "20_stub.ipynb"), seeds=2), workers=2, say=quiet)
    folder = base / "runs" / "stub"
    return folder, {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".code" not in path.parts
    }


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first_line(path, change):
    first, *rest = path.read_text().splitlines()
    row = json.loads(first)
    change(row)
    path.write_text("\n".join([json.dumps(row, sort_keys=True), *rest, ""]))


def better_items(run):
    path = run / "items" / "0000.parquet"
    table = pyarrow.parquet.read_table(path)
    values = pyarrow.array([1.0] * len(table))
    pyarrow.parquet.write_table(table.set_column(2, "value", values), path)


def score_and_items(run):
    better_items(run)
    first_line(run / "results.jsonl", lambda row: row["scores"].update(accuracy=1.0))


def one_more(run):
    path = run / "results.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    (run / "items" / "0002.parquet").write_bytes((run / "items" / "0000.parquet").read_bytes())


def made_without_a_run(run):
    (run / "notebook.ipynb").unlink()
    said = json.loads((run / "record.json").read_text())
    said["sha256"].pop("notebook.ipynb")
    (run / "record.json").write_text(json.dumps(records.sealed(said)))


EDITS = {
    "a score": (
        lambda run: first_line(run / "results.jsonl", lambda row: row["scores"].update(accuracy=0.99)),
        "edited",
    ),
    "an arm": (
        lambda run: first_line(run / "results.jsonl", lambda row: row.update(arm="b")),
        "results.jsonl was edited",
    ),
    "items": (better_items, "accuracy is .*, its 20 items give 1: it was edited"),
    "both": (score_and_items, "items/0000.parquet was edited, results.jsonl was edited after the record was written"),
    "the notebook": (lambda run: (run / "notebook.ipynb").write_text("{}"), "notebook.ipynb was edited after"),
    "a lost file": (lambda run: (run / "notebook.ipynb").unlink(), "notebook.ipynb is gone after"),
    "a row": (one_more, "items/0002.parquet was added, results.jsonl was edited"),
    "the record": (
        lambda run: edit_json(run / "record.json", lambda said: said.update(seconds=1.0)),
        "record.json was",
    ),
    "its seed": (
        lambda run: edit_json(run / "record.json", lambda said: said["parameters"].update(seed=7)),
        "holds the record of another run",
    ),
    "no digests": (
        lambda run: edit_json(run / "record.json", lambda said: said.pop("sha256")),
        "record.json was edited",
    ),
    "no run": (made_without_a_run, "record.json is of no run, for it names no executed notebook"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_run_is_refused_and_said(made, edit):
    folder, content = made
    assert rows(batches.load(folder)) == undisturbed([0, 1])
    run = next(path.parent for path in content if path.name == "record.json")
    change, said = EDITS[edit]
    change(run)
    with pytest.raises(MmkitError, match=f"{said}.*: remove that folder and run the plan again"):
        batches.load(folder)
    for path, data in content.items():
        path.write_bytes(data)
    (run / "items" / "0002.parquet").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda asked: asked["runs"].pop(),
        lambda asked: asked["runs"][0].update(label="another"),
        lambda asked: asked.update(declared="2000-01-01T00:00:00+00:00"),
        lambda asked: asked.update(commit="0" * 40),
        lambda asked: asked["claims"].append({"id": "C1"}),
        lambda asked: asked["plan"].update(profile="full"),
        lambda asked: asked.pop("digest"),
    ],
)
def test_an_edited_manifest_is_refused_and_written_anew(made, change, monkeypatch):
    folder, content = made
    monkeypatch.setenv("MMKIT_RUNS", str(folder.parent))
    edit_json(folder / "plan.json", change)
    with pytest.raises(MmkitError, match="plan.json was edited after the plan was run: 'mmkit reproduce stub' writes"):
        batches.load(folder)
    again = runner.run_plan(make_plan(folder.parent.parent / "20_stub.ipynb", seeds=2), say=quiet)
    assert rows(again) == undisturbed([0, 1]) and again.manifest["declared"] > "2026"
    for path, data in content.items():
        path.write_bytes(data)


def test_a_dropped_seed_is_seen_although_the_digest_fits(made):
    folder, content = made
    asked = json.loads((folder / "plan.json").read_text())
    asked["runs"].pop()
    (folder / "plan.json").write_text(json.dumps(records.sealed(asked)))
    said = (
        "plan.json lists 1 runs, its plan asks for 2: a seed or condition was dropped or added; 'mmkit reproduce stub'"
    )
    with pytest.raises(MmkitError, match=said):
        batches.load(folder)
    for path, data in content.items():
        path.write_bytes(data)


def test_a_record_under_the_key_of_another_run_is_refused(made):
    folder, content = made
    one, other = (path for path in content if path.name == "record.json")
    other.write_bytes(one.read_bytes())
    with pytest.raises(MmkitError, match="holds the record of another run: remove that folder and run the plan again"):
        batches.load(folder)
    other.write_bytes(content[other])


def fewer(path, name):
    lines = (path / name).read_text().splitlines(keepends=True)
    (path / name).write_text("".join(lines[:-1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: first_line(path / "results.jsonl", lambda row: row["scores"].update(accuracy=0.1)), "was edited"),
        (lambda path: first_line(path / "results.jsonl", lambda row: row.update(seed=9)), "results.jsonl was edited"),
        (lambda path: fewer(path, "results.jsonl"), "items of a result that is not there"),
        (lambda path: edit_json(path / "plan.json", lambda asked: asked["headers"].pop()), "plan.json was edited"),
        (lambda path: (path / "items.parquet").unlink(), "records in .* are damaged"),
    ],
)
def test_edited_published_records_are_refused(tmp_path, change, said):
    folder = batch_folder(tmp_path / "records" / "toy", head_to_head(seeds=2))
    change(folder)
    with pytest.raises(MmkitError, match=f"{said}.*(version control|that folder)"):
        batches.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"headers": [{"results": 11}]}, "holds 12 results, its runs recorded 11"),
        ({"sha256": {}}, "items.parquet was added, results.jsonl was added"),
        ({"runs": [{"key": "1", "label": "one"}], "headers": [{"key": "2"}]}, "holds a record without a run, 2"),
        (
            {"runs": [{"key": "1", "label": "one"}], "headers": [{"key": "1"}], "missing": ["two"]},
            "tells of 2 of the 1 runs that it was made of",
        ),
    ],
)
def test_published_records_are_held_against_themselves_although_the_digest_fits(tmp_path, change, said):
    folder = batch_folder(tmp_path / "records" / "toy", head_to_head(seeds=2))
    asked = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(records.sealed(asked | change)))
    with pytest.raises(MmkitError, match=f"{said}.*: restore it from version control"):
        batches.load(folder)


def test_the_path_of_a_plan_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    batch = runner.run_plan(plan_file(tmp_path / "mine", write(tmp_path / "20_stub.ipynb")), say=quiet)
    assert Path(batch.manifest["file"]) == (tmp_path / "mine" / "plan.yaml").resolve()
    batches.publish(batch, tmp_path / "records" / "base")
    assert str(tmp_path / "mine") not in (tmp_path / "records" / "base" / "plan.json").read_text()
