"""Sinks that write lines: JSON Lines, CSV, and text for a person."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vitedge.core.files import append_whole, resource_errors, suppress_full_disk
from vitedge.errors import UsageError, printable
from vitedge.streaming.records import Event, FrameRecord, Item, SinkStatus, Status
from vitedge.streaming.sink import QueuedSink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLUMNS = (
    "source", "sequence", "connection", "presentation_s", "time", "monotonic_ns", "age_ms", "dropped", "gap", "width",
    "height", "label", "probability", "raw_label", "raw_probability", "smoothed_label", "smoothed_probability", "truth",
    "presentation_rule",
)  # fmt: skip


@contextlib.contextmanager
def writing(target: str) -> Iterator[None]:
    """Turn failures into errors like :func:`resource_errors`; a missing folder, or one as file, is a usage error."""
    action = f"write {target}"
    try:
        with resource_errors(action):
            yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(action, f"{error.strerror}", "name a file in a folder that exists") from error


class Lines(QueuedSink):
    """Writes whole lines to a file, by appending, or to stdout with ``-``; each line is written in one piece.

    Args:
        name: for its counts and the status.
        target: a path, or ``-``.
        kinds: which items.
        broken: called when nobody reads stdout any more.

    Raises:
        ResourceError, UsageError: the file can't be written.
    """

    def __init__(self, name: str, target: str, kinds: tuple[type, ...], broken: Callable[[], None]) -> None:
        self._broken = broken
        self._target = target
        self._file: int | None = None
        with writing(target):
            self._open()
        super().__init__(name, kinds)

    def _open(self) -> None:
        """Open the file, if it's one; on a full disk, the next line tries again."""
        if self._target == "-" or self._file is not None:
            return
        with suppress_full_disk():
            self._file = os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def line(self, item: Item) -> bytes:
        """Return the item's line, with its end."""
        raise NotImplementedError

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class."""
        data = self.line(item)
        if self._target == "-":
            _to_stdout(data, self._broken)
            return
        self._open()
        if self._file is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append_whole(self._file, data)

    def finish(self) -> None:
        """See the base class."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class JsonLines(Lines):
    """One JSON object on each line."""

    def line(self, item: Item) -> bytes:
        """See the base class."""
        return msgspec.json.encode(item) + b"\n"


class CsvLines(Lines):
    """A table of the records, with the best class of each kind; a new file begins with the columns' names."""

    def __init__(self, name: str, target: str, broken: Callable[[], None]) -> None:
        self._fresh = target == "-" or not Path(target).exists() or Path(target).stat().st_size == 0
        super().__init__(name, target, (FrameRecord,), broken)

    def handle(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class."""
        super().handle(item, picture)
        self._fresh = False

    def line(self, item: Item) -> bytes:
        """See the base class."""
        assert isinstance(item, FrameRecord)
        values: dict[str, Any] = msgspec.structs.asdict(item)
        for kind in ("raw", "smoothed"):
            best = values.pop(kind)[0]
            values[f"{kind}_label"], values[f"{kind}_probability"] = best.label, best.probability
        return _row(COLUMNS) * self._fresh + _row([values[column] for column in COLUMNS])


class TerminalSink(QueuedSink):
    """Events as text for a person: labels on stdout, everything about connections on stderr."""

    def __init__(self, *, labels: bool, narrate: bool, broken: Callable[[], None]) -> None:
        self._labels, self._narrate, self._broken = labels, narrate, broken
        self._losses: set[tuple[str, str]] = set()
        super().__init__("words", (Event, Status))  # the name that the metrics have always had

    def put(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class. Of statuses it takes those in which an output loses something for a new reason."""
        if isinstance(item, Status):
            losses = {(sink.name, sink.error) for sink in item.sinks if sink.dropped and sink.error}
            if not self._narrate or losses <= self._losses:
                return
        super().put(item, picture)

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class."""
        if isinstance(item, Status):
            for sink in item.sinks:
                if sink.dropped and sink.error and (sink.name, sink.error) not in self._losses:
                    self._losses.add((sink.name, sink.error))
                    sys.stderr.write(f"{item.time[11:19]}  {printable(_loss(sink))}\n")
            return
        assert isinstance(item, Event)
        if item.kind in ("enter", "exit"):
            replaced = item.kind == "exit" and item.text is None  # the line of the next label follows
            if self._labels and not replaced:
                _to_stdout(f"{printable(describe_event(item))}\n".encode(), self._broken)
        elif self._narrate:
            sys.stderr.write(f"{printable(describe_event(item))}\n")
            sys.stderr.flush()


def describe_event(event: Event) -> str:
    """Return an event as a line for a person."""
    at = event.time[11:19] if event.presentation_s is None else f"{event.time[11:19]} at {event.presentation_s:.2f} s"
    text = {
        "enter": f"{event.label} ({event.probability or 0:.0%})",
        "exit": f"no longer {event.label}, after {event.duration_s or 0:.1f} s: {event.text}",
        "connected": f"connected, {event.text}",
        "lost": f"lost: {event.text}; next attempt in {event.duration_s or 0:.1f} s",
        "ended": "ended" if event.text is None else f"ended: {event.text}",
        "failed": f"failed: {event.text}",
        "size": f"the picture is {event.text} now",
        "gap": f"gap: {event.text}",
    }[event.kind]
    return f"{at}  {event.source}: {text}"


def summary_lines(status: Status) -> list[str]:
    """Return the frame counts of every source, and the items that the sinks dropped, one a line."""
    lines = []
    for source in status.sources:
        counts = source.counts
        lines.append(
            f"{source.name}: {counts.captured} captured = {counts.classified} classified + {counts.skipped} skipped"
            f" + {counts.dropped} dropped + {counts.corrupt} corrupt{'' if counts.complete else '  (NOT ALL COUNTED)'};"
            f" connections {source.connections}, gaps {source.gaps}"
            + (f"; age p50 {source.age.p50_ms:.1f} ms, p99 {source.age.p99_ms:.1f} ms" if source.age else "")
            + (f"; {source.reason}" if source.state == "ended" and source.reason else "")
        )
    lines += [_loss(sink) for sink in status.sinks if sink.dropped]
    return [printable(line) for line in lines]


def _loss(sink: SinkStatus) -> str:
    return f"{sink.name}: {sink.dropped} dropped" + (f" ({sink.error})" if sink.error else "")


def _to_stdout(data: bytes, broken: Callable[[], None]) -> None:
    try:
        sys.stdout.flush()
        try:
            descriptor = sys.stdout.fileno()
        except (OSError, AttributeError):  # something else in its place
            sys.stdout.write(data.decode())
        else:  # unbuffered, so that nothing is left for the interpreter to write when the disk is full
            append_whole(descriptor, data)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing more may be tried when the interpreter ends
        broken()
        raise


def _row(values: Any) -> bytes:
    """Return a CSV row; a cell that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    safe = ["" if value is None else f"'{value}" if str(value)[:1] in ("=", "+", "@", "\t", "\r") or (
        str(value)[:1] == "-" and not isinstance(value, (int, float))) else value for value in values]  # fmt: skip
    csv.writer(text, lineterminator="\n").writerow(safe)
    return text.getvalue().encode()
