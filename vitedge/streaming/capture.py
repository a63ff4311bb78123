"""A source as the engine sees it: its readers one after another, the watchdog, the back-off and the frame counts.

:data:`TRANSITIONS` is the life of a source. :meth:`Capture.poll` notices that something happened, looks up what
follows, does it, and gives the change of state to the engine.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from msgspec.structs import replace

from vitedge.core.environment import for_children
from vitedge.streaming import shared
from vitedge.streaming.records import FrameCounts, State
from vitedge.streaming.settings import StreamSettings
from vitedge.streaming.shared import Counters, Shared, Taken
from vitedge.streaming.task import Task
from vitedge.streaming.uri import Source

if TYPE_CHECKING:
    from vitedge.formats.artifact import Artifact

_CHILD = "import sys; sys.path[:] = {path!r}; from vitedge.streaming.reader import serve; serve()"
START_S = 60.0  # for the reader's own start, before it opens anything
GRACE_S = 1.0  # beyond the reader's own time limits, before it's killed
SHUTDOWN_S = 0.5  # for closing a camera's connection at the end

#: Occurrences of a source: the time of the next attempt has come; its reader has opened it; has come to the end of a
#: file; was lost (or a live stream ended) and is tried again; was lost for good; the engine closes it.
Occurrence = Literal["due", "opened", "finished", "lost", "given up", "closed"]
#: ``wait``: let the reader end, and plan the next attempt. ``end``: let the reader end.
Action = Literal["start", "connect", "wait", "end"]

#: (state, what happens) -> (next state, what is done). In ``ended`` and ``failed`` nothing happens any more.
TRANSITIONS: dict[tuple[State, Occurrence], tuple[State, Action]] = {
    ("connecting", "opened"): ("connected", "connect"),
    ("connecting", "finished"): ("ended", "end"),
    ("connecting", "lost"): ("waiting", "wait"),
    ("connecting", "given up"): ("failed", "end"),
    ("connecting", "closed"): ("ended", "end"),
    ("connected", "finished"): ("ended", "end"),
    ("connected", "lost"): ("waiting", "wait"),
    ("connected", "given up"): ("failed", "end"),
    ("connected", "closed"): ("ended", "end"),
    ("waiting", "due"): ("connecting", "start"),
    ("waiting", "closed"): ("ended", "end"),
}


class Recorded(NamedTuple):
    """Counts of the frames that were to be recorded."""

    written: int = 0
    lost: int = 0
    error: str | None = None  # the last

    def __add__(self, later: object) -> Recorded:
        if not isinstance(later, Recorded):
            return NotImplemented
        return Recorded(self.written + later.written, self.lost + later.lost, later.error or self.error)


class StateChange(NamedTuple):
    """A change of a source's state."""

    state: State
    reason: str | None = None
    retry_s: float | None = None


class _Notice(NamedTuple):
    """A change that :meth:`Capture.poll` noticed."""

    occurrence: Occurrence
    reason: str | None = None
    grace_s: float = GRACE_S  # in which the reader may end by itself


