"""Estimate the memory of decoding a picture from its header: a JPEG is decoded smaller, others are refused.

A file of a few hundred bytes can claim any size, so nothing is decoded before its header has been judged.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import ExifTags, Image

from vitedge.data.jpeg_header import JpegHeader, read_jpeg_header

MAX_PIXELS = 178_956_970  # Pillow's own limit; only a JPEG, decoded at half its size, may be nearly as large
MAX_SIDE = 1_000_000  # the filter of a resize takes 32 bytes for each pixel of a side
MAX_DECODED_BYTES = 400_000_000  # of a picture, and of what turns it into RGB
BAND_PIXELS = 1 << 22
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}  # in Pillow's memory; 4 in every other mode
_WEBP_BYTES = 12  # a pixel: the decoder's two frames, and the bytes that it hands over
_SCALES = (1, 2, 4, 8)  # of a JPEG's decoder


class UnfitPictureError(ValueError):
    """A picture that isn't decoded; ``str()`` says why."""


def is_turned(picture: Image.Image) -> bool:
    """Whether the picture's EXIF orientation rotates or mirrors it."""
    return bool(picture.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def _tells_orientation(picture: Image.Image) -> bool:
    """Whether the orientation is known now; false for a PNG whose EXIF may follow its pixels."""
    return picture.format != "PNG" or "exif" in picture.info


def by_bands(picture: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Make the RGB picture of ``convert``, which works pixel by pixel, on a few rows at a time, to save memory."""
    rows = max(1, BAND_PIXELS // picture.width)
    if picture.height <= rows:
        return convert(picture)
    whole = Image.new("RGB", picture.size)
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        whole.paste(convert(band), (0, top))
    return whole


def decoded_bytes(picture: Image.Image, jpeg: JpegHeader | None, scale: int = 1) -> int:
    """Return the memory for decoding an opened picture and making it RGB, from its header.

    Args:
        picture: opened.
        jpeg: the markers of a JPEG; None of another picture.
        scale: by which a JPEG's decoder shrinks each side.
    """
    pixels = picture.width * picture.height
    each = _PIXEL_BYTES.get(picture.mode, 4)
    if picture.mode != "RGB" or "transparency" in picture.info or (_tells_orientation(picture) and is_turned(picture)):
        each += 4
    if picture.format == "WEBP":
        each += _WEBP_BYTES
    coefficients = 2 * round(jpeg.samples(pixels)) if jpeg is not None and jpeg.several_scans else 0
    return pixels * each // scale**2 + coefficients


def load(picture: Image.Image, data: bytes) -> None:
    """Decode an opened picture within :data:`MAX_DECODED_BYTES`: a JPEG at half, a quarter or an eighth where needed.

    Args:
        picture: opened.
        data: its file.

    Raises:
        UnfitPictureError: it can't be, or the file is shorter than any such picture.
    """
    width, height = picture.size
    size = f"{width:,} × {height:,} pixels"
    if width * height > MAX_PIXELS:
        raise UnfitPictureError(f"it has more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_SIDE:
        raise UnfitPictureError(f"it has {size}; no side may have more than {MAX_SIDE:,}")
    jpeg = read_jpeg_header(data) if picture.format in ("JPEG", "MPO") else None
    if jpeg is not None and jpeg.samples(width * height) / 64 * jpeg.block_bits > 8 * len(data):
        raise UnfitPictureError(f"it's truncated: {len(data):,} bytes can't hold {size}")
    needed = {scale: decoded_bytes(picture, jpeg, scale) for scale in (_SCALES if jpeg is not None else (1,))}
    scale = next((scale for scale, taken in needed.items() if taken <= MAX_DECODED_BYTES), _SCALES[-1])
    _refuse_more(min(needed.values()), size, picture.mode)
    if scale > 1:
        picture.draft(None, (max(1, width // scale), max(1, height // scale)))
    picture.load()
    _refuse_more(decoded_bytes(picture, None), size, picture.mode)  # a PNG's EXIF may follow its pixels


def _refuse_more(needed: int, size: str, mode: str) -> None:
    if needed > MAX_DECODED_BYTES:
        raise UnfitPictureError(
            f"decoding its {size} ({mode}) takes {needed / 1e6:,.0f} MB of memory, more than the "
            f"{MAX_DECODED_BYTES / 1e6:,.0f} MB that are allowed"
        )
