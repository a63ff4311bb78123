"""Turn, mirror and crop frames, with jetson-inference's option values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitedge.errors import UsageError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Turn(NamedTuple):
    """Some quarter turns counter-clockwise, then mirrored left to right, or not."""

    quarters: int
    mirrored: bool

    def after(self, first: Turn) -> Turn:
        """Return this turn after another one."""
        quarters = -self.quarters if first.mirrored else self.quarters  # a mirror before reverses what follows
        return Turn((first.quarters + quarters) % 4, self.mirrored != first.mirrored)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) afterwards."""
        return (height, width) if self.quarters % 2 else (width, height)

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a view of the picture [H, W, 3], turned."""
        turned = np.rot90(picture, self.quarters)
        return turned[:, ::-1] if self.mirrored else turned


FLIPS = {
    "none": Turn(0, False),
    "counterclockwise": Turn(1, False),
    "rotate-180": Turn(2, False),
    "clockwise": Turn(3, False),
    "horizontal": Turn(0, True),
    "vertical": Turn(2, True),
    "upper-right-diagonal": Turn(1, True),
    "upper-left-diagonal": Turn(3, True),
}


class Crop(NamedTuple):
    """A region of the picture as shown; fractions of its width and height where ``relative``, else pixels."""

    left: float
    top: float
    width: float
    height: float
    relative: bool

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return (left, top, right, bottom) in pixels of a picture as shown, inside it.

        Raises:
            ValueError: the region lies outside the picture.
        """
        across, down = (width, height) if self.relative else (1, 1)
        left, top = round(self.left * across), round(self.top * down)
        right, bottom = round((self.left + self.width) * across), round((self.top + self.height) * down)
        if right > width or bottom > height or right <= left or bottom <= top:
            raise ValueError(f"the crop {right - left}×{bottom - top} at {left},{top} isn't inside {width}×{height}")
        return left, top, right, bottom


def parse_flip(text: str) -> Turn:
    """Parse ``--flip``.

    Raises:
        UsageError: not one of :data:`FLIPS`.
    """
    if text not in FLIPS:
        raise UsageError(f"flip by '{text}'", f"there's no such flip{nearest(text, FLIPS)}", f"use {', '.join(FLIPS)}")
    return FLIPS[text]


def parse_crop(text: str) -> Crop:
    """Parse ``--crop``: LEFT,TOP,WIDTH,HEIGHT in pixels, or all four with a % sign.

    Raises:
        UsageError: another form.
    """
    parts = [part.strip() for part in text.split(",")]
    relative = all(part.endswith("%") for part in parts)
    number = r"\d{1,3}(\.\d{1,6})?%" if relative else r"\d{1,5}"
    if len(parts) == 4 and all(re.fullmatch(number, part) for part in parts):
        left, top, width, height = (float(part.rstrip("%")) / (100 if relative else 1) for part in parts)
        if width > 0 and height > 0 and (not relative or (left + width <= 1 and top + height <= 1)):
            return Crop(left, top, width, height, relative)
    raise UsageError(
        f"crop to '{text}'",
        "a crop must be LEFT,TOP,WIDTH,HEIGHT inside the picture",
        "write 100,0,800,600 or 25%,0%,50%,100%",
    )


def picture(frame: Any, wanted: int, most_pixels: int, turn: Turn, crop: Crop | None) -> NDArray[np.uint8]:
    """Return the model's view for people: RGB [H, W, 3], at most ``wanted`` pixels wide, never enlarged.

    Args:
        frame: an ``av.VideoFrame``, or uint8 RGB [H, W, 3].
        wanted: the width.
        most_pixels: the picture is halved until it has no more.
        turn: to be done.
        crop: of the turned picture.
    """
    array = isinstance(frame, np.ndarray)
    height, width = frame.shape[:2] if array else (frame.height, frame.width)
    across, _ = turn.size(width, height)
    factor = min(1.0, wanted / across)
    while width * factor * height * factor > most_pixels:
        factor /= 2
    small_w, small_h = max(1, round(width * factor)), max(1, round(height * factor))
    if array:
        small = frame[:: max(1, height // small_h), :: max(1, width // small_w)]
    else:
        small = frame.to_ndarray(format="rgb24", width=small_w, height=small_h)
    shown = turn.apply(small)
    if crop is not None:
        box = crop.box(*turn.size(width, height))
        scale_x, scale_y = shown.shape[1] / across, shown.shape[0] / turn.size(width, height)[1]
        left, right = round(box[0] * scale_x), max(round(box[0] * scale_x) + 1, round(box[2] * scale_x))
        top, bottom = round(box[1] * scale_y), max(round(box[1] * scale_y) + 1, round(box[3] * scale_y))
        shown = shown[top:bottom, left:right]
    return shown