class Capture:
    """One source, its reader, and its frames.

    Args:
        source: what is opened.
        settings: how.
        artifact: what frames are prepared for.
        chance: of the back-off's jitter.
    """

    def __init__(
        self, source: Source, settings: StreamSettings, artifact: Artifact, chance: random.Random | None = None
    ) -> None:
        self.source, self._settings, self._artifact = source, settings, artifact
        self._chance = chance or random.Random()
        self._memory = Shared.create(artifact.manifest.preprocessing.size)
        self.filled = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._emptied = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._reader: subprocess.Popen[bytes] | None = None
        self.earlier_counts, self._earlier_gaps = FrameCounts(), 0  # of readers that have ended
        self._earlier_recording = Recorded()
        self._taken = 0  # from the reader that runs
        self._failures = 0  # in a row
        self._retry_at = 0.0
        self.connections = self.classified = 0
        self.state: State = "connecting"
        self.reason: str | None = None
        self.since = time.monotonic()
        self.codec: str | None = None
        self._start()

    # --- its state and counts

    @property
    def done(self) -> bool:
        """Whether no further frame will come."""
        return self.state in ("ended", "failed")

    @property
    def counts(self) -> FrameCounts:
        """Frame counts so far; frames in flight are captured and nothing else yet."""
        counters = self._memory.counters if self._reader else Counters(*[0] * len(Counters._fields))
        return replace(self.earlier_counts + _frame_counts(counters), classified=self.classified)

    @property
    def gaps(self) -> int:
        """The number of jumps of the presentation time."""
        return self._earlier_gaps + (self._memory.counters.gaps if self._reader else 0)

    @property
    def recorded(self) -> Recorded:
        """Counts of the frames that were to be recorded."""
        return self._earlier_recording + _recorded(self._memory) if self._reader else self._earlier_recording

    @property
    def retry_s(self) -> float | None:
        """Seconds until the next attempt, while waiting."""
        return max(0.0, self._retry_at - time.monotonic()) if self.state == "waiting" else None

    @property
    def waiting(self) -> int:
        """The number of frames that wait to be taken."""
        return self._memory.waiting() if self._reader is not None else 0

    def want_pictures(self, width: int) -> None:
        """Ask the reader for pictures beside its frames, at most this many pixels wide; 0: none."""
        if self._memory.picture_width != width:
            self._memory.want(picture_width=width)

    # --- what the engine does

    def take(self) -> Taken | None:
        """Take the oldest frame that waits, once :meth:`poll` has noticed the connection that it came over."""
        if self._reader is None or self.state != "connected":
            return None
        taken = self._memory.take()
        if taken is not None:
            self._taken += 1
            self._failures = 0
            os.eventfd_write(self._emptied, 1)
        return taken

    def poll(self) -> Iterator[StateChange]:
        """Check the reader: notice its progress, its end and its silence; start the next one when it's time."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.filled)
        # A reader that was asked to end isn't lost: close() counts its frames.
        while not self.done and not self._memory.stop and (notice := self._notice()):
            yield self._follow(notice)

    def stop(self) -> None:
        """Ask the reader to end; :meth:`close` makes sure that it does."""
        self._memory.want(stop=True)
        os.eventfd_write(self._emptied, 1)

    def close(self, deadline: float) -> None:
        """End the reader by ``deadline`` (monotonic), count every frame, release everything."""
        if not self.done:
            self._follow(_Notice("closed", self.reason, max(0.0, deadline - time.monotonic())))
        os.close(self.filled)
        os.close(self._emptied)
        self._memory.close()

    # --- what happens

    def _notice(self) -> _Notice | None:
        """Return the change since the last change of state; None: there is none."""
        if self._reader is None:
            return _Notice("due") if time.monotonic() >= self._retry_at else None
        if self.state == "connecting" and self._memory.codec:
            return _Notice("opened", self._memory.codec)
        code = self._reader.poll()  # before its state is read, because it reports its last state and then ends
        reader_state = self._memory.state
        if reader_state == shared.ENDED:
            if self._memory.waiting():
                return None
            return (
                _Notice("finished", self._memory.reason or None)
                if self._memory.finite
                else self._loss("the stream ended")
            )
        if reader_state == shared.FAILED or code is not None:
            if self._memory.waiting() and not self.source.live:
                return None
            return self._loss(self._memory.reason if reader_state == shared.FAILED else _death(code or 0))
        overdue = self._overdue(reader_state)
        return self._loss(overdue, grace_s=0.0) if overdue else None

    def _overdue(self, reader_state: int) -> str | None:
        """Return the reason why the reader must be killed; None: there is none."""
        now = time.monotonic()
        quiet = now - self._memory.activity_ns / 1e9
        listens = any("listen=1" in target for target in self.source.targets)  # it may take a camera days to connect
        if reader_state == shared.STARTING and now - self._started > START_S:
            return f"the reader didn't start within {START_S:g} s"
        if reader_state == shared.CONNECTING and quiet > self._settings.connect_timeout + GRACE_S and not listens:
            return f"no answer within {self._settings.connect_timeout:g} s"
        silence_s = self._settings.silence_s(self.source.kind)
        if reader_state == shared.STREAMING and quiet > silence_s + GRACE_S:
            return f"silent for {silence_s:g} s"
        return None

    def _loss(self, reason: str, grace_s: float = GRACE_S) -> _Notice:
        """Handle a lost reader: live sources are tried again, as often in a row as the settings permit."""
        exhausted = self._settings.retries is not None and self._failures >= self._settings.retries
        return _Notice("lost" if self.source.live and not exhausted else "given up", reason, grace_s)

    # --- what is done about it

    def _follow(self, notice: _Notice) -> StateChange:
        """Change from one state to the next as the table says."""
        state, action = TRANSITIONS[self.state, notice.occurrence]
        retry_s = None
        if action == "start":
            self._start()
        elif action == "connect":
            self.codec = notice.reason
            self.connections += 1
        else:
            self._end_reader(notice.grace_s)
            if action == "wait":
                retry_s = self._plan_retry()
        if state in ("waiting", "ended", "failed"):
            self.reason = notice.reason
        self.state, self.since = state, time.monotonic()
        return StateChange(state, notice.reason, retry_s)

    def _start(self) -> None:
        self._memory.begin()
        self._taken = 0
        task = Task.of(
            self.source,
            self._settings,
            self._artifact,
            memory=self._memory.descriptor,
            filled=self.filled,
            emptied=self._emptied,
        )
        self._reader = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[task.memory, task.filled, task.emptied],
            start_new_session=True,
            env=for_children(),
        )
        assert self._reader.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died already, which poll() notices
            self._reader.stdin.write(task.encode())
            self._reader.stdin.flush()
        self._started = time.monotonic()

    def _plan_retry(self) -> float:
        """Return the seconds until the next attempt: doubled after every failure, up to the longest, with jitter."""
        self._failures += 1
        least, most = self._settings.backoff_min, self._settings.backoff_max
        longest = min(most, least * 2.0 ** min(self._failures, 30))
        delay = self._chance.uniform(max(least, longest / 2), longest)
        self._retry_at = time.monotonic() + delay
        return delay

    def _end_reader(self, grace_s: float) -> None:
        """Let the reader, if there is one, end within ``grace_s`` seconds or kill it; keep its counts."""
        reader, self._reader = self._reader, None
        if reader is None:
            return
        assert reader.stdin is not None
        try:
            reader.wait(grace_s)
        except subprocess.TimeoutExpired:
            reader.kill()
            reader.wait()
        with contextlib.suppress(BrokenPipeError):
            reader.stdin.close()
        counters = self._memory.counters
        # Frames that waited or were in flight are dropped with the reader: at most the buffers and the present frame.
        in_flight = counters.captured - counters.skipped - counters.corrupt - counters.dropped - self._taken
        if not 0 <= in_flight <= shared.BUFFERS + 1:
            in_flight = 0  # a miscount, and the counts must show it
        counts = _frame_counts(counters)
        self.earlier_counts += replace(counts, dropped=counts.dropped + in_flight)
        self._earlier_gaps += counters.gaps
        self._earlier_recording += _recorded(self._memory)


def _frame_counts(counters: Counters) -> FrameCounts:
    return FrameCounts(
        captured=counters.captured, skipped=counters.skipped, dropped=counters.dropped, corrupt=counters.corrupt
    )


def _recorded(memory: Shared) -> Recorded:
    return Recorded(memory.counters.recorded, memory.counters.unrecorded, memory.record_error or None)


def _death(code: int) -> str:
    """Describe the end of a reader that gave no reason."""
    if code >= 0:
        return f"the reader ended with code {code}"
    try:
        return f"the reader was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"the reader was killed by signal {-code}"
