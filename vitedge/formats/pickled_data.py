"""Read the data in a pickle without running it: no name is imported, no function called, no object made.

A pickle is a program for a small machine with a stack. This is a machine of its own for the instructions that
``torch.save`` writes (pickle protocols 2 to 5, PEP 307 and 3154). A name in the program stays a name; the few names of
:data:`NAMES` that a checkpoint needs become tensors and mappings here, and any other is refused. Memory and time grow
with the length of the program alone: nothing in it is hashed, copied or printed as a whole.
"""

from __future__ import annotations

import pickletools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_OPERATIONS = 1_000_000  # of at most about 100 bytes; a tensor takes 30
_MAX_INT = 1 << 60  # of keys and shapes: larger keys can be chosen so that all of them collide
_MAX_NAME = 200  # characters
_MAX_ARGUMENTS = 16
_MAX_AXES = 8


class PickledDataError(ValueError):
    """The program isn't sound, or needs more than data."""


class RefusedNameError(PickledDataError):
    """A name isn't one of :data:`NAMES`."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"it holds an object of '{name[:80]}'")


@dataclass(frozen=True, slots=True)
class Global:
    """A name of the program: ``torch.FloatStorage``."""

    name: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object that isn't read, such as a path or a NumPy scalar; only its class's name is known."""

    name: str


@dataclass(slots=True)
class Attributes:
    """The attributes of an ``argparse.Namespace``."""

    values: Any = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers in the file."""

    key: str
    dtype: str  # of DTYPES' values; "bytes" where each tensor says its own
    numel: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in the file: the place of its numbers, not the numbers themselves. Within its storage."""

    storage: Storage
    dtype: str
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


#: torch's names of types, and NumPy's; "bf16" is the upper half of a float32.
DTYPES = {
    "float64": "f8", "double": "f8", "float32": "f4", "float": "f4", "float16": "f2", "half": "f2", "bfloat16": "bf16",
    "int64": "i8", "long": "i8", "int32": "i4", "int": "i4", "int16": "i2", "short": "i2", "int8": "i1", "char": "i1",
    "uint8": "u1", "byte": "u1", "bool": "?", "uint16": "u2", "uint32": "u4", "uint64": "u8",
}  # fmt: skip
ITEM_BYTES = {"f8": 8, "f4": 4, "f2": 2, "bf16": 2, "i8": 8, "i4": 4, "i2": 2, "i1": 1, "u1": 1, "?": 1,
              "u2": 2, "u4": 4, "u8": 8, "bytes": 1}  # fmt: skip


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_INT


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: Any = None) -> Tensor:
    """Apply ``torch._utils._rebuild_tensor``, checked, so that reading the tensor needs no more than its storage."""
    if not isinstance(storage, Storage):
        raise PickledDataError("a tensor has no storage")
    for numbers in (shape, strides, (offset,)):
        if not isinstance(numbers, tuple) or len(numbers) > _MAX_AXES or not all(map(_is_count, numbers)):
            raise PickledDataError("the shape of a tensor isn't made of a few whole numbers")
    if len(shape) != len(strides):
        raise PickledDataError(f"a tensor has {len(shape)} axes and {len(strides)} strides")
    kind = storage.dtype if dtype is None else dtype
    numel, last, capacity = 1, offset, storage.numel * ITEM_BYTES[storage.dtype] // ITEM_BYTES[kind]
    for length, stride in zip(shape, strides, strict=True):
        numel, last = numel * length, last + max(0, length - 1) * stride
    if numel and (last >= capacity or numel > capacity):
        raise PickledDataError(f"a tensor of shape {list(shape)} is larger than its storage of {capacity} numbers")
    return Tensor(storage, kind, offset, shape, strides)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any) -> Tensor:
    """Apply ``torch._utils._rebuild_tensor_v3``: bytes, with the type beside."""
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if name not in DTYPES:
        raise PickledDataError(f"a tensor is of the type '{name[:40]}', which isn't read")
    return _tensor(storage, offset, shape, strides, dtype=DTYPES[name])


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    """Apply ``torch._tensor._rebuild_from_type_v2``: the value of its inner call, without class and attributes."""
    if not isinstance(function, Global) or not function.name.startswith("torch._utils."):
        raise PickledDataError("a tensor is made in a way that isn't torch's")
    return _called(function, arguments)


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """Return an empty mapping, which is filled afterwards, or a copy of another one."""
    if arguments and isinstance(arguments[-1], list):
        raise PickledDataError("a mapping is written as Python 2 wrote them")
    return arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": lambda *arguments: arguments[0] if len(arguments) == 1 else (),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "builtins.dict": _mapping,
    "argparse.Namespace": lambda *_: Attributes(),
    "lightning.fabric.utilities.data.AttributeDict": _mapping,
    "lightning_fabric.utilities.data.AttributeDict": _mapping,
    "pytorch_lightning.utilities.parsing.AttributeDict": _mapping,
}
#: Names that a checkpoint may hold beside those; what they stand for isn't read.
_INERT = re.compile(
    r"torch\.(cuda\.)?[A-Z]\w*Storage|torch\.storage\.(Untyped|Typed)Storage|torch\.(Tensor|device|dtype|strided)|"
    r"torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout|"
    rf"torch\.({'|'.join(DTYPES)}|float8_\w+|complex\d+)|"
    r"numpy\.(_?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)|ndarray|dtype|dtypes\.\w+|\w+\d+)|_codecs\.encode|"
    r"pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|datetime\.(datetime|date|time|timedelta|timezone)|"
    r"(builtins|__builtin__)\.(set|frozenset|complex|bytearray|int|float|str|bool|list|tuple|object)|"
    r"collections\.deque|typing\.Any|omegaconf\.[\w.]+"
)
#: All names that a checkpoint may hold, in words.
NAMES = (
    "torch's tensors, storages and types; OrderedDict, defaultdict, Counter, deque and Python's own types; "
    "argparse.Namespace; NumPy scalars and arrays; paths, dates, omegaconf"
)


