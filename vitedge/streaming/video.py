"""Write a video with the label drawn in, one file for each source, readable however the stream ends."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vitedge.core.files import append_whole, resource_errors, suppress_full_disk
from vitedge.errors import NotInstalledError, UsageError
from vitedge.streaming.mqtt import topic_level
from vitedge.streaming.records import Event, FrameRecord, Item
from vitedge.streaming.sink import QueuedSink

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

WIDTH = 1280
WAITING = 16  # pictures are large
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
_CLUSTERS = {"cluster_time_limit": "30000", "cluster_size_limit": str(1 << 28)}  # else they end between key frames
#: Format and options by suffix. Fragments and clusters: what was written before a crash can be played.
FORMATS = {".mp4": ("mp4", _FRAGMENTS), ".mkv": ("matroska", _CLUSTERS), ".mov": ("mov", _FRAGMENTS)}
CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that this FFmpeg has
TIME_BASE = Fraction(1, 90_000)


class VideoSink(QueuedSink):
    """Writes annotated videos with the frames' own times.

    Args:
        path: ``.mp4``, ``.mkv`` or ``.mov``; of several sources each gets a file with its name before the suffix.
        sources: the sources' names.

    Raises:
        UsageError: another suffix, or a file that exists.
        ResourceError: it can't be written there.
        NotInstalledError: PyAV is missing.
    """

    picture_width = WIDTH

    def __init__(self, path: str | Path, sources: tuple[str, ...]) -> None:
        path = Path(path)
        action = f"write the video {path}"
        if path.suffix.lower() not in FORMATS:
            raise UsageError(action, f"its suffix isn't one of {', '.join(FORMATS)}", "name it, for example, out.mp4")
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise NotInstalledError.for_extra(action, "av", "stream") from error
        several = len(sources) > 1
        self._paths = {
            name: path.with_name(f"{path.stem}-{topic_level(name)}{path.suffix}") if several else path
            for name in sources
        }
        for place in self._paths.values():
            if place.exists():
                raise UsageError(action, f"{place} already exists", "name another file, or remove it")
            with resource_errors(action), suppress_full_disk():
                place.touch()
                place.unlink()
        self._files: dict[str, _File] = {}
        self._lost = 0
        super().__init__("video", (FrameRecord,), WAITING)

    def put(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class. The first frames may come without a picture; there's nothing to write of them."""
        if picture is not None:
            super().put(item, picture)

    def handle(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class. A picture counts as written once it's in the file."""
        self.write(item, picture)
        self._count()

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base class."""
        assert isinstance(item, FrameRecord) and picture is not None
        if item.source not in self._files:
            height, width = picture.shape[:2]
            self._files[item.source] = _File(self._paths[item.source], width // 2 * 2 or 2, height // 2 * 2 or 2)
        self._files[item.source].append(item, picture)

    def finish(self) -> None:
        """See the base class."""
        for file in self._files.values():
            file.close()
        self._count()

    def close(self, timeout_s: float) -> None:
        """See the base class."""
        super().close(timeout_s)
        if not self._ended:
            self.dropped += sum(file.pending for file in self._files.values())

    def _count(self) -> None:
        files = self._files.values()
        self.written = sum(file.written for file in files)
        lost, self._lost = self._lost, sum(file.lost for file in files)
        with self._changed:
            self.dropped += self._lost - lost
        for error in (file.error for file in files if file.error):
            self.error = self.describe(error)


class _Muxed:
    """The file object of FFmpeg's muxer. It never fails, since a muxer may crash at its end after a refused write."""

    def __init__(self) -> None:
        self.appended = bytearray()
        self.corrections: list[tuple[int, bytes]] = []  # of what was written earlier: (offset, bytes)
        self._taken = self._at = 0

    def write(self, data: bytes) -> int:
        """Append; FFmpeg calls it."""
        end = self._taken + len(self.appended)
        if self._at == end:
            self.appended += data
        else:
            self.corrections.append((self._at, bytes(data)))
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek; FFmpeg calls it."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, self._taken + len(self.appended))
        return self._at

    def tell(self) -> int:
        """Return the position; FFmpeg calls it."""
        return self._at

    def take(self) -> bytes:
        """Return the bytes that were appended since the last call."""
        data, self.appended = bytes(self.appended), bytearray()
        self._taken += len(data)
        return data


class _File:
    """One video; all its pictures have the size of the first, others are fitted in.

    It consists of a header and fragments, each of which begins with a key frame. A fragment that can't be written is
    left out, and the next ones are tried: what is in the file can be played, whatever happened.
    """

    def __init__(self, path: Path, width: int, height: int) -> None:
        import av

        self._path, self._descriptor = path, -1
        self._muxed, self._header = _Muxed(), b""
        self._encoded = self._muxed_packets = 0
        self.written = self.lost = 0  # pictures
        self.error: OSError | None = None  # the last
        name, options = FORMATS[path.suffix.lower()]
        self._container = cast(Any, av.open(self._muxed, "w", format=name, options=options))
        codec = next(name for name in CODECS if name in av.codecs_available)
        self._stream = self._container.add_stream(codec, rate=30, options={"preset": "veryfast"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = TIME_BASE
        self._stream.codec_context.gop_size, self._stream.codec_context.max_b_frames = 60, 0
        self._stream.codec_context.thread_count = 1  # the cores have other work
        self._first_ns: int | None = None
        self._last = -1

    @property
    def pending(self) -> int:
        """The number of pictures in the encoder, or in an incomplete fragment."""
        return self._encoded - self.written - self.lost

    def append(self, record: FrameRecord, picture: NDArray[np.uint8]) -> None:
        import av
        from PIL import Image, ImageOps

        size = (self._stream.width, self._stream.height)
        image = Image.fromarray(picture)
        if image.size != size:
            image = image.resize(size) if _nearly(image.size, size) else ImageOps.pad(image, size)
        annotate(image, record)
        frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
        frame.pts, frame.time_base = self._ticks(record), TIME_BASE
        self._encode(frame)
        self._encoded += 1

    def close(self) -> None:
        self._encode(None)
        self._container.close()
        self._store(self._encoded)
        if self._descriptor >= 0:
            if not self.lost:
                for offset, data in self._muxed.corrections:
                    os.pwrite(self._descriptor, data, offset)
            os.close(self._descriptor)

    def _encode(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
            self._store(self._muxed_packets)  # the muxer writes earlier packets when the next one comes
            self._muxed_packets += 1

    def _store(self, packets: int) -> None:
        """Write the muxer's output, up to the end of this many packets."""
        if not (data := self._muxed.take()):
            return
        if packets == 0:
            self._header = data  # goes with the first fragment
            return
        pictures = packets - self.written - self.lost
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            append_whole(self._descriptor, self._header + data)
        except OSError as error:
            self.lost, self.error = self.lost + pictures, error
            self._discard_empty()
        else:
            self.written, self._header = self.written + pictures, b""

    def _discard_empty(self) -> None:
        if self._descriptor >= 0 and self._header:  # nothing has been written yet
            os.close(self._descriptor)
            self._descriptor = -1
            self._path.unlink(missing_ok=True)

    def _ticks(self, record: FrameRecord) -> int:
        """Return the time since the first frame, by presentation times where they go on, else by the clock."""
        at_ns = record.monotonic_ns if record.presentation_s is None else round(record.presentation_s * 1e9)
        if self._first_ns is None or record.gap:  # after a gap it goes on where it was
            self._first_ns = at_ns - round((self._last + 1) * 1e9 / 90_000)
        self._last = max(self._last + 1, round((at_ns - self._first_ns) * 90_000 / 1e9))
        return self._last


def _nearly(size: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(size[0] - other[0]) <= 1 and abs(size[1] - other[1]) <= 1


def annotate(image: Image.Image, record: FrameRecord | Event) -> None:
    """Draw the label and its probability into the lower left corner, in place."""
    from PIL import ImageDraw, ImageFont

    side = max(12, image.height // 18)
    label = record.label if record.label is not None else "unknown"
    text = label.encode("latin-1", "replace").decode("latin-1")  # what the built-in font has
    if record.probability is not None and record.label is not None:
        text += f"  {record.probability:.0%}"
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(side)
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    margin = side // 2
    corner = (margin, image.height - margin - (bottom - top) - margin)
    draw.rectangle((corner[0], corner[1], corner[0] + right - left + margin, image.height - margin), fill=(17, 18, 20))
    draw.text((corner[0] + margin // 2 - left, corner[1] + margin // 2 - top), text, (255, 255, 255), font)
