"""The memory that a reader and the engine share: counters, the reader's state, and a few buffers for frames.

It's a nameless file in memory (``memfd_create``), so nothing is left behind however either of them ends. Changes of a
buffer's state happen under a POSIX record lock, which the kernel releases when its holder dies. Every counter is one
aligned 8-byte word with one writer. Pages of pictures that nobody wants are never touched, and cost nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitedge.streaming.times import RULES, Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUFFERS = 4
MAX_PICTURE_PIXELS = 4096 * 2304  # a larger picture is halved until it fits
NO_TIME = -(1 << 63)  # in place of a presentation time

#: What the reader is doing.
STARTING, CONNECTING, STREAMING, ENDED, FAILED = range(5)
#: What a buffer holds: nothing, a frame that waits, or one that the engine is reading.
FREE, READY, TAKEN = range(3)

_TEXT = 256  # bytes of each text
_REASON, _CODEC, _RECORD_ERROR, _TRUTH = range(4)  # texts; of the last, one a buffer
# Words of the header.
(_STATE, _CAPTURED, _SKIPPED, _DROPPED, _CORRUPT, _GAPS, _ACTIVITY, _ORDER, _FINITE, _RECORDED,
 _UNRECORDED) = range(11)  # fmt: skip
_PICTURE_WIDTH, _STOP = 16, 17  # these two are the engine's
_WORDS = 32
# Words of a buffer.
_B_STATE, _B_ORDER, _B_SEQUENCE, _B_PTS, _B_MONOTONIC, _B_WALL, _B_GAP, _B_W, _B_H, _B_PW, _B_PH, _B_RULE = range(12)
_B_WORDS = 16


class Counters(NamedTuple):
    """The frame counts of one reader."""

    captured: int
    skipped: int
    dropped: int
    corrupt: int
    gaps: int
    recorded: int  # frames
    unrecorded: int  # frames that couldn't be written to the recording


_COUNTERS = dict(
    zip(Counters._fields, (_CAPTURED, _SKIPPED, _DROPPED, _CORRUPT, _GAPS, _RECORDED, _UNRECORDED), strict=True)
)


class Taken(NamedTuple):
    """A frame as the engine gets it; all arrays are its own."""

    sequence: int  # within this connection
    presentation_s: float | None
    monotonic_ns: int
    wall_ns: int
    gap: bool
    dropped: int  # frames of this connection dropped before this one
    width: int
    height: int
    rule: Rule | None  # the rule that gave the presentation time
    truth: str | None
    image: NDArray[np.uint8]  # [h, w, 3]
    picture: NDArray[np.uint8] | None  # [H, W, 3]


class Shared:
    """A view of the shared block, from either side.

    Args:
        descriptor: an open file descriptor of the block; it belongs to this object afterwards.
        size: (height, width) of the model's input.
    """

    def __init__(self, descriptor: int, size: tuple[int, int]) -> None:
        self.descriptor, self.size = descriptor, size
        page = mmap.PAGESIZE
        image, picture = size[0] * size[1] * 3, MAX_PICTURE_PIXELS * 3
        texts = (_TRUTH + BUFFERS) * _TEXT
        head = (_WORDS + BUFFERS * _B_WORDS) * 8
        start = -(-(head + texts) // page) * page
        stride = -(-image // page) * page
        self._images = [start + index * stride for index in range(BUFFERS)]
        self._pictures = [start + BUFFERS * stride + index * picture for index in range(BUFFERS)]
        total = start + BUFFERS * (stride + picture)
        if os.fstat(descriptor).st_size < total:
            os.ftruncate(descriptor, total)
        self._map = mmap.mmap(descriptor, total)
        view = memoryview(self._map)
        self._words = view[: _WORDS * 8].cast("q")
        self._buffers = [
            view[(_WORDS + index * _B_WORDS) * 8 : (_WORDS + (index + 1) * _B_WORDS) * 8].cast("q")
            for index in range(BUFFERS)
        ]
        self._texts = [view[head + index * _TEXT : head + (index + 1) * _TEXT] for index in range(_TRUTH + BUFFERS)]
        self._view = view

    @classmethod
    def create(cls, size: tuple[int, int]) -> Shared:
        """A new block of zeros."""
        return cls(os.memfd_create("vitedge-frames", os.MFD_CLOEXEC), size)

    def close(self) -> None:
        """Release the memory."""
        for part in (self._words, *self._buffers, *self._texts, self._view):
            part.release()
        self._map.close()
        os.close(self.descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    # --- the reader's side

    def count(self, **more: int) -> None:
        """Add to the counters, by the names in :class:`Counters`; a frame is captured first, then its outcome."""
        for name, number in more.items():
            self._words[_COUNTERS[name]] += number

    def report_record_error(self, text: str) -> None:
        """Report why frames aren't recorded."""
        self._write_text(_RECORD_ERROR, text)

    def report(self, state: int, text: str = "") -> None:
        """Report the reader's state and, for a failure or an early end, the reason."""
        self._write_text(_REASON, text)
        self._words[_STATE] = state

    def describe(self, codec: str, *, finite: bool) -> None:
        """Describe the opened source, and whether it has an end by nature."""
        self._write_text(_CODEC, codec)
        self._words[_FINITE] = finite

    def active(self, now_ns: int) -> None:
        """Report that the reader is alive."""
        self._words[_ACTIVITY] = now_ns

    @property
    def stop(self) -> bool:
        """Whether the engine wants no more frames."""
        return bool(self._words[_STOP])

    @property
    def picture_width(self) -> int:
        """The widest picture that is wanted; 0: none is."""
        return self._words[_PICTURE_WIDTH]

    def free(self) -> int | None:
        """Return a buffer that may be filled."""
        return next((index for index in range(BUFFERS) if self._buffers[index][_B_STATE] == FREE), None)

    def waiting(self) -> int:
        """Return the number of frames that wait for the engine."""
        return sum(buffer[_B_STATE] == READY for buffer in self._buffers)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return a buffer's image to write into: uint8 [h, w, 3]."""
        return self._array(self._images[index], (*self.size, 3))

    def publish(
        self,
        index: int,
        *,
        sequence: int,
        presentation_s: float | None,
        monotonic_ns: int,
        wall_ns: int,
        gap: bool,
        shown: tuple[int, int],
        rule: Rule | None,
        truth: str | None,
        picture: NDArray[np.uint8] | None,
        newest_only: bool,
    ) -> None:
        """Make a filled buffer the newest that waits; with ``newest_only`` an older one that still waits is dropped."""
        buffer = self._buffers[index]
        buffer[_B_SEQUENCE], buffer[_B_MONOTONIC], buffer[_B_WALL] = sequence, monotonic_ns, wall_ns
        buffer[_B_PTS] = NO_TIME if presentation_s is None else round(presentation_s * 1e9)
        buffer[_B_GAP], buffer[_B_W], buffer[_B_H] = gap, *shown
        buffer[_B_RULE] = 0 if rule is None else RULES.index(rule) + 1
        buffer[_B_PH], buffer[_B_PW] = (0, 0) if picture is None else picture.shape[:2]
        if picture is not None:
            self._array(self._pictures[index], picture.shape)[...] = picture
        self._write_text(_TRUTH + index, truth or "")
        with self._locked():
            if newest_only:
                for other in self._buffers:
                    if other[_B_STATE] == READY:
                        buffer[_B_GAP] |= other[_B_GAP]  # a gap isn't lost with the frame that has it
                        other[_B_STATE] = FREE
                        self._words[_DROPPED] += 1
            self._words[_ORDER] += 1
            buffer[_B_ORDER] = self._words[_ORDER]
            buffer[_B_STATE] = READY

    # --- the engine's side

    def begin(self) -> None:
        """Reset for the next reader: zero everything but the engine's requests."""
        wanted = self.picture_width
        for index in range(_WORDS):
            self._words[index] = 0
        for buffer in self._buffers:
            buffer[_B_STATE] = FREE
        for index in range(_TRUTH):
            self._write_text(index, "")
        self._words[_PICTURE_WIDTH] = wanted

    def want(self, *, stop: bool | None = None, picture_width: int | None = None) -> None:
        """Tell the reader the engine's requests."""
        if stop is not None:
            self._words[_STOP] = stop
        if picture_width is not None:
            self._words[_PICTURE_WIDTH] = picture_width

    @property
    def state(self) -> int:
        """The reader's state."""
        return self._words[_STATE]

    @property
    def reason(self) -> str:
        """The reason why it failed, or ended early."""
        return self._read_text(_REASON)

    @property
    def codec(self) -> str:
        """The codec of the opened source; empty: nothing is open yet."""
        return self._read_text(_CODEC)

    @property
    def finite(self) -> bool:
        """Whether the opened source has an end by nature."""
        return bool(self._words[_FINITE])

    @property
    def activity_ns(self) -> int:
        """The last time when the reader was alive, on the monotonic clock."""
        return self._words[_ACTIVITY]

    @property
    def counters(self) -> Counters:
        """The reader's counters."""
        return Counters(*(self._words[_COUNTERS[name]] for name in Counters._fields))

    @property
    def record_error(self) -> str:
        """The reason why frames weren't recorded; empty: all were."""
        return self._read_text(_RECORD_ERROR)

    def take(self) -> Taken | None:
        """Copy out the oldest frame that waits; None: nothing waits."""
        with self._locked():
            ready = [buffer for buffer in self._buffers if buffer[_B_STATE] == READY]
            if not ready:
                return None
            buffer = min(ready, key=lambda waiting: waiting[_B_ORDER])
            buffer[_B_STATE] = TAKEN
            dropped = self._words[_DROPPED]
        index = self._buffers.index(buffer)
        picture = None
        if buffer[_B_PW]:
            picture = self._array(self._pictures[index], (buffer[_B_PH], buffer[_B_PW], 3)).copy()
            picture.flags.writeable = False
        taken = Taken(
            buffer[_B_SEQUENCE],
            None if buffer[_B_PTS] == NO_TIME else buffer[_B_PTS] / 1e9,
            buffer[_B_MONOTONIC],
            buffer[_B_WALL],
            bool(buffer[_B_GAP]),
            dropped,
            buffer[_B_W],
            buffer[_B_H],
            RULES[buffer[_B_RULE] - 1] if buffer[_B_RULE] else None,
            self._read_text(_TRUTH + index) or None,
            self.image(index).copy(),
            picture,
        )
        buffer[_B_STATE] = FREE
        return taken

    # --- both

    def _array(self, offset: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return np.frombuffer(self._map, np.uint8, int(np.prod(shape)), offset).reshape(shape)

    def _write_text(self, index: int, text: str) -> None:
        data = text.encode()[: _TEXT - 1]
        self._texts[index][: len(data) + 1] = data + b"\0"

    def _read_text(self, index: int) -> str:
        return bytes(self._texts[index]).split(b"\0", 1)[0].decode(errors="ignore")
