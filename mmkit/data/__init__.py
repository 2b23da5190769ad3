"""From a recipe or your own files to a prepared set, and from there to arrays, texts and labels.

Names load when they are first used.
"""

from importlib import import_module

_WHERE = {
    "DamagedImage": "images",
    "File": "recipe",
    "Dataset": "dataset",
    "Recipe": "recipe",
    "Writer": "writer",
    "add": "local",
    "cached": "cache",
    "load": "dataset",
    "read_dicom": "dicom",
    "read_image": "images",
    "split_by_hash": "splits",
}
__all__ = list(_WHERE)


def __getattr__(name):
    if name in _WHERE:  # preparing a set needs no torch, and half of the time would go into importing it
        return getattr(import_module(f"mmkit.data.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'mmkit.data' has no attribute {name!r}")
