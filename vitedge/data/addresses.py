"""Divide pictures at any address into shards that can be read one by one, in any order and on any machine.

A source is a folder of pictures, or tar or Parquet files: one, a folder of them, a range (``train-{0000..0146}.tar``)
or a pattern (``train-*.parquet``). It lies in a folder that all machines have, or wherever fsspec reaches:
``s3://bucket/train-{0000..0146}.tar``. A tar or Parquet file is a shard, and so are some hundred pictures of a folder.

Tar files are those of :mod:`vitedge.data.shards`. Parquet files have a column with the encoded pictures, as bytes or as
``{bytes, path}``, and one with their classes, as names or as numbers, as Hugging Face's data sets have them.

A shard that lies elsewhere is copied into a temporary folder while it's read, so pictures are decoded by the code, and
within the limits, that hold for a folder of this machine.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vitedge.core.files import scratch_folder, sha256
from vitedge.core.schema import Record, readable
from vitedge.data.images import LAYOUT, MAX_FILE_BYTES, ImageRecord, ImageSet
from vitedge.data.picture_names import SUFFIXES, class_folders, is_hidden, is_picture, keys
from vitedge.data.shards import CLASSES, class_names, class_of, in_range, read_shard
from vitedge.errors import ImageError, NotInstalledError, UsageError, VitedgeError

Kind = Literal["pictures", "tar", "parquet"]
KINDS: dict[str, Kind] = {".tar": "tar", ".parquet": "parquet"}
SCRATCH = "vitedge-shard-"
ROWS_AT_ONCE = 64  # of a Parquet file
#: Facts that file systems give of a file and that change with its content.
_STATES = ("size", "mtime", "ETag", "etag", "md5Hash", "LastModified", "last_modified")


class Columns(Record):
    """The columns of Parquet files."""

    image: str
    label: str


class Shard(Record):
    """A part of a source's pictures, which is read as a whole."""

    name: str  # of its file; of a folder's pictures, the first one's
    kind: Kind
    state: str  # hex SHA-256 of the file system's facts about its files
    files: tuple[str, ...]  # the tar or Parquet file, or the pictures
    address: str = ""  # of the source, which tells its file system; empty: files of this machine
    names: tuple[str, ...] = ()  # of a folder's pictures: their paths within the source
    folders: tuple[str | None, ...] = ()  # and their class folders
    classes: tuple[str, ...] = ()  # names of numbered classes; empty: not known


def list_shards(source: str, pictures: int, action: str) -> list[Shard]:
    """List the shards of a source without reading any.

    Args:
        source: a path or an address.
        pictures: of a folder, in one shard.
        action: for error texts.

    Raises:
        UsageError: nothing there, or nothing that can be divided.
        ImageError: it can't be reached.
        NotInstalledError: fsspec, or the package for the address, isn't installed.
    """
    with _reaching(source, action):
        system, root = _file_system(source, action)
        if files := _shard_files(system, root):
            return _whole_files(system, files, source if "://" in source else "")
        if "://" in source:
            return list(_of_folder_elsewhere(system, root, source, pictures, action))
        return list(_of_folder_here(source, pictures, action))


@contextlib.contextmanager
def open_shard(shard: Shard, columns: Columns, action: str, *, labelled: bool) -> Iterator[ImageSet]:
    """Open the pictures of a shard until the end of the context.

    Args:
        shard: what to read.
        columns: of a Parquet file.
        action: for error texts.
        labelled: refuse pictures without a class.

    Raises:
        UsageError: it isn't there any more.
        ImageError: it can't be read, or a picture has no class.
        ResourceError: no room for the copy.
    """
    with scratch_folder(SCRATCH, action) as folder:
        with _reaching(shard.name, action):
            pictures = _READERS[shard.kind](shard, folder, columns, action, labelled)
        if not pictures:
            raise ImageError(action, f"{shard.name} holds no pictures", "leave it out")
        classes = tuple(sorted({record.folder for record, _ in pictures if record.folder is not None}))
        source = folder if shard.kind == "parquet" or shard.address else Path(shard.files[0]).parent
        yield ImageSet.of(source, classes, pictures, action, sharded=shard.kind == "tar")


# --- listing ---------------------------------------------------------------------------------------------------------


