"""What the tests of strategies share: small scenes, and a task that keeps what each step of training was shown."""

from dataclasses import fields
from types import SimpleNamespace

from mmkit.strategies import Budget, Encoders
from mmkit.training import View

SMALL = {"train": 192, "val": 32, "test": 64, "ood": 32, "pool": 96}
QUICK = Encoders(epochs=1)
BUDGET = Budget(pairs=64, epochs=4)
REAL = Encoders(image="efficientnet_lite0", text="minilm")
PARTS = ("image", "text", "fusion", "head")


def digest(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, two):
    assert one.keys() == two.keys()
    return all(one[name].equal(two[name]) for name in one)


class Watching(View):
    """A view that keeps which entries were drawn for training."""

    drawn: list = []

    def draw(self, rows, generator=None):
        entries = super().draw(rows, generator)
        if generator is not None:
            self.drawn.append(entries.tolist())
        return entries


def watched(kind, dataset, **options):
    """A task that keeps what each step of training was shown: rows, texts, and the weights of every part before it."""

    class Watched(kind):
        def view(self, modality, words):
            view = super().view(modality, words)
            if modality != "text":
                return view
            return Watching(**{field.name: getattr(view, field.name) for field in fields(view)})

        def objective(self, model, batch):
            parts = {name: digest(getattr(model, name)) for name in PARTS}
            trained = set()
            for name in parts:
                if any(p.requires_grad for p in getattr(model, name).parameters()):
                    trained.add(name)
            texts = Watching.drawn[-1]
            self.steps.append(SimpleNamespace(rows=batch.rows.tolist(), texts=texts, parts=parts, trained=trained))
            return super().objective(model, batch)

    task = Watched(dataset, **options)
    task.steps = []
    return task
