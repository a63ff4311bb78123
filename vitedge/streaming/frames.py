"""The frames of an open video stream, with their times, and which of them are damaged."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from vitedge.streaming.decoding import Clocks, Decoded, Decoder
from vitedge.streaming.gaps import GapDetector
from vitedge.streaming.times import PresentationTimes, Presented, Rule

if TYPE_CHECKING:
    import av.container
    import av.error
    import av.video
    import numpy as np
    from numpy.typing import NDArray

#: Formats whose frames have no reliable times: on live sources they get their arrival times.
TIMELESS = ("mpjpeg", "mjpeg", "image2pipe", "yuv4mpegpipe", "jpeg_pipe")
#: Codecs in which every frame is coded independently: damage doesn't affect the next one.
INTRA_ONLY = ("mjpeg", "rawvideo", "png", "wrapped_avframe", "prores", "dnxhd", "ffv1", "huffyuv", "dvvideo")
#: Formats whose packets FFmpeg hands over only when the next one begins, so the last one before a silence comes stale.
HELD_BACK = ("rtsp", "rtp", "sdp", "mpegts", "h264", "hevc")
#: Decoders don't notice that whole frames are missing, and predict from the wrong picture. On a live source an interval
#: of two and a half usual ones, and at least this long, counts as such a loss.
LOSS_S = 0.1
#: After damage, frames count as corrupt until the next key frame, but no longer than this, for cameras that send none.
MOST_DAMAGED_S = 10.0


class Captured(NamedTuple):
    """One frame as it was captured. ``content`` is None when it's broken.

    ``stale``: it was held back over a silence, so it doesn't say what is there now. ``rule`` says where
    ``presentation_s`` is from; ``jumped``: its stamp lies far behind the one before.
    """

    content: av.video.VideoFrame | NDArray[np.uint8] | None
    presentation_s: float | None
    monotonic_ns: int
    wall_ns: int
    truth: str | None = None
    stale: bool = False
    rule: Rule | None = None
    jumped: bool = False


class Frames:
    """Every frame of a stream, to the last that can be decoded; a packet that can't be decoded counts as one.

    Args:
        container: open.
        stream: of it.
        live: whether frames arrive when they are made.
        gap_s: an interval between arrivals that is a silence.

    Attributes:
        packets: that came.
        end_s: until when, by their stamps, the pictures of those that came are shown.
        times: of the frames.
        error: what reading ended with, before the end; None: it came to the end, or goes on.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.video.VideoStream, *, live: bool, gap_s: float
    ) -> None:
        name = container.format.name
        self.packets, self.end_s = 0, 0.0
        self.error: av.error.FFmpegError | None = None
        self.times = PresentationTimes(name, stream.time_base or Fraction(1, 1000), stream.average_rate)
        self._container, self._stream = container, stream
        self._decoder = Decoder(stream)
        self._by_arrival = live and name in TIMELESS
        self._held_back = live and name in HELD_BACK
        self._damage = _Damage(intra=stream.codec_context.name in INTRA_ONLY, watch_times=live and not self._by_arrival)
        self._arrival_gaps = GapDetector(gap_s)
        self._begin_ns: int | None = None  # arrival of the first frame

    def __iter__(self) -> Iterator[Captured]:
        """Yield the frames.

        Raises:
            av.error.PermissionError: hardware that can't be used.
        """
        import av.error

        last_ns = time.monotonic_ns()
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except IndexError:  # PyAV met a stream that wasn't there at the beginning: this one goes on
                packets = self._container.demux(self._stream)
                continue
            except av.error.FFmpegError as error:
                self.error = error
                break
            clocks = _now()
            stale = self._held_back and self._arrival_gaps.observe((clocks.monotonic_ns - last_ns) / 1e9)
            last_ns = clocks.monotonic_ns
            if packet.size or packet.dts is not None or packet.pts is not None:  # PyAV's own last one has nothing
                self.packets += 1
                self.end_s = max(self.end_s, _end_s(packet, self.times))
            if packet.size:  # an empty one repeats the picture before
                self.times.sent(packet.dts)
                yield from self._captured(self._decoder.decode(packet, clocks), stale=stale)
        yield from self._captured(self._decoder.finish(_now()))

    def _captured(self, decoded: Iterable[Decoded], *, stale: bool = False) -> Iterator[Captured]:
        for frame, (pts, clocks) in decoded:
            if frame is None:
                self.times.lost()
                self._damage.begin(clocks.monotonic_ns / 1e9)
                yield Captured(None, None, *clocks)
                continue
            shown = self._arrived(clocks) if self._by_arrival else self.times.of(pts)
            whole = not self._damage.spoils(frame, shown, clocks.monotonic_ns / 1e9)
            yield Captured(
                frame if whole else None,
                shown.at_s,
                *clocks,
                stale=stale and whole,
                rule=shown.rule,
                jumped=shown.jumped,
            )

    def _arrived(self, clocks: Clocks) -> Presented:
        if self._begin_ns is None:
            self._begin_ns = clocks.monotonic_ns
        return Presented((clocks.monotonic_ns - self._begin_ns) / 1e9, "arrival")


def _end_s(packet: Any, times: PresentationTimes) -> float:
    """Return the end of a packet's presentation, seconds; 0: its stamps don't tell."""
    start = packet.dts if times.sorts or packet.pts is None else packet.pts
    if start is None:
        return 0.0
    tick_s = float(packet.time_base)
    lasts_s = packet.duration * tick_s if packet.duration else times.interval_s
    return float(start * tick_s + lasts_s)


def _now() -> Clocks:
    return Clocks(time.monotonic_ns(), time.time_ns())


class _Damage:
    """Damage in a stream: a broken frame, and those predicted from it until the next key frame.

    Args:
        intra: no frame is predicted from others, so damage doesn't spread.
        watch_times: whether a jump of the presentation time counts: whole frames are missing, unseen by the decoder.
    """

    def __init__(self, *, intra: bool, watch_times: bool) -> None:
        self._intra, self._watch_times = intra, watch_times and not intra
        self._times = GapDetector(LOSS_S)
        self._last_s: float | None = None
        self._since_s: float | None = None  # None: the picture is whole

    def begin(self, now_s: float) -> None:
        """Begin the damage."""
        self._since_s = None if self._intra else now_s

    def spoils(self, frame: Any, shown: Presented, now_s: float) -> bool:
        """Whether a decoded frame, received at ``now_s``, is broken or predicted from a broken one."""
        missing = False
        if self._watch_times and self._last_s is not None:
            missing = self._times.observe(shown.at_s - self._last_s) or shown.jumped
        self._last_s = shown.at_s
        if frame.is_corrupt or (missing and not frame.key_frame):
            self.begin(now_s)
            return True
        if self._since_s is not None and not frame.key_frame and now_s - self._since_s < MOST_DAMAGED_S:
            return True
        self._since_s = None
        return False
