"""From rows of a data set to a batch: the one place where an input is drawn, blanked, dealt out anew or augmented.

An item has *entries* of a modality: one image, several captions, or none. All entries of a modality lie one after
the other, in the order of their items. Legend: N items, M entries, B rows asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from mmkit.data import Dataset
from mmkit.errors import MmkitError, unknown
from mmkit.models.encoded import Encoded

Target = Tensor | dict[str, Tensor] | None
Transform = Callable[["Batch", torch.Generator], "Batch"]


@dataclass
class Batch:
    """The items of one step.

    rows: (B,) of the data set. inputs[modality]: raw (B, ...) or Encoded. target: (B, ...), one per task by name, or
    None. weight: (B,) of each item in the loss, None for equal ones. present[modality]: (B,) bool, for modalities
    that some item lacks."""

    rows: Tensor
    inputs: dict[str, Tensor | Encoded]
    target: Target = None
    weight: Tensor | None = None
    present: dict[str, Tensor] = field(default_factory=dict)

    def with_input(self, modality: str, x: Tensor | Encoded) -> "Batch":
        """The same batch with another input of one modality, or of a new one."""
        return replace(self, inputs=self.inputs | {modality: x})


@dataclass(frozen=True)
class View:
    """One modality of a data set, by entry.

    name: the modality in words, for messages. start: (N + 1,) where each item's entries begin. read: entries (B,) ->
    raw input (B, ...). empty: raw input -> the same without content. lengths: (M,) of texts, so that those of one
    length can be encoded together. required: an item without an entry is an error; otherwise it is shown an empty
    one. features, position: what a frozen encoder made of some entries, and (M,) where each of them stands there."""

    dataset: Dataset
    name: str
    start: Tensor
    read: Callable[[Tensor], Tensor]
    empty: Callable[[Tensor], Tensor]
    lengths: Tensor | None = None
    required: bool = True
    features: Encoded | None = None
    position: Tensor | None = None

    def __call__(self, entries: Tensor) -> Tensor | Encoded:
        """The input of some entries; -1 is an empty one."""
        missing = entries < 0
        entries = entries.clamp(min=0)
        if self.features is None:
            x = self.read(entries)
            return self._without(x, missing) if missing.any() else x
        position = torch.where(missing, 0, self.position[entries])
        encoded = self.features.rows(position)
        return encoded.masked(missing) if missing.any() else encoded

    def _without(self, x: Tensor, missing: Tensor) -> Tensor:
        """x with empty inputs in the rows of `missing`; an empty text is shorter than others and is padded."""
        x, empty = x.clone(), self.empty(x)[missing]
        x[missing] = 0
        x[missing, : empty.shape[1]] = empty
        return x

    def count(self, rows: Tensor) -> Tensor:
        """(B,) how many entries each row has. Raises MmkitError for a row without one where one is required."""
        count = self.start[rows + 1] - self.start[rows]
        if self.required and not count.all():
            item = self.dataset.items["id"].iloc[int(rows[count == 0][0])]
            raise MmkitError(
                f"item {item!r} of {self.dataset.name!r} has no {self.name}: choose another, or leave such items out "
                "of the set"
            )
        return count

    def draw(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B,) one entry of each row: a random one, or the first without a generator; -1 where there is none."""
        count = self.count(rows)
        chosen = torch.zeros_like(rows)
        if generator is not None and self.most > 1:
            chosen = (torch.rand(len(rows), generator=generator) * count).long()
        return torch.where(count > 0, self.start[rows] + chosen, -1)

    @cached_property
    def most(self) -> int:
        """The most entries that any item has."""
        return int((self.start[1:] - self.start[:-1]).max())

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All entries of some rows, (T,), and their owners as positions in `rows`, (T,)."""
        count = self.count(rows)
        owner = torch.repeat_interleave(torch.arange(len(rows)), count)
        within = torch.arange(len(owner)) - torch.repeat_interleave(count.cumsum(0) - count, count)
        return self.start[rows][owner] + within, owner

    def with_features(self, features: Encoded, entries: Tensor) -> "View":
        """The same view, showing what a frozen encoder made of `entries` in place of raw inputs; others cannot be asked
        for."""
        position = torch.full((int(self.start[-1]),), len(entries))
        position[entries] = torch.arange(len(entries))
        return replace(self, features=features, position=position)


@dataclass(frozen=True)
class Loader:
    """Rows -> Batch.

    views: by modality. target: (N, ...), one per task by name, or a View whose raw input is the target (a caption's
    ids). weight: (N,). transforms: applied to batches that are drawn with a generator, which are those of training.
    blank: modalities that are always shown empty. partner: by modality, or "target", the row (N,) whose entry stands
    in for a row's own."""

    dataset: Dataset
    views: Mapping[str, View]
    target: Tensor | Mapping[str, Tensor] | View | None = None
    weight: Tensor | None = None
    transforms: tuple[Transform, ...] = ()
    blank: frozenset[str] = frozenset()
    partner: Mapping[str, Tensor] = field(default_factory=dict)
    targets: int = 1
    device: torch.device = torch.device("cpu")

    def __post_init__(self):
        weight, count = self.weight, len(self.dataset)
        if weight is not None and (not isinstance(weight, Tensor) or weight.shape != (count,) or (weight < 0).any()):
            given = f"a tensor {tuple(weight.shape)}" if isinstance(weight, Tensor) else f"a {type(weight).__name__}"
            raise MmkitError(f"weight is a tensor ({count},), one number of 0 or more for each item, got {given}")

    def __call__(self, rows: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The batch of some rows (B,) int64. generator: draws one of several entries and feeds the transforms; without
        it every row shows its first entry."""
        drawn = {modality: self._draw(modality, view, rows, generator) for modality, view in self.views.items()}
        inputs = {modality: self._shown(modality, entries) for modality, entries in drawn.items()}
        present = {
            modality: (entries >= 0).to(self.device) for modality, entries in drawn.items() if bool((entries < 0).any())
        }
        weight = None if self.weight is None else self.weight[rows].to(self.device)
        batch = Batch(rows, inputs, self._target(rows, generator), weight, present)
        if generator is not None:
            for transform in self.transforms:
                batch = transform(batch, generator)
                if not isinstance(batch, Batch):
                    name = getattr(transform, "__name__", type(transform).__name__)
                    raise MmkitError(f"the transform {name} gave a {type(batch).__name__}: return the batch")
        return batch

    def input(self, modality: str, rows: Tensor) -> Tensor | Encoded:
        """What one modality shows of some rows: their first entries, on the device."""
        return self._shown(modality, self._draw(modality, self.view(modality), rows, None))

    def entries(self, modality: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All entries of some rows, and their owners as positions in `rows`."""
        return self.view(modality).entries(self._partners(modality, rows))

    def of_entries(self, modality: str, entries: Tensor) -> Tensor | Encoded:
        """What one modality shows of some entries, on the device."""
        return self._shown(modality, entries)

    def view(self, modality: str) -> View:
        """A modality's view. Raises MmkitError for a modality that is not shown, with the nearest name."""
        if modality not in self.views:
            raise unknown("modality", modality, self.views)
        return self.views[modality]

    def require(self, rows: Tensor, modalities: tuple[str, ...] = ()) -> None:
        """Raise MmkitError, by name, for an item that has none of the modalities, that lacks one of those named where
        it is required, or that lacks a target that is a View."""
        counts = torch.stack([view.start[rows + 1] - view.start[rows] for view in self.views.values()])
        empty = counts.sum(0) == 0
        if empty.any():
            item, names = self.dataset.items["id"].iloc[int(rows[empty][0])], " and no ".join(self.views)
            remedy = "leave it out, or read another modality"
            raise MmkitError(f"item {item!r} of {self.dataset.name!r} has no {names}: {remedy}")
        for modality in modalities:
            self.view(modality).count(rows)
        if isinstance(self.target, View):
            self.target.count(rows)

    def blanked(self, *modalities: str) -> "Loader":
        """The same, with some modalities always shown empty."""
        for modality in modalities:
            self.view(modality)
        return replace(self, blank=self.blank | set(modalities))

    def only(self, modalities: tuple[str, ...]) -> "Loader":
        """The same, with some of its modalities."""
        return replace(self, views={modality: self.view(modality) for modality in modalities})

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> "Loader":
        """The same, with pairs broken: every modality but the first is dealt out anew among `rows`; so are drawn
        targets (captions)."""
        first, *others = self.views
        partner = dict(self.partner)
        for name in others or ["target"]:
            partner[name] = torch.arange(len(self.dataset))
            partner[name][rows] = rows[torch.randperm(len(rows), generator=generator)]
        return replace(self, partner=partner)

    def evaluation(self) -> "Loader":
        """The same without what is for training alone: transforms and broken pairs. Blank modalities stay blank."""
        return replace(self, transforms=(), partner={})

    def _draw(self, modality: str, view: View, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        return view.draw(self._partners(modality, rows), generator)

    def _partners(self, modality: str, rows: Tensor) -> Tensor:
        return self.partner[modality][rows] if modality in self.partner else rows

    def _shown(self, modality: str, entries: Tensor) -> Tensor | Encoded:
        view = self.view(modality)
        x = view(entries)
        if modality in self.blank:
            x = x.blank() if isinstance(x, Encoded) else view.empty(x)
        return x.to(self.device)

    def _target(self, rows: Tensor, generator: torch.Generator | None) -> Target:
        if isinstance(self.target, View):
            drawn = [self._draw("target", self.target, rows, generator) for _ in range(self.targets)]
            return self.target(torch.cat(drawn)).to(self.device)
        if isinstance(self.target, Mapping):
            return {name: values[rows].to(self.device) for name, values in self.target.items()}
        return None if self.target is None else self.target[rows].to(self.device)


class RowBatches:
    """Endless batches of rows. Each pass is an order of all rows, cut into batches of `size`; the ragged end is left
    out.

    order: generator -> the rows of one pass; by default all rows, shuffled. The state can be kept and restored, so
    that a run resumes in the middle of a pass."""

    def __init__(
        self,
        rows: Tensor,
        size: int,
        generator: torch.Generator,
        *,
        order: Callable[[torch.Generator], Tensor] | None = None,
    ):
        self.rows, self.size, self.generator = rows, min(size, len(rows)), generator
        self.order = order or self._shuffled
        self.current, self.at = rows[:0], 0

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        return self.rows[torch.randperm(len(self.rows), generator=generator)]

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self.at + self.size > len(self.current):
            self.current, self.at = self.order(self.generator), 0
        self.at += self.size
        return self.current[self.at - self.size : self.at]

    def state(self) -> dict[str, Tensor]:
        return {"current": self.current.clone(), "at": torch.tensor(self.at), "generator": self.generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.current, self.at = state["current"], int(state["at"])
        self.generator.set_state(state["generator"])


def batches(rows: Tensor, size: int, generator: torch.Generator) -> RowBatches:
    """Endless shuffled batches of `size` rows (all rows when there are fewer); each pass sees every row once but for
    the ragged end."""
    return RowBatches(rows, size, generator)


class Batches:
    """Endless batches for training: rows from `rows`, shown by `loader`, drawn from `generator`."""

    def __init__(self, loader: Loader, rows: RowBatches, generator: torch.Generator):
        self.loader, self.rows, self.generator = loader, rows, generator

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.loader(next(self.rows), self.generator)

    def state(self) -> dict[str, Tensor]:
        return {f"rows/{name}": value for name, value in self.rows.state().items()} | {
            "drawn": self.generator.get_state()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.rows.restore(
            {name.removeprefix("rows/"): value for name, value in state.items() if name.startswith("rows/")}
        )
        self.generator.set_state(state["drawn"])
