"""Save a JPEG with the label drawn in at certain events; the number and age of the files are limited."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vitedge.core.files import write_atomic
from vitedge.streaming.outputs import writing
from vitedge.streaming.records import Event, FrameRecord, Item, Status
from vitedge.streaming.settings import parse_event
from vitedge.streaming.sink import QueuedSink
from vitedge.streaming.source_state import iso
from vitedge.streaming.video import WIDTH, annotate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WAITING = 16  # pictures are large
EXPIRY_S = 60.0  # between two looks for pictures that are too old
QUALITY = 85
OURS = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z_.+\.jpg")  # nothing else is ever removed


class SnapshotSink(QueuedSink):
    """Writes the picture at which an event happened, or its source's last one, to ``TIME_SOURCE_EVENT_LABEL.jpg``.

    Args:
        event: the kind of event.
        folder: for the pictures; it's made where there is none.
        most: pictures that are kept, of all sources together; the oldest ones are removed.
        age_s: seconds for which a picture is kept.

    Raises:
        UsageError: there's no such event, or the folder can't be one.
        ResourceError: the folder can't be written.
    """

    picture_width = WIDTH
    uncounted = (Status,)

    def __init__(self, event: str, folder: str | Path, *, most: int, age_s: float) -> None:
        parse_event(event)
        self._event, self._folder, self._most, self._age_s = event, Path(folder), most, age_s
        with writing(str(folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._latest: dict[str, NDArray[np.uint8]] = {}  # by source
        self._early: dict[str, Event] = {}  # events that came before their source's first picture
        self._expire_at = 0.0
        super().__init__("snapshots", (Event, Status), WAITING)

    def put(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class."""
        if isinstance(item, FrameRecord) and picture is not None:
            self._latest[item.source] = picture
            if item.source in self._early:
                super().put(self._early.pop(item.source), picture)
        elif isinstance(item, Event) and item.kind == self._event:
            if item.source in self._latest:
                super().put(item, self._latest[item.source])
            else:
                self._early[item.source] = item
        elif isinstance(item, Status) and time.monotonic() >= self._expire_at:
            self._expire_at = time.monotonic() + EXPIRY_S
            super().put(item, None)

    def handle(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class. Statuses remind of what has become too old."""
        if isinstance(item, Event):
            super().handle(item, picture)
        try:
            self._remove_excess()
        except OSError as error:  # the snapshot stays
            self.error = self.describe(error)

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class."""
        from PIL import Image

        assert isinstance(item, Event) and picture is not None
        image, file = Image.fromarray(picture), io.BytesIO()
        annotate(image, item)
        image.save(file, "JPEG", quality=QUALITY)
        parts = [_file_time(item.time), *(_safe(text) for text in (item.source, item.kind, item.label) if text)]
        write_atomic(self._folder / f"{'_'.join(parts)}.jpg", file.getvalue(), "keep a snapshot")

    def describe(self, error: Exception) -> str:
        """See the base class."""
        return super().describe(error.__cause__ if isinstance(error.__cause__, OSError) else error)

    def _remove_excess(self) -> None:
        pictures = sorted(path for path in self._folder.iterdir() if OURS.fullmatch(path.name))
        oldest = _file_time(iso(time.time_ns() - round(self._age_s * 1e9)))
        for number, path in enumerate(pictures):
            if number < len(pictures) - self._most or path.name < oldest:
                path.unlink(missing_ok=True)


def _file_time(text: str) -> str:
    """Return ISO 8601 without colons, which sorts by time."""
    return text.replace(":", "-")


def _safe(text: str) -> str:
    return re.sub(r"[^\w.-]", "-", text).encode()[:70].decode(errors="ignore")