def _file_system(source: str, action: str) -> tuple[Any, str]:
    """Return fsspec's file system for a source, and the path of the source in it."""
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra(action, "fsspec", "ray") from error
    system, root = fsspec.core.url_to_fs(source)
    return system, str(root).rstrip("/")


@contextlib.contextmanager
def _reaching(source: str, action: str) -> Iterator[None]:
    """Turn exceptions of file systems into our errors."""
    try:
        yield
    except VitedgeError:
        raise
    except ImportError as error:
        raise NotInstalledError(action, f"the package that reads {source} isn't installed", str(error)) from error
    except FileNotFoundError as error:
        raise UsageError(action, f"{source} doesn't exist", LAYOUT) from error
    except Exception as error:  # each of fsspec's file systems raises its own kinds
        reason = f"{source} can't be read: {type(error).__name__}: {error}"
        raise ImageError(action, reason, "check the address, the network and the credentials") from error


def _shard_files(system: Any, root: str) -> list[Mapping[str, Any]]:
    """Return file facts of each tar or Parquet file that ``root`` stands for; empty: it's something else."""
    parent, _, name = root.rpartition("/")
    if names := in_range(name):
        there = {info["name"]: info for info in system.ls(parent, detail=True)}
        missing = next((each for each in names if f"{parent}/{each}" not in there), None)
        if missing is not None:
            raise FileNotFoundError(missing)
        return [there[f"{parent}/{each}"] for each in names]
    if any(sign in name for sign in "*?["):
        return [info for _, info in sorted(system.glob(root, detail=True).items()) if _is_shard(info)]
    if system.isfile(root):
        return [info for info in [system.info(root)] if _is_shard(info)]
    if not system.isdir(root):
        raise FileNotFoundError(root)
    entries = [info for info in system.ls(root, detail=True) if not is_hidden(PurePosixPath(info["name"]).name)]
    if any(info["type"] == "directory" or is_picture(info["name"]) for info in entries):
        return []
    return sorted(filter(_is_shard, entries), key=lambda info: str(info["name"]))


def _is_shard(info: Mapping[str, Any]) -> bool:
    return info["type"] == "file" and _suffix(info["name"]) in KINDS


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _whole_files(system: Any, infos: Sequence[Mapping[str, Any]], address: str) -> list[Shard]:
    table = f"{infos[0]['name'].rpartition('/')[0]}/{CLASSES}"
    classes = class_names(system.cat_file(table)) if system.isfile(table) else ()
    return [
        Shard(
            name=readable(PurePosixPath(info["name"]).name),
            kind=KINDS[_suffix(info["name"])],
            state=_state([[str(info.get(key)) for key in _STATES] for info in [info]] + [list(classes)]),
            files=(info["name"],),
            address=address,
            classes=classes,
        )
        for info in infos
    ]


def _of_folder_here(source: str, count: int, action: str) -> Iterator[Shard]:
    images = ImageSet.open(source, action=action)
    if images.source.is_file() and images.source.suffix.lower() not in SUFFIXES:
        raise UsageError(
            action, f"{source} is one archive, which can't be divided", "unpack it, or make tar shards of it"
        )
    pictures = [(record.name, record.folder, path) for record, path in zip(images.records, images.members, strict=True)]
    for some in _divided(pictures, count):
        told = [Path(path).stat() for _, _, path in some]
        yield _some_pictures(some, _state([state.st_size, state.st_mtime_ns] for state in told), "")


def _of_folder_elsewhere(system: Any, root: str, address: str, count: int, action: str) -> Iterator[Shard]:
    listed = system.find(root, detail=True)
    within = {path.removeprefix(root).lstrip("/"): path for path in listed}
    names = [name for name in within if is_picture(name)]
    if not names:
        raise UsageError(action, f"{address} holds no JPEG, PNG, WEBP or BMP files", LAYOUT)
    ordered = sorted(zip(keys(names), names, class_folders(names), strict=True))
    pictures = [(name, folder, within[name]) for _, name, folder in ordered]
    for some in _divided(pictures, count):
        yield _some_pictures(
            some, _state([str(listed[path].get(key)) for key in _STATES] for _, _, path in some), address
        )


def _divided(
    pictures: Sequence[tuple[str, str | None, str]], count: int
) -> Iterator[Sequence[tuple[str, str | None, str]]]:
    return (pictures[start : start + count] for start in range(0, len(pictures), count))


