"""What a quantized graph loses against the float one. Part of ``manifest.json``."""

from __future__ import annotations

from typing import Literal

from vitedge.core.schema import Record


class Flip(Record):
    """A picture that the quantized graph calls by another name than the float one."""

    picture: str
    label: str  # the float graph's
    instead: str
    margin: float  # of the float graph's two largest probabilities


class Drop(Record):
    """Top-1 lost against the float graph on the same labelled pictures, percentage points, with its 95 % interval."""

    points: float
    low: float
    high: float


class Fidelity(Record):
    """What was lost against the float graph."""

    source: str  # name of the data set
    seen: Literal["held-out", "calibration"]  # calibration: there were no others, so this flatters
    pictures: int
    executed_by: str  # what ran the quantized graph
    divergence: float  # mean KL divergence to the float graph's probabilities, nats
    agreement: float  # share of pictures with the same top-1
    drop: Drop | None = None  # None: the pictures have no labels that the model knows
    flips: tuple[Flip, ...] = ()  # the worst: those the float graph was surest of
