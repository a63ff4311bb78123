"""A video of what was seen, with the label drawn in; one file a source, readable however the stream ends."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vitedge.core.files import resource_errors
from vitedge.errors import NotInstalledError, UsageError
from vitedge.streaming.mqtt import topic_level
from vitedge.streaming.records import FrameRecord, Item
from vitedge.streaming.sink import QueuedSink

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

WIDTH = 1280
WAITING = 16  # pictures are large
SUFFIXES = (".mp4", ".mkv", ".mov")
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
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(action, f"its suffix isn't one of {', '.join(SUFFIXES)}", "name it, for example, out.mp4")
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
            with resource_errors(action):
                place.touch()
                place.unlink()
        self._files: dict[str, _File] = {}
        super().__init__("video", (FrameRecord,), WAITING)

    def put(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base. The first frames may come without a picture; there's nothing to write of them."""
        if picture is not None:
            super().put(item, picture)

    def write(self, item: Item, picture: NDArray[np.uint8] | None) -> None:
        """See the base."""
        assert isinstance(item, FrameRecord) and picture is not None
        if item.source not in self._files:
            height, width = picture.shape[:2]
            self._files[item.source] = _File(self._paths[item.source], width // 2 * 2 or 2, height // 2 * 2 or 2)
        self._files[item.source].append(item, picture)

    def finish(self) -> None:
        """See the base."""
        for file in self._files.values():
            file.close()


class _File:
    """One video; all its pictures have the size of the first, others are fitted in."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        import av

        # Fragments: what was written before a crash can be played.
        fragments = {} if path.suffix == ".mkv" else {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        self._container = cast(Any, av.open(str(path), "w", options=fragments))
        codec = next(name for name in CODECS if name in av.codecs_available)
        self._stream = self._container.add_stream(codec, rate=30, options={"preset": "veryfast"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = TIME_BASE
        self._stream.codec_context.gop_size, self._stream.codec_context.max_b_frames = 60, 0
        self._stream.codec_context.thread_count = 1  # the cores have other work
        self._first_ns: int | None = None
        self._last = -1

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
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> None:
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()

    def _ticks(self, record: FrameRecord) -> int:
        """Time since the first frame: presentation times where they go on, else the clock; it always grows."""
        at_ns = record.monotonic_ns if record.presentation_s is None else round(record.presentation_s * 1e9)
        if self._first_ns is None or record.gap:  # after a gap it goes on where it was
            self._first_ns = at_ns - round((self._last + 1) * 1e9 / 90_000)
        self._last = max(self._last + 1, round((at_ns - self._first_ns) * 90_000 / 1e9))
        return self._last


def _nearly(size: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(size[0] - other[0]) <= 1 and abs(size[1] - other[1]) <= 1


def annotate(image: Image.Image, record: FrameRecord) -> None:
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
