"""The loop: frames from all sources go through one session; records, events and a status go to the sinks."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from vitedge.device.sensors import Sensors
from vitedge.errors import InvalidResultError
from vitedge.streaming.capture import LEAVE_S, Capture, Turnover
from vitedge.streaming.records import (
    Books,
    Event,
    FrameRecord,
    Item,
    Percentiles,
    Score,
    Sink,
    SinkStatus,
    SourceStatus,
    Status,
    percentiles,
)
from vitedge.streaming.rhythm import Rhythm
from vitedge.streaming.settings import Settings
from vitedge.streaming.shared import Taken
from vitedge.streaming.smoothing import Change, Smoother
from vitedge.streaming.uri import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitedge.device.reading import Reading
    from vitedge.runtimes.session import Session

STATUS_S = 1.0
LATEST = 1000  # ages and inference times that the percentiles speak of
DRAIN_S = 5.0  # for the sinks, at the end


class Engine:
    """Sources, a session and sinks.

    Args:
        session: open, and the caller's to close.
        sources: what is watched.
        settings: how.
        sinks: what gets every item; closed at the end.
    """

    def __init__(
        self, session: Session, sources: Sequence[Source], settings: Settings, sinks: Sequence[Sink] = ()
    ) -> None:
        self._session, self._settings, self.sinks = session, settings, list(sinks)
        self._sources, self._lanes = list(sources), list[_Lane]()
        self._began = time.monotonic()
        self._inference_ms: deque[float] = deque(maxlen=LATEST)
        self._weather: _Weather | None = None
        self._stopping = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._turn = 0
        self.final: Status | None = None  # the last status, once all is over

    def stop(self) -> None:
        """End soon: classify what waits, settle the books. From any thread, or a signal handler."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)

    def items(self) -> Generator[Item, None, None]:
        """Run until every source has ended, the duration is over, or :meth:`stop`; each item also goes to the sinks.

        Raises:
            InvalidResultError: the model's output isn't finite.
        """
        self._weather = _Weather()
        try:
            for source in self._sources:
                self._lanes.append(_Lane(source, self._settings, self._session))
            for item, picture in self._loop():
                for sink in self.sinks:
                    sink.put(item, picture)
                yield item
        finally:
            self._close()

    # --- the loop

    def _loop(self) -> Iterator[tuple[Item, NDArray[np.uint8] | None]]:
        ends = None if self._settings.duration is None else self._began + self._settings.duration
        next_status = 0.0
        while True:
            for lane in self._lanes:
                yield from ((event, None) for event in lane.look_after())
            now = time.monotonic()
            stopping = self._stopping.is_set() or (ends is not None and now >= ends)
            if stopping:
                for lane in self._lanes:
                    lane.capture.stop()
            self._ask_for_pictures()
            frames = self._gather()
            if frames:
                yield from self._classify(frames)
            if now >= next_status:
                next_status = now + STATUS_S
                yield self.status(), None
            for lane in self._lanes:
                yield from ((event, None) for event in lane.forget_when_silent())
            if frames:
                continue
            if stopping or all(lane.capture.done for lane in self._lanes):
                return
            self._wait(min(next_status, ends or next_status) - now)

    def _gather(self) -> list[tuple[_Lane, Taken]]:
        """Up to one batch of waiting frames, from each source in turn."""
        found: list[tuple[_Lane, Taken]] = []
        empty = 0
        while len(found) < self._session.batch and empty < len(self._lanes):
            lane = self._lanes[self._turn % len(self._lanes)]
            self._turn += 1
            taken = lane.capture.take()
            if taken is None:
                empty += 1
            else:
                empty = 0
                found.append((lane, taken))
        return found

    def _classify(self, frames: list[tuple[_Lane, Taken]]) -> Iterator[tuple[Item, NDArray[np.uint8] | None]]:
        images = [taken.image for _, taken in frames]
        images += [images[-1]] * (self._session.batch - len(images))  # of a batch that isn't full
        start = time.monotonic_ns()
        logits = self._session.run(np.stack(images))[: len(frames)]
        end = time.monotonic_ns()
        self._inference_ms.append((end - start) / 1e6)
        if not np.isfinite(logits).all():
            raise InvalidResultError(
                "classify a stream", "the model's output isn't finite", "run: vitedge verify ARTIFACT"
            )
        probabilities = self._session.artifact.manifest.preprocessing.probabilities(logits)
        for (lane, taken), row in zip(frames, probabilities, strict=True):
            record, events = lane.record(taken, row, end)
            yield record, taken.picture
            yield from ((event, None) for event in events)

    def _ask_for_pictures(self) -> None:
        width = max((sink.picture_width for sink in self.sinks), default=0)
        for lane in self._lanes:
            lane.capture.want_pictures(width)

    def _wait(self, seconds: float) -> None:
        """Until a frame comes, somebody wants to stop, or it's time to look after the readers again."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for lane in self._lanes:
            if not lane.capture.done:
                poll.register(lane.capture.filled, select.POLLIN)
        poll.poll(1000 * max(0.0, min(seconds, 0.1)))

    def _close(self) -> None:
        """Stop the readers, settle the books, let the sinks finish."""
        deadline = time.monotonic() + LEAVE_S
        for lane in self._lanes:
            lane.capture.stop()
        for lane in self._lanes:
            lane.capture.close(deadline)
        self.final = self.status()
        for sink in self.sinks:
            sink.put(self.final, None)
        deadline = time.monotonic() + DRAIN_S
        for sink in self.sinks:
            sink.close(max(0.1, deadline - time.monotonic()))
        self.final = self.status()
        if self._weather is not None:
            self._weather.close()
        os.close(self._wake)

    # --- what the page and the metrics show

    def status(self) -> Status:
        """Everything at this moment."""
        info, manifest = self._session.info, self._session.artifact.manifest
        reading = None if self._weather is None else self._weather.reading
        live = reading.throttle_live.values() if reading else ()
        return Status(
            time=iso(time.time_ns()),
            monotonic_ns=time.monotonic_ns(),
            uptime_s=time.monotonic() - self._began,
            artifact=manifest.name,
            precision=manifest.precision,
            runtime=f"{info.get('runtime', '')} {info.get('version', '')}".strip(),
            device=str(info.get("device", "")),
            sources=tuple(lane.status() for lane in self._lanes),
            sinks=tuple(
                SinkStatus(name=sink.name, written=sink.written, dropped=sink.dropped, error=sink.error)
                for sink in self.sinks
            ),
            inference=percentiles(self._inference_ms),
            temperature_c=reading.temperature_c if reading else None,
            power_w=reading.power_w if reading else None,
            clock_mhz=reading.clock_mhz if reading else None,
            throttled=any(live) if live else None,
        )


class _Weather(threading.Thread):
    """The sensors, read once a second beside the loop: some of them take their time."""

    def __init__(self) -> None:
        super().__init__(name="sensors", daemon=True)
        self.reading: Reading | None = None
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        sensors = Sensors()
        while not self._ended.is_set():
            self.reading = sensors.read()
            self._ended.wait(STATUS_S)

    def close(self) -> None:
        self._ended.set()
        self.join(STATUS_S)


class _Lane:
    """One source's way through the engine: its capture, its smoothing, its figures."""

    def __init__(self, source: Source, settings: Settings, session: Session) -> None:
        self.source, self._names = source, [label.name for label in session.classes]
        self._top_k = min(settings.top_k, len(self._names))
        leave = settings.threshold if settings.exit_threshold is None else settings.exit_threshold
        self._smoother = Smoother(settings.smoothing, settings.threshold, leave, settings.switch_after)
        self._smoothed: NDArray[np.float64] | None = None
        self._rhythm = Rhythm(settings.gap)
        self._ages: deque[float] = deque(maxlen=LATEST)
        self._last: Taken | None = None
        self._clock_s = 0.0  # of the smoother: presentation times as far as there are any
        self._dropped_before = 0
        self._broken = True  # nothing is known that the next frame could continue
        self._rates = _Rates()
        self.capture = Capture(source, settings, session.artifact)

    # --- frames

    def record(self, taken: Taken, probabilities: NDArray[np.float32], now_ns: int) -> tuple[FrameRecord, list[Event]]:
        """The record of a classified frame with probabilities [classes], and the events that follow from it."""
        capture, last = self.capture, self._last
        sequence = capture.before.captured + taken.sequence
        gap = self._broken or taken.gap
        events: list[Event] = []
        if gap:
            events += self._forget("a gap")
            if last is not None and (last.width, last.height) != (taken.width, taken.height):
                events.append(self._event("size", taken, text=f"{taken.width}×{taken.height}"))
            elif taken.gap:
                events.append(self._event("gap", taken, text="the presentation time jumped"))
        elif last is not None:
            self._rhythm.broken_by((taken.monotonic_ns - last.monotonic_ns) / 1e9)
        self._clock_s += _interval_s(last, taken)
        self._smoothed, changes = self._smoother.update(probabilities, self._clock_s)
        fallen = len(changes) == 1 and changes[0].kind == "exit"
        events += [self._changed(change, taken, "below its threshold" if fallen else None) for change in changes]
        self._last, self._broken = taken, False
        capture.classified += 1
        dropped = capture.before.dropped + taken.dropped
        age_ms = (now_ns - taken.monotonic_ns) / 1e6
        self._ages.append(age_ms)
        label = self._smoother.label
        record = FrameRecord(
            source=self.source.name,
            sequence=sequence,
            connection=max(0, capture.connections - 1),
            presentation_s=taken.presentation_s,
            time=iso(taken.wall_ns),
            monotonic_ns=taken.monotonic_ns,
            age_ms=age_ms,
            dropped=dropped - self._dropped_before,
            gap=gap,
            width=taken.width,
            height=taken.height,
            label=None if label is None else self._names[label],
            probability=self._smoother.probability,
            raw=self._scores(probabilities.astype(np.float64)),
            smoothed=self._scores(self._smoothed),
            truth=taken.truth,
        )
        self._dropped_before = dropped
        return record, events

    def _scores(self, values: NDArray[np.float64]) -> tuple[Score, ...]:
        best = np.argsort(-values, kind="stable")[: self._top_k]
        return tuple(Score(label=self._names[index], probability=float(values[index])) for index in best)

    # --- the source

    def look_after(self) -> Iterator[Event]:
        """Let the capture do its work; the events of it. What was seen over a lost connection says nothing more."""
        for turnover in self.capture.poll():
            kind = {"connected": "connected", "waiting": "lost", "ended": "ended", "failed": "failed"}
            if turnover.state in kind:
                if turnover.state != "connected":
                    yield from self._forget("the connection ended")
                yield self._turned(turnover, kind[turnover.state])

    def forget_when_silent(self) -> Iterator[Event]:
        """A label doesn't outlive its frames: forget it after an interval that would be a gap."""
        longest = self._rhythm.longest_s
        if self._last is None or self._broken or longest is None or not self.source.live or self.capture.waiting:
            return
        if time.monotonic() - self._last.monotonic_ns / 1e9 > longest:
            yield from self._forget("no frames")

    def _forget(self, why: str) -> list[Event]:
        self._broken, self._smoothed = True, None
        return [self._changed(change, None, why) for change in self._smoother.reset()]

    # --- words

    def _changed(self, change: Change, taken: Taken | None, text: str | None = None) -> Event:
        return self._event(
            change.kind,
            taken,
            label=self._names[change.label],
            probability=change.probability,
            duration_s=change.duration_s,
            text=text,
        )

    def _turned(self, turnover: Turnover, kind: str) -> Event:
        return self._event(kind, None, text=turnover.reason, duration_s=turnover.retry_s)

    def _event(self, kind: str, taken: Taken | None, **more: object) -> Event:
        return Event(
            source=self.source.name,
            kind=kind,  # type: ignore[arg-type]
            time=iso(taken.wall_ns if taken else time.time_ns()),
            monotonic_ns=taken.monotonic_ns if taken else time.monotonic_ns(),
            sequence=self.capture.before.captured + taken.sequence if taken else None,
            presentation_s=taken.presentation_s if taken else None,
            **more,  # type: ignore[arg-type]
        )

    def status(self) -> SourceStatus:
        """This source at this moment."""
        capture, books = self.capture, self.capture.books
        now = time.monotonic()
        captured_hz, classified_hz = self._rates.update(books, now)
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
            books=books,
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
    """Frames a second over the last three seconds or so."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=4)

    def update(self, books: Books, now: float) -> tuple[float, float]:
        if not self._marks or now - self._marks[-1][0] > STATUS_S / 2:
            self._marks.append((now, books.captured, books.classified))
        then, captured, classified = self._marks[0]
        span = now - then
        return ((books.captured - captured) / span, (books.classified - classified) / span) if span > 0 else (0.0, 0.0)


def _interval_s(before: Taken | None, after: Taken) -> float:
    """Seconds between two frames, never negative."""
    if before is None:
        return 0.0
    if before.presentation_s is None or after.presentation_s is None:
        return max(0.0, (after.monotonic_ns - before.monotonic_ns) / 1e9)
    return max(0.0, after.presentation_s - before.presentation_s)


def iso(wall_ns: int) -> str:
    """ISO 8601 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(wall_ns / 1e9, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
