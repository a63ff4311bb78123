"""Shards of a source: the same pictures and classes from a folder, tar and Parquet files, here and by an address."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_shards import png, shards, write_tar
from vitedge.data.addresses import SCRATCH, Columns, Shard, list_shards, open_shard
from vitedge.errors import ImageError, InputError, NotInstalledError, UsageError

pytest.importorskip("fsspec", reason="the extra ray isn't installed")

COLUMNS = Columns(image="image", label="label")
LABELS = ["dog", "cat", "dog", "bird", "cat"]  # of pictures whose shade is their number
EXPECTED = sorted((label, shade) for shade, label in enumerate(LABELS))


def parquet(path: Path, images: Sequence[Any], labels: Sequence[Any], names: Sequence[str] = ()) -> Path:
    """A Parquet file; ``names`` are kept as Hugging Face's libraries keep those of numbered classes."""
    arrow = pytest.importorskip("pyarrow", reason="the extra ray isn't installed")
    import pyarrow.parquet

    features = {"info": {"features": {"label": {"names": list(names)}}}}
    table = arrow.table({"image": list(images), "label": list(labels), "more": [1.5] * len(images)})
    if names:
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return path


def folders(folder: Path) -> Path:
    for shade, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{shade}.png").write_bytes(png(shade))
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def content(each: Sequence[Shard], *, labelled: bool = True, columns: Columns = COLUMNS) -> list[tuple[Any, int]]:
    found = []
    for shard in each:
        with open_shard(shard, columns, "read", labelled=labelled) as images:
            for index, record in enumerate(images.records):
                found.append((record.folder, int(np.asarray(images.read(index))[0, 0, 0])))
    return sorted(found, key=str)


def sources(folder: Path) -> dict[str, tuple[Path, str, int]]:
    """(folder, what names the pictures in it, how many shards that is)"""
    numbers = [["bird", "cat", "dog"].index(label) for label in LABELS]
    pictures = [png(shade) for shade in range(len(LABELS))]
    structs = [{"bytes": data, "path": f"{shade}.png"} for shade, data in enumerate(pictures)]
    parquet(folder / "named" / "a.parquet", pictures, LABELS)
    for number, some in enumerate((slice(0, 3), slice(3, 5))):
        path = folder / "numbered" / f"t-{number}.parquet"
        parquet(path, structs[some], numbers[some], ["bird", "cat", "dog"])
    numbered = shards(folder / "tar-numbers", [str(number) for number in numbers])
    (numbered / "classes.txt").write_text("bird\ncat\ndog\n")
    return {
        "folder": (folders(folder / "folder"), "", 3),
        "tars": (shards(folder / "tars", list(LABELS)), "", 3),
        "range": (folder / "tars", "s-{000..002}.tar", 3),
        "numbers": (numbered, "s-*.tar", 3),
        "parquet": (folder / "named", "a.parquet", 1),
        "huggingface": (folder / "numbered", "", 2),
    }


@pytest.mark.parametrize("kind", ["folder", "tars", "range", "numbers", "parquet", "huggingface"])
def test_the_same_pictures_from_everywhere(tmp_path: Path, kind: str) -> None:
    folder, name, count = sources(tmp_path)[kind]
    for source in (str(folder / name), f"{folder.as_uri()}/{name}"):
        listed = list_shards(source, 2, "read")
        assert len(listed) == count and len({shard.name for shard in listed}) == count
        assert content(listed) == EXPECTED, source
    assert not list(Path("/tmp").glob(f"{SCRATCH}*/0.parquet")), "copies are removed"


def test_a_shard_is_told_from_a_changed_one(tmp_path: Path) -> None:
    for kind, (folder, name, _) in sources(tmp_path).items():
        for source in (str(folder / name), f"{folder.as_uri()}/{name}"):
            before, again = (list_shards(source, 2, "read") for _ in range(2))
            assert before == again
            changed = Path(before[0].files[0])
            changed.write_bytes(changed.read_bytes() + b" ")
            states = [a.state != b.state for a, b in zip(before, list_shards(source, 2, "read"), strict=True)]
            assert states == [True] + [False] * (len(before) - 1), kind


def test_pictures_without_labels_can_be_classified(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"1.png": png(1), "2.png": png(2), "2.cls": b"cat"})
    unlabelled = parquet(tmp_path / "b.parquet", [png(3)], [-1])
    for path, expected in ((tar, [("cat", 2), (None, 1)]), (unlabelled, [(None, 3)])):
        listed = list_shards(str(path), 2, "read")
        assert content(listed, labelled=False) == expected
        with pytest.raises(ImageError, match="has no class"):
            content(listed)


def test_a_picture_that_a_parquet_file_lacks_is_unreadable(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [png(1), None], ["cat", "cat"])
    with open_shard(list_shards(str(path), 2, "read")[0], COLUMNS, "read", labelled=True) as images:
        assert len(images) == 2
        images.read(0)
        with pytest.raises(ImageError):
            images.read(1)


def refusals(folder: Path) -> list[tuple[str, type[InputError | UsageError | NotInstalledError], str]]:
    shutil.make_archive(str(folder / "archive"), "zip", folders(folder / "data"))
    shards(folder / "tars", list(LABELS))
    (folder / "empty").mkdir()
    return [
        (str(folder / "none"), UsageError, "doesn't exist"),
        (f"{folder.as_uri()}/none", UsageError, "doesn't exist"),
        (str(folder / "archive.zip"), UsageError, "can't be divided"),
        (str(folder / "tars" / "s-{000..003}.tar"), UsageError, r"doesn't exist"),
        (str(folder / "empty"), UsageError, "holds no JPEG"),
        (f"{folder.as_uri()}/empty", UsageError, "holds no JPEG"),
        ("nowhere://bucket/pictures", ImageError, "Protocol not known"),
        ("oci://bucket/pictures", NotInstalledError, r"package that reads oci://bucket/pictures isn't.*\n.*ocifs"),
    ]


def test_refusals(tmp_path: Path) -> None:
    for source, error, text in refusals(tmp_path):
        with pytest.raises(error, match=text):
            list_shards(source, 2, "read")


def test_columns_are_named_or_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [png(1)], ["cat"])
    listed = list_shards(str(path), 2, "read")
    with pytest.raises(
        UsageError, match=r"columns image, label, more; 'img' and 'label' are needed.*\n.*--image-column"
    ):
        content(listed, columns=Columns(image="img", label="label"))
    assert content(listed, columns=COLUMNS) == [("cat", 1)]


def test_a_number_without_a_name_is_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path / "tars", ["0", "7"])
    (folder / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ImageError, match=r"number 7; classes\.txt names 2 classes"):
        content(list_shards(str(folder), 2, "read"))


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra ray isn't installed")
    for name in ("a.tar", "b.parquet"):
        (tmp_path / name).write_bytes(b"damaged" * 200)
        with pytest.raises(ImageError, match=name):
            content(list_shards(str(tmp_path / name), 2, "read"))


def test_a_shard_without_pictures_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.cls": b"cat"})
    with pytest.raises(ImageError, match=r"a\.tar holds no pictures"):
        content(list_shards(str(tmp_path / "a.tar"), 2, "read"))
