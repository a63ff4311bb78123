"""The preprocessing contract: geometry, channels and probabilities, against independent arithmetic."""

from __future__ import annotations

import hashlib
import io
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vitedge.core.schema import encode_json
from vitedge.data.golden import golden_pictures
from vitedge.data.images import open_picture
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ImageError

MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "I;16",
    "I;16B",
    "F",
)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@st.composite
def contracts(draw: st.DrawFn) -> Preprocessing:
    return Preprocessing(
        size=(draw(st.integers(1, 40)), draw(st.integers(1, 40))),
        resize=draw(st.sampled_from(["shortest", "squash", "pad"])),
        interpolation=draw(st.sampled_from(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])),
        antialias=draw(st.booleans()),
        crop_fraction=draw(st.floats(0.3, 1.0)),
        crop_rounding=draw(st.sampled_from(["floor", "round", "ceil"])),
        fill=draw(st.tuples(*[st.integers(0, 255)] * 3)),
        alpha=draw(st.sampled_from(["drop", "composite"])),
        sixteen_bit=draw(st.sampled_from(["scale", "clip"])),
    )


@settings(max_examples=200, deadline=None)
@given(contract=contracts(), height=st.integers(1, 50), width=st.integers(1, 50), mode=st.sampled_from(MODES))
def test_every_picture_becomes_the_models_input(contract: Preprocessing, height: int, width: int, mode: str) -> None:
    picture = Image.new(mode, (width, height))
    frame = contract.apply(picture)
    assert frame.shape == (*contract.size, 3) and frame.dtype == np.uint8
    assert frame.flags.c_contiguous and frame.flags.owndata and frame.flags.writeable
    assert picture.size == (width, height) and picture.mode == mode


@settings(max_examples=100, deadline=None)
@given(contract=contracts(), height=st.integers(1, 50), width=st.integers(1, 50), seed=st.integers(0, 9))
def test_arrays_and_pictures_are_alike(contract: Preprocessing, height: int, width: int, seed: int) -> None:
    pixels = noise(height, width, seed=seed)
    kept = pixels.copy()
    expected = contract.apply(Image.fromarray(pixels))
    assert np.array_equal(contract.apply(pixels), expected)
    assert np.array_equal(contract.apply(np.asfortranarray(pixels)), expected)
    assert np.array_equal(pixels, kept)


