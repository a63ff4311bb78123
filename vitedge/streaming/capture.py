"""A source seen from the engine: its readers one after another, the watchdog, the back-off and the books."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import replace

from vitedge.formats.clip import SUFFIX
from vitedge.streaming import shared
from vitedge.streaming.records import Books, State
from vitedge.streaming.settings import Settings
from vitedge.streaming.shared import Counters, Shared, Taken
from vitedge.streaming.task import Task
from vitedge.streaming.uri import Source
from vitedge.streaming.view import parse_crop, parse_flip

if TYPE_CHECKING:
    from vitedge.formats.artifact import Artifact

_CHILD = "import sys; sys.path[:] = {path!r}; from vitedge.streaming.reader import serve; serve()"
START_S = 60.0  # for the reader's own start, before it opens anything
GRACE_S = 1.0  # beyond the reader's own time limits, before it's killed
LEAVE_S = 0.5  # to say goodbye to a camera when all is over


class Turnover(NamedTuple):
    """A change of a source's state."""

    state: State
    reason: str | None = None
    retry_s: float | None = None


class Capture:
    """One source.

    Args:
        source: what is opened.
        settings: how.
        artifact: what frames are prepared for.
        chance: of the back-off's jitter.
    """

    def __init__(
        self, source: Source, settings: Settings, artifact: Artifact, chance: random.Random | None = None
    ) -> None:
        self.source, self._settings, self._artifact = source, settings, artifact
        self._chance = chance or random.Random()
        self._memory = Shared.create(artifact.manifest.preprocessing.size)
        self.filled = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._emptied = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._child: subprocess.Popen[bytes] | None = None
        self._past, self._past_gaps = Books(), 0
        self._taken = 0  # from the reader that runs
        self._attempts = 0  # that failed in a row
        self._retry_at = 0.0
        self.connections = self.classified = 0
        self.state: State = "connecting"
        self.reason: str | None = None
        self.since = time.monotonic()
        self.codec: str | None = None
        self._start()

    # --- what is known

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("ended", "failed")

    @property
    def books(self) -> Books:
        """Where every frame went so far; frames on their way are captured and nothing else yet."""
        counters = self._memory.counters if self._child else Counters(0, 0, 0, 0, 0)
        return replace(
            self._past + Books(captured=counters.captured, skipped=counters.skipped, dropped=counters.dropped,
                               corrupt=counters.corrupt),
            classified=self.classified,
        )  # fmt: skip

    @property
    def gaps(self) -> int:
        """Jumps of the presentation time."""
        return self._past_gaps + (self._memory.counters.gaps if self._child else 0)

    @property
    def shown(self) -> tuple[int, int] | None:
        """(width, height) of the source's picture; None before the first."""
        size = self._memory.shown
        return size if all(size) else None

    @property
    def retry_s(self) -> float | None:
        """Seconds until the next attempt, while waiting."""
        return max(0.0, self._retry_at - time.monotonic()) if self.state == "waiting" else None

    @property
    def before(self) -> Books:
        """The books of earlier connections."""
        return self._past

    @property
    def waiting(self) -> int:
        """Frames that wait to be taken."""
        return self._memory.waiting() if self._child is not None else 0

    def want_pictures(self, width: int) -> None:
        """Ask the reader for pictures at most so many pixels wide beside its frames; 0: none."""
        if self._memory.picture_width != width:
            self._memory.want(picture_width=width)

    # --- what is done

    def take(self) -> Taken | None:
        """The oldest frame that waits."""
        if self._child is None:
            return None
        taken = self._memory.take()
        if taken is not None:
            self._taken += 1
            self._attempts = 0
            os.eventfd_write(self._emptied, 1)
        return taken

    def poll(self) -> Iterator[Turnover]:
        """Look after the reader: notice its progress, its end and its silence; start the next one when it's time."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.filled)
        now = time.monotonic()
        if self.done or self._memory.stop:  # one that was asked to end isn't lost; close() settles its books
            return
        if self._child is None:
            if now >= self._retry_at:
                yield self._turn("connecting")
                self._start()
            return
        state = self._memory.state
        if self.state == "connecting" and self._memory.codec:
            self.codec = self._memory.codec
            self.connections += 1
            yield self._turn("connected", self.codec)
        over = state in (shared.ENDED, shared.FAILED) or self._child.poll() is not None
        if not over and (reason := self._overdue(state, now)):
            yield from self._lost(reason)
        elif over and (self._memory.waiting() == 0 or (self.source.live and state != shared.ENDED)):
            yield from self._over(state)

    def stop(self) -> None:
        """Ask the reader to end; :meth:`close` sees to it that it does."""
        self._memory.want(stop=True)
        os.eventfd_write(self._emptied, 1)

    def close(self, deadline: float) -> None:
        """Have no reader any more at ``deadline`` (monotonic), settle the books, release everything."""
        if self._child is not None:
            self._end(deadline)
        if not self.done:
            self._turn("ended", self.reason)
        os.close(self.filled)
        os.close(self._emptied)
        self._memory.close()

    # --- inside

    def _start(self) -> None:
        settings, source, secret = self._settings, self.source, self.source.credentials
        crop = None if settings.crop is None else parse_crop(settings.crop)
        record = None
        if settings.record is not None:
            safe = "".join(sign if sign.isalnum() or sign in "-._" else "_" for sign in source.name)
            record = str(Path(settings.record) / f"{safe}{SUFFIX}")
        self._memory.begin()
        self._taken = 0
        task = Task(
            name=source.name,
            kind=source.kind,
            live=source.live,
            targets=source.targets,
            user=secret.user if secret else None,
            password=secret.password if secret else None,
            artifact=self._artifact.manifest.name,
            preprocessing=self._artifact.manifest.preprocessing,
            turn=parse_flip(settings.flip),
            crop=crop,
            newest_only=settings.newest_only(source.live),
            every=settings.one_of,
            loops=settings.input_loop,
            gap_s=settings.gap,
            connect_s=settings.connect_timeout,
            stall_s=settings.stall_timeout,
            hardware=settings.hwaccel,
            camera=settings.camera,
            record=record,
            memory=self._memory.descriptor,
            filled=self.filled,
            emptied=self._emptied,
        )
        hidden = (settings.credentials or "").removeprefix("env:")
        self._child = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[task.memory, task.filled, task.emptied],
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != hidden},
        )
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died already, which poll() notices
            self._child.stdin.write(msgspec.json.encode(task) + b"\n")
            self._child.stdin.flush()
        self._started = time.monotonic()

    def _overdue(self, state: int, now: float) -> str | None:
        """Why the reader must be killed."""
        quiet = now - self._memory.activity_ns / 1e9
        if state == shared.STARTING and now - self._started > START_S:
            return f"the reader didn't start within {START_S:g} s"
        if state == shared.CONNECTING and quiet > self._settings.connect_timeout + GRACE_S and not self._patient:
            return f"no answer within {self._settings.connect_timeout:g} s"
        if state == shared.STREAMING and quiet > self._settings.stall_timeout + GRACE_S:
            return f"silent for {self._settings.stall_timeout:g} s"
        return None

    @property
    def _patient(self) -> bool:
        return any("listen=1" in target for target in self.source.targets)

    def _over(self, state: int) -> Iterator[Turnover]:
        finite = self._memory.finite
        child = self._end(time.monotonic() + GRACE_S)
        if state == shared.ENDED:
            if finite:
                yield self._turn("ended")
            else:
                yield from self._back_off("the stream ended")
            return
        reason = self._memory.reason
        if state != shared.FAILED:
            reason = "the reader " + _death(child)
        yield from self._lost(reason)

    def _lost(self, reason: str) -> Iterator[Turnover]:
        if self._child is not None:
            self._child.kill()
            self._end(time.monotonic() + GRACE_S)
        if self.source.live:
            yield from self._back_off(reason)
        else:
            yield self._turn("failed", reason)

    def _back_off(self, reason: str) -> Iterator[Turnover]:
        """Twice as long after every failure, up to the longest, and never two clients in step."""
        self._attempts += 1
        if self._settings.retries is not None and self._attempts > self._settings.retries:
            yield self._turn("failed", reason)
            return
        least, most = self._settings.backoff_min, self._settings.backoff_max
        longest = min(most, least * 2.0 ** min(self._attempts, 30))
        delay = self._chance.uniform(max(least, longest / 2), longest)
        self._retry_at = time.monotonic() + delay
        yield self._turn("waiting", reason, delay)

    def _turn(self, state: State, reason: str | None = None, retry_s: float | None = None) -> Turnover:
        if state != "connected":
            self.reason = reason if state != "connecting" else self.reason
        self.state, self.since = state, time.monotonic()
        return Turnover(state, reason, retry_s)

    def _end(self, deadline: float) -> int:
        """Have the reader end by ``deadline`` or kill it; settle its books. Returns its exit code."""
        child, self._child = self._child, None
        assert child is not None and child.stdin is not None
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        counters = self._memory.counters
        passed_on = counters.captured - counters.skipped - counters.corrupt - counters.dropped
        # What waited or was on its way goes down with the reader; no more than the buffers and one in hand can be.
        lost = passed_on - self._taken
        if not 0 <= lost <= shared.BUFFERS + 1:
            lost = 0  # the books won't balance, and that must be seen
        self._past = self._past + Books(
            captured=counters.captured,
            skipped=counters.skipped,
            dropped=counters.dropped + lost,
            corrupt=counters.corrupt,
        )
        self._past_gaps += counters.gaps
        return child.returncode


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
