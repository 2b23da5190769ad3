"""mmkit: a teaching and reproduction kit for multimodal AI. Names are loaded when they are first used."""

from importlib import import_module

__version__ = "0.1.0"
DISTRIBUTION = "mmkit-course"  # the package index holds a stranger's `mmkit`

_WHERE = {
    "load": "mmkit.data",
    "record": "mmkit.repro",
    "Budget": "mmkit.strategies",
    "load_model": "mmkit.strategies",
    "MmkitError": "mmkit.errors",
}
_ROOMS = (
    "core",
    "data",
    "models",
    "metrics",
    "stats",
    "training",
    "pretraining",
    "tasks",
    "strategies",
    "tuning",
    "repro",
    "teach",
    "explain",
    "deploy",
)


def __getattr__(name):
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    if name in _ROOMS:
        return import_module(f"mmkit.{name}")
    raise AttributeError(f"module 'mmkit' has no attribute {name!r}")
