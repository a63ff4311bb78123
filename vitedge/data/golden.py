"""Golden pictures: generated, so that no photographs are shipped; varied, so that all of preprocessing is tested."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

VIEWS = 4  # of each picture: as it is, mirrored left to right, top to bottom, and both
#: (height, width, mode) of each picture: both orientations, odd sizes, grey and alpha among them.
SHAPES = ((96, 128, "RGB"), (128, 96, "RGB"), (61, 61, "RGB"), (80, 47, "L"), (64, 150, "RGBA"), (224, 224, "RGB"))


def golden_pictures() -> dict[str, bytes]:
    """Return PNG bytes of each golden picture by name; the same pixels on every machine (integer arithmetic only)."""
    return {
        f"golden/{number}-{mode.lower()}-{width}x{height}.png": _png(_scene(number, height, width), mode)
        for number, (height, width, mode) in enumerate(SHAPES)
    }


def golden_views(inputs: NDArray[np.uint8], count: int = VIEWS) -> NDArray[np.uint8]:
    """Return the golden inputs, then their mirror images: more inputs from the same bytes in an artifact.

    Args:
        inputs: uint8 [n, h, w, 3].
        count: 1 to :data:`VIEWS`.

    Returns:
        uint8 [count * n, h, w, 3].
    """
    views = (inputs, inputs[:, :, ::-1], inputs[:, ::-1], inputs[:, ::-1, ::-1])
    return np.concatenate(views[:count])


def _scene(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """Draw a picture with smooth shading, hard edges and texture: uint8 [height, width, 4], the last channel alpha."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    sky, ground, disc, stripe = _colours(number)
    shade = (y * 256 // height)[..., None]
    scene = (sky * (256 - shade) + ground * shade) // 256
    radius = min(height, width) // (3 + number % 3)
    inside = (y - height // 2) ** 2 + (x - width * (2 + number % 4) // 6) ** 2 < radius**2
    scene[inside] = disc
    scene[((x + y * (1 + number % 2)) // 5) % (7 + number) == 0] = stripe
    texture = ((x * 73 + y * 151 + (x * y) % 97 * 31) % 41 - 20)[..., None]
    alpha = np.where(inside, 255, 96 + (x * 160 // width))
    return np.dstack([np.clip(scene + texture, 0, 255), alpha]).astype(np.uint8)


def _colours(number: int) -> NDArray[np.int64]:
    """Draw four colours, int64 [4, 3], with SplitMix64 (Steele, Lea, Flood 2014).

    They keep to the middle of the range, as photographs do: pure colours leave the ranges that calibration saw.
    """
    state, drawn = number + 1, []
    for _ in range(12):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        drawn.append(64 + (mixed ^ (mixed >> 31)) % 128)
    return np.array(drawn, dtype=np.int64).reshape(4, 3)


def _png(pixels: NDArray[np.uint8], mode: str) -> bytes:
    picture = Image.fromarray(pixels).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=0)  # stored, so that no zlib version changes the artifact's digest
    return stream.getvalue()
