"""Made-up results for the tests of claims and reports: their true effects are known."""

import json

import numpy as np

from mmkit.repro import records


class Scores:
    """What a record reads of a score, without importing torch."""

    def __init__(self, items, clusters, aggregate="mean", higher_is_better=True):
        self.items, self.clusters, self.aggregate, self.higher_is_better = np.asarray(items, dtype=float), np.asarray(clusters), aggregate, higher_is_better
        self.value = float(np.mean(items) if aggregate == "mean" else np.median(items))


def result(arm, seed, scores, *, flops=1e9, condition=None, data="toy", data_hash="h", profile="lab"):
    """One result; scores: name -> `Scores`."""
    row = {
        "schema": records.SCHEMA, "arm": arm, "task": "answering", "data": data, "data_hash": data_hash, "seed": seed,
        "condition": condition or {"pairs": 64}, "budget": {"pairs": 64}, "settings": {}, "profile": profile,
        "scores": {name: score.value for name, score in scores.items()},
        "metrics": {name: records._describe(score) for name, score in scores.items()},
        "cost": {"flops": flops, "seconds": 2.0, "peak_bytes": 10**9, "parameters_trained": 1000, "parameters_total": 2000, "phases": {}},
        "versions": records.versions(), "hardware": records.hardware(), "time": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return records.Result(row, records.items_table(scores))


def head_to_head(*, seeds=8, images=120, gain=0.1, profile="lab", pairs=(64, 256)):
    """Two arms and a control on shared images, `holistic` better by `gain` on the test split, for half the compute."""
    found = []
    for budget in pairs:
        for seed in range(seeds):
            rng = np.random.default_rng([seed, budget])
            for arm, shift in (("holistic", gain), ("component", 0.0), ("shuffled", -0.3)):
                level = 0.55 + shift + rng.normal(0, 0.01)
                test = Scores(rng.random(2 * images) < level, np.arange(2 * images) // 2)
                away = Scores(rng.random(images) < level - 0.1, np.arange(images))
                found.append(
                    result(
                        arm,
                        seed,
                        {"accuracy": test, "ood_style/accuracy": away},
                        flops=1e9 * budget * (1 if arm == "holistic" else 2),
                        condition={"pairs": budget},
                        profile=profile,
                    )
                )
    return found


def claim(identity="C1", *, terms=None, **changes):
    """A claim as `claims.yaml` holds it."""
    entry = {
        "id": identity, "statement": "holistic is more accurate", "source": "the documents", "family": "accuracy", "scope": "toy data", "direction": "greater",
        "smallest_effect": 0.02, "unit": "accuracy", "seeds": 8,
        "terms": terms or [{"arm": "holistic", "score": "accuracy", "condition": {"pairs": 64}, "weight": 1.0}, {"arm": "component", "score": "accuracy", "condition": {"pairs": 64}, "weight": -1.0}],
    }  # fmt: skip
    return entry | changes


def batch_folder(folder, results, claims=(), name="toy", failures=()):
    """Published records of a made-up plan, as `runner.publish` writes them."""
    from mmkit.repro import runner

    header = {"seconds": 3.0, "finished": "2026-01-01T00:00:00+00:00", "versions": records.versions(), "hardware": records.hardware()}
    manifest = {
        "schema": records.SCHEMA,
        "plan": {"name": name, "title": "A toy plan", "profile": "lab", "notebooks": [], "claims": []},
        "claims": list(claims),
        "runs": [],
        "code_hash": "0" * 64,
        "commit": "unknown",
        "started": "2026-01-01T00:00:00+00:00",
    }
    runner.publish(runner.Batch(json.loads(json.dumps(manifest)), list(results), [header], list(failures), []), folder)
    return folder
