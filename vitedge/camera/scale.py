"""From a decoder's frame to the model's input in one step of FFmpeg's swscale: crop, resize and colour at once.

Pillow's antialiased resize of the full picture is the reference (:mod:`vitedge.preprocessing`). swscale widens its
kernels when it shrinks, as Pillow does, and with these flags a frame differs from the reference by less than a grey
level on average; docs/stream.md has the figures. A contract that swscale can't meet goes through Pillow itself.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from vitedge.camera.view import FLIPS, Crop, Turn
from vitedge.errors import ImageError, NotInstalledError

if TYPE_CHECKING:
    import av
    import numpy as np
    from numpy.typing import NDArray

    from vitedge.preprocessing import Preprocessing

#: Interpolations that swscale and Pillow share. Pillow's cubic has a = −0.5 (Catmull-Rom), swscale's default is −0.6.
KERNELS = {
    "bilinear": "bilinear",
    "bicubic": "bicubic:param0=0:param1=0.5",
    "lanczos": "lanczos:param0=3",
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


def scaler(
    preprocessing: Preprocessing, crop: Crop | None = None, flip: Turn = FLIPS["none"], rotation: int = 0
) -> Callable[[av.VideoFrame], NDArray[np.uint8]]:
    """A function from frames to the model's input. It isn't for several threads at once.

    Args:
        preprocessing: the contract.
        crop: what of the picture, as shown, is looked at. Of a subsampled frame its left and upper edge move outwards
            to the next pixel that has a colour: by one pixel at most in 4:2:0 and 4:2:2.
        flip: the turn that the user wants, after the rotation.
        rotation: degrees counter-clockwise by which the frame is shown turned (``frame.rotation``).

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

    turn = flip.after(rotation)
    graphs: dict[tuple[object, ...], Callable[[av.VideoFrame], NDArray[np.uint8]]] = {}

    def scale(frame: av.VideoFrame) -> NDArray[np.uint8]:
        key = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
        if key not in graphs:
            graphs.clear()  # sizes seldom change, and never back and forth
            try:
                graphs[key] = _graph(preprocessing, frame, turn, crop)
            except av.FFmpegError as error:
                raise _unreadable(frame, error) from error
        try:
            return preprocessing.apply(turn.apply(graphs[key](frame)))
        except av.FFmpegError as error:
            graphs.clear()  # a graph that failed stays failed
            raise _unreadable(frame, error) from error

    return scale


def _unreadable(frame: av.VideoFrame, error: Exception) -> ImageError:
    found = f"{frame.width}×{frame.height} {frame.format.name}: {getattr(error, 'strerror', error)}"
    return ImageError("scale a frame", found, "have the camera send another size or pixel format")


def _graph(
    contract: Preprocessing, frame: av.VideoFrame, turn: Turn, crop: Crop | None
) -> Callable[[av.VideoFrame], NDArray[np.uint8]]:
    """A filter graph for frames like this one: a picture of RGB, not turned yet, at the size that the resize wants.

    Applying the contract to that picture doesn't resize it again; it pads and crops alone.
    """
    import av.filter

    left, top, right, bottom = _box(frame, turn, crop)
    width, height = right - left, bottom - top
    kernel = KERNELS["bicubic"]
    if in_one_step(contract):
        width, height = turn.size(*contract.resized(*turn.size(width, height)))
        kernel = KERNELS[contract.interpolation]
    algorithm, _, parameters = kernel.partition(":")
    graph = av.filter.Graph()
    graph.threads = 1  # several cost more than they gain at this size, and the cores have other work
    nodes = [
        graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            time_base=str(frame.time_base or Fraction(1, 1000)),
            colorspace=str(int(frame.colorspace)),
            range=str(int(frame.color_range)),
        )
    ]
    if (left, top, right, bottom) != (0, 0, frame.width, frame.height):
        nodes.append(graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1"))
    nodes.append(graph.add("scale", f"{width}:{height}:flags={algorithm}{QUALITY}:{parameters}".rstrip(":")))
    nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()

    def run(frame: av.VideoFrame) -> NDArray[np.uint8]:
        graph.vpush(frame)
        return cast("NDArray[np.uint8]", graph.vpull().to_ndarray())

    return run


def _box(frame: av.VideoFrame, turn: Turn, crop: Crop | None) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the crop in the frame as it was decoded."""
    if crop is None:
        return 0, 0, frame.width, frame.height
    width, height = turn.size(frame.width, frame.height)
    left, top, right, bottom = crop.box(width, height)
    if turn.mirrored:
        left, right = width - right, width - left
    for _ in range(turn.quarters):  # a quarter counter-clockwise puts what was on the right on top
        left, top, right, bottom = height - bottom, left, height - top, right
        width, height = height, width
    across, down = (64 // chroma(64) for chroma in (frame.format.chroma_width, frame.format.chroma_height))
    return left // across * across, top // down * down, right, bottom
