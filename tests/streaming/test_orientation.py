"""The orientation that a film asks for, against the pictures that FFmpeg's program shows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.streaming.films import film, needs_ffmpeg, rewrapped, shown, with_matrix
from vitedge.data.preprocessing import Preprocessing
from vitedge.streaming.orientation import UPRIGHT, Orientation, by_matrix
from vitedge.streaming.reader import Preparer
from vitedge.streaming.view import FLIPS, Crop, Turn

av = pytest.importorskip("av", reason="frames come from PyAV (pip install 'vitedge[stream]')")

QUARTERS = {
    "upright": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "half a turn": (-1, 0, 0, -1),
    "clockwise": (0, 1, -1, 0),
    "counter-clockwise": (0, -1, 1, 0),
    "about one diagonal": (0, 1, 1, 0),
    "about the other": (0, -1, -1, 0),
}


def turned(degrees: float, mirror: int = 1) -> tuple[float, float, float, float]:
    across, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return mirror * across, mirror * down, -down, across


ODD = {"45°": turned(45), "200°": turned(200), "mirrored, 30°": turned(30, -1)}


ASKED = "display_orientation=insert:rotate=90:flip=horizontal"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film in RGB, so that no conversion of colours differs."""
    return film(tmp_path_factory.mktemp("films") / "plain.mov", "-pix_fmt", "rgb24", seconds=0.1, codec="png")


def prepared(path: Path, size: tuple[int, int], turn: Turn = FLIPS["none"], crop: Crop | None = None) -> np.ndarray:
    """What the model gets of the first frame at its own (height, width)."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    contract = Preprocessing(size=size, resize="squash")
    out, _ = Preparer(contract, turn, crop)(frame, np.zeros((*size, 3), np.uint8))
    return out


@needs_ffmpeg
@pytest.mark.parametrize("name", [*QUARTERS, *ODD])
def test_every_orientation_is_the_one_that_ffmpeg_shows(name: str, plain: Path, tmp_path: Path) -> None:
    matrix = (QUARTERS | ODD)[name]
    path = with_matrix(plain, tmp_path / "turned.mov", matrix)
    width, height = (64, 96) if matrix[0] == 0 else (96, 64)
    expected = shown(path, width, height)
    assert np.array_equal(prepared(path, (height, width)), expected)
    assert name == "upright" or not np.array_equal(expected, shown(plain, 96, 64).reshape(expected.shape))


@needs_ffmpeg
@pytest.mark.parametrize("name", ["about one diagonal", "counter-clockwise", "45°"])
def test_flip_and_crop_come_after_it(name: str, plain: Path, tmp_path: Path) -> None:
    matrix = (QUARTERS | ODD)[name]
    path = with_matrix(plain, tmp_path / "turned.mov", matrix)
    width, height = (64, 96) if matrix[0] == 0 else (96, 64)
    expected = FLIPS["clockwise"].apply(shown(path, width, height))[8:40, 4:44]
    assert np.array_equal(prepared(path, (32, 40), FLIPS["clockwise"], Crop(4, 8, 40, 32, False)), expected)
    turn = FLIPS["clockwise"]
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    picture = Preparer(Preprocessing(size=(8, 8)), turn, None).picture(frame, 4000)
    assert np.array_equal(picture, turn.apply(shown(path, width, height)))


@needs_ffmpeg
def test_the_orientation_inside_a_stream_is_honoured(tmp_path: Path) -> None:
    """H.264 says it in the stream itself (ITU-T H.264, D.2.27): mirrored, then counter-clockwise by so many degrees."""
    plain = film(tmp_path / "plain.mp4", seconds=0.2)
    path = rewrapped(plain, tmp_path / "turned.ts", "-bsf:v", f"h264_mp4toannexb,h264_metadata={ASKED}")
    upright = prepared(plain, (64, 96))
    difference = prepared(path, (96, 64)).astype(int) - np.rot90(upright[:, ::-1])
    assert np.abs(difference).mean() < 2


def test_a_matrix_without_an_area_asks_for_nothing() -> None:
    assert by_matrix(bytes(36)) == by_matrix(UPRIGHT) == Orientation()
