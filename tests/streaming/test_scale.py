"""One step of swscale against Pillow's resize of the whole picture: grey levels, colours, geometry, decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import vitedge
from tests.conftest import data_folder
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ImageError
from vitedge.streaming.scale import in_one_step, scaler
from vitedge.streaming.view import FLIPS, Crop

av = pytest.importorskip("av", reason="frames come from PyAV (pip install 'vitedge[stream]')")

BT601, BT709 = 5, 1
LIMITED, FULL = 1, 2
PIXEL_FORMATS = ("yuv420p", "yuv422p", "yuv444p", "nv12", "yuyv422", "yuv420p10le", "gray", "rgb24", "gbrp", "yuvj420p")


def encoded(picture: Image.Image, pixel_format: str = "yuv420p") -> Any:
    """The picture as a decoder gives frames of this format: BT.709, limited range."""
    frame = av.VideoFrame.from_image(picture.convert("RGB"))
    if pixel_format in ("rgb24", "gbrp", "gray"):
        return frame.reformat(format=pixel_format)
    made = frame.reformat(format=pixel_format, dst_colorspace=BT709, dst_color_range=LIMITED)
    made.colorspace, made.color_range = BT709, LIMITED
    return made


def as_rgb(frame: Any) -> Image.Image:
    """The whole picture in RGB with colours interpolated between their samples, as JPEG decoders do it."""
    bicubic, full_chroma, accurate = 4, 0x2000 | 0x4000, 0x40000  # FFmpeg's SWS_… flags
    matrix = frame.colorspace if frame.colorspace in (BT601, BT709) else None
    rgb = frame.reformat(
        format="rgb24",
        interpolation=bicubic | full_chroma | accurate,
        src_colorspace=matrix,  # named, whatever a version does by itself
        src_color_range=frame.color_range or None,
    )
    return Image.fromarray(rgb.to_ndarray())


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A generated picture with colours and edges, but without detail that 4:2:0 can't hold."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def apart(ours: NDArray[np.uint8], reference: NDArray[np.uint8]) -> tuple[float, float]:
    """(mean, 99th percentile) of the difference, grey levels."""
    assert ours.shape == reference.shape and ours.dtype == reference.dtype == np.uint8
    difference = np.abs(ours.astype(int) - reference)
    return float(difference.mean()), float(np.percentile(difference, 99))


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
@pytest.mark.parametrize("size", [(641, 479), (96, 70)])  # odd when shrinking, and one that is enlarged
def test_every_pixel_format_agrees_with_pillow(pixel_format: str, size: tuple[int, int]) -> None:
    frame = encoded(smooth(*size), pixel_format)
    for resize in ("shortest", "squash", "pad"):
        contract = Preprocessing(size=(112, 112), resize=resize, crop_fraction=0.875)
        mean, p99 = apart(scaler(contract)(frame), contract.apply(as_rgb(frame)))
        assert mean <= 2 and p99 <= 8, (resize, mean, p99)


@pytest.mark.parametrize("colorspace", [BT601, BT709])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
def test_colours_are_those_of_the_standard(colorspace: int, color_range: int) -> None:
    """ITU-R BT.601 and BT.709: Y = Kr·R + Kg·G + Kb·B, Cb = (B − Y) / 2(1 − Kb), Cr = (R − Y) / 2(1 − Kr)."""
    red, blue = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722)}[colorspace]
    for colour in ((200, 40, 90), (10, 250, 128), (255, 255, 255), (0, 0, 0)):
        r, g, b = (channel / 255 for channel in colour)
        y = red * r + (1 - red - blue) * g + blue * b
        wide = color_range == FULL
        values = (
            y * 255 if wide else 16 + 219 * y,
            128 + (255 if wide else 224) * (b - y) / 2 / (1 - blue),
            128 + (255 if wide else 224) * (r - y) / 2 / (1 - red),
        )
        frame = av.VideoFrame(320, 240, "yuv420p")
        for plane, value in zip(frame.planes, values, strict=True):
            plane.update(bytes([round(value)]) * plane.buffer_size)
        frame.colorspace, frame.color_range = colorspace, color_range
        ours = scaler(Preprocessing(size=(32, 32)))(frame)
        assert np.abs(ours.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_the_photographs_agree_with_pillow(photos: list[Path], interpolation: str) -> None:
    contract = Preprocessing(size=(224, 224), interpolation=interpolation)
    convert, worst = scaler(contract), (0.0, 0.0)
    for path in photos[::5]:
        frame = encoded(Image.open(path))
        found = apart(convert(frame), contract.apply(as_rgb(frame)))
        worst = max(worst[0], found[0]), max(worst[1], found[1])
    assert worst[0] <= 2 and worst[1] <= 8, worst


@given(
    width=st.integers(40, 200),
    height=st.integers(40, 200),
    flip=st.sampled_from(sorted(FLIPS)),
    first=st.sampled_from(sorted(FLIPS)),
    corner=st.tuples(st.floats(0, 0.4, allow_subnormal=False), st.floats(0, 0.4, allow_subnormal=False)),
    part=st.tuples(st.floats(0.3, 0.6), st.floats(0.3, 0.6)),
    resize=st.sampled_from(["shortest", "squash", "pad"]),
)
@settings(max_examples=60, deadline=None)
def test_turns_and_crops_are_those_of_the_picture_as_shown(
    width: int,
    height: int,
    flip: str,
    first: str,
    corner: tuple[float, float],
    part: tuple[float, float],
    resize: str,
) -> None:
    contract = Preprocessing(size=(48, 64), resize=resize)
    crop = Crop(*corner, *part, True)
    frame = encoded(smooth(width, height, width), "rgb24")
    ours = scaler(contract, crop, FLIPS[flip].after(FLIPS[first]))(frame)
    shown = FLIPS[flip].apply(FLIPS[first].apply(frame.to_ndarray()))
    left, top, right, bottom = crop.box(shown.shape[1], shown.shape[0])
    mean, p99 = apart(ours, contract.apply(shown[top:bottom, left:right]))
    assert mean <= 1 and p99 <= 3


def test_the_crop_of_a_subsampled_frame_keeps_its_colours_in_place() -> None:
    frame = encoded(smooth(320, 240), "yuv420p")
    contract = Preprocessing(size=(64, 64), resize="squash")
    crop = Crop(31, 17, 128, 128, False)
    expected = contract.apply(np.asarray(as_rgb(frame))[16:146, 30:160])  # outwards to whole chroma samples
    mean, p99 = apart(scaler(contract, crop)(frame), expected)
    assert mean <= 2 and p99 <= 4


@pytest.mark.parametrize(
    "changed",
    [
        {"interpolation": "box"},
        {"interpolation": "hamming"},
        {"interpolation": "nearest"},
        {"antialias": False},
        {"interpolation": "bilinear", "antialias": False},
        {"alpha": "composite"},
    ],
)
def test_what_swscale_cannot_do_goes_through_pillow(changed: dict[str, Any]) -> None:
    contract = Preprocessing(size=(64, 64), **changed)
    assert not in_one_step(contract)
    frame = encoded(smooth(200, 150), "rgb24")
    assert np.array_equal(scaler(contract)(frame), contract.apply(as_rgb(frame)))


def test_size_format_and_range_may_change_from_frame_to_frame() -> None:
    contract = Preprocessing(size=(64, 64))
    convert = scaler(contract)
    kinds = [((320, 240), "yuv420p"), ((200, 300), "yuv420p"), ((200, 300), "nv12"), ((320, 240), "yuv420p")]
    for size, pixel_format in kinds * 3:
        frame = encoded(smooth(*size), pixel_format)
        mean, _ = apart(convert(frame), contract.apply(as_rgb(frame)))
        assert mean <= 2
    wide = encoded(smooth(64, 64), "yuv420p")
    limited = convert(wide)
    wide.color_range = FULL
    assert apart(convert(wide), limited)[0] > 2, "the range was read once and kept"


def test_results_belong_to_the_caller() -> None:
    convert = scaler(Preprocessing(size=(64, 64)))
    first = convert(encoded(smooth(320, 240, 1)))
    kept = first.copy()
    convert(encoded(smooth(320, 240, 2)))
    assert np.array_equal(first, kept) and first.flags.writeable and first.flags.c_contiguous


def test_a_ribbon_is_refused_before_memory_is_taken() -> None:
    ribbon = av.VideoFrame(16380, 2, "yuv420p")
    with pytest.raises(ImageError, match="too long for its width"):
        scaler(Preprocessing(size=(4096, 4096)))(ribbon)


def test_a_crop_outside_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="isn't inside"):
        scaler(Preprocessing(size=(64, 64)), Crop(300, 0, 100, 100, False))(encoded(smooth(320, 240)))


@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    resize=st.sampled_from(["shortest", "squash", "pad"]),
    fraction=st.floats(0.3, 1),
    rounding=st.sampled_from(["floor", "round", "ceil"]),
)
@settings(max_examples=300, deadline=None)
def test_a_resized_picture_is_not_resized_again(
    size: tuple[int, int], target: tuple[int, int], resize: str, fraction: float, rounding: str
) -> None:
    contract = Preprocessing(size=target, resize=resize, crop_fraction=fraction, crop_rounding=rounding)
    try:
        once = contract.resized(*size)
    except ImageError:
        return  # enormous
    assert contract.resized(*once) == once


# --- decisions


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Preprocessing, Callable[..., NDArray[Any]]]]:
    """The embedded model in float32: its contract, and a function from frames to logits."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("scale")
    model = vitedge.import_model("embedded", out=folder / "model")
    artifact = vitedge.export(model, target="onnxruntime", precision="fp32", out=folder / "artifact")
    with vitedge.open(artifact) as session:
        contract = session.info.preprocessing if hasattr(session.info, "preprocessing") else model.record.preprocessing
        yield contract, lambda frames: np.stack(list(session.map_batches(np.stack(frames))))


