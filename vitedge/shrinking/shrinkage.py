"""The record of a shrinking: ``origin.details.shrunk`` in ``model.json``, and what the command line shows."""

from __future__ import annotations

import msgspec

from vitedge.core.schema import Record
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.model_folder import Origin

SHRUNK = "shrunk"  # among ``origin.details``


class Removed(Record):
    """A component that became narrower."""

    component: str
    kind: str
    before: int
    after: int
    saves: float  # fraction of the whole model's cost, by the table
    error: float  # squared error of the logits that it was expected to add


class Resolution(Record):
    """An input size that was tried."""

    size: tuple[int, int]  # (height, width), pixels
    cost: float | None  # of its narrowed model, in the unit of the costs; None: the budget can't be met there
    loss: Fidelity | None  # of the same, against the whole model at its own size


class Shrinkage(Record):
    """The record of a shrinking: its budget, costs, loss and the components that became narrower."""

    model: str  # name of the whole one
    model_digest: str
    classes: int  # that it has now
    budget: str
    chosen_by: str  # the latency table, or multiply-accumulates
    table_digest: str | None  # None: nothing was measured
    unit: str  # of the costs: "ns" or "multiply-accumulates"
    full: float  # the whole model's cost
    cost: float  # the shrunk one's
    verified: bool  # whether the cost was measured as a whole model here; else it's the table's sum
    macs_before: int
    macs_after: int
    removed: tuple[Removed, ...]
    pictures: int  # that it was shrunk by
    loss: Fidelity | None = None  # against the whole model in float32, on hold-out pictures
    finetuned_epochs: int | None = None
    size: tuple[int, int] | None = None  # (height, width) of the input that was chosen, pixels
    resolutions: tuple[Resolution, ...] = ()  # that were tried; empty: the model's own alone

    @property
    def speedup(self) -> float:
        """The whole model's cost over the shrunk model's."""
        return self.full / self.cost


def shrinkage_of(origin: Origin) -> Shrinkage | None:
    """Return how a model of this origin was shrunk; None: it wasn't, or the record has another version's form."""
    try:
        return msgspec.convert(origin.details.get(SHRUNK), Shrinkage)
    except msgspec.ValidationError:
        return None
