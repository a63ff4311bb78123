"""From a decoder's frame to the model's input in one step of FFmpeg's swscale: crop, resize and colour at once.

Pillow's antialiased resize of the whole picture is the reference (:mod:`vitedge.data.preprocessing`). swscale widens
its kernels when it shrinks, as Pillow does, but repeats the picture's edge where Pillow cuts the kernel off; the few
rows and columns of the result that the edge reaches are redone by Pillow from a strip of the frame. What remains is
less than a grey level on average (docs/stream.md). A contract that swscale can't meet goes through Pillow itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from PIL import Image

from vitedge.errors import ImageError, NotInstalledError
from vitedge.streaming.view import FLIPS, Crop, Turn

if TYPE_CHECKING:
    import av
    import av.filter
    from numpy.typing import NDArray

    from vitedge.data.preprocessing import Preprocessing

    Convert = Callable[[av.VideoFrame], NDArray[np.uint8]]


class Kernel(NamedTuple):
    """An interpolation that swscale and Pillow share."""

    swscale: str
    pillow: Image.Resampling
    reach: int  # to either side, in pixels of the smaller picture


KERNELS = {
    "bilinear": Kernel("flags=bilinear{0}", Image.Resampling.BILINEAR, 1),
    # Pillow's cubic has a = −0.5 (Catmull-Rom); swscale's default is −0.6.
    "bicubic": Kernel("flags=bicubic{0}:param0=0:param1=0.5", Image.Resampling.BICUBIC, 2),
    "lanczos": Kernel("flags=lanczos{0}:param0=3", Image.Resampling.LANCZOS, 3),
}
#: Without ``full_chroma_int`` pairs of pixels share their colour in the *result*: 2.5 grey levels instead of 0.3.
QUALITY = "+accurate_rnd+full_chroma_int+full_chroma_inp"


def in_one_step(contract: Preprocessing) -> bool:
    """Whether swscale can meet the contract; otherwise Pillow does.

    swscale has no box and hamming filters of Pillow's kind and samples nearest neighbours elsewhere; it always
    antialiases; and it doesn't put a background behind transparency.
    """
    points = not contract.antialias and contract.interpolation != "lanczos"
    return contract.interpolation in KERNELS and not points and contract.alpha == "drop"


def scaler(preprocessing: Preprocessing, crop: Crop | None = None, turn: Turn = FLIPS["none"]) -> Convert:
    """Return a function from frames to the model's input. Not for several threads at once.

    Args:
        preprocessing: the contract.
        crop: what of the picture, as shown, is looked at. Of a subsampled frame its edges move outwards to whole
            samples of colour: by one pixel at most in 4:2:0 and 4:2:2.
        turn: how the frame is shown turned and mirrored.

    Returns:
        A function that takes a frame of any size, pixel format, matrix and range, and gives uint8 RGB
        [height, width, 3] at the model's size, contiguous and owned by the caller. Size and format may change from
        frame to frame. A frame without a tag is read as FFmpeg and OpenCV read it: BT.601, limited range.

    Raises:
        NotInstalledError: PyAV is missing.
        ImageError: (the function) a frame that can't be converted, or too long for its width.
        ValueError: (the function) the crop lies outside the picture.
    """
    try:
        import av.filter
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra("scale frames of a stream", "av", "stream") from error

    plans: dict[tuple[object, ...], Convert] = {}

    def scale(frame: av.VideoFrame) -> NDArray[np.uint8]:
        key = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
        try:
            if key not in plans:
                plans.clear()  # sizes seldom change, and never back and forth
                plans[key] = _plan(preprocessing, frame, turn, crop)
            return preprocessing.apply(turn.apply(plans[key](frame)))
        except av.FFmpegError as error:
            plans.clear()  # a graph that failed stays failed
            raise ImageError(
                "scale a frame",
                f"{frame.width}×{frame.height} {frame.format.name}: {error.strerror}",
                "have the camera send another size or pixel format",
            ) from error

    return scale


def _plan(contract: Preprocessing, frame: av.VideoFrame, turn: Turn, crop: Crop | None) -> Convert:
    """Return a function that turns frames like this one into RGB, not turned yet, at the size of the contract's resize.

    Applying the contract to that picture doesn't resize it again; it pads and crops alone.
    """
    box = _box(frame, turn, crop)
    size = box[2] - box[0], box[3] - box[1]
    new = turn.size(*contract.resized(*turn.size(*size)))
    if new == size or not in_one_step(contract):
        return _converter(frame, box, size, KERNELS["bicubic"])
    kernel = KERNELS[contract.interpolation]
    middle = _converter(frame, box, new, kernel)
    redo: list[Callable[[av.VideoFrame, NDArray[np.uint8]], None]] = []
    for axis, kept in enumerate(turn.size(contract.size[1], contract.size[0])):
        lines = _lines_at_edge(size[axis], new[axis], kernel)
        if lines > max(0, (new[axis] - kept) // 2 - 1):  # else the centre crop removes them
            redo += [_edge(frame, box, new, kernel, axis, lines, far=far) for far in (False, True)]

    def convert(frame: av.VideoFrame) -> NDArray[np.uint8]:
        picture = middle(frame)
        for edge in redo:
            edge(frame, picture)
        return picture

    return convert


def graph_for(frame: av.VideoFrame) -> tuple[av.filter.Graph, list[Any]]:
    """Return a filter graph of one thread, and its first node: the buffer for frames like this one."""
    import av.filter

    graph = av.filter.Graph()
    if hasattr(graph, "threads"):  # since PyAV 18; with 17 its threads are there, and idle
        graph.threads = 1
    buffer = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base=str(frame.time_base or Fraction(1, 1000)),
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    return graph, [buffer]


def _converter(frame: av.VideoFrame, box: tuple[int, int, int, int], size: tuple[int, int], kernel: Kernel) -> Convert:
    """Return a filter graph for frames like this one: a region (left, top, right, bottom) as RGB (width, height)."""
    left, top, right, bottom = box
    graph, nodes = graph_for(frame)
    if box != (0, 0, frame.width, frame.height):
        nodes.append(graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1"))
    # One thread: several cost more than they gain at this size, and the cores have other work.
    nodes.append(graph.add("scale", f"{size[0]}:{size[1]}:{kernel.swscale.format(QUALITY)}:threads=1"))
    nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()

    def run(frame: av.VideoFrame) -> NDArray[np.uint8]:
        graph.vpush(frame)
        return cast("NDArray[np.uint8]", graph.vpull().to_ndarray())

    return run


def _lines_at_edge(old: int, new: int, kernel: Kernel) -> int:
    """Return how many of ``new`` pixels in a row have a kernel that reaches over one end of the ``old`` ones."""
    scale = old / new
    return min(new, max(0, math.ceil(kernel.reach * max(1.0, scale) / scale - 0.5))) if old != new else 0


def _edge(
    frame: av.VideoFrame,
    box: tuple[int, int, int, int],
    new: tuple[int, int],
    kernel: Kernel,
    axis: int,
    lines: int,
    *,
    far: bool,
) -> Callable[[av.VideoFrame, NDArray[np.uint8]], None]:
    """Redo the outermost columns (axis 0) or rows (axis 1) at the near or far end of the picture with Pillow."""
    old = box[axis + 2] - box[axis]
    exact = lines * old / new[axis]  # pixels of the frame that become these lines
    deep = math.ceil(exact + kernel.reach * max(1.0, old / new[axis])) + 2  # and those that the kernels see besides
    strip = list(box)
    if far:
        step = _chroma_steps(frame)[axis]
        strip[axis] = max(box[axis], (box[axis + 2] - deep) // step * step)
    else:
        strip[axis + 2] = min(box[axis + 2], box[axis] + deep)
    size = strip[2] - strip[0], strip[3] - strip[1]
    convert = _converter(frame, (strip[0], strip[1], strip[2], strip[3]), size, kernel)
    start, end = (max(0.0, size[axis] - exact), size[axis]) if far else (0.0, min(exact, size[axis]))
    place = slice(new[axis] - lines, None) if far else slice(0, lines)

    def redo(frame: av.VideoFrame, picture: NDArray[np.uint8]) -> None:
        image = Image.fromarray(convert(frame))
        across, down = (lines, new[1]) if axis == 0 else (new[0], lines)
        x, y = ((start, end), (0.0, size[1])) if axis == 0 else ((0.0, size[0]), (start, end))
        image = image.resize((across, image.height), kernel.pillow, (x[0], 0, x[1], image.height))
        image = image.resize((across, down), kernel.pillow, (0, y[0], across, y[1]))
        lines_of = picture.swapaxes(0, 1) if axis == 0 else picture
        lines_of[place] = np.asarray(image).swapaxes(0, 1) if axis == 0 else np.asarray(image)

    return redo


def _chroma_steps(frame: av.VideoFrame) -> tuple[int, int]:
    """Return the distances between colour samples, in pixels across and down."""
    return 64 // frame.format.chroma_width(64), 64 // frame.format.chroma_height(64)


def _box(frame: av.VideoFrame, turn: Turn, crop: Crop | None) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the crop in the frame as it was decoded."""
    if crop is None:
        return 0, 0, frame.width, frame.height
    width, height = turn.size(frame.width, frame.height)
    left, top, right, bottom = crop.box(width, height)
    if turn.mirrored:
        left, right = width - right, width - left
    for _ in range(turn.quarters):  # a quarter counter-clockwise moves the right side to the top
        left, top, right, bottom = height - bottom, left, height - top, right
        width, height = height, width
    across, down = _chroma_steps(frame)
    right, bottom = -(-right // across) * across, -(-bottom // down) * down
    return left // across * across, top // down * down, min(right, frame.width), min(bottom, frame.height)
