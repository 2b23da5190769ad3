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
from mmkit.repro import plan, records, runner


@dataclass
class Budget:
    pairs: int = 128


def run(**changes):
    scores = {"accuracy": Scores([0.0, 1.0, 1.0], [0, 0, 4]), "ood_style/accuracy": Scores([0.25], [7])}
    cost = SimpleNamespace(
        as_dict=lambda: {"flops": np.float32(2e9), "seconds": 1.5, "peak_bytes": 10, "parameters_trained": 1, "parameters_total": 2, "phases": {}}
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
    assert row == kept.row and row["condition"] == {"pairs": 128, "share": 0.5} and row["profile"] == "lab" and row["schema"] == records.SCHEMA
    assert row["scores"] == {"accuracy": pytest.approx(2 / 3), "ood_style/accuracy": 0.25} and row["settings"] == {"width": 8}
    values, clusters = kept.items_of("accuracy")
    assert values.tolist() == [0.0, 1.0, 1.0] and clusters.tolist() == [0, 0, 4]
    with pytest.raises(MmkitError, match="unknown score 'acuracy': did you mean 'accuracy'"):
        kept.items_of("acuracy")
    table = records.table(records.recorded())
    assert len(table) == 2 and table.loc[0, ["arm", "share", "score", "flops"]].tolist() == ["frozen", 0.5, "accuracy", 2e9]


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
    batch = runner.load(batch_folder(tmp_path / "toy", made))
    for old, new in zip(made, batch.results, strict=True):
        assert new.row["scores"] == old.row["scores"] and new.condition == old.condition
        for name in old.row["scores"]:
            assert all(np.array_equal(a, b) for a, b in zip(old.items_of(name), new.items_of(name), strict=True))
    assert sum(file.stat().st_size for file in (tmp_path / "toy").iterdir()) < 40_000
    frame = pd.read_parquet(tmp_path / "toy" / "items.parquet")  # by another reader
    for number, result in enumerate(batch.results):
        for name in result.row["scores"]:
            mine = frame[(frame["result"] == number) & (frame["score"] == name)]
            assert all(np.array_equal(mine[column], values) for column, values in zip(("value", "cluster"), result.items_of(name), strict=True))


def test_records_that_pandas_wrote_are_read_and_lost_ones_missed(tmp_path):
    made = head_to_head(seeds=1)
    folder = batch_folder(tmp_path / "toy", made)
    frame = pd.read_parquet(folder / "items.parquet")
    frame.to_parquet(folder / "items.parquet", index=False)
    assert [result.items_of("accuracy")[0].tolist() for result in records.read(folder)] == [result.items_of("accuracy")[0].tolist() for result in made]
    for lost in (2, len(made) - 1):
        frame[frame["result"] != lost].to_parquet(folder / "items.parquet", index=False)
        with pytest.raises(MmkitError, match="a result without items.*remove that folder"):
            records.read(folder)


@pytest.mark.parametrize(
    ("changes", "condition", "message"),
    [
        ({"scores": {"accuracy": SimpleNamespace(value=float("nan"))}}, {}, "arm 'frozen', seed 3: score 'accuracy' is nan"),
        ({"scores": {}}, {}, "no scores to record"),
        ({"settings": {"rate": float("inf")}}, {}, "must be finite numbers"),
        ({"settings": {"model": object()}}, {}, "object is not JSON"),
        ({}, {"seed": 1}, "a condition cannot be named 'seed'"),
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
    rows = [json.loads(line) | {"schema": "mmkit.record/0"} for line in (folder / "results.jsonl").read_text().splitlines()]
    (folder / "results.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        MmkitError, match="records of the format 'mmkit.record/0', this version reads 'mmkit.record/1': move the folder away and run the plan again"
    ):
        runner.load(folder)
    with pytest.raises(MmkitError, match="no runs in .*nothing: make them first with 'mmkit reproduce nothing'"):
        runner.load(tmp_path / "nothing")


# --- plans --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def notebook(tmp_path):
    cell = nbformat.v4.new_code_cell(
        'seed: int = 0  # the seed\nshare: float = 0.5  # what varies\nname: str = "x"  # a name', id="parameters-cell", metadata={"tags": ["parameters"]}
    )
    path = tmp_path / "21_stub.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def written(tmp_path, stub, top=None, **entry):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({"name": "toy", "title": "Toy", "notebooks": [{"notebook": str(stub)} | entry]} | (top or {})), encoding="utf-8")
    return path


def test_a_plan_is_its_grid_times_its_seeds(tmp_path, notebook):
    runs = plan.expand(plan.read_plan(written(tmp_path, notebook, parameters={"name": "y"}, grid={"share": [0, 1.0]}, seeds=3)))
    assert [run.parameters for run in runs] == [{"name": "y", "share": float(share), "seed": seed} for share in (0, 1) for seed in range(3)]
    assert len({run.key for run in runs}) == 6 and runs[0].label == "21_stub share=0 seed=0"
    assert [run.parameters["seed"] for run in plan.expand(plan.read_plan(written(tmp_path, notebook, seeds=[4, 2])))] == [4, 2]


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
        ({}, {"parameters": {"shar": 1.0}}, "unknown parameter 'shar': did you mean 'share'"),
        ({}, {"parameters": {"seed": 1.5}}, "parameter 'seed' is int .default 0., got 1.5 of type float"),
        ({}, {"grid": {"share": ["much"]}}, "parameter 'share' is float .default 0.5., got 'much' of type str"),
        ({}, {"parameters": {"seed": 1}, "seeds": 2}, "'seed' is set twice"),
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


def test_the_code_hash_is_of_code_and_tables_and_the_same_on_every_platform(tmp_path, monkeypatch):
    hashes = []
    for end in (b"\n", b"\r\n"):
        package = tmp_path / str(len(end)) / "mmkit"
        package.mkdir(parents=True)
        (package / "__init__.py").write_bytes(b"a = 1" + end + b"b = 2" + end)
        monkeypatch.setattr(mmkit, "__file__", str(package / "__init__.py"))
        hashes.append(plan.code_hash())
    for name in ("more.py", "rates.json"):  # a table decides results as code does
        (package / name).write_bytes(b"3")
        hashes.append(plan.code_hash())
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3
