"""Pictures from folders and archives: what is found, what is refused, and what broken or hostile input does."""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitedge.data import images
from vitedge.data.images import ImageSet, open_picture, read_picture
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ImageError, UsageError

T = TypeVar("T")
CONTRACT = Preprocessing(size=(16, 16))
TREE = ("cat/1.png", "cat/2.JPG", "dog/1.webp", "dog/sub/3.bmp", "owl/9.jpeg")


def encoded(format_: str = "PNG", size: tuple[int, int] = (24, 20), seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format_)
    return stream.getvalue()


def format_of(name: str) -> str:
    return {"jpg": "JPEG", "jpeg": "JPEG"}.get(name.rsplit(".")[-1].lower(), name.rsplit(".")[-1].upper())


def content(names: tuple[str, ...] = TREE) -> dict[str, bytes]:
    return {name: encoded(format_of(name), seed=index) for index, name in enumerate(names)}


def as_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def as_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in reversed(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "folder": as_folder,
    "data.zip": as_zip,
    "data.tar": as_tar,
    "data.tar.gz": lambda path, files: as_tar(path, files, "w:gz"),
    "data.tar.bz2": lambda path, files: as_tar(path, files, "w:bz2"),
    "data.tar.xz": lambda path, files: as_tar(path, files, "w:xz"),
    "archive without a suffix": lambda path, files: as_tar(path, files, "w:gz"),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("prefix", ["", "train/", "deep/er/"])
def test_folders_and_archives_are_alike(kind: str, prefix: str, tmp_path: Path) -> None:
    files = {prefix + name: data for name, data in content().items()}
    found = ImageSet.open(MAKERS[kind](tmp_path / kind, files))
    assert found.classes == ("cat", "dog", "owl") and len(found) == 5
    assert [record.name for record in found.records] == sorted(files)
    assert [record.folder for record in found.records] == ["cat", "cat", "dog", "dog", "owl"]
    for index, record in enumerate(found.records):
        assert found.read_bytes(index) == files[record.name]
        assert found.read(index).size == (24, 20)
    assert list(found.labels(["dog", "owl", "cat"], action="x")) == [2, 2, 0, 0, 1]
    copy = pickle.loads(pickle.dumps(found))
    assert copy == found and copy.digest(4) == found.digest(4)
    part = found.subset([4, 0])
    assert [record.folder for record in part.records] == ["owl", "cat"] and part.classes == found.classes
    assert part.read_bytes(0) == found.read_bytes(4)


def test_flat_folders_and_single_files_have_no_labels(tmp_path: Path) -> None:
    as_folder(tmp_path, {"b.png": encoded(), "a.jpg": encoded("JPEG")})
    flat = ImageSet.open(tmp_path)
    assert flat.classes == () and [record.name for record in flat.records] == ["a.jpg", "b.png"]
    assert [record.folder for record in flat.records] == [None, None]
    with pytest.raises(UsageError, match="has no class folders") as refused:
        flat.labels(["cat"], action="evaluate")
    assert "one sub-folder a class" in refused.value.hint
    assert len(ImageSet.open(tmp_path / "a.jpg")) == 1


def test_one_class_is_a_class(tmp_path: Path) -> None:
    assert ImageSet.open(as_folder(tmp_path, {"cat/1.png": encoded(), "cat/2.png": encoded()})).classes == ("cat",)


def test_unknown_class_folders_are_named(tmp_path: Path) -> None:
    found = ImageSet.open(as_folder(tmp_path, content()))
    with pytest.raises(UsageError, match=r"2 class folders .*: dog, owl") as refused:
        found.labels(["cat", None, "emu"], action="evaluate")
    assert refused.value.hint == "the model's are: cat, emu"


def test_the_order_is_the_same_everywhere(tmp_path: Path) -> None:
    """Pinned: calibration sets must not change with NumPy's, Python's or the machine's mood."""
    found = ImageSet.open(as_folder(tmp_path / "folder", content()))
    assert found.order(0) == [0, 3, 2, 1, 4] and found.order(1) != found.order(0)
    archived = ImageSet.open(as_zip(tmp_path / "data.zip", dict(reversed(content().items()))))
    assert archived.order(0) == found.order(0)
    assert sorted(found.order(12345)) == list(range(5))


def test_only_pictures_that_are_plain_files_are_listed(tmp_path: Path) -> None:
    as_folder(tmp_path, {"cat/1.png": encoded(), "dog/2.png": encoded(), "dog/notes.txt": b"", "dog/.3.png": b""})
    as_folder(tmp_path, {".hidden/4.png": b"", "owl.png/5.png": encoded()})
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "broken.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "cat" / "loop.png").symlink_to(tmp_path / "cat" / "loop.png")
    (tmp_path / "cat" / "device.png").symlink_to("/dev/zero")
    (tmp_path / "cat" / "link.png").symlink_to(tmp_path / "dog" / "2.png")
    assert [record.name for record in ImageSet.open(tmp_path).records] == [
        "cat/1.png", "cat/link.png", "dog/2.png", "owl.png/5.png",
    ]  # fmt: skip
    archive = as_zip(
        tmp_path / "a.zip", {"cat/1.png": b"", "__MACOSX/cat/._1.png": b"", "cat/.2.png": b"", "x.txt": b""}
    )
    assert [record.name for record in ImageSet.open(archive).records] == ["cat/1.png"]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")])
def test_a_folder_that_cannot_be_read_is_named_and_one_that_has_gone_is_not_there(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_folder(tmp_path, dict.fromkeys(TREE, encoded()))
    plain, lost = os.scandir, str(tmp_path / "dog")

    def failing(path: str) -> object:
        if str(path) == lost:
            raise type(error)(*error.args, lost)
        return plain(path)

    monkeypatch.setattr(os, "scandir", failing)
    if isinstance(error, PermissionError):
        with pytest.raises(UsageError, match="dog can't be read: Permission denied"):
            ImageSet.open(tmp_path)
    else:
        assert ImageSet.open(tmp_path).classes == ("cat", "owl")


def test_links_in_archives_are_left_alone(tmp_path: Path) -> None:
    for mode in ("w", "w:gz"):
        with tarfile.open(tmp_path / "links.tar", mode) as archive:  # type: ignore[call-overload]
            kinds = {"soft": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE}
            for name, kind in kinds.items():
                info = tarfile.TarInfo(f"cat/{name}.png")
                info.type, info.linkname = kind, "/etc/passwd"
                archive.addfile(info)
        with pytest.raises(UsageError, match="holds no JPEG, PNG, WEBP or BMP files"):
            ImageSet.open(tmp_path / "links.tar")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "doesn't exist"),
        ("x" * 5000, "doesn't exist"),
        ("empty", "holds no JPEG"),
        ("notes.txt", "neither a folder nor a .zip"),
    ],
)
def test_what_is_no_data_set_is_told_what_one_looks_like(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=said) as refused:
        ImageSet.open(tmp_path / name)
    assert "data/cat/1.jpg" in refused.value.hint


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_devices_are_no_data_sets(device: str) -> None:
    with pytest.raises(UsageError, match="neither a folder nor a file"):
        ImageSet.open(device)


