"""The preprocessing contract: every operation on a picture from the file to the model's uint8 input.

Geometry and channels are done here, on uint8, with Pillow; rescale, mean and std are done inside the graph. The same
contract is read from timm's ``pretrained_cfg``, Hugging Face's ``preprocessor_config.json`` or the command line, kept
in ``model.json`` and the manifest, and copied into the graph files for other people's tools.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from msgspec import Meta
from PIL import Image, ImageOps

from vitedge.core.activations import sigmoid
from vitedge.core.schema import PositiveReal, Record
from vitedge.data.picture_memory import by_bands, is_turned
from vitedge.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_RESIZED_PIXELS = 25_000_000
Byte = Annotated[int, Meta(ge=0, le=255)]
PositivePixels = Annotated[int, Meta(ge=1, le=4096)]
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Preprocessing(Record):
    """The steps from a picture to ``image``, uint8 [height, width, 3], and the graph's own on it."""

    size: tuple[PositivePixels, PositivePixels]  # (height, width) of the model's input, pixels
    resize: Literal["shortest", "squash", "pad"] = "shortest"
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic"
    antialias: bool = True  # False: no low-pass filter when shrinking, as tensor resizes without antialias do
    crop_fraction: Annotated[float, Meta(ge=1e-9, le=1)] = 1.0  # part of the resized picture that the centre crop keeps
    crop_rounding: Literal["floor", "round", "ceil"] = "floor"  # of size / crop_fraction; timm floors
    crop_offset: Literal["round", "floor"] = "round"  # of half of what is cut off; transformers floors
    fill: tuple[Byte, Byte, Byte] = (0, 0, 0)  # RGB, around a padded picture
    channel_order: Literal["rgb", "bgr"] = "rgb"  # what the model was trained with; the graph swaps, the input is RGB
    rescale: float = 1.0 / 255.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # in the model's channel order, after rescale
    std: tuple[PositiveReal, PositiveReal, PositiveReal] = (0.229, 0.224, 0.225)
    exif_orientation: bool = True  # turn the picture as its EXIF says
    # The next two never vary. They stand in every manifest and in the contract's copy inside graph files, which
    # `verify` compares, so they stay until the next schema version.
    grey: Literal["replicate"] = "replicate"  # one channel becomes three equal ones
    cmyk: Literal["convert"] = "convert"  # without a colour profile, as Pillow does
    alpha: Literal["drop", "composite"] = "drop"  # composite: over ``fill``
    sixteen_bit: Literal["scale", "clip"] = (
        "scale"  # scale: value >> 8; clip: values over 255 become 255, as Pillow does
    )
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"  # from logits to probabilities

    def apply(self, picture: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn a picture into the model's input.

        Args:
            picture: a PIL image of any mode, or uint8 RGB [H, W, 3].

        Returns:
            uint8 RGB [height, width, 3], contiguous, owned by the caller.

        Raises:
            ImageError: not a picture of three 8-bit channels, or one that can't be decoded.
        """
        if isinstance(picture, Image.Image):
            rgb = to_rgb(picture, self)
        else:
            rgb = Image.fromarray(np.ascontiguousarray(_checked(picture)))
        return np.array(self._crop(self._resize(rgb)), dtype=np.uint8)

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn logits [..., classes] into probabilities of the same shape, float32; "none" returns the logits."""
        if self.activation == "none":
            return logits
        if self.activation == "sigmoid":
            return sigmoid(logits).astype(np.float32)
        wide = logits.astype(np.float64)
        exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), dtype=np.float32)

    def before_crop(self, pixels: int) -> int:
        """Return the side of the resized picture before a crop of ``pixels``: size / crop_fraction, rounded."""
        exact = pixels / self.crop_fraction
        if self.crop_rounding == "round":
            return round(exact)
        return math.floor(exact) if self.crop_rounding == "floor" else math.ceil(exact)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of the resized picture before it's padded or cropped (torchvision's rounding).

        A picture of that size isn't resized again: ``resized(*resized(w, h)) == resized(w, h)``.

        Raises:
            ImageError: it would be enormous.
        """
        down, across = (self.before_crop(pixels) for pixels in self.size)
        if self.resize == "squash":
            new = across, down
        elif self.resize == "pad":
            ratio = min(across / width, down / height)
            new = max(1, round(width * ratio)), max(1, round(height * ratio))
        elif across != down:
            ratio = max(across / width, down / height)
            new = max(across, round(width * ratio)), max(down, round(height * ratio))
        elif width <= height:  # shortest: one side becomes exactly that, the other follows, truncated
            new = across, max(across, int(across * height / width))
        else:
            new = max(down, int(down * width / height)), down
        if new != (width, height) and new[0] * max(new[1], height) > MAX_RESIZED_PIXELS:
            raise ImageError(
                "preprocess a picture",
                f"{width}×{height} pixels would become {new[0]}×{new[1]} before cropping",
                "crop it: it's too long for its width",
            )
        return new

    def _resize(self, picture: Image.Image) -> Image.Image:
        """Resize the picture to the size before the centre crop."""
        resized = self._resample(picture, *self.resized(*picture.size))
        if self.resize != "pad":
            return resized
        height, width = (self.before_crop(pixels) for pixels in self.size)
        padded = Image.new("RGB", (width, height), self.fill)
        padded.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
        return padded

    def _resample(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        if picture.size == (width, height):
            return picture
        method = _RESAMPLING[self.interpolation]
        if not self.antialias and self.interpolation in ("bilinear", "bicubic"):
            # An affine transform samples at points, without the low-pass filter that resize() applies when shrinking.
            scale = (picture.width / width, 0.0, 0.0, 0.0, picture.height / height, 0.0)
            return picture.transform(
                (width, height), Image.Transform.AFFINE, scale, resample=_POINT[self.interpolation]
            )
        # Across, then down: Pillow rounds in between, and which it does first differs between its versions 12 and 13.
        return picture.resize((width, picture.height), method).resize((width, height), method)

    def _crop(self, picture: Image.Image) -> Image.Image:
        height, width = self.size
        if picture.size == (width, height):
            return picture
        whole = round if self.crop_offset == "round" else math.floor
        left, top = whole((picture.width - width) / 2), whole((picture.height - height) / 2)
        return picture.crop((left, top, left + width, top + height))


_POINT = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _checked(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Check that the array is a picture, and return it.

    Raises:
        ImageError: it's something else.
    """
    kind = getattr(picture, "dtype", type(picture).__name__)
    shape = np.shape(picture)
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ImageError(
            "preprocess a picture",
            f"received {kind} {list(shape)}; a PIL image or uint8 RGB [height, width, 3] is expected",
            "convert it first",
        )
    return picture


def to_rgb(picture: Image.Image, contract: Preprocessing) -> Image.Image:
    """Turn any mode into 8-bit RGB by the contract's rules for orientation, grey, CMYK, alpha and 16 bits.

    Raises:
        ImageError: the picture can't be decoded.
    """
    try:
        picture.load()
        if contract.exif_orientation and is_turned(picture):
            picture = ImageOps.exif_transpose(picture)
        if picture.mode == "RGB" and "transparency" not in picture.info:
            return picture
        return by_bands(picture, lambda band: _eight_bit_rgb(band, contract))
    except Exception as error:  # broken files make Pillow raise many kinds
        raise ImageError("decode a picture", f"{type(error).__name__}: {error}", "replace the file") from error


def _eight_bit_rgb(picture: Image.Image, contract: Preprocessing) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture).astype(np.float64)
        values = values / 256.0 if contract.sixteen_bit == "scale" else values
        picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    has_alpha = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
    if has_alpha and contract.alpha == "composite":
        above = picture.convert("RGBA")
        below = Image.new("RGBA", above.size, (*contract.fill, 255))
        picture = Image.alpha_composite(below, above)
    elif picture.mode == "P" and has_alpha:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
