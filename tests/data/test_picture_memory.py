"""No file makes a picture take more memory than is allowed: it's decoded smaller, or refused by its header."""

from __future__ import annotations

import io
import resource
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from vitedge.core.isolation import run_isolated
from vitedge.data import picture_memory
from vitedge.data.images import ImageSet, open_picture
from vitedge.data.jpeg_header import read_jpeg_header
from vitedge.data.preprocessing import Preprocessing, to_rgb
from vitedge.errors import ImageError

ALLOWED_MB = 500


def png(width: int, height: int, *, bits: int, colour: int) -> bytes:
    """A black PNG of any size in little memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = {0: 1, 2: 3, 6: 4}[colour]
    row = b"\0" * (1 + (width * bits * channels + 7) // 8)
    packer = zlib.compressobj(1)
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(width: int, height: int, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (200, 40, 90)).save(stream, "JPEG", **options)
    return stream.getvalue()


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    at = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def memory_of(path: Path) -> tuple[str, int]:
    """In a process of its own: the refusal, or "" (and it was prepared for a model), and the growth of memory in MB."""
    contract = Preprocessing(size=(224, 224))
    contract.apply(Image.new("RGB", (64, 64)))
    data = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal = ""
    try:
        assert contract.apply(open_picture(data, path.name)).shape == (224, 224, 3)
    except ImageError as error:
        refusal = error.reason
    return refusal, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10


def zip_that_lies(path: Path, method: int) -> None:
    """200 MB of zeros in an archive whose directory claims 1,000 bytes."""
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        with archive.open("bomb.png", "w") as member:
            for _ in range(200):
                member.write(bytes(1_000_000))
        archive.getinfo("bomb.png").file_size = 1000


def memory_of_reading(path: Path) -> tuple[str, int]:
    images = ImageSet.open(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        images.read_bytes(0)
    except ImageError as error:
        return error.reason, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    return "", 0


@pytest.mark.parametrize(
    ("method", "refusal"),
    [(zipfile.ZIP_DEFLATED, "Bad CRC-32"), (zipfile.ZIP_BZIP2, "compressed by bzip2"), (zipfile.ZIP_LZMA, "by lzma")],
)
def test_an_archive_is_read_by_what_comes_not_by_what_it_claims(method: int, refusal: str, tmp_path: Path) -> None:
    zip_that_lies(tmp_path / "bomb.zip", method)
    reason, grown = run_isolated(memory_of_reading, tmp_path / "bomb.zip", timeout_s=60)
    assert refusal in reason and grown <= 50


def jpeg_of_108_megapixels(path: Path) -> None:
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    path.write_bytes(jpeg(12_000, 9_000, exif=orientation))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: png(10_000, 10_000, bits=16, colour=0), r"10,000 × 10,000 pixels \(I;16\) takes 600 MB"),
        (lambda: png(100_000_000, 1, bits=1, colour=0), "no side may have more than 1,000,000"),
        (lambda: png(9_000, 9_000, bits=8, colour=6), r"\(RGBA\) takes 648 MB"),
        (lambda: png(14_000, 14_000, bits=1, colour=0), "more than 178,956,970 pixels"),
        (lambda: claiming(jpeg(16, 16), 65_500, 1_500), "it's truncated: .* bytes can't hold 65,500 × 1,500 pixels"),
        (lambda: claiming(jpeg(16, 16, progressive=True), 65_500, 1_500), "it's truncated"),
        (lambda: png(7_000, 7_000, bits=8, colour=6), None),
    ],
    ids=["grey16", "wide", "rgba", "pixels", "jpeg", "progressive", "allowed"],
)
def test_a_small_file_takes_little_memory(data: object, reason: str | None, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(data())  # type: ignore[operator]
    assert path.stat().st_size < 2_000_000
    refusal, grown = run_isolated(memory_of, path, timeout_s=120)
    assert grown <= ALLOWED_MB
    if reason is None:
        assert refusal == ""
    else:
        with pytest.raises(ImageError, match=reason):
            open_picture(path.read_bytes(), "picture")
        assert refusal and grown <= 50


def test_a_photograph_of_108_megapixels_is_decoded_smaller(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    run_isolated(jpeg_of_108_megapixels, path, timeout_s=120)
    refusal, grown = run_isolated(memory_of, path, timeout_s=120)
    assert refusal == "" and grown <= ALLOWED_MB


def test_a_jpeg_within_the_limit_keeps_every_pixel() -> None:
    data = jpeg(3001, 17)
    assert open_picture(data, "p").size == (3001, 17)
    with Image.open(io.BytesIO(data)) as whole:
        np.testing.assert_array_equal(np.asarray(open_picture(data, "p")), np.asarray(whole))


@pytest.mark.parametrize(
    ("options", "several", "bits"),
    [
        ({}, False, 2),
        ({"progressive": True}, True, 1),
        ({"subsampling": 0}, False, 2),
        ({"restart_marker_rows": 1}, False, 2),
    ],
)
def test_a_jpeg_header(options: dict[str, object], several: bool, bits: int) -> None:
    header = read_jpeg_header(jpeg(64, 48, **options))
    assert header is not None and (header.several_scans, header.block_bits) == (several, bits)
    assert header.samples(64) == (192 if options.get("subsampling") == 0 else 96)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (640, 480), (17, 3000)])
@pytest.mark.parametrize("options", [{"quality": 1}, {"quality": 1, "progressive": True}, {"optimize": True}])
def test_no_sound_jpeg_is_called_truncated(size: tuple[int, int], options: dict[str, object]) -> None:
    assert open_picture(jpeg(*size, **options), "flat").size == size


@pytest.mark.parametrize("end", range(0, 60))
def test_a_header_that_ends_early_is_none(end: int) -> None:
    assert read_jpeg_header(jpeg(16, 16)[:end]) is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
@pytest.mark.parametrize("alpha", ["drop", "composite"])
def test_bands_make_the_same_picture(mode: str, alpha: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(values.view(np.uint16)[..., 0].copy())
    elif mode == "PA":
        picture = Image.fromarray(values[..., 0]).convert("P").convert("PA")
    else:
        picture = Image.fromarray(values[..., :3]).convert(mode)
    if mode == "RGBA":
        picture = Image.fromarray(values)
    contract = Preprocessing(size=(8, 8), alpha=alpha, fill=(9, 99, 200))
    whole = np.asarray(to_rgb(picture, contract))
    monkeypatch.setattr(picture_memory, "BAND_PIXELS", 100)
    np.testing.assert_array_equal(np.asarray(to_rgb(picture, contract)), whole)


def test_a_picture_that_is_rgb_is_not_copied() -> None:
    picture = Image.new("RGB", (8, 8))
    assert to_rgb(picture, Preprocessing(size=(8, 8))) is picture
