"""Records and plans: what is written is read back, and what cannot be trusted is refused by name."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from repro_data import Scores, batch_folder, head_to_head

import mmkit
from mmkit.errors import MmkitError
from mmkit.repro import batches, paths, plan, records, runner


@dataclass
class Budget:
    pairs: int = 128


def run(**changes):
    scores = {"accuracy": Scores([0.0, 1.0, 1.0], [0, 0, 4]), "ood_style/accuracy": Scores([0.25], [7])}
    cost = SimpleNamespace(
        as_dict=lambda: {
            "flops": np.float32(2e9),
            "seconds": 1.5,
            "peak_bytes": 10,
            "parameters_trained": 1,
            "parameters_total": 2,
            "phases": {},
        }
    )
    fields = {
        "arm": "frozen",
        "task": "answering",
        "data": "toy",
        "data_hash": "abc",
        "seed": 3,
        "budget": Budget(),
        "settings": {"width": np.int64(8)},
        "scores": scores,
        "cost": cost,
    }
    return SimpleNamespace(**fields | changes)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(records, "_kept", [])
    monkeypatch.delenv("MMKIT_RUN_DIR", raising=False)


def test_interactively_a_record_stays_in_memory():
    row = mmkit.record(run(), share=0.5)
    (kept,) = records.recorded()
    assert (
        row == kept.row
        and row["condition"] == {"pairs": 128, "share": 0.5}
        and row["profile"] == "lab"
        and row["schema"] == records.SCHEMA
    )
    assert row["scores"] == {"accuracy": pytest.approx(2 / 3), "ood_style/accuracy": 0.25} and row["settings"] == {
        "width": 8
    }
    values, clusters = kept.items_of("accuracy")
    assert values.tolist() == [0.0, 1.0, 1.0] and clusters.tolist() == [0, 0, 4]
    with pytest.raises(MmkitError, match="unknown score 'acuracy': did you mean 'accuracy'"):
        kept.items_of("acuracy")
    table = records.table(records.recorded())
    assert len(table) == 2 and table.loc[0, ["arm", "share", "score", "flops"]].tolist() == [
        "frozen",
        0.5,
        "accuracy",
        2e9,
    ]


def test_levels_of_a_score_are_part_of_the_row():
    levels = {"accuracy": {"chance": 0.25, "oracle": 1.0}}
    assert mmkit.record(run(), levels=levels)["levels"] == levels and "levels" not in mmkit.record(run(seed=4))
    for wrong, message in (
        ({"acuracy": {}}, "unknown score with levels 'acuracy': did you mean 'accuracy'"),
        ({"accuracy": {"chanse": 0.5}}, "unknown level of a score 'chanse': did you mean 'chance'"),
        ({"accuracy": {"chance": float("nan")}}, "cannot be written"),
    ):
        with pytest.raises(MmkitError, match=message):
            mmkit.record(run(), levels=wrong)


def test_a_cell_run_again_records_anew_and_a_batch_keeps_both(tmp_path, monkeypatch):
    again = {"scores": {"accuracy": Scores([1.0], [0]), "ood_style/accuracy": Scores([1.0], [7])}}
    for changes, condition in (
        ({}, {"share": 0.5}),
        ({"seed": 4}, {"share": 0.5}),
        ({}, {"share": 1.0}),
        ({"scores": {"pointing": Scores([1.0], [0])}}, {"share": 0.5}),
        (again, {"share": 0.5}),
    ):
        mmkit.record(run(**changes), **condition)
    kept = records.recorded()
    assert [(r.row["seed"], r.condition["share"], *r.row["scores"].values()) for r in kept] == [
        (4, 0.5, pytest.approx(2 / 3), 0.25),
        (3, 1.0, pytest.approx(2 / 3), 0.25),
        (3, 0.5, 1.0),
        (3, 0.5, 1.0, 1.0),
    ]
    monkeypatch.setenv("MMKIT_RUN_DIR", str(tmp_path))
    mmkit.record(run()), mmkit.record(run())
    assert len(records.recorded()) == 2, "in a batch a condition that tells two runs apart is missing"


def test_in_a_batch_it_is_written_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKIT_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("MMKIT_PROFILE", "smoke")
    rows = [mmkit.record(run(seed=seed), share=0.5) for seed in (0, 1)]
    read = records.read(tmp_path)
    assert [result.row for result in read] == rows and rows[0]["profile"] == "smoke" and not records._kept
    assert read[1].items_of("ood_style/accuracy")[1].tolist() == [7]
    (tmp_path / "items" / "0001.parquet").unlink()
    with pytest.raises(MmkitError, match="damaged .*remove that folder and run the plan again"):
        records.read(tmp_path)


def test_published_records_are_the_same_results(tmp_path):
    made = head_to_head(seeds=2)
    batch = batches.load(batch_folder(tmp_path / "toy", made))
    for old, new in zip(made, batch.results, strict=True):
        assert new.row["scores"] == old.row["scores"] and new.condition == old.condition
        for name in old.row["scores"]:
            assert all(np.array_equal(a, b) for a, b in zip(old.items_of(name), new.items_of(name), strict=True))
    assert sum(file.stat().st_size for file in (tmp_path / "toy").iterdir()) < 40_000
    frame = pd.read_parquet(tmp_path / "toy" / "items.parquet")  # by another reader
    for number, result in enumerate(batch.results):
        for name in result.row["scores"]:
            mine = frame[(frame["result"] == number) & (frame["score"] == name)]
            assert all(
                np.array_equal(mine[column], values)
                for column, values in zip(("value", "cluster"), result.items_of(name), strict=True)
            )


def test_records_that_pandas_wrote_are_read_and_lost_ones_missed(tmp_path):
    made = head_to_head(seeds=1)
    folder = batch_folder(tmp_path / "toy", made)
    frame = pd.read_parquet(folder / "items.parquet")
    frame.to_parquet(folder / "items.parquet", index=False)
    assert [result.items_of("accuracy")[0].tolist() for result in records.read(folder)] == [
        result.items_of("accuracy")[0].tolist() for result in made
    ]
    for lost in (2, len(made) - 1):
        frame[frame["result"] != lost].to_parquet(folder / "items.parquet", index=False)
        with pytest.raises(MmkitError, match="a result without items.*remove that folder"):
            records.read(folder)


@pytest.mark.parametrize(
    ("changes", "condition", "message"),
    [
        (
            {"scores": {"accuracy": SimpleNamespace(value=float("nan"))}},
            {},
            "arm 'frozen', seed 3: score 'accuracy' is nan",
        ),
        ({"scores": {}}, {}, "no scores to record"),
        ({"settings": {"rate": float("inf")}}, {}, "must be finite numbers"),
        ({"settings": {"model": object()}}, {}, "object is not JSON"),
        ({}, {"seed": 1}, "a condition cannot be named 'seed'"),
        ({}, {"pairs": 64}, "the condition says pairs=64, the run's budget 128; give the budget's, or another name"),
    ],
)
def test_what_cannot_be_trusted_is_refused(changes, condition, message):
    with pytest.raises(MmkitError, match=message):
        mmkit.record(run(**changes), **condition)
    assert not records._kept


def test_an_unknown_profile_is_refused(monkeypatch):
    monkeypatch.setenv("MMKIT_PROFILE", "smoky")
    with pytest.raises(MmkitError, match="unknown profile .MMKIT_PROFILE. 'smoky': did you mean 'smoke'"):
        mmkit.record(run())


def test_an_old_record_format_is_refused(tmp_path):
    folder = batch_folder(tmp_path / "toy", head_to_head(seeds=1))
    rows = [
        json.loads(line) | {"schema": "mmkit.record/0"} for line in (folder / "results.jsonl").read_text().splitlines()
    ]
    (folder / "results.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        MmkitError,
        match="records of the format 'mmkit.record/0', this version reads 'mmkit.record/1': move the folder away and "
        "run the plan again",
    ):
        batches.load(folder)
    with pytest.raises(MmkitError, match="no runs in .*nothing: make them first with 'mmkit reproduce nothing'"):
        batches.load(tmp_path / "nothing")


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def notebook(tmp_path):
    cell = nbformat.v4.new_code_cell(
        'seed: int = 0  # the seed\nshare: float = 0.5  # what varies\nname: str = "x"  # a name',
        id="parameters-cell",
        metadata={"tags": ["parameters"]},
    )
    path = tmp_path / "21_stub.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def written(tmp_path, stub, top=None, **entry):
    path = tmp_path / "toy.yaml"
    path.write_text(
        yaml.safe_dump({"name": "toy", "title": "Toy", "notebooks": [{"notebook": str(stub)} | entry]} | (top or {})),
        encoding="utf-8",
    )
    return path


def test_a_plan_is_its_grid_times_its_seeds(tmp_path, notebook):
    runs = plan.expand(
        plan.read_plan(written(tmp_path, notebook, parameters={"name": "y"}, grid={"share": [0, 1.0]}, seeds=3))
    )
    assert [run.parameters for run in runs] == [
        {"name": "y", "share": float(share), "seed": seed} for share in (0, 1) for seed in range(3)
    ]
    assert len({run.key for run in runs}) == 6 and runs[0].label == "21_stub share=0 seed=0"
    assert [
        run.parameters["seed"] for run in plan.expand(plan.read_plan(written(tmp_path, notebook, seeds=[4, 2])))
    ] == [4, 2]


def test_a_key_is_of_code_parameters_and_profile(tmp_path, notebook):
    def keys(**top):
        return [run.key for run in plan.expand(plan.read_plan(written(tmp_path, notebook, top, seeds=2)))]

    assert keys() == keys(title="Another title") and not set(keys()) & set(keys(profile="full"))
    assert plan.fingerprint(notebook, {}, "lab", None) != plan.fingerprint(notebook, {}, "lab", "data")


@pytest.mark.parametrize(
    ("top", "entry", "message"),
    [
        ({"titel": "x"}, {}, "toy.yaml: unknown key 'titel': did you mean 'title'"),
        ({}, {"seed": 3}, "toy.yaml: unknown key 'seed': did you mean 'seeds'.*at notebooks.0.seed"),
        ({"profile": "labs"}, {}, "profile: Input should be 'smoke', 'lab' or 'full', got 'labs'"),
        ({"name": "../x"}, {}, "name: String should match pattern"),
        ({}, {"seeds": 0}, "greater than or equal to 1"),
        ({}, {"timeout_s": -1}, "greater than 0"),
        ({}, {"timeout_s": float("inf")}, "finite number"),
        ({}, {"memory_gb": float("nan")}, "finite number|greater than 0"),
        ({}, {"parameters": {"shar": 1.0}}, "unknown parameter 'shar': did you mean 'share'"),
        ({}, {"parameters": {"seed": 1.5}}, "parameter 'seed' is int .default 0., got 1.5 of type float"),
        ({}, {"grid": {"share": ["much"]}}, "parameter 'share' is float .default 0.5., got 'much' of type str"),
        ({}, {"parameters": {"seed": 1}, "seeds": 2}, "'seed' is set twice"),
        ({}, {"grid": {"seed": [1]}, "seeds": 2}, "'seed' is set twice"),
        ({}, {"parameters": {"share": 1.0}, "grid": {"share": [1.0]}}, "'share' is set twice"),
        ({}, {"seeds": [1, 1]}, "holds the same run twice"),
        ({}, {"notebook": "97_nothing"}, "unknown notebook '97_nothing'"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path, notebook, top, entry, message):
    with pytest.raises(MmkitError, match=message):
        plan.expand(plan.read_plan(written(tmp_path, notebook, top, **entry)))


def test_an_unknown_plan_is_refused():
    with pytest.raises(MmkitError, match="unknown plan 'head_too_head'"):
        plan.read_plan("head_too_head")


def test_a_plan_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "toy.yaml").write_bytes("title: Müll".encode("latin-1"))
    with pytest.raises(MmkitError, match="toy.yaml cannot be read: 'utf-8' codec"):
        plan.read_plan(tmp_path / "toy.yaml")


def test_a_copied_plan_takes_a_name_of_its_own(tmp_path, notebook, monkeypatch):
    monkeypatch.setattr(plan.paths, "notebooks", lambda: tmp_path)
    (tmp_path / "plans").mkdir()
    path = written(tmp_path, notebook)
    for name in ("toy", "mine"):
        (tmp_path / "plans" / f"{name}.yaml").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("mine", tmp_path / "plans" / "mine.yaml"):
        with pytest.raises(
            MmkitError,
            match="mine.yaml says 'name: toy', so its runs would go among those of that plan: write 'name: mine', or "
            "rename the file",
        ):
            plan.read_plan(name)
    assert plan.read_plan("toy").name == plan.read_plan(path.rename(tmp_path / "other.yaml")).name == "toy", (
        "a file of one's own is called as one likes"
    )


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_that_makes_no_run_is_refused(tmp_path, notebook, monkeypatch, workers):
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "runs"))
    for dry_run in (True, False):
        with pytest.raises(MmkitError, match=f"workers={workers}: at least one run is made at a time"):
            runner.run_plan(written(tmp_path, notebook), workers=workers, dry_run=dry_run)


def test_the_folder_of_runs_has_no_links_in_its_name(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    monkeypatch.setenv("MMKIT_RUNS", str(tmp_path / "link"))
    assert paths.runs() == (tmp_path / "disk").resolve(), "as the system names the files that a run's processes hold"


def test_a_manifest_knows_its_first_result_and_since_when_its_claims_stand(tmp_path, notebook, monkeypatch):
    toy = plan.read_plan(written(tmp_path, notebook, seeds=2))
    runs, times = plan.expand(toy), iter("1234567")
    monkeypatch.setattr(batches.execute, "now", lambda: next(times))

    def write(claims):
        batches.write_manifest(tmp_path, toy, runs, claims, None)
        return [batches.manifest(tmp_path)[name] for name in ("started", "declared")]

    assert write([{"id": "C1"}]) == ["1", "1"]
    assert write([{"id": "C1"}]) == ["2", "1"], "no result yet"
    for finished, run in zip(("26", "25"), runs, strict=True):
        (tmp_path / run.key).mkdir()
        (tmp_path / run.key / "record.json").write_text(json.dumps({"finished": finished}))
    assert write([{"id": "C1"}]) == ["25", "1"]
    assert write([{"id": "C2"}]) == ["25", "4"], "another claim, after the first result"
    assert write([{"id": "C2"}]) == ["25", "4"], "that it was run again changes nothing"
    older = batches.manifest(tmp_path)
    del older["declared"]
    (tmp_path / "plan.json").write_text(json.dumps(records.sealed(older | {"started": "3"})))
    assert write([{"id": "C2"}]) == ["25", "3"], "of a version that did not keep it"
    (tmp_path / "plan.json").write_text("")
    assert write([{"id": "C2"}]) == ["25", "7"], "a damaged one stands in nobody's way"


def test_the_code_hash_is_of_what_changes_a_number_and_the_same_on_every_platform(tmp_path, monkeypatch):
    hashes = []
    for end in (b"\n", b"\r\n"):
        package = tmp_path / str(len(end)) / "mmkit"
        (package / "core").mkdir(parents=True)
        (package / "core" / "__init__.py").write_bytes(b"a = 1" + end + b"b = 2" + end)
        monkeypatch.setattr(mmkit, "__file__", str(package / "__init__.py"))
        hashes.append(plan.code_hash())
    assert hashes[0] == hashes[1]
    tables = ("core/more.py", "strategies/rates.json")  # a table decides results as code does
    rooms = ("data", "models", "metrics", "training", "tasks")
    for name in [*tables, *(f"{room}/more.py" for room in rooms), "../data_recipes/more.py"]:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(b"3")
        hashes.append(plan.code_hash())
    assert len(set(hashes[1:])) == len(hashes) - 1
    left = ("core/.#more.py", "core/.ipynb_checkpoints/more.py", "data/inner/.ipynb_checkpoints/rates.json")
    changes_nothing = ("cli.py", "teach/plots.py", "repro/report.py", "explain/maps.py", "deploy/export.py")
    for name in (*left, "../data_recipes/.more.py", *changes_nothing):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(b"4")
    assert plan.code_hash() == hashes[-1]
    runner._copy_code(tmp_path / "copy")
    monkeypatch.setattr(mmkit, "__file__", str(tmp_path / "copy" / "mmkit" / "__init__.py"))
    assert plan.code_hash() == hashes[-1], "the runs' copy of the code has the same hash"
