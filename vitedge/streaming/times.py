"""Presentation times of decoded frames, which rise strictly whatever stamps a container has."""

from __future__ import annotations

import heapq
from fractions import Fraction
from statistics import median
from typing import Literal, NamedTuple

from vitedge.streaming.gaps import GapDetector

#: The rule that gave a time: the frame's own stamp; the decoding stamps, sorted, where a format has no others; the
#: frame before and the frame rate, where the stamp is missing or doesn't rise; the frame's arrival; the frame's number
#: and a rate.
Rule = Literal["pts", "dts", "rate", "arrival"]
RULES: tuple[Rule, ...] = ("pts", "dts", "rate", "arrival")

#: Formats that store the order of decoding alone; FFmpeg's presentation stamps are guesses there.
DECODING_ORDER = ("avi",)
#: Stamps that wrap after this many bits (ISO 13818-1, 2.4.3.7; FLV's are 32 bits of milliseconds).
WRAP_BITS = {"mpegts": 33, "mpeg": 33, "hls": 33, "flv": 32, "live_flv": 32}
USUAL_RATE = 25  # FFmpeg's rate where none is stated
JUMP_S = 0.1  # a step back by less isn't a jump, only a bad stamp
LEAST_S = 1e-9  # between two times, whose unit is the nanosecond
MOST_HALVINGS = 4  # successive stamps that count as errors; after more, the stream has no usable stamps
MOST_WAITING = 512  # decoding stamps whose frames haven't come


class Presented(NamedTuple):
    """A frame's presentation time, seconds, and its rule; ``jumped``: its stamp lies far behind the last one."""

    at_s: float
    rule: Rule
    jumped: bool = False


class PresentationTimes:
    """The times of one stream's frames, in the order in which they are shown.

    A frame's stamp gives its time as long as it's later than the one before. A stamp that is missing is replaced by
    the interval of the frame rate; one that isn't later by a part of it, so that the next good stamp fits in. Where
    two stamps follow each other behind the time reached, the stream began anew, and goes on from there.

    Args:
        format: FFmpeg's name of the container format.
        time_base: seconds of one tick.
        rate: frames a second, as the container says; None: unknown.

    Attributes:
        sorts: whether the format stores the order of decoding alone.
    """

    def __init__(self, format: str, time_base: Fraction, rate: Fraction | None) -> None:
        self._tick_s = float(time_base)
        self.sorts = format in DECODING_ORDER
        self._wrap = 1 << WRAP_BITS[format] if format in WRAP_BITS else None
        # The last intervals, seconds. PyAV 19 has 0/0 for a rate that's unknown.
        self._intervals = [rate.denominator / rate.numerator] if rate is not None and rate.numerator > 0 else []
        self._jumps = GapDetector(JUMP_S)
        self._waiting: list[int] = []  # a heap of decoding stamps
        self._last: Presented | None = None
        self._last_ticks: int | None = None
        self._behind_s: float | None = None  # the last stamp, if it wasn't later
        self._slips = 0  # such stamps in a row
        self._offset_s = 0.0

    @property
    def interval_s(self) -> float:
        """The usual interval between frames."""
        return median(self._intervals) if self._intervals else 1 / USUAL_RATE

    def sent(self, dts: int | None) -> None:
        """Note that a packet with this decoding stamp, ticks, went to the decoder."""
        if self.sorts and dts is not None:
            heapq.heappush(self._waiting, dts)
            if len(self._waiting) > MOST_WAITING:
                heapq.heappop(self._waiting)

    def lost(self) -> None:
        """Note that a packet gave no frame."""
        if self._waiting:
            heapq.heappop(self._waiting)

    def of(self, pts: int | None) -> Presented:
        """Return the time of the next frame that is shown, by its presentation stamp in the container, ticks."""
        rule: Rule = "dts" if self.sorts else "pts"
        ticks = (heapq.heappop(self._waiting) if self._waiting else None) if self.sorts else pts
        presented = self._after(ticks, rule)
        self._last = presented
        return presented

    def _after(self, ticks: int | None, rule: Rule) -> Presented:
        last = self._last
        if ticks is None:
            return Presented(0.0 if last is None else last.at_s + self.interval_s, "rate")
        stamp_s = self._unwrapped(ticks) * self._tick_s
        at_s = stamp_s + self._offset_s
        if last is None or at_s - last.at_s > max(self._tick_s / 2, LEAST_S):
            if last is not None and last.rule == rule and not self._jumps.observe(at_s - last.at_s):
                self._intervals = [*self._intervals[-14:], at_s - last.at_s]
            self._behind_s, self._slips = None, 0
            return Presented(at_s, rule)
        behind_s, self._behind_s = self._behind_s, stamp_s
        if behind_s is not None and stamp_s > behind_s:  # the second stamp of a stream that restarted
            resumed_s = last.at_s + self.interval_s
            self._offset_s += resumed_s - at_s
            self._behind_s, self._slips = None, 0
            return Presented(resumed_s, rule)
        self._slips += 1
        jumped = self._slips == 1 and last.at_s - at_s > (self._jumps.longest_s or JUMP_S)
        part = 2.0**-self._slips if self._slips <= MOST_HALVINGS else 1.0
        return Presented(last.at_s + part * self.interval_s, "rate", jumped)

    def _unwrapped(self, ticks: int) -> int:
        """Return the ticks nearest to the last ones, as far as their bits leave it open."""
        if self._wrap is not None and self._last_ticks is not None:
            ticks += round((self._last_ticks - ticks) / self._wrap) * self._wrap
        self._last_ticks = ticks
        return ticks