def _named(module: str, name: str) -> Global:
    if len(module) + len(name) > _MAX_NAME:
        raise PickledDataError("it holds a name that is too long")
    name = f"{module}.{name}"
    if name not in _CALLS and not _INERT.fullmatch(name):
        raise RefusedNameError(name)
    return Global(name)


def _called(function: Any, arguments: Any) -> Any:
    """Return the value of a call in the program."""
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise PickledDataError("it calls something that has no name")
    if len(arguments) > _MAX_ARGUMENTS and function.name in _CALLS:
        raise PickledDataError(f"'{function.name}' is called with {len(arguments)} arguments")
    call = _CALLS.get(function.name)
    if call is None:
        return Opaque(function.name)
    try:
        return call(*arguments)
    except TypeError as error:  # another number of arguments
        raise PickledDataError(f"'{function.name}' is called with {len(arguments)} arguments") from error


def _set_items(target: Any, values: list[Any]) -> None:
    """Put key, value, key, value, … into a mapping, except keys that aren't text or small numbers: hashing costs."""
    if not isinstance(target, dict):
        return
    for key, value in zip(values[::2], values[1::2], strict=True):
        if isinstance(key, str) or (isinstance(key, int) and abs(key) < _MAX_INT):
            target[key] = value


def _storage(reference: Any) -> Storage:
    """Return ``("storage", type, key, place, numel)``; older files have the relation of views as a sixth."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise PickledDataError("it refers to something that isn't a storage")
    _, type_, key, _, numel = reference[:5]
    if not isinstance(type_, Global) or not isinstance(key, str) or len(key) > _MAX_NAME or not _is_count(numel):
        raise PickledDataError("a storage isn't described by type, key and length")
    if reference[5:] not in ((), (None,)):
        raise PickledDataError("a storage is a view of another, as torch before 0.4 wrote them")
    kind = type_.name.rpartition(".")[2].removesuffix("Storage").lower()
    dtype = "bytes" if kind == "untyped" else DTYPES.get(kind)
    if dtype is None:
        raise PickledDataError(f"a storage is of the type '{type_.name}', which isn't read")
    return Storage(key, dtype, numel)


class _Machine:
    """The stack, the memo, and the effect of each instruction on them."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickledDataError("its program takes more than it has")
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        if not self.marks:
            raise PickledDataError("its program takes more than it has")
        first = self.marks.pop()
        values = self.stack[first:]
        del self.stack[first:]
        return values

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def frozen_set(self) -> None:
        self.pop_marked()
        self.stack.append(Opaque("builtins.frozenset"))

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise PickledDataError("its program takes what it never kept")
        self.stack.append(self.memo[index])

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        _set_items(self.top(), [key, value])

    def set_items(self) -> None:
        values = self.pop_marked()
        if len(values) % 2:
            raise PickledDataError("a key of a mapping has no value")
        _set_items(self.top(), values)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(_called(function, arguments))

    def call_with_keywords(self) -> None:
        self.pop()
        self.call()

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Attributes):
            target.values = state

    def name(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickledDataError("it names something by what isn't text")
        self.stack.append(_named(module, name))

    def persistent(self) -> None:
        storage = _storage(self.pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise PickledDataError(f"storage '{storage.key[:40]}' is described in two ways")
        self.stack.append(storage)


_IGNORED = ("PROTO", "FRAME")
_PUSHED = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_SET": lambda machine, _: machine.stack.append(Opaque("builtins.set")),
    "FROZENSET": lambda machine, _: machine.frozen_set(),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.pop_marked(),
    "DUP": lambda machine, _: machine.stack.append(machine.top()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_marked())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_marked()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_marked()),
    "ADDITEMS": lambda machine, _: machine.pop_marked(),
    "SETITEM": lambda machine, _: machine.set_item(),
    "BINPUT": lambda machine, index: machine.put(index),
    "LONG_BINPUT": lambda machine, index: machine.put(index),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "BINGET": lambda machine, index: machine.get(index),
    "LONG_BINGET": lambda machine, index: machine.get(index),
    "GLOBAL": lambda machine, name: machine.stack.append(_named(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.name(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "NEWOBJ_EX": lambda machine, _: machine.call_with_keywords(),
    "BUILD": lambda machine, _: machine.build(),
    "SETITEMS": lambda machine, _: machine.set_items(),
    "BINPERSID": lambda machine, _: machine.persistent(),
}


def read_pickled_data(stream: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Return the value that a pickle describes: numbers, text, lists, tuples, mappings and :class:`Tensor`.

    Args:
        stream: at the pickle's start; afterwards behind its end. Its rest bounds what is read.
        storages: filled with those that the pickle refers to, by key.

    Raises:
        RefusedNameError: a name that isn't one of :data:`NAMES`.
        PickledDataError: cut off, not a pickle, an instruction that torch.save doesn't write, or too long.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of text that is damaged
            return _run(machine, stream)
    except PickledDataError:
        raise
    except (ValueError, OverflowError) as error:  # pickletools' own: cut off, or no instruction
        raise PickledDataError(f"its pickle is damaged: {str(error)[:120]}") from error


def _run(machine: _Machine, stream: BinaryIO) -> Any:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MAX_OPERATIONS:
            raise PickledDataError(f"its pickle has more than {MAX_OPERATIONS:,} instructions")
        if opcode.name == "STOP":
            return machine.pop()
        if opcode.name in _PUSHED:
            machine.stack.append(argument)
        elif opcode.name not in _IGNORED:
            instruction = _INSTRUCTIONS.get(opcode.name)
            if instruction is None:
                raise PickledDataError(f"its pickle has the instruction {opcode.name}, which torch doesn't write")
            instruction(machine, argument)
    raise PickledDataError("its pickle has no end")
