"""The differences between a quantized and the float graph on the same pictures. Part of ``manifest.json``."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from vitedge.core.schema import Record


class Flip(Record):
    """A picture whose top-1 class differs from the float graph's."""

    picture: str
    label: str  # the float graph's
    instead: str
    margin: float  # of the float graph's two largest probabilities


class Drop(Record):
    """The top-1 drop against the float graph on the same labelled pictures, with its 95 % interval."""

    pp: float = field(name="points")  # percentage points, as are the ends of the interval
    low: float
    high: float

    def __str__(self) -> str:
        """Format with true minus signs; negative is a gain."""
        return f"{self.pp:.2f} pp (95 % interval {self.low:.2f} to {self.high:.2f})".replace("-", "−")


class Fidelity(Record):
    """The differences between a quantized graph and the float graph."""

    source: str  # name of the data set
    split: Literal["held-out", "calibration"] = field(name="seen")  # calibration: optimistic figures
    pictures: int
    executed_by: str  # what ran the quantized graph
    divergence: float  # mean KL divergence to the float graph's probabilities, nats
    agreement: float  # fraction of pictures with the same top-1
    top1_drop: Drop | None = field(name="drop", default=None)  # None: the pictures have no labels that the model knows
    flips: tuple[Flip, ...] = ()  # the worst: those the float graph was surest of
