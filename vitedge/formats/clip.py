"""The recorded clip: every frame that a stream's reader prepared for the model, with its arrival time.

One file a source, only ever appended to, so that a reader that is killed loses at most the frame it was writing::

    b"vitedge clip\\n"
    one line of JSON: ClipHeader
    a frame, again and again: b"FRAM", sequence, arrival_ns, presentation_ns (least int64: none), length of the data,
    CRC-32 of the data, CRC-32 of this head (since schema version 2), data

Numbers are little-endian; the data are zlib's, of uint8 RGB [h, w, 3] at the model's size: just what the session got.
Arrival times are those of the monotonic clock, so only their differences mean something.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, overload

import msgspec
import numpy as np

from vitedge._version import __version__
from vitedge.core.files import append_whole, sha256
from vitedge.core.schema import Record, decode_json, seal
from vitedge.errors import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIX = ".clip"
MAX_SIDE = 4096
_MAGIC, _MARK = b"vitedge clip\n", b"FRAM"
_FRAME, _CRC = struct.Struct("<4sqqqII"), struct.Struct("<I")
_NO_TIME = -(1 << 63)
_MAX_HEADER = 1 << 16


class ClipHeader(Record):
    """The first line of a clip."""

    SCHEMA_VERSION = 2  # 2: checksums of this line and of the frames' heads
    schema_version: int = SCHEMA_VERSION
    vitedge_version: str = __version__
    source: str  # without credentials
    size: tuple[int, int]  # (height, width) of every frame
    artifact: str  # name of the artifact that it was prepared for

    @property
    def heads_have_checksums(self) -> bool:
        """False in the clips of version 0.1.0, which stay as they are when they're continued."""
        return self.schema_version > 1


class _Entry(NamedTuple):
    sequence: int
    arrival_ns: int
    presentation_ns: int
    offset: int
    length: int
    crc: int


class ClipWriter:
    """Appends to a clip; an unfinished frame at the end of an existing one is cut off first.

    Raises:
        ArtifactError: the file is something else, or a clip of another source or size.
        OSError: it can't be written.
    """

    def __init__(self, path: Path, header: ClipHeader) -> None:
        exists = path.exists() and path.stat().st_size > 0
        end = 0
        if exists:
            before = Clip(path)
            if (before.header.source, before.header.size) != (header.source, header.size):
                raise ArtifactError(f"record to {path}", "it holds another source's frames", "name another folder")
            header, end = before.header, before.end
        self._header = header
        self._file = path.open("r+b" if exists else "wb", buffering=0)
        try:
            self._file.truncate(end)
            self._file.seek(end)
            if not exists:
                append_whole(
                    self._file.fileno(),
                    _MAGIC + msgspec.json.format(seal(msgspec.json.encode(header)), indent=-1) + b"\n",
                )
        except OSError:
            self._file.close()
            if not exists:
                path.unlink(missing_ok=True)
            raise

    def append(self, image: NDArray[np.uint8], *, sequence: int, arrival_ns: int, presentation_s: float | None) -> None:
        """Write one frame, uint8 [h, w, 3].

        Raises:
            OSError: it can't be written; nothing of it is in the file, and the next may be tried.
        """
        data = zlib.compress(image.tobytes(), 1)
        presentation = _NO_TIME if presentation_s is None else round(presentation_s * 1e9)
        head = _FRAME.pack(_MARK, sequence, arrival_ns, presentation, len(data), zlib.crc32(data))
        if self._header.heads_have_checksums:
            head += _CRC.pack(zlib.crc32(head))
        append_whole(self._file.fileno(), head + data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Clip(Sequence["NDArray[np.uint8]"]):
    """A clip to read: a sequence of uint8 RGB [h, w, 3], decoded when they're read.

    Attributes:
        header: what was recorded.
        times_ns: arrival of every frame, from the first one's.
        presentations_s: presentation time of every frame; None where the stream had none.
        truncated: whether the end of the file is an unfinished frame.

    Raises:
        ArtifactError: not a clip, or one that was altered.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._action = path, f"read the clip {path}"
        try:
            with path.open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                head = file.read(len(_MAGIC) + _MAX_HEADER)
        except OSError as error:
            raise ArtifactError(self._action, f"{error.strerror}", "name a clip of: vitedge stream --record") from error
        line, newline, _ = head.removeprefix(_MAGIC).partition(b"\n")
        if not head.startswith(_MAGIC) or not newline:
            raise ArtifactError(self._action, "it isn't a recorded clip", "name a clip of: vitedge stream --record")
        self.header = decode_json(line, ClipHeader, action=self._action, file=str(path))
        if not all(1 <= side <= MAX_SIDE for side in self.header.size):
            raise ArtifactError(self._action, f"its size is {self.header.size}", "record it again")
        self.end = len(_MAGIC) + len(line) + 1
        with path.open("rb") as file:
            self._entries = self._scan(file, total)
        self.truncated = self.end < total
        first = self._entries[0].arrival_ns if self._entries else 0
        self.times_ns = tuple(entry.arrival_ns - first for entry in self._entries)
        self.presentations_s = tuple(
            None if entry.presentation_ns == _NO_TIME else entry.presentation_ns / 1e9 for entry in self._entries
        )

    def _scan(self, file: IO[bytes], total: int) -> list[_Entry]:
        entries: list[_Entry] = []
        size = _FRAME.size + (_CRC.size if self.header.heads_have_checksums else 0)
        while self.end + size <= total:
            file.seek(self.end)
            head, checksum = file.read(_FRAME.size), file.read(size - _FRAME.size)
            mark, sequence, arrival, presentation, length, crc = _FRAME.unpack(head)
            if mark != _MARK or checksum not in (b"", _CRC.pack(zlib.crc32(head))):
                raise ArtifactError(self._action, f"byte {self.end} isn't the beginning of a frame", "record it again")
            if self.end + size + length > total:
                break
            entries.append(_Entry(sequence, arrival, presentation, self.end + size, length, crc))
            self.end += size + length
        return entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.uint8]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        entry = self._entries[index]
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.length)
        expected = self.header.size[0] * self.header.size[1] * 3
        try:
            if zlib.crc32(data) != entry.crc:
                raise zlib.error("checksum")
            unpack = zlib.decompressobj()
            pixels = unpack.decompress(data, expected)
            if len(pixels) != expected or unpack.unconsumed_tail:
                raise zlib.error("length")
        except zlib.error as error:
            raise ArtifactError(
                self._action, f"frame {index} is damaged", "copy it again, or record it again"
            ) from error
        return np.frombuffer(pixels, np.uint8).reshape(*self.header.size, 3)

    def digest(self) -> str:
        """Return the hex SHA-256 of what a replay depends on: sizes, arrival times and checksums."""
        return sha256(repr((self.header.size, self.times_ns, [entry.crc for entry in self._entries])).encode())
