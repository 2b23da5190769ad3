"""Plans, runs, records, statistics, claims and the report. Names are loaded when they are first used."""

from importlib import import_module

_WHERE = {
    "record": "records", "recorded": "records", "read": "records", "table": "records", "Result": "records",
    "Plan": "plan", "read_plan": "plan",
    "run_plan": "runner", "results": "runner",
    "evaluate": "claims", "read_claims": "claims",
    "export": "report", "reproduce": "report",
}  # fmt: skip


def __getattr__(name):
    if name in _WHERE:
        return getattr(import_module(f"mmkit.repro.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'mmkit.repro' has no attribute {name!r}")