@pytest.mark.parametrize(
    "name",
    ["/etc/cat.png", "cat/\x1b[31mred.png", "-rf/;touch pwned.png", "<script>/x.png", "cat/\nnew.png"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["data.zip", "data.tar", "data.tar.gz"])
def test_hostile_names_are_only_names(name: str, kind: str, tmp_path: Path) -> None:
    good = encoded()
    found = ImageSet.open(MAKERS[kind](tmp_path / kind, {name: good, "cat/ok.png": good}))
    index = [record.name for record in found.records].index(name)
    assert found.read_bytes(index) == good and list(tmp_path.iterdir()) == [tmp_path / kind]
    broken = ImageSet.open(MAKERS[kind](tmp_path / kind, {name: b"no picture", "cat/ok.png": good}))
    with pytest.raises(ImageError) as refused:
        broken.read(index)
    assert "\x1b" not in str(refused.value) and len(str(refused.value).splitlines()) == 3


def test_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"ca\xfft")
    folder.mkdir()
    (folder / os.fsdecode(b"\xe9.png")).write_bytes(encoded())
    found = ImageSet.open(tmp_path)
    assert found.records[0].name == "ca\\xfft/\\xe9.png" and found.records[0].folder == "ca\\xfft"
    assert found.read(0).size == (24, 20) and found.order(0) == [0]
    assert str(UsageError("x", str(folder), "y")).encode()  # error texts too


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["GIF", "TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused_whatever_the_name(format_: str) -> None:
    with pytest.raises(ImageError, match="JPEG, PNG, WEBP") as refused:
        open_picture(encoded(format_, (16, 16)), "picture.jpg")
    assert refused.value.exit_code == 3 and refused.value.action == "read the picture picture.jpg"


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"BM", b"<svg/>"])
def test_stumps_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError):
        read_picture(tmp_path / "x.png")


