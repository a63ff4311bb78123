"""One source in the engine: turns its frames into records, and changes of its state and label into events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from vitedge.streaming.capture import Capture, StateChange
from vitedge.streaming.gaps import GapDetector
from vitedge.streaming.records import Event, FrameCounts, FrameRecord, Percentiles, Score, SourceStatus, percentiles
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.shared import Taken
from vitedge.streaming.smoothing import LabelChange, Smoother
from vitedge.streaming.uri import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitedge.runtimes.session import Session

LATEST = 1000  # ages and inference times that the percentiles cover
RATE_STEP_S = 0.5  # at least between two points of a rate


class SourceState:
    """One source in the engine: its capture, its smoothed probabilities and label, its figures."""

    def __init__(self, source: Source, settings: StreamSettings, session: Session) -> None:
        self.source, self._names = source, [label.name for label in session.classes]
        self._top_k = min(settings.top_k, len(self._names))
        leave = settings.threshold if settings.exit_threshold is None else settings.exit_threshold
        self._smoother = Smoother(settings.smoothing, settings.threshold, leave, settings.switch_after)
        self._smoothed: NDArray[np.float64] | None = None
        self._gap_detector = GapDetector(settings.gap)
        self._ages: deque[float] = deque(maxlen=LATEST)
        self._last: Taken | None = None
        self._clock_s = 0.0  # of the smoother: presentation times as far as there are any
        self._dropped = 0  # frames, until the last record
        self._interrupted = True  # the next frame doesn't continue the earlier ones
        self._rates = _Rates()
        self.capture = Capture(source, settings, session.artifact)

    # --- frames

    def record(self, taken: Taken, probabilities: NDArray[np.float32], now_ns: int) -> tuple[FrameRecord, list[Event]]:
        """Return the record of a classified frame with probabilities [classes], and the events that follow from it."""
        capture, last = self.capture, self._last
        gap = self._interrupted or taken.gap
        events = self._gap_events(taken) if gap else []
        if last is not None and not gap:
            self._gap_detector.observe((taken.monotonic_ns - last.monotonic_ns) / 1e9)
        self._clock_s += _interval_s(last, taken)
        self._smoothed, changes = self._smoother.update(probabilities, self._clock_s)
        below = len(changes) == 1 and changes[0].kind == "exit"
        events += [self._label_event(change, taken, "below its threshold" if below else None) for change in changes]
        self._last, self._interrupted = taken, False
        capture.classified += 1
        dropped, dropped_before = capture.earlier_counts.dropped + taken.dropped, self._dropped
        self._dropped = dropped
        age_ms = (now_ns - taken.monotonic_ns) / 1e6
        self._ages.append(age_ms)
        label = self._smoother.label
        record = FrameRecord(
            source=self.source.name,
            sequence=capture.earlier_counts.captured + taken.sequence,
            connection=max(0, capture.connections - 1),
            presentation_s=taken.presentation_s,
            time=iso(taken.wall_ns),
            monotonic_ns=taken.monotonic_ns,
            age_ms=age_ms,
            dropped=dropped - dropped_before,
            gap=gap,
            width=taken.width,
            height=taken.height,
            label=None if label is None else self._names[label],
            probability=self._smoother.probability,
            raw=self._scores(probabilities.astype(np.float64)),
            smoothed=self._scores(self._smoothed),
            truth=taken.truth,
            presentation_rule=taken.rule,
        )
        return record, events

    def _gap_events(self, taken: Taken) -> list[Event]:
        """Return the events that a frame after a gap causes: labels that end, and what begins."""
        last, events = self._last, self._forget("a gap")
        if last is not None and (last.width, last.height) != (taken.width, taken.height):
            events.append(self._event("size", taken, text=f"{taken.width}×{taken.height}"))
        elif taken.gap:
            events.append(self._event("gap", taken, text="the presentation time jumped"))
        return events

    def _scores(self, values: NDArray[np.float64]) -> tuple[Score, ...]:
        best = np.argsort(-values, kind="stable")[: self._top_k]
        return tuple(Score(label=self._names[index], probability=float(values[index])) for index in best)

    # --- the source

    def poll(self) -> Iterator[Event]:
        """Poll the capture, and return its events. A label doesn't outlive its connection."""
        for change in self.capture.poll():
            kind = {"connected": "connected", "waiting": "lost", "ended": "ended", "failed": "failed"}
            if change.state in kind:
                if change.state != "connected":
                    yield from self._forget("the connection ended")
                yield self._state_event(change, kind[change.state])

    def forget_when_silent(self) -> Iterator[Event]:
        """Forget a label after an interval that would be a gap: it doesn't outlive its frames."""
        longest = self._gap_detector.longest_s
        if self._last is None or self._interrupted or longest is None or not self.source.live or self.capture.waiting:
            return
        if time.monotonic() - self._last.monotonic_ns / 1e9 > longest:
            yield from self._forget("no frames")

    def stop(self) -> list[Event]:
        """End the label with the stream."""
        return self._forget("the stream was stopped")

    def _forget(self, reason: str) -> list[Event]:
        self._interrupted, self._smoothed = True, None
        return [self._label_event(change, None, reason) for change in self._smoother.reset()]

    # --- events

    def _label_event(self, change: LabelChange, taken: Taken | None, text: str | None = None) -> Event:
        return self._event(
            change.kind,
            taken,
            label=self._names[change.label],
            probability=change.probability,
            duration_s=change.duration_s,
            text=text,
        )

    def _state_event(self, change: StateChange, kind: str) -> Event:
        return self._event(kind, None, text=change.reason, duration_s=change.retry_s)

    def _event(self, kind: str, taken: Taken | None, **details: object) -> Event:
        return Event(
            source=self.source.name,
            kind=kind,  # type: ignore[arg-type]
            time=iso(taken.wall_ns if taken else time.time_ns()),
            monotonic_ns=taken.monotonic_ns if taken else time.monotonic_ns(),
            sequence=self.capture.earlier_counts.captured + taken.sequence if taken else None,
            presentation_s=taken.presentation_s if taken else None,
            **details,  # type: ignore[arg-type]
        )

    def status(self) -> SourceStatus:
        """Return the status of this source."""
        capture, counts = self.capture, self.capture.counts
        now = time.monotonic()
        captured_hz, classified_hz = self._rates.update(counts, now)
        shown = (self._last.width, self._last.height) if self._last else (None, None)
        label = self._smoother.label
        ages: Percentiles | None = percentiles(self._ages)
        return SourceStatus(
            name=self.source.name,
            uri=self.source.uri,
            live=self.source.live,
            state=capture.state,
            reason=capture.reason,
            state_s=now - capture.since,
            retry_s=capture.retry_s,
            connections=capture.connections,
            gaps=capture.gaps,
            counts=counts,
            width=shown[0],
            height=shown[1],
            codec=capture.codec,
            captured_hz=captured_hz,
            classified_hz=classified_hz,
            age=ages,
            silent_s=None if self._last is None else max(0.0, now - self._last.monotonic_ns / 1e9),
            label=None if label is None else self._names[label],
            probability=self._smoother.probability,
            smoothed=() if self._smoothed is None else self._scores(self._smoothed),
        )


class _Rates:
    """Frames a second over about the last three seconds."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=4)

    def update(self, counts: FrameCounts, now: float) -> tuple[float, float]:
        if not self._marks or now - self._marks[-1][0] > RATE_STEP_S:
            self._marks.append((now, counts.captured, counts.classified))
        start, captured, classified = self._marks[0]
        span = now - start
        return (
            ((counts.captured - captured) / span, (counts.classified - classified) / span) if span > 0 else (0.0, 0.0)
        )


def _interval_s(earlier: Taken | None, later: Taken) -> float:
    """Return the seconds between two frames, never negative."""
    if earlier is None:
        return 0.0
    if earlier.presentation_s is None or later.presentation_s is None:
        return max(0.0, (later.monotonic_ns - earlier.monotonic_ns) / 1e9)
    return max(0.0, later.presentation_s - earlier.presentation_s)


def iso(wall_ns: int) -> str:
    """Return ISO 8601 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(wall_ns / 1e9, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
