"""Made-up results for the tests of claims and reports: their true effects are known."""

import json

import numpy as np

from mmkit.repro import records


class Scores:
    """What a record reads of a score, without importing torch."""

    def __init__(self, items, clusters, aggregate="mean", higher_is_better=True):
        self.items, self.clusters, self.aggregate, self.higher_is_better = (
            np.asarray(items, dtype=float),
            np.asarray(clusters),
            aggregate,
            higher_is_better,
        )
        self.value = float(np.mean(items) if aggregate == "mean" else np.median(items))


TUNED = {"tuning": {"trials": {"0.001": 0.4, "0.003": 0.6, "0.01": 0.5}, "lr": 0.003, "edge": False, "nested": True}}
TUNED["tuning"] |= {"grid": [0.001, 0.003, 0.01], "flops": 3e9}


def result(arm, seed, scores, *, flops=1e9, condition=None, data="toy", data_hash="h", profile="lab", **fields):
    """One result; scores: name -> `Scores`; fields: more of its row, such as `settings` or `levels`."""
    cost = {"flops": flops, "seconds": 2.0, "peak_bytes": 10**9, "parameters_trained": 1000, "parameters_total": 2000}
    row = {
        "schema": records.SCHEMA,
        "arm": arm,
        "task": "answering",
        "data": data,
        "data_hash": data_hash,
        "seed": seed,
        "condition": condition or {"pairs": 64},
        "budget": {"pairs": 64},
        "settings": TUNED,
        "profile": profile,
        "scores": {name: score.value for name, score in scores.items()},
        "metrics": {name: records._describe(score) for name, score in scores.items()},
        "cost": cost | {"phases": {}},
        "versions": records.versions(),
        "hardware": records.hardware(),
        "time": "2026-01-01T00:00:00+00:00",
    }
    return records.Result(json.loads(json.dumps(row | fields)), records.items_table(scores))


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
    sides = (("holistic", 1.0), ("component", -1.0))
    entry = {
        "id": identity,
        "statement": "holistic is more accurate",
        "source": "the documents",
        "family": "accuracy",
        "scope": "toy data",
        "direction": "greater",
        "smallest_effect": 0.02,
        "unit": "accuracy",
        "seeds": 8,
        "terms": terms
        or [{"arm": arm, "score": "accuracy", "condition": {"pairs": 64}, "weight": weight} for arm, weight in sides],
    }
    return entry | changes


def terms(score="accuracy", pairs=64, arms=("holistic", "component"), factor=1.0, cost=None):
    """The two terms of a claim that holistic is ahead."""
    what = {"cost": cost} if cost else {"score": score}
    return [
        {"arm": arm, **what, "condition": {"pairs": pairs}, "weight": sign * factor}
        for arm, sign in zip(arms, (1.0, -1.0), strict=True)
    ]


def verdict(results, **changes):
    """The verdict on one made-up claim."""
    from mmkit.repro.claims import Claim, evaluate

    return evaluate([Claim.model_validate(claim(**changes))], results, draws=2000)[0]


def batch_folder(folder, results, claims=(), name="toy", failures=()):
    """Published records of a made-up plan, as `batches.publish` writes them."""
    from mmkit.repro import batches

    header = {
        "seconds": 3.0,
        "finished": "2026-01-01T00:00:00+00:00",
        "versions": records.versions(),
        "hardware": records.hardware(),
    }
    manifest = {
        "schema": records.SCHEMA,
        "plan": {"name": name, "title": "A toy plan", "profile": "lab", "notebooks": [], "claims": []},
        "claims": list(claims),
        "runs": [],
        "code_hash": "0" * 64,
        "commit": "unknown",
        "started": "2026-01-01T00:00:00+00:00",
    }
    batches.publish(
        batches.Batch(json.loads(json.dumps(manifest)), list(results), [header], list(failures), []), folder
    )
    return folder
