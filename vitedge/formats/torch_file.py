"""Read a file of ``torch.save`` (``.pt``, ``.pth``, ``.ckpt``, ``.bin``) without torch and without running anything.

Two containers are read: an uncompressed zip archive (``data.pkl``, ``data/KEY``, ``byteorder``; torch 1.6 and newer),
and the older sequence of pickles with the storages behind them. The pickle says where the tensors lie; their numbers
are read when they're asked for, so an optimizer's state costs nothing. No more is read than the file is long.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitedge.errors import ModelError
from vitedge.formats.pickled_data import (
    ITEM_BYTES,
    NAMES,
    PickledDataError,
    RefusedNameError,
    Storage,
    Tensor,
    read_pickled_data,
)

MAX_BYTES = 8 << 30  # with optimizer and averaged weights beside a compact model's
MAX_PICKLE_BYTES = 64 << 20
_MAX_DIRECTORY_BYTES = 4 << 20
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_MAGIC = 0x1950A86A20F9469CFC6C  # of the older container
_SAVE_AGAIN = "save its weights again: torch.save(model.state_dict(), path), or as safetensors"


class _Member(NamedTuple):
    """Bytes of the file."""

    offset: int
    size: int
    crc: int  # of zlib; 0: none was written


@dataclass
class TorchFile:
    """An opened file: close it, or use it in ``with``.

    ``content`` is what was saved, with a :class:`~vitedge.formats.pickled_data.Tensor` in place of each tensor.
    """

    content: Any
    _stream: BinaryIO
    _members: dict[str, _Member]  # by the storages' keys
    _byteorder: str
    _action: str
    _left: int  # bytes that may still be read: overlapping members could claim more than there is
    _read: dict[str, bytes] = field(default_factory=dict)

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def array(self, tensor: Tensor) -> NDArray[Any]:
        """Return a tensor's numbers, in its shape; bfloat16 becomes float32, exactly. It may be a view of others'.

        Raises:
            ModelError: its storage is missing, cut off, damaged, or shorter than the tensor says.
        """
        data = self._storage(tensor.storage)
        kind = np.dtype(self._byteorder + ("u2" if tensor.dtype == "bf16" else tensor.dtype))
        numbers = np.frombuffer(data, kind, count=len(data) // kind.itemsize)
        first = numbers[tensor.offset :] if 0 not in tensor.shape else numbers[:0]
        strides = [stride * kind.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(first, tensor.shape, strides, writeable=False)
        if tensor.dtype == "bf16":  # the upper half of a float32
            return (view.astype(np.uint32) << 16).view(np.float32)
        return view

    def _storage(self, storage: Storage) -> bytes:
        if (data := self._read.get(storage.key)) is not None:
            return data
        member = self._members.get(storage.key)
        size = storage.numel * ITEM_BYTES[storage.dtype]
        if member is None or member.size < size:
            there = "isn't there" if member is None else f"has {member.size:,} bytes of {size:,}"
            raise _refusal(self._action, f"the storage '{storage.key}' {there}")
        self._left -= member.size
        if self._left < 0:
            raise _refusal(self._action, "its members overlap")
        try:
            data = self._read[storage.key] = _content(self._stream, member)[:size]
        except PickledDataError as error:
            raise _refusal(self._action, str(error)) from error
        return data


def open_torch_file(path: Path, action: str) -> TorchFile:
    """Read a file's content except its tensors' numbers.

    Raises:
        ModelError: not a file of torch.save, damaged, or with more in it than tensors and plain data.
    """
    stream = path.open("rb")
    try:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_BYTES:
            raise ModelError(action, f"the file is larger than {MAX_BYTES >> 30} GiB", "vitedge is for compact models")
        start = stream.read(4)
        stream.seek(0)
        if start == _ZIP:
            return _open_zip(stream, size, action)
        if start[:1] == _PICKLE:
            return _open_sequence(stream, size, action)
        raise PickledDataError("it's neither a zip archive nor a pickle")
    except RefusedNameError as error:
        stream.close()
        raise ModelError(action, f"{error}, which isn't read; it may hold {NAMES}", _way_out(error.name)) from error
    except PickledDataError as error:
        stream.close()
        raise _refusal(action, str(error)) from error
    except BaseException:
        stream.close()
        raise


def _way_out(name: str) -> str:
    package = name.partition(".")[0]
    if package == "ultralytics":
        return "export it: yolo export format=onnx, and import the ONNX file"
    return f"{_SAVE_AGAIN} (timm: clean_checkpoint.py --checkpoint FILE --safetensors)"


def _refusal(action: str, reason: str) -> ModelError:
    return ModelError(action, f"it isn't a sound file of torch.save: {reason}", f"copy it again, or {_SAVE_AGAIN}")


# --- the zip archive -------------------------------------------------------------------------------------------------


def _open_zip(stream: BinaryIO, size: int, action: str) -> TorchFile:
    members = _directory(stream, size)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    folder = pickles[0].removesuffix("data.pkl") if pickles else ""
    if f"{folder}constants.pkl" in members and pickles:
        raise ModelError(action, "it's a TorchScript program, not a checkpoint", "export the model to ONNX")
    if len(pickles) != 1:
        raise PickledDataError("the archive has no data.pkl")
    if members[pickles[0]].size > MAX_PICKLE_BYTES:
        raise PickledDataError(f"its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB")
    content = read_pickled_data(io.BytesIO(_content(stream, members[pickles[0]])))
    written = members.get(f"{folder}byteorder")  # torch before 2.1 has none
    big = written is not None and written.size == 3 and _content(stream, written) == b"big"
    prefix = f"{folder}data/"
    storages = {name.removeprefix(prefix): member for name, member in members.items() if name.startswith(prefix)}
    return TorchFile(content, stream, storages, ">" if big else "<", action, size)


def _content(stream: BinaryIO, member: _Member) -> bytes:
    stream.seek(member.offset)
    data = stream.read(member.size)
    if len(data) < member.size or (member.crc and zlib.crc32(data) != member.crc):
        raise PickledDataError("it's damaged: what is stored in it has another checksum")
    return data


def _directory(stream: BinaryIO, size: int) -> dict[str, _Member]:
    """Return the members of a zip archive (APPNOTE 6.3.10, sections 4.3 and 4.5.3), only uncompressed ones."""
    count, offset, length = _end_of_directory(stream, size)
    if length > _MAX_DIRECTORY_BYTES or offset + length > size:
        raise PickledDataError("its directory is damaged")
    stream.seek(offset)
    data = stream.read(length)
    members: dict[str, _Member] = {}
    place = 0
    for _ in range(count):
        if data[place : place + 4] != b"PK\x01\x02" or len(data) < place + 46:
            raise PickledDataError("its directory is damaged: the file is cut off or was written over")
        flags, method, crc, packed, unpacked, names, extras, comments, header = struct.unpack_from(
            "<HH4xIIIHHH8xI", data, place + 8
        )
        name = data[place + 46 : place + 46 + names].decode("utf-8", "replace")
        extra = data[place + 46 + names : place + 46 + names + extras]
        place += 46 + names + extras + comments
        unpacked, packed, header = _zip64(extra, unpacked, packed, header)
        if method != 0 or packed != unpacked or flags & 1:
            raise PickledDataError(f"its member '{name[:80]}' is compressed or encrypted, which torch doesn't write")
        stream.seek(header)
        local = stream.read(30)
        if len(local) < 30 or local[:4] != _ZIP:
            raise PickledDataError(f"its member '{name[:80]}' isn't where its directory says")
        start = header + 30 + sum(struct.unpack_from("<HH", local, 26))
        if start + unpacked > size:
            raise PickledDataError(f"its member '{name[:80]}' is cut off")
        members[name] = _Member(start, unpacked, crc)
    return members


def _zip64(extra: bytes, *values: int) -> list[int]:
    """Return sizes and offset, from the extra field where they don't fit 32 bits."""
    wide: list[int] = []
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1 and place + 4 + length <= len(extra):
            wide = [*struct.unpack_from(f"<{length // 8}Q", extra, place + 4)]
        place += 4 + length
    if len(wide) < values.count(0xFFFFFFFF):
        raise PickledDataError("its directory is damaged")
    return [wide.pop(0) if value == 0xFFFFFFFF else value for value in values]


