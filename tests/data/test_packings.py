"""The same pictures in a folder, an archive and tar shards: the same order, draws and contents."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.test_shards import png, write_tar
from vitedge.data.images import ImageSet

CLASSES = ("ant", "bee", "cat")
FILES = {f"{name}/{3 * number + index:03d}.png": (index, png(10 * number + index))
         for number in range(7) for index, name in enumerate(CLASSES)}  # fmt: skip


def folder(path: Path, prefix: str = "") -> Path:
    for name, (_, data) in FILES.items():
        (path / prefix / name).parent.mkdir(parents=True, exist_ok=True)
        (path / prefix / name).write_bytes(data)
    return path


def packed(path: Path, kind: str, prefix: str = "") -> Path:
    """As the usual commands pack the folder, and with what macOS puts beside the files."""
    folder(path / "source", prefix)
    (path / "source" / prefix / "ant" / "._000.png").write_bytes(b"Mac OS X")
    return Path(shutil.make_archive(str(path / "data"), kind, path / "source"))


def shards(path: Path, per_shard: int, label: Callable[[int], bytes], *, flat: bool = True) -> Path:
    """As webdataset's writers pack them; ``flat``: no folders inside."""
    path.mkdir()
    files = list(FILES.items())
    for first in range(0, len(files), per_shard):
        content = {"._0.png": b"Mac OS X", "._1.png": b"Mac OS X"}
        for name, (index, data) in files[first : first + per_shard]:
            member = name.rpartition("/")[2] if flat else name
            content |= {member: data, f"{member[:-4]}.cls": label(index)}
        write_tar(path / f"s-{first:03d}.tar", content)
    return path


def by_name(index: int) -> bytes:
    return CLASSES[index].encode()


def numbered(path: Path, per_shard: int) -> Path:
    made = shards(path, per_shard, lambda index: str(2 - index).encode())
    (made / "classes.txt").write_text("\n".join(reversed(CLASSES)))
    return made


PACKINGS: dict[str, Callable[[Path], Path]] = {
    "a folder inside": lambda path: folder(path / "data", "train"),
    "zip": lambda path: packed(path, "zip"),
    "zip with a folder inside": lambda path: packed(path, "zip", "cifar/train"),
    "tar": lambda path: packed(path, "tar"),  # its members begin with ./
    "tar.gz": lambda path: packed(path, "gztar", "train"),
    "one shard": lambda path: shards(path / "s", 100, by_name) / "s-000.tar",
    "shards": lambda path: shards(path / "s", 5, by_name),
    "shards with class folders inside": lambda path: shards(path / "s", 4, by_name, flat=False),
    "shards with numbers for classes": lambda path: numbered(path / "s", 5),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_same_pictures_have_the_same_order_and_split(packing: str, tmp_path: Path) -> None:
    from vitedge.training.data import digests_of, split

    plain, images = ImageSet.open(folder(tmp_path / "plain")), ImageSet.open(PACKINGS[packing](tmp_path))
    assert [record.key for record in images.records] == [record.name for record in plain.records]
    assert [record.folder for record in images.records] == [record.folder for record in plain.records]
    assert digests_of(images) == digests_of(plain)
    for seed in (0, 7):
        assert images.order(seed) == plain.order(seed)
    halves = [split(each, digests_of(each), 0.3, 1, "train") for each in (plain, images)]
    assert halves[0] == halves[1] and len(halves[0][1]) == 6


def test_pictures_without_classes_keep_their_order_in_an_archive(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(9):
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(number))
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path, "photos"))
    plain, images = ImageSet.open(tmp_path / "photos"), ImageSet.open(archive)
    assert images.order(0) == plain.order(0)
    assert [images.digest(index) for index in range(9)] == [plain.digest(index) for index in range(9)]
    assert (plain.classes, images.classes) == ((), ("photos",))  # an archive's only folder is a class, as a folder's


def test_a_file_that_an_archive_holds_twice_is_one_picture(tmp_path: Path) -> None:
    archive = tmp_path / "data.tar"
    for shade in (1, 2):
        with tarfile.open(archive, "a") as tar:
            info = tarfile.TarInfo("cat/0.png")
            info.size = len(png(shade))
            tar.addfile(info, io.BytesIO(png(shade)))
    images = ImageSet.open(archive)
    assert len(images) == 1 and images.read_bytes(0) == png(2)
