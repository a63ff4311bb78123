"""Decode packets to frames, each with its packet's facts, to the last frame that can be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import av.packet
    import av.video

    Packet = av.packet.Packet[av.video.VideoStream]

MOST_ON_THEIR_WAY = 512  # packets without a frame yet whose facts are kept
MOST_KEYS = 20  # such packets that are kept: more than there are decoder threads
PUSHING = -1  # the number of packets that are sent to push earlier frames out of the decoder


class Clocks(NamedTuple):
    """The arrival time of a packet, nanoseconds."""

    monotonic_ns: int
    wall_ns: int


class Sent(NamedTuple):
    """The known facts of a packet."""

    pts: int | None  # ticks of the stream
    clocks: Clocks


class Decoded(NamedTuple):
    """An output of the decoder: a frame and its packet's facts, or, without a frame, that one can't be decoded."""

    frame: av.video.VideoFrame | None
    sent: Sent


class Decoder:
    """Turns packets into frames in the order of presentation.

    Decoders hand stamps through from a packet to its frame. In their place a number is sent, which finds what the
    packet was also where stamps are missing or repeat.

    Decoder threads hold back several frames, and PyAV reads no more of them at the end once one is found to be broken.
    So at the end a key frame is sent again, until the threads have nothing else.

    Args:
        stream: what the packets belong to.
    """

    def __init__(self, stream: av.video.VideoStream) -> None:
        self._stream = stream
        self._number = 0
        self._outstanding = 0  # packets that gave neither a frame nor an error yet
        self._on_their_way: dict[int, Sent] = {}
        self._keys: dict[int, Packet] = {}  # key packets whose frames haven't come
        self._push: Packet | None = None  # the last with a whole key frame; until there is one, the last
        self._whole = False  # whether it has one

    def decode(self, packet: Packet, clocks: Clocks) -> Iterator[Decoded]:
        """Decode a packet; an empty one repeats the picture before, and gives nothing.

        Raises:
            av.error.PermissionError: hardware that can't be used.
        """
        if packet.size == 0:
            return
        self._on_their_way[self._number] = Sent(packet.pts, clocks)
        if packet.is_keyframe:
            self._keys[self._number] = packet
        if not self._whole:
            self._push = packet
        self._on_their_way.pop(self._number - MOST_ON_THEIR_WAY, None)
        if len(self._keys) > MOST_KEYS:
            del self._keys[next(iter(self._keys))]
        packet.pts = self._number
        self._number += 1
        self._outstanding += 1
        yield from self._send(packet, Sent(None, clocks))

    def finish(self, clocks: Clocks) -> Iterator[Decoded]:
        """Yield the frames that the decoder still holds."""
        unknown = Sent(None, clocks)
        pushed = self._push
        if pushed is not None:
            pushed.pts = PUSHING
            for _ in range(min(self._stream.codec_context.thread_count - 1, self._outstanding)):
                yield from self._send(pushed, unknown)
        yield from (last for last in self._send(None, unknown) if last.frame is not None)

    def _send(self, packet: Packet | None, unknown: Sent) -> Iterator[Decoded]:
        import av.error

        try:
            frames: list[Any] = self._stream.codec_context.decode(packet)
        except av.error.PermissionError:
            raise
        except av.error.FFmpegError:
            self._outstanding -= 1
            yield Decoded(None, unknown)
            return
        for frame in frames:
            number = frame.pts
            if number == PUSHING:
                continue
            self._outstanding -= 1
            key = self._keys.pop(number, None)
            if key is not None and not frame.is_corrupt:
                self._push, self._whole = key, True
            yield Decoded(frame, self._on_their_way.pop(number, unknown))