def test_missing_and_oversized_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=os.strerror(errno.ENOENT)):
        read_picture(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match=os.strerror(errno.EISDIR)):
        read_picture(tmp_path)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    for kind, make in MAKERS.items():
        source = make(tmp_path / kind, {"cat/1.png": encoded()})
        with pytest.raises(ImageError):
            ImageSet.open(source).read(0)
    (tmp_path / "1.png").write_bytes(encoded())
    with pytest.raises(ImageError, match="larger than"):
        read_picture(tmp_path / "1.png")


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be so large, with 50 MB of black pixels that compress to almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compressobj(1)
    rows = b"".join(pixels.compress(bytes(1 << 20)) for _ in range(50)) + pixels.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def grown_kb(work: Callable[[], object]) -> int:
    """How much ``work`` raises this process's peak memory, kB; measured in a child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            work()
            os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        answer = told.read()
    os.waitpid(child, 0)
    assert answer, "the child failed"
    return int(answer)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (50_000, 50_000), (2**31 - 1, 1), (1, 2**31 - 1)])
def test_bombs_are_refused_and_memory_stays_flat(width: int, height: int) -> None:
    data = bomb(width, height)

    def read() -> None:
        with pytest.raises(ImageError) as refused:
            open_picture(data, "bomb.png")
        assert "pixels" in str(refused.value)

    assert grown_kb(read) < 40_000


def test_long_thin_pictures_are_not_blown_up() -> None:
    strip = Image.new("L", (100_000, 1))
    with pytest.raises(ImageError, match="would become"):
        Preprocessing(size=(224, 224)).apply(strip)
    assert Preprocessing(size=(224, 224), resize="squash").apply(strip).shape == (224, 224, 3)
    assert Preprocessing(size=(224, 224), resize="pad").apply(strip).shape == (224, 224, 3)


def read_or_refused(read: Callable[[], T]) -> T | None:
    """What ``read`` gives, or None where it refuses in three lines."""
    said = None
    try:
        return read()
    except (ImageError, UsageError) as error:
        said = str(error)
    assert len(said.splitlines()) == 3
    return None


SEEDS = {name: encoded(name) for name in ("JPEG", "PNG", "WEBP", "BMP")}


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(sorted(SEEDS)),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=12),
    cut=st.none() | st.integers(0, 2000),
)
def test_mutated_pictures_decode_or_are_refused(kind: str, flips: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(SEEDS[kind])
    for place, value in flips:
        data[place % len(data)] = value
    frame = read_or_refused(lambda: CONTRACT.apply(open_picture(bytes(data[:cut]), "mutated")))
    assert frame is None or (frame.shape == (16, 16, 3) and frame.dtype == np.uint8)


EXIF = Image.Exif()
EXIF[0x0112] = 6


@settings(max_examples=100, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(20, 120), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_exif_never_hurts(flips: list[tuple[int, int]]) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (24, 20)).save(stream, "JPEG", exif=EXIF)
    data = bytearray(stream.getvalue())
    for place, value in flips:
        data[place] = value
    frame = read_or_refused(lambda: CONTRACT.apply(open_picture(bytes(data), "mutated")))
    assert frame is None or frame.shape == (16, 16, 3)


# --- broken and hostile archives -------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["data.zip", "data.tar", "data.tar.gz", "data.tar.xz"]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.none() | st.integers(0, 6000),
)
def test_mutated_archives_are_read_or_refused(
    kind: str, flips: list[tuple[int, int]], cut: int | None, tmp_path: Path
) -> None:
    path = MAKERS[kind](tmp_path / kind, {"cat/1.png": encoded(), "dog/2.png": encoded(seed=1)})
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place % len(data)] = value
    path.write_bytes(bytes(data[:cut]))
    found = read_or_refused(lambda: ImageSet.open(path))
    for index in range(len(found or ())):
        read_or_refused(lambda index=index: found.read(index))  # type: ignore[misc,union-attr]


def test_compressed_archives_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"cat/{number}.png": bytes(1000) for number in range(10)}
    packed, plain = as_tar(tmp_path / "a.tgz", files, "w:gz"), as_tar(tmp_path / "a.tar", files)
    monkeypatch.setattr(images, "MAX_ARCHIVE_BYTES", 5000)
    with pytest.raises(ImageError, match="unpacks to more than") as refused:
        ImageSet.open(packed)
    assert refused.value.hint == "unpack it first"
    assert ImageSet.open(plain).read_bytes(3) == bytes(1000)  # it's read in place, whatever its size


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("type_", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE])
def test_headers_that_claim_gigabytes(type_: bytes, tmp_path: Path) -> None:
    """A compressed .tar whose header announces 300 MB, and has them: zeros, compressed to nothing."""
    import gzip

    info = tarfile.TarInfo("cat/1.png")
    info.type, info.size = type_, 300 << 20
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as stream:
        stream.write(info.tobuf())
        for _ in range(300):
            stream.write(bytes(1 << 20))
        stream.write(bytes(1024))

    def read() -> None:
        with pytest.raises((ImageError, UsageError)):
            ImageSet.open(tmp_path / "bomb.tar.gz").read(0)

    assert grown_kb(read) < 60_000


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "folder"])
def test_archives_are_read_by_several_threads(kind: str, tmp_path: Path) -> None:
    files = {f"cat/{number}.png": encoded(seed=number) for number in range(20)}
    found = ImageSet.open(MAKERS[kind](tmp_path / kind, files))
    wrong: list[int] = []

    def read(start: int) -> None:
        order = [*range(start, 20), *range(start)]
        wrong.extend(index for index in order if found.read_bytes(index) != files[found.records[index].name])

    workers = [threading.Thread(target=read, args=(start,)) for start in range(0, 20, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize("kind", MAKERS)
def test_a_source_that_changes_under_ones_hands(kind: str, tmp_path: Path) -> None:
    import shutil

    path = MAKERS[kind](tmp_path / kind, content())
    found = ImageSet.open(path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(b"something else")
    with pytest.raises(ImageError):
        found.read(0)


@pytest.mark.parametrize("renamed", ["cat/1.pnX", "cat/1png/", "cat/.1png"])
def test_a_picture_that_the_directory_of_a_zip_renames_does_not_vanish(renamed: str, tmp_path: Path) -> None:
    archive = as_zip(tmp_path / "data.zip", content())
    data = archive.read_bytes()
    name = renamed.encode()
    assert data.count(b"cat/1.png") == 2
    at = data.rindex(b"cat/1.png")
    archive.write_bytes(data[:at] + name + data[at + len(name) :])
    with pytest.raises(ImageError, match="File name in directory"):
        ImageSet.open(archive)


@pytest.mark.parametrize(
    ("format", "mode", "said"),
    [("GIF", "P", "a GIF picture"), ("TIFF", "F", "a TIFF picture"), ("JPEG2000", "RGB", "a JPEG 2000 picture")],
)
def test_a_picture_of_another_format_is_called_by_its_format(format: str, mode: str, said: str, tmp_path: Path) -> None:
    """As a file of its own, and under the name of a format that's read."""
    stream = io.BytesIO()
    Image.new(mode, (8, 8)).save(stream, format=format)
    for name, error in (("picture.dat", UsageError), ("picture.jpg", ImageError)):
        (tmp_path / name).write_bytes(stream.getvalue())
        with pytest.raises(error) as refused:
            ImageSet.open(tmp_path / name).read(0)
        assert said in refused.value.reason and "JPEG, PNG, WEBP and BMP pictures are read" in refused.value.reason
        assert refused.value.hint == "save it as JPEG, PNG, WEBP or BMP"


