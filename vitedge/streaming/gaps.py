"""The usual interval between a source's frames, and the detection of gaps."""

from __future__ import annotations

from collections import deque
from statistics import median


class GapDetector:
    """The last intervals of one source.

    Args:
        gap_s: no shorter interval is a gap; neither is one of at most 2.5 usual intervals, so slow sources have none.
    """

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._intervals: deque[float] = deque(maxlen=15)

    @property
    def longest_s(self) -> float | None:
        """The longest interval that isn't a gap; None before the first."""
        return max(self._gap_s, 2.5 * median(self._intervals)) if self._intervals else None

    def observe(self, interval_s: float) -> bool:
        """Whether this interval is a gap (a negative one always is); any other is added to the usual intervals."""
        longest = self.longest_s
        if interval_s < 0 or (longest is not None and interval_s > longest):
            return True
        self._intervals.append(interval_s)
        return False