def _end_of_directory(stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return the number of members, and offset and length of their directory in bytes."""
    first = max(0, size - 22 - 0xFFFF)
    stream.seek(first)
    tail = stream.read(size - first)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + 22:
        raise PickledDataError("it's cut off: the archive has no directory")
    count, length, offset = struct.unpack_from("<HII", tail, place + 10)
    locator = place - 20
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        (record,) = struct.unpack_from("<Q", tail, locator + 8)
        stream.seek(min(record, size))
        wide = stream.read(56)
        if len(wide) < 56 or wide[:4] != b"PK\x06\x06":
            raise PickledDataError("its directory is damaged")
        count, length, offset = struct.unpack_from("<QQQ", wide, 32)
    return count, offset, length


# --- the older sequence of pickles -----------------------------------------------------------------------------------


def _open_sequence(stream: BinaryIO, size: int, action: str) -> TorchFile:
    """Read magic number, protocol, machine, object, keys of the storages; then each storage after its length."""
    if read_pickled_data(stream) != _MAGIC:
        raise PickledDataError("it's a pickle, but not one of torch.save")
    version, system = read_pickled_data(stream), read_pickled_data(stream)
    if version != 1001 or not isinstance(system, dict):
        raise PickledDataError("it's of another version")
    described: dict[str, Storage] = {}
    content = read_pickled_data(stream, described)
    keys = read_pickled_data(stream)
    order = "<" if system.get("little_endian", True) else ">"
    members: dict[str, _Member] = {}
    place = stream.tell()
    for key in keys if isinstance(keys, list) else []:
        storage = described.get(key) if isinstance(key, str) else None
        stream.seek(place)
        length = stream.read(8)
        if (
            storage is None
            or len(length) < 8
            or int.from_bytes(length, "little" if order == "<" else "big") != storage.numel
        ):
            raise PickledDataError("its storages are damaged or cut off")
        members[storage.key] = _Member(place + 8, storage.numel * ITEM_BYTES[storage.dtype], 0)
        place += 8 + members[storage.key].size
    if place > size:
        raise PickledDataError("its storages are cut off")
    return TorchFile(content, stream, members, order, action, size)