@settings(max_examples=60, deadline=None)
@given(
    contract=contracts(),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_one_colour_stays_one_colour(
    contract: Preprocessing, height: int, width: int, colour: tuple[int, int, int]
) -> None:
    frame = contract.apply(Image.new("RGB", (width, height), colour))
    allowed = {colour, contract.fill} if contract.resize == "pad" else {colour}
    assert {tuple(int(v) for v in pixel) for pixel in frame.reshape(-1, 3)} <= allowed


@settings(max_examples=60, deadline=None)
@given(contract=contracts(), seed=st.integers(0, 9))
def test_a_picture_of_the_right_size_is_left_alone(contract: Preprocessing, seed: int) -> None:
    from msgspec.structs import replace

    contract = replace(contract, crop_fraction=1.0)
    pixels = noise(*contract.size, seed=seed)
    assert np.array_equal(contract.apply(pixels), pixels)


# --- geometry --------------------------------------------------------------------------------------------------------


def weights(inputs: int, outputs: int) -> NDArray[np.float64]:
    """Antialiased bilinear resampling of one axis as a matrix [outputs, inputs]: a triangle as wide as the step."""
    step = inputs / outputs
    reach = max(step, 1.0)
    centres = (np.arange(outputs)[:, None] + 0.5) * step - 0.5
    triangle = np.maximum(0.0, 1.0 - np.abs(np.arange(inputs)[None, :] - centres) / reach)
    matrix: NDArray[np.float64] = triangle / triangle.sum(axis=1, keepdims=True)
    return matrix


def points(inputs: int, outputs: int) -> NDArray[np.float64]:
    """Bilinear sampling without antialiasing: half-pixel centres, the border repeated."""
    matrix = np.zeros((outputs, inputs))
    for row in range(outputs):
        centre = min(max((row + 0.5) * inputs / outputs - 0.5, 0.0), inputs - 1.0)
        low = math.floor(centre)
        matrix[row, low] += 1.0 - (centre - low)
        matrix[row, min(low + 1, inputs - 1)] += centre - low
    return matrix


@pytest.mark.parametrize(("antialias", "axis", "tolerance"), [(True, weights, 1.0), (False, points, 1.01)])
@pytest.mark.parametrize(("height", "width"), [(48, 36), (7, 5), (100, 31), (16, 12)])
def test_bilinear_resizing(antialias: bool, axis: object, tolerance: float, height: int, width: int) -> None:
    contract = Preprocessing(size=(16, 12), resize="squash", interpolation="bilinear", antialias=antialias)
    pixels = noise(height, width)
    rows, columns = axis(height, 16), axis(width, 12)  # type: ignore[operator]
    expected = np.einsum("ih,hwc,jw->ijc", rows, pixels.astype(np.float64), columns)
    assert np.abs(contract.apply(pixels) - expected).max() <= tolerance


def resized(pixels: NDArray[np.uint8], height: int, width: int, method: Image.Resampling) -> NDArray[np.uint8]:
    """Pillow's resize, across and then down: the order that Pillow 12 always takes."""
    across = Image.fromarray(pixels).resize((width, pixels.shape[0]), method)
    return np.asarray(across.resize((width, height), method))


@pytest.mark.parametrize(
    ("height", "width", "large"),
    [
        (100, 200, (256, 512)), (200, 100, (512, 256)), (100, 100, (256, 256)), (333, 500, (256, 384)),
        (7, 1000, (256, 36571)),
    ],
)  # fmt: skip
def test_shortest_side_then_centre_crop(height: int, width: int, large: tuple[int, int]) -> None:
    """torchvision's sizes: the short side exact, the long one truncated; the crop's corner rounded."""
    contract = Preprocessing(size=(224, 224), crop_fraction=0.875, interpolation="bilinear")
    pixels = noise(height, width)
    top, left = round((large[0] - 224) / 2), round((large[1] - 224) / 2)
    expected = resized(pixels, *large, Image.Resampling.BILINEAR)[top : top + 224, left : left + 224]
    assert np.array_equal(contract.apply(pixels), expected)


@pytest.mark.parametrize(("rounding", "side"), [("floor", 35), ("round", 36), ("ceil", 36)])
def test_crop_rounding(rounding: str, side: int) -> None:
    contract = Preprocessing(size=(32, 32), crop_fraction=0.9, crop_rounding=rounding, resize="squash")  # type: ignore[arg-type]
    pixels = noise(50, 50)
    large = resized(pixels, side, side, Image.Resampling.BICUBIC)
    corner = round((side - 32) / 2)
    assert np.array_equal(contract.apply(pixels), large[corner : corner + 32, corner : corner + 32])


def test_padding_keeps_the_aspect_and_fills() -> None:
    contract = Preprocessing(size=(20, 40), resize="pad", fill=(1, 2, 3))
    frame = contract.apply(np.full((10, 10, 3), 200, np.uint8))
    assert (frame[:, 10:30] == 200).all() and (frame[:, :10] == (1, 2, 3)).all() and (frame[:, 30:] == (1, 2, 3)).all()


def test_a_rectangular_model_sees_the_middle() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[40:60] = 255
    frame = Preprocessing(size=(20, 100), interpolation="nearest").apply(pixels)
    assert (frame == 255).all()


# --- orientation and channels ----------------------------------------------------------------------------------------


def oriented(pixels: NDArray[np.uint8], orientation: int) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """The stored picture is the upright one, turned the other way (EXIF 2.32, tag 0x0112)."""
    upright = noise(12, 16)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    data = oriented(np.ascontiguousarray(stored), orientation)
    found = Preprocessing(size=(12, 16)).apply(open_picture(data, "x.png"))
    assert np.array_equal(found, upright)
    if stored.shape == (12, 16, 3):
        ignored = Preprocessing(size=(12, 16), exif_orientation=False).apply(open_picture(data, "x.png"))
        assert np.array_equal(ignored, stored)


def test_grey_becomes_three_equal_channels() -> None:
    grey = noise(8, 8)[..., 0]
    assert np.array_equal(Preprocessing(size=(8, 8)).apply(Image.fromarray(grey)), np.stack([grey] * 3, -1))
    bits = Image.fromarray(grey > 127)
    assert set(np.unique(Preprocessing(size=(8, 8)).apply(bits))) == {0, 255}


def test_alpha_is_dropped_or_laid_over_the_fill() -> None:
    rgba = noise(8, 8, 4)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    fill = (10, 200, 30)
    picture = Image.fromarray(rgba)
    assert np.array_equal(Preprocessing(size=(8, 8)).apply(picture), rgba[..., :3])
    found = Preprocessing(size=(8, 8), alpha="composite", fill=fill).apply(picture)
    share = rgba[..., 3:] / 255
    assert np.abs(found - (rgba[..., :3] * share + np.array(fill) * (1 - share))).max() <= 1
    assert tuple(found[0, 0]) == fill and np.array_equal(found[0, 1], rgba[0, 1, :3])
    assert Preprocessing(size=(8, 8), alpha="composite").apply(picture.convert("LA")).shape == (8, 8, 3)


def test_transparent_palettes() -> None:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.info["transparency"] = 1
    assert (Preprocessing(size=(4, 4)).apply(picture) == (0, 0, 255)).all()
    assert (Preprocessing(size=(4, 4), alpha="composite", fill=(9, 8, 7)).apply(picture) == (9, 8, 7)).all()


def test_cmyk() -> None:
    found = Preprocessing(size=(2, 2)).apply(Image.new("CMYK", (2, 2), (255, 0, 0, 0)))
    assert (found == (0, 255, 255)).all()


@pytest.mark.parametrize("format_", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_or_clipped(format_: str) -> None:
    values = np.array([[0, 200, 255], [256, 32768, 65535]], np.uint16)
    picture = Image.fromarray(values.astype(np.int32)) if format_ == "I" else Image.new(format_, (3, 2))
    if format_ != "I":
        picture.frombytes(values.astype("<u2" if format_ == "I;16" else ">u2").tobytes())
    scaled = Preprocessing(size=(2, 3)).apply(picture)[..., 0]
    clipped = Preprocessing(size=(2, 3), sixteen_bit="clip").apply(picture)[..., 0]
    assert scaled.tolist() == [[0, 0, 0], [1, 128, 255]] and clipped.tolist() == [[0, 200, 255], [255, 255, 255]]


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
        ("cat.jpg", r"str \[\]"),
        ([[1, 2]], r"list \[1, 2\]"),
        (None, r"NoneType \[\]"),
    ],
)
def test_what_is_no_picture_is_refused(thing: object, said: str) -> None:
    with pytest.raises(ImageError, match=said) as refused:
        Preprocessing(size=(4, 4)).apply(thing)  # type: ignore[arg-type]
    assert "uint8 RGB [height, width, 3] is expected" in refused.value.reason


