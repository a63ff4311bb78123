"""Detect whether an ONNX file keeps tensors in other files, from its bytes without the package onnx.

An artifact's graph has all its tensors inside. A runtime would open whatever file the graph names, beside what the
manifest's digests cover. Messages and field numbers: onnx.proto; wire format: protobuf's encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Message → number of a field → message in it, for the fields that lead to a tensor.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14  # fields of a tensor
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types
_MOST_NESTED = 100  # protobuf's own limit


def external_tensor(model: memoryview) -> str | None:
    """Return the name of the first tensor that isn't inside the model; None where all are.

    Raises:
        ValueError: the bytes aren't a protobuf message.
    """
    messages = [("model", model, 0)]
    while messages:
        kind, message, depth = messages.pop()
        if depth > _MOST_NESTED:
            raise ValueError("messages are nested too deeply")
        if kind == "tensor":
            if (name := _if_external(message)) is not None:
                return name
            continue
        inner = _MESSAGES[kind]
        for number, value in _fields(message):
            if number in inner and isinstance(value, memoryview):
                messages.append((inner[number], value, depth + 1))
    return None


def _if_external(tensor: memoryview) -> str | None:
    name, external = "", False
    for number, value in _fields(tensor):
        if number == _NAME and isinstance(value, memoryview):
            name = bytes(value).decode(errors="replace")
        external |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
    return name if external else None


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field; numbers of fixed length are skipped.

    Raises:
        ValueError: a field that isn't one, or is longer than its message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"no field has wire type {wire}")
        if number == 0 or at + length > len(message):
            raise ValueError("a field is longer than its message")
        if wire == _BYTES:
            yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the value, and the position of the next field."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise ValueError("a number is cut off")
