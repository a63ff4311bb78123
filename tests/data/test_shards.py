"""Tar shards in webdataset's layout: the same pictures and classes as folders, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitedge.data.images import ImageSet
from vitedge.data.shards import read_shards, shard_files
from vitedge.errors import ImageError, InputError, UsageError


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shards(folder: Path, labels: list[str | dict[str, object]], per_shard: int = 2) -> Path:
    """One picture a label; strings go into .cls, dictionaries into .json."""
    folder.mkdir(parents=True)
    for first in range(0, len(labels), per_shard):
        files = {}
        for number, label in enumerate(labels[first : first + per_shard], first):
            if isinstance(label, str):
                files[f"{number:04d}.cls"] = label.encode()
            else:
                files[f"{number:04d}.json"] = json.dumps(label).encode()
            files[f"{number:04d}.png"] = png(number)
            files[f"{number:04d}.txt"] = b"a caption"
        write_tar(folder / f"s-{first // per_shard:03d}.tar", files)
    return folder


def content(images: ImageSet) -> list[tuple[str | None, int]]:
    return [(record.folder, np.asarray(images.read(index))[0, 0, 0]) for index, record in enumerate(images.records)]


@pytest.mark.parametrize("source", [".", "s-{000..002}.tar"])
def test_shards_are_read_as_class_folders(tmp_path: Path, source: str) -> None:
    labels = ["dog", "cat", "dog", "bird", "cat"]
    folder = shards(tmp_path / "shards", list(labels))
    images = ImageSet.open(folder / source)
    assert images.classes == ("bird", "cat", "dog")
    assert content(images) == [("bird", 3), ("cat", 1), ("cat", 4), ("dog", 0), ("dog", 2)]
    assert [record.name for record in images.records][:3] == [
        "s-001.tar/0003.png", "s-000.tar/0001.png", "s-002.tar/0004.png"
    ]  # fmt: skip
    assert images.labels(images.classes, action="read").tolist() == [0, 1, 1, 2, 2]
    again = pickle.loads(pickle.dumps(images.subset([3, 0])))
    assert content(again) == [("dog", 0), ("bird", 3)]
    assert images.digest(0) != images.digest(2)


def test_one_shard_alone(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", ["b", "a"])
    assert content(ImageSet.open(folder / "s-000.tar")) == [("a", 1), ("b", 0)]


@pytest.mark.parametrize("named", [False, True])
def test_numbers_are_ids(tmp_path: Path, named: bool) -> None:
    numbers = [10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9]
    folder = shards(tmp_path / "shards", [{"cls": n} if n % 2 else str(n) for n in numbers])
    names = [f"name {number}" for number in range(12)] if named else [str(number) for number in range(11)]
    if named:
        (folder / "classes.txt").write_text("\n".join(names))
    images = ImageSet.open(folder)
    assert images.classes == tuple(names)  # not sorted as text, where 10 comes before 2
    labels = images.labels(images.classes, action="read").tolist()
    assert {shade: label for label, (_, shade) in zip(labels, content(images), strict=True)} == dict(enumerate(numbers))


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (["0", "2"], ImageError, "go up to number 2"),
        ([{"caption": "no class"}, "cat"], ImageError, r"0000.png in s-000.tar has no class"),
        ([" ", "cat"], ImageError, "has no class"),
        ([{"cls": True}, "cat"], ImageError, "has no class"),
    ],
)
def test_labels_that_are_none(
    tmp_path: Path, labels: list[str | dict[str, object]], error: type[InputError], text: str
) -> None:
    with pytest.raises(error, match=text):
        ImageSet.open(shards(tmp_path / "shards", labels))


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards", ["a", "b", "a", "b"])
    with pytest.raises(UsageError, match=r"s-002.tar doesn't exist"):
        ImageSet.open(folder / "s-{000..002}.tar")
    (folder / "s-001.tar").write_bytes(b"not an archive" * 100)
    with pytest.raises(ImageError, match=r"s-001.tar: \S"):
        ImageSet.open(folder)
    write_tar(folder / "s-001.tar", {"a.png": png(0), "a.jpg": png(0), "a.cls": b"1"})
    with pytest.raises(ImageError, match="two pictures named 'a'"):
        ImageSet.open(folder)
    write_tar(folder / "s-001.tar", {"a.json": b"[" * 100_000})
    with pytest.raises(ImageError, match=r"s-001\.tar"):
        ImageSet.open(folder)


def test_other_data_isnt_taken_for_shards(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "data.tar", {"cat/1.png": png(0), "dog/1.png": png(1)})
    assert shard_files(archive) == []
    assert ImageSet.open(archive).classes == ("cat", "dog")
    mixed = shards(tmp_path / "mixed", ["a"])
    (mixed / "readme.md").write_text("…")
    assert shard_files(mixed) == []
    assert shard_files(tmp_path / "none") == []
    assert shard_files(Path("x" * 5000)) == []


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mutated_shards_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    path = write_tar(folder / "s.tar", {"a.cls": b"x", "a.png": png(3), "b.json": b'{"label": "y"}', "b.png": png(4)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 4096))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), 3000, 700]))])
    try:
        samples, classes = read_shards([path], "read")
    except InputError:
        return
    assert {sample.label for sample in samples} <= set(classes)
