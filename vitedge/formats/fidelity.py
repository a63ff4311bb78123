"""How a quantized graph differs from the float graph on the same pictures. Part of ``manifest.json``."""

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
    """Top-1 accuracy lost against the float graph on the same labelled pictures, with its 95 % interval."""

    pp: float = field(name="points")  # percentage points, as are the ends of the interval
    low: float
    high: float

    def __str__(self) -> str:
        """With true minus signs; negative is a gain."""
        return f"{self.pp:.2f} pp (95 % interval {self.low:.2f} to {self.high:.2f})".replace("-", "−")


class Fidelity(Record):
    """How a quantized graph differs from the float graph."""

    source: str  # name of the data set
    split: Literal["held-out", "calibration"] = field(name="seen")  # calibration: too few others, so this flatters
    pictures: int
    executed_by: str  # what ran the quantized graph
    divergence: float  # mean KL divergence to the float graph's probabilities, nats
    agreement: float  # fraction of pictures with the same top-1
    top1_drop: Drop | None = field(name="drop", default=None)  # None: the pictures have no labels that the model knows
    flips: tuple[Flip, ...] = ()  # the worst: those the float graph was surest of
