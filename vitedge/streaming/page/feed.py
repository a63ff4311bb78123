"""The data of the page, kept beside the engine: the sink's process feeds it, and viewers read it at their own pace."""

from __future__ import annotations

import asyncio
import io
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from vitedge.streaming.records import Event, FrameRecord, Item, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes of JSON, then height and width of the picture that follows it as RGB; 0 × 0: none follows.
HEAD = struct.Struct("<IHH")
HISTORY_S = 60.0  # of probabilities, for viewers that come later
STEP_S = 0.25  # between two points of it
EVENTS = 50
JPEG_QUALITY = 80
#: In a viewer's stream: kind (``J`` JSON, ``P`` a JPEG) and bytes that follow.
PART = struct.Struct(">cI")


class Viewer:
    """One viewer's slots: the newest of everything that it hasn't been sent. Only a few events queue up."""

    def __init__(self) -> None:
        self._slots: dict[str, bytes] = {}
        self._events: deque[bytes] = deque(maxlen=EVENTS)
        self._changed = asyncio.Event()

    def offer(self, slot: str, data: bytes) -> None:
        """Replace the data that waits in a slot."""
        self._slots[slot] = data
        self._changed.set()

    def tell(self, data: bytes) -> None:
        """Add an event, and drop the oldest where there are too many."""
        self._events.append(data)
        self._changed.set()

    async def take(self) -> bytes:
        """Return all waiting data, once there is some."""
        await self._changed.wait()
        self._changed.clear()
        parts = [*self._events, *self._slots.values()]
        self._slots.clear()
        self._events.clear()
        return b"".join(parts)


class Feed:
    """The state of the stream as far as viewers may see it."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.viewers: set[Viewer] = set()
        self.pictures: dict[str, bytes] = {}  # JPEG
        self._latest: dict[str, dict[str, Any]] = {}
        self._history: dict[str, deque[list[Any]]] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)

    @property
    def alive(self) -> bool:
        """Whether the engine's loop has sent a status lately."""
        return self.status is not None and time.monotonic() - self.status.monotonic_ns / 1e9 < 10

    def troubles(self) -> list[str]:
        """Return the sources that don't deliver frames now, and their state."""
        if self.status is None:
            return ["nothing has been heard of the engine yet"]
        return [
            f"{source.name}: {source.state}"
            for source in self.status.sources
            if source.state not in ("connected", "ended")
        ]

    def welcome(self) -> bytes:
        """Return the data that a new viewer needs first."""
        history = {name: list(points) for name, points in self._history.items()}
        data: dict[str, Any] = {"type": "welcome", "history": history, "events": list(self._events)}
        data |= {"latest": self._latest, "status": self.status}
        pictures = (part(b"P", _picture(name, jpeg)) for name, jpeg in self.pictures.items())
        return part(b"J", msgspec.json.encode(data)) + b"".join(pictures)

    def take(self, item: Item, jpeg: bytes | None) -> None:
        """Keep an item, and give it to the viewers; in the loop's thread."""
        if isinstance(item, Status):
            self.status = item
            data = part(b"J", msgspec.json.encode(item))
            for viewer in self.viewers:
                viewer.offer("status", data)
        elif isinstance(item, Event):
            event = {**msgspec.structs.asdict(item), "type": "event"}
            self._events.append(event)
            data = part(b"J", msgspec.json.encode(event))
            for viewer in self.viewers:
                viewer.tell(data)
        else:
            self._record(item)
            for viewer in self.viewers:
                viewer.offer(f"frame {item.source}", part(b"J", msgspec.json.encode(self._latest[item.source])))
        if jpeg is not None and isinstance(item, FrameRecord):
            self.pictures[item.source] = jpeg
            data = part(b"P", _picture(item.source, jpeg))
            for viewer in self.viewers:
                viewer.offer(f"picture {item.source}", data)

    def _record(self, record: FrameRecord) -> None:
        at_s = record.monotonic_ns / 1e9
        scores = {score.label: round(score.probability, 4) for score in record.smoothed}
        self._latest[record.source] = {
            "type": "frame",
            "source": record.source,
            "sequence": record.sequence,
            "at": at_s,
            "age_ms": round(record.age_ms, 1),
            "label": record.label,
            "probability": record.probability,
            "scores": scores,
        }
        points = self._history.setdefault(record.source, deque(maxlen=round(HISTORY_S / STEP_S)))
        if not points or record.gap or at_s - points[-1][0] >= STEP_S:
            points.append([round(at_s, 3), record.label, scores, record.gap])


def part(kind: bytes, data: bytes) -> bytes:
    """Return one part of a viewer's stream."""
    return PART.pack(kind, len(data)) + data


def _picture(source: str, jpeg: bytes) -> bytes:
    name = source.encode()
    return struct.pack(">H", len(name)) + name + jpeg


def pack(item: Item, picture: Any = None) -> Iterator[bytes | memoryview]:
    """Yield an item as it goes from the sink to the page's process; the picture is RGB [H, W, 3]."""
    text = msgspec.json.encode(item)
    height, width = (0, 0) if picture is None else picture.shape[:2]
    yield HEAD.pack(len(text), height, width) + text
    if picture is not None:
        yield memoryview(picture).cast("B")


def unpack(stream: BinaryIO) -> Iterator[tuple[Item, bytes | None]]:
    """Yield items with their pictures as JPEG, until the stream ends."""
    from PIL import Image

    while len(head := stream.read(HEAD.size)) == HEAD.size:
        length, height, width = HEAD.unpack(head)
        text, pixels = stream.read(length), stream.read(height * width * 3)
        if len(text) < length or len(pixels) < height * width * 3:
            return
        jpeg = None
        if pixels:  # encoded once for all viewers
            file = io.BytesIO()
            Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1).save(
                file, "JPEG", quality=JPEG_QUALITY
            )
            jpeg = file.getvalue()
        yield msgspec.json.decode(text, type=Item), jpeg
