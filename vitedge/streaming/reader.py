"""The reader: one process for one connection. It decodes everything, prepares frames, and drops unwanted ones.

Run as ``python -c "… serve()"`` with its whole task as JSON on its standard input, so that a password is never among
its arguments. It ends when its source ends or fails, when it's asked to, or when the engine's process is gone.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vitedge.core.files import disk_is_full
from vitedge.errors import VitedgeError
from vitedge.formats.clip import ClipHeader, ClipWriter
from vitedge.streaming import shared
from vitedge.streaming.address import redact
from vitedge.streaming.causes import Failure
from vitedge.streaming.frames import Captured
from vitedge.streaming.gaps import GapDetector
from vitedge.streaming.openers import captured
from vitedge.streaming.shared import Shared
from vitedge.streaming.task import Task
from vitedge.streaming.view import Crop, Turn, picture

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from vitedge.data.preprocessing import Preprocessing

RECORD_RETRY_S = 1.0  # between attempts to begin a recording


def serve() -> None:
    """Run the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the engine handles a stop; this process ends with its input
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_leave_with_engine, daemon=True).start()
    task = Task.decode(line)
    memory = Shared(task.memory, task.preprocessing.size)
    try:
        reader = Reader(task, memory)
        reader.run()
        memory.report(shared.ENDED, reader.missing)
    except Failure as failure:
        memory.report(shared.FAILED, redact(failure, task.secrets))
    except VitedgeError as error:
        memory.report(shared.FAILED, redact(f"{error.action}: {error.reason}", task.secrets))
    except Exception as error:
        memory.report(shared.FAILED, redact(f"{type(error).__name__}: {error}", task.secrets))
    os.eventfd_write(task.filled, 1)
    os._exit(0)  # a decoder's threads are never waited for


def _leave_with_engine() -> None:
    """End with the engine, which holds the other end of standard input for as long as it lives."""
    while os.read(0, 4096):
        pass
    os._exit(1)


class Reader:
    """Reads the frames of one connection into shared memory."""

    def __init__(self, task: Task, memory: Shared) -> None:
        self._task, self._memory = task, memory
        self._turn = Turn(*task.turn)
        self._crop = None if task.crop is None else Crop(*task.crop)
        self._prepare = Preparer(task.preprocessing, self._turn, self._crop)
        self._recording = None if task.record is None else Recording(task, Path(task.record), memory)
        self._last_s: float | None = None
        self._gap_detector = GapDetector(task.gap_s)
        self._shown = (0, 0)
        self.missing = ""  # of a film that ended early

    def run(self) -> None:
        """Run until the source ends, fails, or the engine asks to stop.

        Raises:
            Failure: it can't be opened or goes no further.
        """
        task, memory = self._task, self._memory
        memory.report(shared.CONNECTING)
        memory.active(time.monotonic_ns())
        frames = captured(task, self._opened, self._cut)
        whole, gap = 0, False
        for number, frame in enumerate(frames):
            memory.active(time.monotonic_ns())
            memory.count(captured=1)
            if frame.content is None:
                memory.count(corrupt=1, gaps=frame.jumped)
                gap |= frame.jumped
            else:
                gap |= self._jumped(frame) or frame.stale
                if frame.stale:
                    memory.count(dropped=1)
                elif whole % task.every:
                    memory.count(skipped=1)
                else:
                    self._publish(number, frame, gap)
                    gap = False
                whole += 1
            if memory.stop:
                break
        with contextlib.suppress(Exception):
            frames.close()

    def _opened(self, codec: str, finite: bool) -> None:
        self._memory.describe(codec, finite=finite)
        self._memory.report(shared.STREAMING)
        os.eventfd_write(self._task.filled, 1)

    def _cut(self, missing: str) -> None:
        self.missing = self.missing or missing

    def _publish(self, number: int, frame: Captured, gap: bool) -> None:
        memory, content = self._memory, frame.content
        buffer = self._buffer()
        if buffer is None:  # asked to stop while waiting
            memory.count(dropped=1)
            return
        image, shown = self._prepare(content, memory.image(buffer))
        if shown != self._shown:
            gap = gap or self._shown != (0, 0)
            self._shown = shown
        if self._recording is not None:
            self._recording.append(image, number, frame)
        wanted = memory.picture_width
        memory.publish(
            buffer,
            sequence=number,
            presentation_s=frame.presentation_s,
            monotonic_ns=frame.monotonic_ns,
            wall_ns=frame.wall_ns,
            gap=gap,
            shown=shown,
            rule=frame.rule,
            truth=frame.truth,
            picture=self._prepare.picture(content, wanted) if wanted else None,
            newest_only=self._task.newest_only,
        )
        os.eventfd_write(self._task.filled, 1)

    def _buffer(self) -> int | None:
        """Return a buffer to fill. With the policy ``every``, wait until there is one."""
        memory = self._memory
        poll = select.poll()
        poll.register(self._task.emptied, select.POLLIN)
        while (buffer := memory.free()) is None and not memory.stop:
            poll.poll(200)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._task.emptied)
            memory.active(time.monotonic_ns())
        return buffer

    def _jumped(self, frame: Captured) -> bool:
        """Whether time went back, or on by more than a usual interval."""
        last, self._last_s = self._last_s, frame.presentation_s
        if frame.presentation_s is None or last is None:
            return False
        jumped = frame.jumped or self._gap_detector.observe(frame.presentation_s - last)
        self._memory.count(gaps=jumped)
        return jumped


