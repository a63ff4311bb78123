"""Turn flickering probabilities into a stable label: exponential smoothing, two thresholds, a least time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LabelChange(NamedTuple):
    """A label that became valid or invalid."""

    kind: str  # "enter" or "exit"
    label: int
    probability: float
    duration_s: float | None  # of an exit


class Smoother:
    """The state of one source.

    With smoothing s(t) and a frame's probabilities p after dt seconds: s ← s + (1 − exp(−dt / τ))·(p − s). A label
    enters once its s has been the highest and at least ``enter`` for ``switch_after_s``; it leaves when its s falls
    below ``leave``, or when another enters. In between it holds.

    Args:
        time_constant_s: τ; 0: no smoothing.
        enter: least smoothed probability to enter.
        leave: and to stay.
        switch_after_s: how long a new label must lead before it enters; 0: at once.
    """

    def __init__(self, time_constant_s: float, enter: float, leave: float, switch_after_s: float) -> None:
        self._tau, self._enter, self._leave, self._wait = time_constant_s, enter, leave, switch_after_s
        self._values: NDArray[np.float64] | None = None
        self._last_s = self._entered_s = 0.0
        self._rival: tuple[int, float] | None = None  # (label that leads, since when)
        self.label: int | None = None  # None: unknown

    @property
    def probability(self) -> float | None:
        """The label's smoothed probability; None while it's unknown."""
        return None if self.label is None or self._values is None else float(self._values[self.label])

    def update(self, probabilities: NDArray[np.float32], at_s: float) -> tuple[NDArray[np.float64], list[LabelChange]]:
        """Take a frame's probabilities [classes] at a time that never goes back; return smoothed ones, and changes."""
        new = probabilities.astype(np.float64)
        if self._values is None or self._tau == 0:
            self._values = new
        else:
            weight = -math.expm1(-max(0.0, at_s - self._last_s) / self._tau)
            self._values = self._values + weight * (new - self._values)
        self._last_s = at_s
        return self._values, self._decide(self._values, at_s)

    def reset(self) -> list[LabelChange]:
        """Forget everything, because earlier frames don't show the present."""
        changes = self._exit(self._last_s)
        self._values, self._rival = None, None
        return changes

    def _decide(self, values: NDArray[np.float64], at_s: float) -> list[LabelChange]:
        changes: list[LabelChange] = []
        if self.label is not None and values[self.label] < self._leave:
            changes += self._exit(at_s)
        best = int(np.argmax(values))
        if best == self.label or values[best] < self._enter:
            self._rival = None
            return changes
        if self._rival is None or self._rival[0] != best:
            self._rival = (best, at_s)
        if at_s - self._rival[1] >= self._wait:
            changes += self._exit(at_s)
            self.label, self._entered_s, self._rival = best, at_s, None
            changes.append(LabelChange("enter", best, float(values[best]), None))
        return changes

    def _exit(self, at_s: float) -> list[LabelChange]:
        if self.label is None:
            return []
        change = LabelChange("exit", self.label, self.probability or 0.0, max(0.0, at_s - self._entered_s))
        self.label = None
        return [change]
