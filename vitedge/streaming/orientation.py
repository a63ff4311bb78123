"""The orientation of frames: their display matrix, applied as FFmpeg's players apply it."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from vitedge.streaming.scale import graph_for
from vitedge.streaming.view import FLIPS, Turn

if TYPE_CHECKING:
    import av.video

#: Nine 32-bit numbers in the machine's order, a b u, c d v, x y w, of which these are 16.16 fixed point but the third
#: column (ISO 14496-12, 6.2.2): a pixel at (p, q) is shown at (a·p + c·q + x, b·p + d·q + y).
_MATRIX = struct.Struct("=9i")
UPRIGHT = _MATRIX.pack(1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


class Orientation(NamedTuple):
    """A turn by quarters and a mirror; or a turn by any number of degrees clockwise, within the same borders."""

    turn: Turn = FLIPS["none"]
    degrees: int = 0


def orientation(frame: av.video.VideoFrame) -> Orientation:
    """Return the orientation in a frame's metadata."""
    matrix = _display_matrix(frame)
    return by_matrix(matrix) if matrix is not None else Orientation(Turn(round(frame.rotation / 90) % 4, False))


def _display_matrix(frame: Any) -> bytes | None:
    """Return the display matrix; None where PyAV can't read it, because it doesn't know other data beside it."""
    try:
        return bytes(frame.side_data["DISPLAYMATRIX"])
    except KeyError:
        return UPRIGHT
    except ValueError:
        return None


def by_matrix(matrix: bytes) -> Orientation:
    """Return the orientation of a display matrix, in the steps of FFmpeg's autorotate.

    Of a picture that is mirrored and turned to an odd angle it shows the turn alone, and so does this.
    """
    a, b, _, c, d, *_ = _MATRIX.unpack(matrix)
    across, down = math.hypot(a, c), math.hypot(b, d)
    if not across or not down:
        return Orientation()
    degrees = round(math.degrees(math.atan2(b / down, a / across))) % 360
    if degrees == 0:
        return Orientation(FLIPS["vertical"] if d < 0 else FLIPS["none"])
    if degrees == 90:
        return Orientation(FLIPS["upper-left-diagonal"] if c > 0 else FLIPS["clockwise"])
    if degrees == 180:
        return Orientation(FLIPS["rotate-180"] if d < 0 else FLIPS["horizontal"])
    if degrees == 270:
        return Orientation(FLIPS["upper-right-diagonal"] if c < 0 else FLIPS["counterclockwise"])
    return Orientation(degrees=degrees)


class Rotator:
    """Turns pictures to odd angles by FFmpeg's filter: the size is kept, corners are cut off, bare ones are black."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._graph: Any = None

    def __call__(self, frame: av.video.VideoFrame, degrees: int) -> av.video.VideoFrame:
        """Return the frame, turned clockwise. Not for several threads at once."""
        key = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range), degrees)
        if key != self._key:
            self._key, self._graph = key, _graph(frame, degrees)
        self._graph.vpush(frame)
        return self._graph.vpull()  # type: ignore[no-any-return]


def _graph(frame: av.video.VideoFrame, degrees: int) -> Any:
    graph, nodes = graph_for(frame)
    nodes += [graph.add("rotate", f"{degrees}*PI/180"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph
