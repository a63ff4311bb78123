"""Labelled pictures in folders, archives and tar shards, read one at a time and never unpacked to disk.

A data set is a folder (or ``.zip``, ``.tar``, ``.tar.gz``) with one sub-folder a class, a flat folder without labels,
or shards in webdataset's layout (:mod:`vitedge.data.shards`). Only JPEG, PNG, WEBP and BMP are decoded, and only
within the memory that :mod:`vitedge.data.picture_memory` allows.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitedge.core.schema import readable
from vitedge.data import picture_memory
from vitedge.data.file_kinds import HEAD_BYTES, READABLE, kind_of_file
from vitedge.data.picture_names import SUFFIXES, class_folders, is_hidden, is_picture, keys
from vitedge.data.shards import read_shards, shard_files
from vitedge.errors import ImageError, InputError, UsageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_FILE_BYTES = 256 << 20
MAX_ARCHIVE_BYTES = 1 << 30  # of a compressed .tar, which has to be kept in memory
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
LAYOUT = "a data folder has one sub-folder a class: data/cat/1.jpg, data/dog/2.jpg (a .zip or .tar of it will do)"


def open_picture(data: bytes, name: str) -> Image.Image:
    """Decode an encoded picture.

    Returns:
        A loaded PIL image, in the file's own mode, EXIF orientation not yet applied; a JPEG that would take more memory
        than :data:`~vitedge.data.picture_memory.MAX_DECODED_BYTES` at a half, a quarter or an eighth of its size.

    Raises:
        ImageError: another format, too large to decode, or a broken file.
    """
    action = f"read the picture {name}"
    hint = "use a JPEG, PNG, WEBP or BMP file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and large sizes; both are checked here
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            picture_memory.load(picture, data)
            return picture
    except Image.DecompressionBombError as error:
        raise ImageError(action, f"it has more than {picture_memory.MAX_PIXELS:,} pixels", "shrink it") from error
    except picture_memory.UnfitPictureError as error:
        raise ImageError(action, str(error), "replace it by a smaller one") from error
    except UnidentifiedImageError as error:
        kind, step = kind_of_file(data[:HEAD_BYTES])
        reason = f"it's {kind}; {READABLE}" if kind else "it's not a JPEG, PNG, WEBP or BMP picture"
        raise ImageError(action, reason, step or hint) from error
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        raise ImageError(action, f"{type(error).__name__}: {error}", hint) from error


def _has_header(data: bytes) -> bool:
    """Whether an encoded picture has a sound header; its data may still be broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(data), formats=FORMATS)
            return True
    except Exception:  # as above
        return False