class Recording:
    """Records frames to a clip as long as possible; lost frames are counted with the reason, and nothing else ends.

    Args:
        task: of the reader.
        path: of the clip.
        memory: where frames are counted.
    """

    def __init__(self, task: Task, path: Path, memory: Shared) -> None:
        self._header = ClipHeader(source=task.name, size=task.preprocessing.size, artifact=task.artifact)
        self._path, self._memory = path, memory
        self._clip: ClipWriter | None = None
        self._next_attempt = 0.0  # monotonic: to open it

    def append(self, image: NDArray[np.uint8], sequence: int, frame: Captured) -> None:
        """Write a frame, uint8 [h, w, 3], or count it as lost."""
        try:
            if self._clip is None and time.monotonic() >= self._next_attempt:
                self._next_attempt = time.monotonic() + RECORD_RETRY_S
                self._clip = ClipWriter(self._path, self._header)
            if self._clip is not None:
                presentation_s = frame.presentation_s
                self._clip.append(
                    image, sequence=sequence, arrival_ns=frame.monotonic_ns, presentation_s=presentation_s
                )
        except OSError as error:
            text = error.strerror or type(error).__name__
            self._memory.report_record_error(text + (": free space there" if disk_is_full(error) else ""))
        except VitedgeError as error:  # a clip of something else
            self._memory.report_record_error(f"{error.reason}: {error.hint}")
            self._next_attempt = math.inf
        else:
            if self._clip is not None:
                self._memory.count(recorded=1)
                return
        self._memory.count(unrecorded=1)


class Preparer:
    """Turns a decoded frame into the model's input, by the contract; one scaler for each orientation that occurs."""

    def __init__(self, contract: Preprocessing, turn: Turn, crop: Crop | None) -> None:
        self._contract, self._turn, self._crop = contract, turn, crop
        self._scalers: dict[Turn, Callable[[Any], NDArray[np.uint8]]] = {}
        self._rotator: Callable[[Any, int], Any] | None = None

    def __call__(self, content: Any, out: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Fill ``out``, uint8 [h, w, 3]; return it and the (width, height) of the picture as shown."""
        import numpy as np

        if isinstance(content, np.ndarray):
            height, width = content.shape[:2]
            shown = self._turn.size(width, height)
            picture = self._turn.apply(content)
            if self._crop is not None:
                left, top, right, bottom = self._box(*shown)
                picture = picture[top:bottom, left:right]
            out[...] = self._contract.apply(picture)
            return out, shown
        from vitedge.streaming.scale import scaler

        frame, turn = self._upright(content)
        shown = turn.size(frame.width, frame.height)
        if self._crop is not None:
            self._box(*shown)
        if turn not in self._scalers:
            self._scalers[turn] = scaler(self._contract, self._crop, turn)
        out[...] = self._scalers[turn](frame)
        return out, shown

    def picture(self, content: Any, wanted: int) -> NDArray[np.uint8]:
        """Return the picture for people: see :func:`vitedge.streaming.view.picture`."""
        frame, turn = self._upright(content) if hasattr(content, "side_data") else (content, self._turn)
        return picture(frame, wanted, shared.MAX_PICTURE_PIXELS, turn, self._crop)

    def _upright(self, frame: Any) -> tuple[Any, Turn]:
        """Return the frame, turned if it's to be shown at an odd angle, and the turn that remains to be done."""
        from vitedge.streaming.orientation import Rotator, orientation

        asked = orientation(frame)
        if asked.degrees:
            self._rotator = self._rotator or Rotator()
            frame = self._rotator(frame, asked.degrees)
        return frame, self._turn.after(asked.turn)

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        assert self._crop is not None
        try:
            return self._crop.box(width, height)
        except ValueError as error:
            raise Failure(str(error)) from error
