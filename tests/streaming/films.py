"""Films for tests, made by FFmpeg's program, and what it makes of them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="films are made by ffmpeg, which isn't here")


def ffmpeg(*arguments: object) -> bytes:
    """Run it; what it writes to stdout."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-threads", "1", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def film(path: Path, *options: object, seconds: float = 1, size: str = "96x64", codec: str = "libx264") -> Path:
    """A film of FFmpeg's moving test picture, 25 frames a second."""
    source = f"testsrc2=s={size}:r=25:d={seconds}"
    ffmpeg("-f", "lavfi", "-i", source, "-c:v", codec, "-pix_fmt", "yuv420p", *options, path)
    return path


def rewrapped(source: Path, path: Path, *options: object) -> Path:
    """The same packets in another container."""
    ffmpeg("-i", source, "-c", "copy", *options, path)
    return path


def with_matrix(source: Path, path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """A copy of an MP4 or MOV film whose track asks to be shown by (a, b, c, d) of a display matrix."""
    data = source.read_bytes()
    at = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    a, b, c, d = (round(value * 65536) for value in matrix)
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    return path


def shown(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """The first frame as FFmpeg's program shows it: RGB [height, width, 3]."""
    data = ffmpeg("-i", path, "-frames:v", 1, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def count(path: Path) -> int:
    """Frames that FFmpeg's program decodes, with one thread."""
    listing: Any = ffmpeg_anyhow("-i", f"file:{path}", "-map", "0:v:0", "-vsync", "passthrough", "-f", "framecrc", "-")
    return sum(not line.startswith(b"#") for line in listing.splitlines())


def ffmpeg_anyhow(*arguments: object) -> bytes:
    """What it writes to stdout, also if it isn't content in the end."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", *map(str, arguments)]
    return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
