"""The engine's loop: frames from all sources go through one session; records, events and a status go to the sinks."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitedge.device.sensors import Sensors
from vitedge.errors import InvalidResultError
from vitedge.streaming.capture import SHUTDOWN_S, Recorded
from vitedge.streaming.records import Item, Sink, SinkStatus, Status, percentiles
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.shared import Taken
from vitedge.streaming.source_state import LATEST, SourceState, iso
from vitedge.streaming.uri import Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitedge.device.reading import Reading
    from vitedge.runtimes.session import Session

STATUS_S = 1.0
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
        self, session: Session, sources: Sequence[Source], settings: StreamSettings, sinks: Sequence[Sink] = ()
    ) -> None:
        self._session, self._settings, self.sinks = session, settings, list(sinks)
        self._sources = list(sources)
        self._states: list[SourceState] = []
        self._began = time.monotonic()
        self._inference_ms: deque[float] = deque(maxlen=LATEST)
        self._sensors: SensorThread | None = None
        self._stopping = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._next_source = 0  # whose frame is taken next
        self.final: Status | None = None  # the last status, after the end

    def stop(self) -> None:
        """End soon: classify waiting frames, count every frame. Any thread, or a signal handler, may call it."""
        self._stopping.set()
        with contextlib.suppress(OSError):  # all is over
            os.eventfd_write(self._wake, 1)

    def items(self) -> Generator[Item, None, None]:
        """Run until every source has ended, the duration is over, or :meth:`stop`; each item also goes to the sinks.

        Raises:
            InvalidResultError: the model's output isn't finite.
        """
        self._sensors = SensorThread()
        try:
            for source in self._sources:
                self._states.append(SourceState(source, self._settings, self._session))
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
            for state in self._states:
                yield from ((event, None) for event in state.poll())
            now = time.monotonic()
            stopping = self._stopping.is_set() or (ends is not None and now >= ends)
            if stopping:
                for state in self._states:
                    state.capture.stop()
            self._ask_for_pictures()
            frames = self._gather()
            if frames:
                yield from self._classify(frames)
            if now >= next_status:
                next_status = now + STATUS_S
                yield self.status(), None
            for state in self._states:
                yield from ((event, None) for event in state.forget_when_silent())
            if frames:
                continue
            if stopping or all(state.capture.done for state in self._states):
                for state in self._states:
                    yield from ((event, None) for event in state.stop())
                return
            self._wait(min(next_status, ends or next_status) - now)

    def _gather(self) -> list[tuple[SourceState, Taken]]:
        """Take up to one batch of waiting frames, cycling through the sources."""
        frames: list[tuple[SourceState, Taken]] = []
        empty = 0
        while len(frames) < self._session.batch and empty < len(self._states):
            state = self._states[self._next_source % len(self._states)]
            self._next_source += 1
            taken = state.capture.take()
            if taken is None:
                empty += 1
            else:
                empty = 0
                frames.append((state, taken))
        return frames

    def _classify(self, frames: list[tuple[SourceState, Taken]]) -> Iterator[tuple[Item, NDArray[np.uint8] | None]]:
        images = [taken.image for _, taken in frames]
        images += [images[-1]] * (self._session.batch - len(images))  # of a batch that isn't full
        start = time.monotonic_ns()
        logits = self._session.run(np.stack(images))[: len(frames)]
        end = time.monotonic_ns()
        self._inference_ms.append((end - start) / 1e6)
        if not np.isfinite(logits).all():
            raise InvalidResultError(
                "classify a stream", "the model's output has NaN or infinite values", "run: vitedge verify ARTIFACT"
            )
        probabilities = self._session.artifact.manifest.preprocessing.probabilities(logits)
        for (state, taken), row in zip(frames, probabilities, strict=True):
            record, events = state.record(taken, row, end)
            yield record, taken.picture
            yield from ((event, None) for event in events)

    def _ask_for_pictures(self) -> None:
        width = max((sink.picture_width for sink in self.sinks), default=0)
        for state in self._states:
            state.capture.want_pictures(width)

    def _wait(self, seconds: float) -> None:
        """Wait until a frame comes, a stop is wanted, or the readers have to be checked again."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for state in self._states:
            if not state.capture.done:
                poll.register(state.capture.filled, select.POLLIN)
        poll.poll(1000 * max(0.0, min(seconds, 0.1)))

    def _close(self) -> None:
        """Stop the readers, count every frame, let the sinks finish."""
        deadline = time.monotonic() + SHUTDOWN_S
        for state in self._states:
            state.capture.stop()
        for state in self._states:
            state.capture.close(deadline)
        unsaid = [event for state in self._states for event in state.stop()]  # of a stream that wasn't read to its end
        self.final = self.status()
        last: list[Item] = [*unsaid, self.final]
        for item in last:
            for sink in self.sinks:
                sink.put(item, None)
        for sink in self.sinks:
            sink.end()
        deadline = time.monotonic() + DRAIN_S
        for sink in self.sinks:
            sink.close(max(0.1, deadline - time.monotonic()))
        self.final = self.status()
        if self._sensors is not None:
            self._sensors.close()
        wake, self._wake = self._wake, -1
        os.close(wake)

    # --- what the page and the metrics show

    def status(self) -> Status:
        """Return the status at this moment."""
        info, manifest = self._session.info, self._session.artifact.manifest
        reading = None if self._sensors is None else self._sensors.reading
        live = reading.throttle_live.values() if reading else ()
        return Status(
            time=iso(time.time_ns()),
            monotonic_ns=time.monotonic_ns(),
            uptime_s=time.monotonic() - self._began,
            artifact=manifest.name,
            precision=manifest.precision,
            runtime=f"{info.get('runtime', '')} {info.get('version', '')}".strip(),
            device=str(info.get("device", "")),
            sources=tuple(state.status() for state in self._states),
            sinks=tuple(
                SinkStatus(name=sink.name, written=sink.written, dropped=sink.dropped, error=sink.error)
                for sink in self.sinks
            )
            + self._recording(),
            inference=percentiles(self._inference_ms),
            temperature_c=reading.temperature_c if reading else None,
            power_w=reading.power_w if reading else None,
            clock_mhz=reading.clock_mhz if reading else None,
            throttled=any(live) if live else None,
        )

    def _recording(self) -> tuple[SinkStatus, ...]:
        """The readers' recordings, as one sink."""
        if self._settings.record is None:
            return ()
        written, lost, error = sum((state.capture.recorded for state in self._states), Recorded())
        return (SinkStatus(name="record", written=written, dropped=lost, error=error),)


class SensorThread(threading.Thread):
    """A thread that reads the sensors once a second beside the loop, because some of them are slow."""

    def __init__(self) -> None:
        super().__init__(name="sensors", daemon=True)
        self.reading: Reading | None = None
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Run the thread."""
        sensors = Sensors()
        while not self._ended.is_set():
            self.reading = sensors.read()
            self._ended.wait(STATUS_S)

    def close(self) -> None:
        """Stop reading."""
        self._ended.set()
        self.join(STATUS_S)
