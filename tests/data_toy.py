"""A data set of nothing but numbers, and small helpers of the data tests."""

import io
import zipfile

import numpy as np
import pandas as pd

from mmkit.data import Recipe, add

ABOUT = {"name": "toy", "title": "A toy", "task": "none", "licence": "CC0", "terms": "none", "citation": "nobody"}
LABELS = {"label_shape": [0, 1, 2], "label_colour": ["red", "", "blue"]}
PIXELS = np.zeros((2, 2, 3), np.uint8)
HEAD = "image,caption\n"
ALL = "".join(f"p{n}.png,photo number {n}\n" for n in range(10))


def adding(photos, text=HEAD + ALL, name="captions.csv", **options):
    """Bring photos and a table of them to a set, as a student does."""
    (photos.parent / name).write_text(text, encoding="utf-8")
    return add("mine", images=photos, table=photos.parent / name, **({"size": 16} | options))


def fill_by_table(writer, sources, *, count, noise):
    pixels = np.arange(count * 4 * 5 * 3, dtype=np.uint32).reshape(count, 4, 5, 3).astype(np.uint8)
    names = [f"item-{n}" for n in range(count)]
    table = pd.DataFrame({"id": names, "image": writer.images(pixels), "split": (["train"] * (count - 1)) + ["test"]})
    rows = writer.items(table.assign(**{name: (values * count)[:count] for name, values in LABELS.items()}))
    writer.texts(
        pd.DataFrame({"item": np.repeat(rows, 2), "text": [f"caption {k} of {name}" for name in names for k in (0, 1)]})
    )
    writer.texts(pd.DataFrame({"item": rows, "text": "¿qué?", "language": "es", "role": "question"}))


def fill_one_by_one(writer, sources, *, count, noise):
    pixels = np.arange(count * 4 * 5 * 3, dtype=np.uint32).reshape(count, 4, 5, 3).astype(np.uint8)
    for n in range(count):
        labels = {name: values[n % 3] for name, values in LABELS.items()}
        item = writer.item(
            f"item-{n}", image=writer.image(pixels[n]), split="train" if n < count - 1 else "test", **labels
        )
        for k in (0, 1):
            writer.text(item, f"caption {k} of item-{n}")
    for n in range(count):
        writer.text(n, "¿qué?", language="es", role="question")


def recipe(prepare=fill_by_table, **changed):
    return Recipe(**(ABOUT | {"version": 1, "prepare": prepare, "knobs": {"count": 7, "noise": 0.5}} | changed))


def one(writer, id="a", split="train", text="words", image=True, **more):
    item = writer.item(id, image=writer.image(PIXELS) if image else -1, split=split, **more)
    if text is not None:
        writer.text(item, text)


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def left(folder):
    return sorted(path.name for path in folder.iterdir())