def read_picture(path: Path) -> Image.Image:
    """Read and decode one picture file; errors as :func:`open_picture`."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"read the picture {path}", f"it's larger than {MAX_FILE_BYTES >> 20} MiB", "shrink it")
        return open_picture(path.read_bytes(), str(path))
    except OSError as error:
        raise ImageError(f"read the picture {path}", f"{error.strerror}", "name a readable file") from error


@dataclass(frozen=True)
class ImageRecord:
    """One picture of a data set.

    ``name`` is where it lies, for people: its path inside the folder or archive, after a shard's name. Order and draws
    go by ``key``, its path below what all pictures share, which begins with its class: the same in a folder, an archive
    and shards of the same files.
    """

    name: str
    folder: str | None  # its class folder; None when unlabelled
    key: str


@dataclass(frozen=True)
class ImageSet:
    """The pictures of a folder, an archive or shards, in the order of their keys.

    Picklable, so that worker processes can read from it; archives are opened anew in each process.
    """

    source: Path
    classes: tuple[str, ...]  # class folders, sorted (of shards: by their numbers); empty when unlabelled
    records: tuple[ImageRecord, ...]
    _members: tuple[str, ...] = field(repr=False)  # where each record lies: a path, or a member of the archive
    _cache: dict[str, object] = field(default_factory=dict, repr=False, compare=False)
    sharded: bool = False  # members are "offset:size:shard"

    @classmethod
    def open(cls, source: str | Path, *, action: str = "read images") -> ImageSet:
        """List the pictures of ``source`` without decoding any.

        Raises:
            UsageError: nothing there, or nothing that looks like a data folder.
            ImageError: an archive that can't be read.
        """
        path = Path(source)
        if shards := shard_files(path):
            return cls._of_shards(path, shards, action)
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for names that are too long
            raise UsageError(action, f"{path} doesn't exist", LAYOUT)
        if not path.is_dir() and not path.is_file():
            raise UsageError(action, f"{path} is neither a folder nor a file", LAYOUT)
        if path.is_dir():
            members = [(file.relative_to(path).as_posix(), str(file)) for file in _walk(path, action)]
        elif path.suffix.lower() in SUFFIXES:
            members = [(path.name, str(path))]
        else:
            members = [(name, name) for name in _archive_names(path, action)]
        members = list(dict.fromkeys(members))  # an archive may hold a file twice: the last is the one that unpacks
        names = [readable(name) for name, _ in members]
        folders = class_folders(names)
        records = map(ImageRecord, names, folders, keys(names))
        classes = tuple(sorted({folder for folder in folders if folder is not None}))
        return cls.of(path, classes, zip(records, (member for _, member in members), strict=True), action)

    @classmethod
    def _of_shards(cls, source: Path, shards: Sequence[Path], action: str) -> ImageSet:
        samples, classes = read_shards(shards, action)
        labels, members = [each.label for each in samples], [readable(each.member) for each in samples]
        names = [f"{readable(each.shard.name)}/{member}" for each, member in zip(samples, members, strict=True)]
        places = [f"{each.offset}:{each.size}:{each.shard}" for each in samples]
        records = map(ImageRecord, names, labels, keys(members, labels))
        return cls.of(source, classes, zip(records, places, strict=True), action, sharded=True)

    @classmethod
    def of(
        cls,
        source: Path,
        classes: tuple[str, ...],
        pictures: Iterable[tuple[ImageRecord, str]],
        action: str,
        *,
        sharded: bool = False,
    ) -> ImageSet:
        """Return the set of these pictures, whose places are given, in the order of their keys.

        Raises:
            UsageError: there are none.
        """
        ordered = sorted(pictures, key=lambda each: (each[0].key, each[0].name))
        if not ordered:
            raise UsageError(action, f"{source} holds no JPEG, PNG, WEBP or BMP files", LAYOUT)
        records, members = zip(*ordered, strict=True)
        return cls(source, classes, records, members, sharded=sharded)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def members(self) -> tuple[str, ...]:
        """The place of each picture: its path, its name in the archive, or its position in a shard."""
        return self._members

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": {}}

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """Return the same source restricted to ``indices``; the classes don't change."""
        return ImageSet(
            self.source,
            self.classes,
            tuple(self.records[i] for i in indices),
            tuple(self._members[i] for i in indices),
            sharded=self.sharded,
        )

    def read_bytes(self, index: int) -> bytes:
        """Read the encoded file.

        Raises:
            ImageError: unreadable or too large.
        """
        name, member = self.records[index].name, self._members[index]
        try:
            if self.sharded:
                return _read_place(name, member)
            if self.source.is_dir() or self.source.suffix.lower() in SUFFIXES:
                if Path(member).stat().st_size > MAX_FILE_BYTES:
                    raise ImageError(
                        f"read the picture {name}", f"it's larger than {MAX_FILE_BYTES >> 20} MiB", "shrink it"
                    )
                return Path(member).read_bytes()
            return _archive_read(self, member)
        except InputError:
            raise
        except Exception as error:  # zipfile and tarfile raise many kinds for broken archives
            raise ImageError(
                f"read the picture {name}", f"{type(error).__name__}: {error}", "replace the file"
            ) from error

    def read(self, index: int) -> Image.Image:
        """Read and decode the picture; errors as :func:`open_picture`."""
        return open_picture(self.read_bytes(index), self.records[index].name)

    def digest(self, index: int) -> str:
        """Return the hex SHA-256 of the encoded file."""
        return hashlib.sha256(self.read_bytes(index)).hexdigest()

    def count_different(self) -> int:
        """Count pictures with different contents and a readable header; all files are read, none decoded."""
        digests = set()
        for index in range(len(self)):
            with contextlib.suppress(ImageError):
                data = self.read_bytes(index)
                if _has_header(data):
                    digests.add(hashlib.sha256(data).digest())
        return len(digests)

    def order(self, seed: int) -> list[int]:
        """Return a seeded permutation of all indices by the keys: the same on every machine, in folders and shards."""
        drawn = [
            hashlib.sha256(f"{seed}\0{record.key}".encode(errors="surrogateescape")).digest() for record in self.records
        ]
        return sorted(range(len(self)), key=lambda index: drawn[index])

    def labels(self, folders: Sequence[str | None], *, action: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return class ids of all records, int64 [len(self)], by a model's table of class folders (index is the id).

        Raises:
            UsageError: the set has no class folders, or one that the model doesn't know.
        """
        if not self.classes:
            raise UsageError(action, f"{self.source} has no class folders", LAYOUT)
        ids = {folder: index for index, folder in enumerate(folders) if folder is not None}
        if not ids:
            reason = f"the model's classes have no names, so none of them is known to be a folder of {self.source}"
            hint = f"run: vitedge label MODEL --labels {self.source}, then export again"
            raise UsageError(action, reason, hint)
        unknown = [folder for folder in self.classes if folder not in ids]
        if unknown:
            raise UsageError(
                action,
                f"{len(unknown)} class folders of {self.source} aren't among the model's: {', '.join(unknown[:5])}",
                f"the model's are: {', '.join(list(ids)[:10])}",
            )
        return np.array([ids[record.folder] for record in self.records if record.folder is not None], dtype=np.int64)


def _walk(folder: Path, action: str) -> Iterator[Path]:
    """Yield the pictures of a folder and its subfolders, without hidden files and folders or linked folders."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a folder that was just deleted holds nothing
            hint = "make it readable, or leave it out"
            raise UsageError(action, f"{error.filename} can't be read: {error.strerror}", hint) from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (path for path in (Path(place, name) for name in names if is_picture(name)) if path.is_file())


def _archive_names(path: Path, action: str) -> list[str]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return list(_zip_names(archive))
        if _is_tar(path):
            with _tar(path) as (tar, compressed):
                return [info.name for info in _tar_members(tar, compressed)]
    except InputError:
        raise
    except Exception as error:  # broken archives raise many kinds
        raise ImageError(action, f"{path}: {type(error).__name__}: {error}", "make the archive again") from error
    with path.open("rb") as stream:
        kind, step = kind_of_file(stream.read(HEAD_BYTES))
    if kind:
        raise UsageError(action, f"{path} is {kind}; {READABLE}, in folders and in .zip and .tar archives", step)
    raise UsageError(action, f"{path} is neither a folder nor a .zip or .tar archive", LAYOUT)


def _zip_names(archive: zipfile.ZipFile) -> Iterator[str]:
    """Yield the pictures' names. A name without a picture's suffix is first compared with the member's own header.

    Raises:
        zipfile.BadZipFile: the directory tells another name than the member, or has fewer members than its end says.
    """
    if _members_at_end(archive) not in (None, len(archive.infolist()) & 0xFFFF):
        raise zipfile.BadZipFile("the directory is damaged: it doesn't hold as many files as its end says")
    for info in archive.infolist():
        if not info.is_dir() and is_picture(info.filename):
            yield info.filename  # its header is read with its content
        else:
            with contextlib.suppress(RuntimeError):  # encrypted, or compressed by an unknown method, so it isn't read
                archive.open(info).close()


def _members_at_end(archive: zipfile.ZipFile) -> int | None:
    """Return the member count in the directory's end, modulo 65,536; None where ZIP64 or trailing bytes hide it."""
    stream = archive.fp
    if stream is None:
        return None
    end = stream.seek(-22 - len(archive.comment), os.SEEK_END)
    record = stream.read(22) if end >= 0 else b""
    members = int.from_bytes(record[10:12], "little")
    return members if record.startswith(b"PK\x05\x06") and members != 0xFFFF else None


def _archive_read(images: ImageSet, member: str) -> bytes:
    read = images._cache.get("read")
    if read is None:
        read = images._cache["read"] = _archive_reader(images.source)
    assert callable(read)
    data: bytes = read(member)
    return data


def _archive_reader(source: Path) -> Callable[[str], bytes]:
    """Return a function from a member's name to its bytes; several threads may call it."""
    if zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)

        def from_zip(member: str) -> bytes:
            info = archive.getinfo(member)
            _check_size(member, info.file_size)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile reads others unbounded
                method = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma"}.get(
                    info.compress_type, "another method"
                )
                raise ImageError(f"read the picture {member}", f"it's compressed by {method}", "use deflate, or none")
            with archive.open(info) as stream:
                return stream.read(info.file_size + 1)  # no more than is claimed; the CRC fails if that isn't all

        return from_zip
    with _tar(source) as (tar, compressed):
        if compressed:  # it can't be read from the middle, so it's kept
            kept = {info.name: _content(tar, info) for info in _tar_members(tar, compressed)}
            return kept.__getitem__
        places = {info.name: (info.offset_data, info.size) for info in _tar_members(tar, compressed)}

    def from_tar(member: str) -> bytes:
        offset, size = places[member]
        _check_size(member, size)
        with source.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    return from_tar


def _read_place(name: str, place: str) -> bytes:
    """Read a picture in a shard, from ``offset:size:shard``."""
    offset, size, shard = place.split(":", 2)
    _check_size(name, int(size))
    with open(shard, "rb") as stream:  # noqa: PTH123 - a million of them, each for one picture
        stream.seek(int(offset))
        return stream.read(int(size))


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(info) if info.size <= MAX_FILE_BYTES else None
    return stream.read() if stream else b""


def _check_size(member: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ImageError(f"read the picture {member}", f"it's larger than {MAX_FILE_BYTES >> 20} MiB", "shrink it")


class _Limited:
    """A decompressed stream that reads no more at once than a picture may have, whatever a header claims."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_FILE_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._stream.read(size)


@contextlib.contextmanager
def _tar(path: Path) -> Iterator[tuple[tarfile.TarFile, bool]]:
    """Open the archive; return it, and whether it's compressed."""
    with path.open("rb") as stream:
        magic = stream.read(6)
    decompress: Any = next((opener for start, opener in _COMPRESSED if magic.startswith(start)), None)
    if decompress is None:
        with tarfile.open(path, "r:") as tar:
            yield tar, False
    else:
        with decompress(path) as stream, tarfile.open(fileobj=_Limited(stream), mode="r:") as tar:  # type: ignore[call-overload]
            yield tar, True


def _is_tar(path: Path) -> bool:
    try:
        with _tar(path):
            return True
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error):
        return False


def _tar_members(tar: tarfile.TarFile, compressed: bool) -> Iterator[tarfile.TarInfo]:
    """Yield the pictures among the members.

    Raises:
        ImageError: a compressed archive that unpacks to more than :data:`MAX_ARCHIVE_BYTES`.
    """
    total = 0
    for info in tar:
        total += info.size
        if compressed and total > MAX_ARCHIVE_BYTES:
            raise ImageError(
                "read a compressed .tar", f"it unpacks to more than {MAX_ARCHIVE_BYTES >> 30} GiB", "unpack it first"
            )
        if info.isreg() and not info.issparse() and is_picture(info.name):
            yield info
