"""The arrival times of pictures in the scenario ``camera``: at a steady rate, or as they came in a recorded clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from vitedge.errors import UsageError


class Arrivals:
    """A schedule without an end, taken block by block; it keeps a position, so each workload needs its own.

    Args:
        gap_ns: nanoseconds between arrival i − 1 and arrival i, counted from the first, which has a gap, too.
    """

    def __init__(self, gap_ns: Callable[[int], int]) -> None:
        self._gap_ns, self._next = gap_ns, 0

    @classmethod
    def steady(cls, rate_hz: float) -> Arrivals:
        """Return one arrival every 1 / ``rate_hz`` seconds; rounding doesn't accumulate."""
        period = 1e9 / rate_hz
        return cls(lambda number: round((number + 1) * period) - round(number * period))

    @classmethod
    def replayed(cls, times_ns: Sequence[int]) -> Arrivals:
        """Return a clip's arrivals, repeated; between its end and its beginning lies its median gap.

        Raises:
            UsageError: fewer than two arrivals, or they aren't in order.
        """
        gaps = [later - earlier for earlier, later in pairwise(times_ns)]
        if not gaps or min(gaps) < 0 or max(gaps) == 0:
            raise UsageError(
                "replay recorded arrivals",
                f"{len(times_ns)} times that don't ascend" if gaps else f"{len(times_ns)} arrivals have no gap",
                "record the clip again",
            )
        cycle = [round(median(gaps)), *gaps]
        return cls(lambda number: cycle[number % len(cycle)])

    def block(self, length_ns: int) -> list[tuple[int, int]]:
        """Return the arrivals of the next ``length_ns``, at least one: (nanoseconds since the block began, number)."""
        arrivals: list[tuple[int, int]] = []
        at = 0
        while True:
            at += self._gap_ns(self._next)
            if arrivals and at > length_ns:
                return arrivals
            arrivals.append((at, self._next))
            self._next += 1


@dataclass(frozen=True)
class Replay:
    """A recorded clip for the scenario ``camera``: its pictures and their arrival times.

    Attributes:
        name: of the clip, with its digest.
        times_ns: when each picture arrived, ascending, from any zero.
        pictures: as many; PIL images or uint8 RGB [H, W, 3]. Decoded on access is fine: it then counts as preparing.
        prepared: they're uint8 RGB [h, w, 3] at the model's size already, as a stream's reader prepared them.
    """

    name: str
    times_ns: Sequence[int]
    pictures: Sequence[Any]
    prepared: bool = False

    @property
    def rate_hz(self) -> float:
        """Mean arrivals per second."""
        span = self.times_ns[-1] - self.times_ns[0]
        return (len(self.times_ns) - 1) * 1e9 / span if span > 0 else 1.0
