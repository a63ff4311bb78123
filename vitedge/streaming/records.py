"""The items of a running stream: a record for each classified frame, events, and a status with the frame counts.

A sink takes all three kinds of item. What leaves the process (JSON Lines, the page, metrics) is made of these alone,
and every name of a source in them is already without credentials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from msgspec import field

from vitedge.core.percentiles import percentile
from vitedge.core.schema import Record
from vitedge.streaming.times import Rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: ``waiting``: a live source couldn't be reached yet or was lost; the next attempt comes after a back-off.
State = Literal["connecting", "connected", "waiting", "ended", "failed"]
STATES: tuple[State, ...] = ("connecting", "connected", "waiting", "ended", "failed")


class Score(Record):
    """A class and its probability (as the contract's activation gives it)."""

    label: str
    probability: float


class FrameRecord(Record, tag_field="type", tag="frame"):
    """One classified frame."""

    source: str
    sequence: int  # number of the captured frame, from 0; it goes on over reconnects
    connection: int  # number of the connection that it came over, from 0
    presentation_s: float | None  # presentation time in the stream, seconds; None where the stream has none
    time: str  # wall clock at capture: ISO 8601, UTC, milliseconds
    monotonic_ns: int  # CLOCK_MONOTONIC at capture: when the frame's last packet arrived
    age_ms: float  # from capture to result
    dropped: int  # frames dropped between the previous record and this one (skipped ones aren't dropped)
    gap: bool  # the first frame, or the first after a gap, a reconnect or a change of size: smoothing started again
    width: int  # of the source's picture as shown (rotation honoured, before cropping), pixels
    height: int
    label: str | None  # the current state after smoothing and thresholds; None: unknown
    probability: float | None  # smoothed, of ``label``
    raw: tuple[Score, ...]  # this frame alone, best first, ``top_k`` of them
    smoothed: tuple[Score, ...]
    truth: str | None = None  # the class of a ``test://`` source's picture
    presentation_rule: Rule | None = None  # the rule that gave the presentation time


class Event(Record, tag_field="type", tag="event"):
    """An event of a source."""

    source: str
    kind: Literal["enter", "exit", "connected", "lost", "ended", "failed", "size", "gap"]
    time: str
    monotonic_ns: int
    sequence: int | None = None  # of the frame at which it happened
    presentation_s: float | None = None
    label: str | None = None  # of enter and exit
    probability: float | None = None
    duration_s: float | None = None  # exit: how long the label held; lost: how long until the next attempt
    text: str | None = None  # why, for a person


class FrameCounts(Record):
    """Frame counts; each frame counts once: ``captured = classified + skipped + dropped + corrupt``."""

    captured: int = 0  # decoded, or found broken by the decoder
    classified: int = 0
    skipped: int = 0  # by the policy ``every:N``
    dropped: int = 0  # a newer one replaced it, or its reader ended
    corrupt: int = 0

    @property
    def complete(self) -> bool:
        """Whether every captured frame is counted once; false while some are in flight."""
        return self.captured == self.classified + self.skipped + self.dropped + self.corrupt

    def __add__(self, other: FrameCounts) -> FrameCounts:
        return FrameCounts(
            captured=self.captured + other.captured,
            classified=self.classified + other.classified,
            skipped=self.skipped + other.skipped,
            dropped=self.dropped + other.dropped,
            corrupt=self.corrupt + other.corrupt,
        )


class Percentiles(Record):
    """Nearest-rank percentiles of the last ``count`` values, milliseconds."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class SourceStatus(Record):
    """The state of one source at this moment."""

    name: str
    uri: str  # without credentials
    live: bool
    state: State
    reason: str | None  # why it's waiting, ended or failed
    state_s: float  # seconds in this state
    retry_s: float | None  # seconds until the next attempt, while waiting
    connections: int  # successful ones
    gaps: int  # jumps of the presentation time within a connection
    counts: FrameCounts = field(name="books")
    width: int | None
    height: int | None
    codec: str | None
    captured_hz: float  # over the last seconds
    classified_hz: float
    age: Percentiles | None
    silent_s: float | None  # since the last classified frame was captured
    label: str | None
    probability: float | None
    smoothed: tuple[Score, ...]


class SinkStatus(Record):
    """The state of one sink at this moment."""

    name: str
    written: int
    dropped: int
    error: str | None  # the last one, without credentials


class Status(Record, tag_field="type", tag="status"):
    """All data of the page and the metrics; sinks get a status about every second, and one at the end."""

    time: str
    monotonic_ns: int
    uptime_s: float
    artifact: str
    precision: str
    runtime: str
    device: str
    sources: tuple[SourceStatus, ...]
    sinks: tuple[SinkStatus, ...]
    inference: Percentiles | None
    temperature_c: float | None  # None: not readable here
    power_w: float | None
    clock_mhz: float | None
    throttled: bool | None


Item = FrameRecord | Event | Status


@runtime_checkable
class Sink(Protocol):
    """A receiver of items, called from the engine's thread; :class:`vitedge.streaming.sink.QueuedSink` is the base.

    Attributes:
        name: for its counts and the status, without credentials.
        written: items delivered.
        dropped: items that it took and couldn't deliver.
        error: the last failure, without credentials; None: none.
        picture_width: pixels that a picture beside the next record should have at most; 0: none is wanted now. It's
            read before every frame, so a page without viewers costs nothing.
    """

    name: str
    written: int
    dropped: int
    error: str | None

    @property
    def picture_width(self) -> int:
        """See above."""
        ...

    def put(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """Take an item; never blocks, never raises.

        Args:
            item: a record, an event or a status.
            picture: beside a :class:`FrameRecord` when a sink wanted one: uint8 RGB [H, W, 3], read-only, shared by all
                sinks; it stays valid. It may be missing for a few frames after a sink wants the first, and larger.
        """
        ...

    def end(self) -> None:
        """Take nothing more, and deliver the rest soon. It doesn't wait, so that all sinks end at the same time."""
        ...

    def close(self, timeout_s: float) -> None:
        """Deliver the rest within ``timeout_s`` seconds and release everything; undelivered items count as dropped."""
        ...


def percentiles(values_ms: Sequence[float]) -> Percentiles | None:
    """Return nearest-rank percentiles; None without values."""
    if not values_ms:
        return None
    ordered = sorted(values_ms)
    p50, p95, p99 = (percentile(ordered, percent) for percent in (50, 95, 99))
    return Percentiles(count=len(ordered), p50_ms=p50, p95_ms=p95, p99_ms=p99, max_ms=ordered[-1])