# --- probabilities, and the contract as data -------------------------------------------------------------------------

LOGITS = st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=1, max_size=20).map(
    lambda v: np.array(v, np.float32)
)


@settings(max_examples=100, deadline=None)
@given(logits=LOGITS)
def test_softmax(logits: NDArray[np.float32]) -> None:
    found = Preprocessing(size=(1, 1)).probabilities(logits)
    assert found.dtype == np.float32 and np.isfinite(found).all() and (found >= 0).all()
    assert abs(float(found.sum(dtype=np.float64)) - 1) < 1e-5
    assert found[logits.argmax()] == found.max()
    shifted = Preprocessing(size=(1, 1)).probabilities(np.stack([logits, logits]))
    assert np.array_equal(shifted[0], found) and np.array_equal(shifted[1], found)


@settings(max_examples=100, deadline=None)
@given(logits=LOGITS)
def test_sigmoid_and_none(logits: NDArray[np.float32]) -> None:
    found = Preprocessing(size=(1, 1), activation="sigmoid").probabilities(logits)
    expected = [1 / (1 + math.exp(-v)) if v > -700 else 0.0 for v in logits.astype(float)]
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-6
    assert np.array_equal(Preprocessing(size=(1, 1), activation="none").probabilities(logits), logits)


@settings(max_examples=50, deadline=None)
@given(contract=contracts())
def test_the_contract_survives_json(contract: Preprocessing) -> None:
    assert msgspec.json.decode(encode_json(contract), type=Preprocessing) == contract


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": [0, 4]}, {"size": [4, 5000]}, {"size": [4]}, {"crop_fraction": 0}, {"crop_fraction": 1.1},
        {"std": [1, 1, 0]}, {"fill": [0, 0, 256]}, {"resize": "stretch"}, {"channel_order": "rbg"},
        {"mean": [0, 0]}, {"interpolate": "box"},
    ],
)  # fmt: skip
def test_the_contract_has_bounds(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"size": [4, 4], **wrong}, Preprocessing)


def test_golden_pictures_are_pinned() -> None:
    """Made by integer arithmetic: the same bytes on every machine, so artifacts' digests are too."""
    from vitedge.core.files import sha256

    pictures = golden_pictures()
    opened = [open_picture(data, name) for name, data in pictures.items()]
    assert [picture.size for picture in opened] == [(128, 96), (96, 128), (61, 61), (47, 80), (150, 64), (224, 224)]
    assert {picture.mode for picture in opened} == {"RGB", "L", "RGBA"}
    assert sha256(b"".join(picture.tobytes() for picture in opened))[:16] == "3d01fd5efa5072af"


def test_the_models_input_is_pinned() -> None:
    """The same bits with every Pillow from 12 on: artifacts are checked with the version that the device has."""
    digest = hashlib.sha256()
    for name, data in golden_pictures().items():
        for interpolation in ("bilinear", "bicubic", "lanczos"):
            for resize in ("shortest", "squash", "pad"):
                contract = Preprocessing(
                    size=(56, 40), crop_fraction=0.875, interpolation=interpolation, resize=resize, alpha="composite"
                )  # type: ignore[arg-type]
                digest.update(contract.apply(open_picture(data, name)).tobytes())
    assert digest.hexdigest()[:16] == "b607e50392f56199"
