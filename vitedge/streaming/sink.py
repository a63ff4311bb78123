"""A sink's thread and its bounded queue: items that can't be delivered in time are dropped and counted."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from vitedge.core.files import disk_is_full
from vitedge.errors import printable
from vitedge.streaming.records import Item

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class QueuedSink:
    """Base of sinks that write somewhere: :meth:`write` runs in a thread of its own, one item after another.

    Args:
        name: for its counts and the status, without credentials.
        kinds: the items that it takes; others are ignored, not counted.
        depth: items that may wait; the oldest is dropped when one more comes.
    """

    picture_width = 0
    uncounted: tuple[type, ...] = ()  # items that serve only as a clock

    def __init__(self, name: str, kinds: tuple[type, ...], depth: int = 8192) -> None:
        self.name, self._kinds, self._depth = name, kinds, depth
        self.written = self.dropped = 0
        self.error: str | None = None
        self._items: deque[tuple[Item, NDArray[np.uint8] | None]] = deque()
        self._changed = threading.Condition()
        self._closing = self._ended = False
        self._in_hand: Item | None = None  # what is being written
        self._abandoned = False  # whether :meth:`close` has counted that already
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    # --- for subclasses

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """Deliver one item; it may block. An exception counts the item as dropped and becomes :attr:`error`."""
        raise NotImplementedError

    def handle(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """Write one item and count it. Sinks that deliver several items at once override it."""
        self.write(item, picture)
        self.written += self._counts(item)

    def finish(self) -> None:
        """Release the resources of :meth:`write`; called once, in the sink's thread."""

    def wanted(self, picture: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
        """Return the picture, if it's worth keeping until its item is written."""
        return picture if self.picture_width else None

    def describe(self, error: Exception) -> str:
        """Describe the error for a person, without credentials."""
        if isinstance(error, OSError) and error.strerror:
            return error.strerror + (": free space there" if disk_is_full(error) else "")
        return f"{type(error).__name__}: {error}"

    # --- for the engine

    def put(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See :class:`vitedge.streaming.records.Sink`."""
        if not isinstance(item, self._kinds):
            return
        with self._changed:
            if self._closing:
                self.dropped += self._counts(item)
                return
            if len(self._items) == self._depth:
                self.dropped += self._counts(self._items.popleft()[0])
            self._items.append((item, self.wanted(picture)))
            self._changed.notify()

    def end(self) -> None:
        """See :class:`vitedge.streaming.records.Sink`."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """See :class:`vitedge.streaming.records.Sink`. A write that hangs is left to the end of the process."""
        deadline = time.monotonic() + timeout_s
        self.end()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._abandoned = self._in_hand is not None
            undelivered = [*(item for item, _ in self._items), *([self._in_hand] if self._in_hand else [])]
            self.dropped += sum(map(self._counts, undelivered))
            self._items.clear()

    def _counts(self, item: Item) -> bool:
        return not isinstance(item, self.uncounted)

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            written, failed = self.written, False
            try:
                self.handle(*entry)
            except Exception as error:
                failed = True
                self.error = printable(self.describe(error))
            with self._changed:
                self._in_hand = None
                if self._abandoned:
                    self.written = written
                else:
                    self.dropped += failed and self._counts(entry[0])
        try:
            self.finish()
        except Exception as error:
            self.error = printable(self.describe(error))
        self._ended = True

    def _next(self) -> tuple[Item, NDArray[np.uint8] | None] | None:
        with self._changed:
            while not self._items and not self._closing:
                self._changed.wait()
            if not self._items:
                return None
            self._in_hand = self._items[0][0]
            return self._items.popleft()