def _some_pictures(pictures: Sequence[tuple[str, str | None, str]], state: str, address: str) -> Shard:
    names, folders, files = (tuple(column) for column in zip(*pictures, strict=True))
    return Shard(
        name=readable(names[0]),
        kind="pictures",
        state=state,
        files=files,
        address=address,
        names=names,
        folders=folders,
    )


def _state(told: Iterable[Sequence[object]]) -> str:
    return sha256(json.dumps([list(map(str, each)) for each in told]).encode())


# --- reading ---------------------------------------------------------------------------------------------------------

Pictures = list[tuple[ImageRecord, str]]  # and the place of each, as ImageSet takes it


def _local_files(shard: Shard, folder: Path, action: str) -> list[str]:
    """Return the shard's files as local paths; remote ones are copied into ``folder``."""
    if not shard.address:
        return list(shard.files)
    system, _ = _file_system(shard.address, action)
    paths = [str(folder / f"{number}{_suffix(file)}") for number, file in enumerate(shard.files)]
    if shard.kind == "tar":  # errors name it
        paths = [str(folder / PurePosixPath(shard.files[0]).name)]
    system.get(list(shard.files), paths)
    return paths


def _read_pictures(shard: Shard, folder: Path, columns: Columns, action: str, labelled: bool) -> Pictures:
    named = zip(shard.names, shard.folders, strict=True)
    records = [ImageRecord(readable(name), label, key=name) for name, label in named]
    return list(zip(records, _local_files(shard, folder, action), strict=True))


def _read_tar(shard: Shard, folder: Path, columns: Columns, action: str, labelled: bool) -> Pictures:
    (path,) = _local_files(shard, folder, action)
    pictures = []
    for sample in read_shard(Path(path), action, labelled=labelled):
        label = class_of(sample.label, shard.classes, action) if sample.label else None
        member = readable(sample.member)
        record = ImageRecord(f"{shard.name}/{member}", label, key=member)
        pictures.append((record, f"{sample.offset}:{sample.size}:{sample.shard}"))
    return pictures


def _read_parquet(shard: Shard, folder: Path, columns: Columns, action: str, labelled: bool) -> Pictures:
    """Read a Parquet file's pictures; a picture that the file lacks stays without a file, and can't be read."""
    import pyarrow.parquet

    (path,) = _local_files(shard, folder, action)
    pictures: Pictures = []
    with pyarrow.parquet.ParquetFile(path) as file:
        there = file.schema_arrow.names
        if columns.image not in there or (labelled and columns.label not in there):
            reason = (
                f"{shard.name} has the columns {', '.join(there)}; '{columns.image}' and '{columns.label}' are needed"
            )
            raise UsageError(action, reason, "name its columns: --image-column NAME --label-column NAME")
        wanted = [name for name in (columns.image, columns.label) if name in there]
        classes = _classes_of(file.schema_arrow.metadata, columns.label) or shard.classes
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
            for row in batch.to_pylist():
                label = _label(row.get(columns.label), classes, action)
                data, name = _picture(row[columns.image], len(pictures))
                if label is None and labelled:
                    raise ImageError(action, f"{name} in {shard.name} has no class", "leave it out, or give it one")
                place = folder / f"{len(pictures)}.picture"
                if data is not None and len(data) <= MAX_FILE_BYTES:
                    place.write_bytes(data)
                pictures.append((ImageRecord(f"{shard.name}/{name}", label, key=name), str(place)))
    return pictures


def _picture(value: Any, row: int) -> tuple[bytes | None, str]:
    """Return the encoded picture of a row, and its name."""
    name = f"{row:08d}"
    if isinstance(value, Mapping):
        return value.get("bytes"), readable(str(value.get("path") or name))
    return value, name


def _label(value: object, classes: Sequence[str], action: str) -> str | None:
    """Return a row's label; Hugging Face writes -1 where there is none."""
    if value is None or value == -1:
        return None
    return class_of(str(value), classes, action)


def _classes_of(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face's libraries keep in a Parquet file; none in others."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[column]["names"]))
    return ()


_READERS = {"pictures": _read_pictures, "tar": _read_tar, "parquet": _read_parquet}