@pytest.mark.parametrize(
    ("content", "said", "step"),
    [
        (b"", "empty", "copy it again"),
        (b"\n<!DOCTYPE html><title>login</title>", "a web page", "download the file itself"),
        (b"\0\0\0\x20ftypisom", "a video", "vitedge stream"),
        (b"\0\0\0\x20ftypheic", "a HEIC picture", "save it as JPEG"),
        (b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(content: bytes, said: str, step: str, tmp_path: Path) -> None:
    for name, error in (("file.dat", UsageError), ("file.png", ImageError)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(error) as refused:
            ImageSet.open(tmp_path / name).read(0)
        assert said in refused.value.reason and step in refused.value.hint


def test_pictures_that_a_damaged_directory_swallows_are_missed(tmp_path: Path) -> None:
    """An entry whose comment is said to be long hides those that follow it."""
    archive = as_zip(tmp_path / "data.zip", content())
    data = bytearray(archive.read_bytes())
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    end = data.rindex(b"PK\x05\x06")
    hidden = end - entries[-1]
    data[entries[-2] + 32 : entries[-2] + 34] = hidden.to_bytes(2, "little")
    archive.write_bytes(data)
    with pytest.raises(ImageError, match="doesn't hold as many files as its end says"):
        ImageSet.open(archive)
    archive.write_bytes(as_zip(tmp_path / "sound.zip", content()).read_bytes() + b"trailing")
    assert len(ImageSet.open(archive)) == len(content())
