"""Read a container's description of its video: the stream that is the film, and how much of it there should be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    import av.container
    import av.video

    from vitedge.streaming.frames import Frames

#: Formats that state their duration at their beginning, for all streams together.
STATE_DURATION = ("matroska,webm", "flv", "asf", "nut", "ogg")
MATROSKA = "matroska,webm"
SEGMENT = 0x18538067  # the element of Matroska that holds all but the header (RFC 9559, 5.1)
INTERVALS = 2.5  # a film may end earlier than stated by this many usual intervals


class NoFilm(Exception):
    """No video stream can be taken; the text is for people."""


def choose_stream(container: av.container.InputContainer, index: int | None = None) -> av.video.VideoStream:
    """Return the video stream that players choose, or the one that is named; never an attached picture.

    Args:
        container: open.
        index: the stream's number in the file, as ffprobe counts; None: FFmpeg's choice.

    Raises:
        NoFilm: there's none, or another has this number.
    """
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    films = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if index is not None:
        named = [stream for stream in films if stream.index == index]
        if not named:
            offered = ", ".join(_described(stream) for stream in films) or "none"
            raise NoFilm(f"stream {index} is no video; its video streams are: {offered}")
        return named[0]
    if not films:
        other = "a cover picture" if streams else "sound" if container.streams.audio else None
        raise NoFilm(f"it has only {other}, no video" if other else "it has no video")
    best = container.streams.best("video")
    if best in films:
        return best
    return max(films, key=lambda film: (bool(film.disposition & Disposition.default), film.width * film.height))


def _described(stream: Any) -> str:
    return f"{stream.index} ({stream.codec_context.name}, {stream.width}×{stream.height})"


class FilmIndex(NamedTuple):
    """The length of the video that a container states: packets or an end, where it states one."""

    packets: int | None
    end_s: float | None

    @classmethod
    def of(cls, container: av.container.InputContainer, stream: av.video.VideoStream) -> FilmIndex:
        """Return the length that the container stated when it was opened."""
        name = container.format.name
        if name.startswith("mov,"):  # its index without what an edit list leaves out
            return cls(len(stream.index_entries) or None, None)
        if name == "avi":  # its count includes empty packets, which repeat a picture
            return cls(None, float(stream.frames * stream.time_base) if stream.frames and stream.time_base else None)
        if name == MATROSKA and not _is_cut(Path(container.name.removeprefix("file:"))):
            return cls(None, None)  # its last picture may be shown for long
        own = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", stream.metadata.get("DURATION", "").strip())
        if name == MATROSKA and own:
            return cls(None, int(own[1]) * 3600 + int(own[2]) * 60 + float(own[3]))
        alone = len(container.streams) == 1  # else the duration may be the sound's
        if name in STATE_DURATION and alone and container.duration:
            return cls(None, container.duration / 1e6)
        return cls(None, None)

    def shortfall(self, frames: Frames) -> str | None:
        """Describe what is missing when a film ended; None: nothing is known to be missing."""
        if self.packets is not None and frames.packets < self.packets:
            return f"the film ends before its index: {frames.packets:,} of {self.packets:,} frames are there"
        if self.end_s is not None and frames.end_s + INTERVALS * frames.times.interval_s < self.end_s:
            return f"the film ends before its index: at {frames.end_s:.2f} s of {self.end_s:.2f} s"
        return None


def _is_cut(path: Path) -> bool:
    """Whether a Matroska file is shorter than it states; not if it's absent, or states nothing."""
    try:
        with path.open("rb") as file:
            while (kind := _number(file, marked=True)) is not None:
                size = _number(file, marked=False)
                if size is None:
                    return False
                if kind == SEGMENT:
                    return file.tell() + size > path.stat().st_size
                file.seek(size, 1)
    except OSError:
        pass
    return False


def _number(file: BinaryIO, *, marked: bool) -> int | None:
    """Read an EBML number of 1 to 8 bytes (RFC 8794, 4), for an identifier with its marker; None: unknown, or none."""
    first = file.read(1)
    length = 9 - first[0].bit_length() if first else 9
    rest = file.read(length - 1) if length < 9 else b""
    if length == 9 or len(rest) < length - 1:
        return None
    value = int.from_bytes(first + rest, "big")
    bits = 7 * length
    unmarked = value & ((1 << bits) - 1)
    return value if marked else None if unmarked == (1 << bits) - 1 else unmarked