def decisions_differ(contract: Preprocessing, classify: Callable[..., NDArray[Any]], frames: Iterator[Any]) -> int:
    """Number of frames whose top-1 differs, of which none may have a float margin of 0.05 or more."""
    convert, ours, reference = scaler(contract), [], []
    for frame in frames:
        ours.append(convert(frame))
        reference.append(contract.apply(as_rgb(frame)))
    probabilities = contract.probabilities(classify(reference))
    best = np.sort(probabilities, axis=1)
    differ = classify(ours).argmax(axis=1) != probabilities.argmax(axis=1)
    margins = (best[:, -1] - best[:, -2])[differ]
    assert (margins < 0.05).all(), margins
    return int(differ.sum())


def test_the_photographs_get_the_same_class(photos: list[Path], classify: tuple[Any, Any]) -> None:
    assert decisions_differ(*classify, (encoded(Image.open(path)) for path in photos)) <= 5


@pytest.mark.parametrize("name", ["car-detection.mp4", "bottle-detection.mp4"])
def test_sampled_frames_of_the_videos_get_the_same_class(name: str, classify: tuple[Any, Any]) -> None:
    with av.open(str(data_folder("video") / name)) as container:
        frames = islice(container.decode(video=0), 0, None, 20)
        assert decisions_differ(*classify, frames) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["car-detection.mp4", "bottle-detection.mp4"])
def test_every_frame_of_the_videos_gets_the_same_class(name: str, classify: tuple[Any, Any]) -> None:
    with av.open(str(data_folder("video") / name)) as container:
        assert decisions_differ(*classify, container.decode(video=0)) <= 24
