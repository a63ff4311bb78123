"""A file of torch.save is read as data: equal to what torch reads, nothing run, and bounded by the file's size."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mutants import mutate
from vitedge.core.isolation import run_isolated
from vitedge.errors import ModelError
from vitedge.formats.pickled_data import PickledDataError, RefusedNameError, Tensor, read_pickled_data
from vitedge.formats.torch_file import open_torch_file

START = b"\x80\x02"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def storage(key: str = "0", kind: str = "FloatStorage", numel: int = 6) -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor(
    shape: tuple[int, ...] = (2, 3), strides: tuple[int, ...] = (3, 1), offset: int = 0, **of_storage: Any
) -> bytes:
    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides)]
    hooks = name("collections", "OrderedDict") + b")R"
    arguments = storage(**of_storage) + number(offset) + numbers[0] + numbers[1] + b"\x89" + hooks
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def saved(value: bytes) -> bytes:
    """{"w": value}"""
    return START + b"}" + text("w") + value + b"s."


def archive(path: Path, program: bytes, members: dict[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("a/data.pkl", program)
        for key, data in (members or {"0": np.arange(6, dtype="<f4").tobytes()}).items():
            file.writestr(f"a/data/{key}", data)
    return path


def read(path: Path) -> np.ndarray:
    with open_torch_file(path, "test") as file:
        return np.array(file.array(file.content["w"]))


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as found:
        read(path)
    assert found.value.exit_code == 3 and found.value.hint
    return found.value.reason


# --- what torch writes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_it_reads_what_torch_writes(new: bool, protocol: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch writes the files")
    import argparse
    import collections
    import datetime

    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": base.t(), "strided": base[1:3, ::2], "same": base, "bf16": base.bfloat16() / 7,
        "f16": base.half(), "f64": base.double(), "number": torch.tensor(3), "empty": torch.ones(0, 3),
        "bool": torch.tensor([True, False]),
        "u16": torch.ones(2, dtype=torch.uint16), "i8": torch.tensor([-3], dtype=torch.int8),
        "parameter": torch.nn.Parameter(base), "last": base[:, -1],
    }  # fmt: skip
    others = {
        "args": argparse.Namespace(lr=0.1, output=tmp_path), "metric": np.float64(71.5), "array": np.ones(3),
        "counter": collections.Counter("aab"), "ordered": collections.OrderedDict(a=1),
        "date": datetime.datetime(2026, 1, 1),
        "dtype": torch.float32, "device": torch.device("cpu"), "size": base.shape, "set": {1, 2}, "bytes": b"xx",
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.001}]},
        "default": collections.defaultdict(list, a=[1]),
    }  # fmt: skip
    path = tmp_path / "any.name"
    content = {"state_dict": tensors, **others}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    with open_torch_file(path, "test") as file:
        for key, expected in tensors.items():
            got = file.array(file.content["state_dict"][key])
            assert np.array_equal(got, expected.detach().to(torch.float64).numpy()), key
        assert file.content["args"].values["lr"] == 0.1
        assert (file.content["counter"], file.content["ordered"]) == ({"a": 2, "b": 1}, {"a": 1})
        assert file.content["optimizer"]["param_groups"][0]["lr"] == 0.001 and file.content["size"] == (4, 6)


def test_big_endian_numbers_and_files_without_a_checksum(tmp_path: Path) -> None:
    data = np.arange(6, dtype=">f4").tobytes()
    path = archive(tmp_path / "x.pt", saved(tensor()), {"0": data})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/byteorder", b"big")
    assert np.array_equal(read(path), np.arange(6).reshape(2, 3))
    raw = path.read_bytes().replace(struct.pack("<I", zipfile.crc32(data)), b"\0\0\0\0")  # type: ignore[attr-defined]
    path.write_bytes(raw)  # as torch.serialization.set_crc32_options(False) writes them
    assert np.array_equal(read(path), np.arange(6).reshape(2, 3))


# --- nothing is run --------------------------------------------------------------------------------------------------

HARMFUL = [
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"),
    ("builtins", "__import__"), ("subprocess", "Popen"), ("torch", "load"), ("torch.hub", "load"), ("numpy", "load"),
    ("torch._utils", "_import_dotted_name"), ("operator", "attrgetter"), ("functools", "partial"),
    ("copyreg", "_reconstructor"),
    ("pickle", "loads"), ("importlib", "import_module"), ("webbrowser", "open"), ("torch.nn.modules.linear", "Linear"),
    ("numpy.core.multiarray", "scalar.__class__"), ("torch", "storage._load_from_bytes"), ("argparse", "_sys.exit"),
    ("pathlib", "os.system"), ("collections", "namedtuple"), ("__main__", "Net"),
    ("transformers.training_args", "TrainingArguments"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "attribute"), HARMFUL, ids=lambda part: part)
def test_other_names_are_refused(module: str, attribute: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", saved(name(module, attribute) + b"(" + text("echo") + b"tR"))
    reason = refusal(path)
    assert f"'{module}.{attribute}'" in reason and "argparse.Namespace" in reason
    program = b"\x80\x04}" + text("w") + text(module) + text(attribute) + b"\x93(tRs."
    with pytest.raises(RefusedNameError):
        read_pickled_data(io.BytesIO(program))


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_harmful_pickle_does_nothing(protocol: int, tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    program = pickle.dumps({"w": Harm(harmed)}, protocol)
    with pytest.raises(PickledDataError):
        read_pickled_data(io.BytesIO(program))
    pickle.loads(program)
    assert harmed.exists()  # Python's own unpickler runs it


@pytest.mark.parametrize(
    "instruction", [b"i", b"o", b"\x82", b"\x83", b"\x84", b"P", b"\x97", b"\x98", b"I1\n", b"S'a'\n"]
)
def test_instructions_that_torch_does_not_write(instruction: bytes) -> None:
    with pytest.raises(PickledDataError):
        read_pickled_data(io.BytesIO(START + b"(" + instruction + b"x\n."))


#: Instructions of a random program: names that may stand there, their calls, and everything that moves the stack.
PIECES = [
    b"(", b")", b"t", b"l", b"d", b"}", b"]", b"\x85", b"\x86", b"\x87", b"R", b"b", b"\x81", b"\x92", b"s", b"u", b"a",
    b"e", b"0", b"1", b"2", b"N", b"\x88", b"K\x03", b"Q", b"q\x01", b"h\x01", b"\x94", b"h\x00", b"\x8f", b"\x90",
    b"\x91", b"\x93", text("storage"), text("0"), text("torch"), text("FloatStorage"), number(-1), number(1 << 70),
    storage(), tensor(), name("torch._utils", "_rebuild_tensor_v2"), name("torch._utils", "_rebuild_parameter"),
    name("torch._tensor", "_rebuild_from_type_v2"), name("collections", "OrderedDict"), name("argparse", "Namespace"),
    name("torch", "Size"), name("numpy", "dtype"), name("pathlib", "PosixPath"), name("builtins", "set"),
]  # fmt: skip
WATCHED = {
    "import",
    "exec",
    "compile",
    "open",
    "pickle.find_class",
    "os.system",
    "subprocess.Popen",
    "object.__getattr__",
}
_events: list[str] | None = None
sys.addaudithook(lambda event, _: _events.append(event) if _events is not None and event in WATCHED else None)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_random_programs_run_nothing(pieces: list[bytes]) -> None:
    global _events
    stream = io.BytesIO(START + b"".join(pieces) + b".")
    _events = []
    try:
        read_pickled_data(stream)
    except PickledDataError:
        pass
    finally:
        seen, _events = _events, None
    assert seen == []


# --- files that lie --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (tensor(shape=(2, 4), strides=(4, 1)), "larger than its storage of 6"),
        (tensor(offset=1), "larger than its storage"),
        (tensor(shape=(1000, 1000), strides=(0, 0)), "larger than its storage"),
        (tensor(shape=(1 << 40,), strides=(1,), numel=1 << 40), "has 24 bytes of"),
        (tensor(shape=(1 << 59,), strides=(1,), numel=1 << 59), "has 24 bytes of"),
        (tensor(shape=(1 << 70,), strides=(1,)), "a few whole numbers"),
        (tensor(shape=(-1, 3)), "a few whole numbers"),
        (tensor(shape=(2,)), "1 axes and 2 strides"),
        (tensor(shape=(1,) * 9, strides=(1,) * 9), "a few whole numbers"),
        (tensor(key="7"), "the storage '7' isn't there"),
        (tensor(kind="QInt8Storage"), "'torch.QInt8Storage'"),
        (tensor(kind="DoubleStorage"), "has 24 bytes of 48"),
        (name("torch._utils", "_rebuild_tensor_v2") + b")R", "called with 0 arguments"),
        (b"K\x05)R", "calls something that has no name"),
        (b"K\x05Q", "isn't a storage"),
        (b"\x85", "takes more than it has"),
        (b"h\x07", "never kept"),
        (b"", "takes more than it has"),
    ],
)
def test_tensors_that_lie(value: bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(archive(tmp_path / "x.pt", saved(value)))


def test_compressed_encrypted_and_other_archives(tmp_path: Path) -> None:
    squeezed = archive(tmp_path / "x.pt", saved(tensor()), compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(squeezed)
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    assert "no data.pkl" in refusal(tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as file:
        file.writestr("m/data.pkl", START + b"}.")
        file.writestr("m/constants.pkl", b"")
    assert "TorchScript" in refusal(tmp_path / "z.pt")


def test_a_flipped_bit_and_a_cut_are_found(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", saved(tensor()))
    whole = path.read_bytes()
    place = whole.index(np.arange(6, dtype="<f4").tobytes()) + 9
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert "checksum" in refusal(path)
    for length in range(4, len(whole)):
        path.write_bytes(whole[:length])
        assert "sound file of torch.save" in refusal(path)


def overlapping(folder: Path) -> Path:
    """A thousand members that are all the same bytes."""
    blob = bytes(1 << 20)
    values = b"".join(
        text(str(key)) + tensor((1 << 18,), (1,), key=str(key), numel=1 << 18) + b"s" for key in range(1000)
    )
    path = archive(folder / "x.pt", START + b"}" + values + text("w") + b"Ns.", {"0": blob})
    with zipfile.ZipFile(path, "a") as file:
        first = file.getinfo("a/data/0")
        for key in range(1, 1000):
            other = zipfile.ZipInfo(f"a/data/{key}")
            other.header_offset, other.file_size, other.compress_size, other.CRC = (
                first.header_offset, first.file_size, first.compress_size, first.CRC,
            )  # fmt: skip
            file.filelist.append(other)
        file._didModify = True  # type: ignore[attr-defined]
    return path


def read_all(path: Path) -> str:
    """What becomes of a file of which every tensor is read."""
    try:
        with open_torch_file(path, "test") as file:
            values = file.content.values() if isinstance(file.content, dict) else []
            arrays = [file.array(value) for value in values if isinstance(value, Tensor)]
            return f"{len(arrays)} tensors"
    except ModelError as error:
        return error.reason


def nested(opening: bytes, closing: bytes) -> Callable[[Path], Path]:
    return lambda folder: archive(folder / "x.pt", START + b"}" + text("w") + opening * 300_000 + closing + b"s.")


def program(body: bytes) -> Callable[[Path], Path]:
    return lambda folder: archive(folder / "x.pt", START + body)


DAG = b"K\x01q\x00" + b"".join(b"0h\x00h\x00\x86q\x00" for _ in range(64))  # a tuple of 2^64 leaves
BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "memo": (program(b"}r\xff\xff\xff\x7f."), "0 tensors"),
    "claimed bytes": (program(b"\x8e" + struct.pack("<Q", 1 << 62) + b"x."), "damaged"),
    "claimed frame": (program(b"\x95" + struct.pack("<Q", 1 << 62) + b"}."), "0 tensors"),
    "claimed integer": (program(b"\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"x."), "damaged"),
    "key of 2^64 leaves": (program(b"}" + DAG + b"Ns."), "0 tensors"),
    "value of 2^64 leaves": (program(b"}" + text("w") + DAG + b"s."), "0 tensors"),
    "call with 2^64 leaves": (program(b"}" + text("w") + name("torch", "Size") + DAG + b"Rs."), "0 tensors"),
    "deep tuples": (nested(b"", b"N" + b"\x85" * 300_000), "0 tensors"),
    "deep lists": (nested(b"]", b"a" * 299_999), "0 tensors"),
    "marks": (nested(b"(", b"."), ""),
    "too many instructions": (nested(b"N0N0", b"N"), "more than 1,000,000 instructions"),
    "long names": (
        program(b"}" + text("x" * 1_000_000) + b"q\x00" + b"h\x00h\x00\x93" * 100 + b"."), "a name that is too long"
    ),
    "large integers": (
        program(b"}" + number(1 << 8_000_000) + b"q\x00" + tensor(offset=5).replace(number(5), b"h\x00") + b"."),
        "a few whole numbers",
    ),
    "arguments": (
        program(
            b"(" + b"N" * 100_000 + b"tq\x00}" + (name("collections", "OrderedDict") + b"h\x00R0") * 3000 + b"."
        ),
        "100000 arguments",
    ),
    "updates": (
        program(
            b"}q\x00(" + b"".join(text(str(key)) + b"N" for key in range(50_000)) + b"u0}"
            + (name("argparse", "Namespace") + b")\x81h\x00b0") * 20_000 + b"."
        ),
        "0 tensors",
    ),
    "overlapping members": (overlapping, "its members overlap"),
}  # fmt: skip


def outcomes(folder: Path) -> dict[str, str]:
    found = {}
    for title, (make, _) in BOMBS.items():
        found[title] = read_all(make(folder))
    return found


def test_bombs_cost_no_more_than_their_files(tmp_path: Path) -> None:
    """In a child with 1 GiB of address space, in which Python and NumPy themselves need a half."""
    found = run_isolated(outcomes, tmp_path, timeout_s=200, memory_mb=1024)
    assert {title: words in found[title] for title, (_, words) in BOMBS.items()} == dict.fromkeys(BOMBS, True), found


def claims(folder: Path) -> Iterator[Path]:
    """Directories that claim more than there is."""
    path = archive(folder / "x.pt", saved(tensor()))
    whole = path.read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    first = whole.index(b"PK\x01\x02")
    for place, size in ((end + 8, 2), (end + 10, 2), (end + 12, 4), (end + 16, 4), (first + 20, 4), (first + 24, 4),
                        (first + 28, 2), (first + 30, 2), (first + 42, 4)):  # fmt: skip
        for claimed in (0xFF, 0x7F):
            path.write_bytes(whole[:place] + bytes([claimed]) * size + whole[place + size :])
            yield path


def test_directories_that_lie(tmp_path: Path) -> None:
    found = [read_all(path) for path in claims(tmp_path)]
    assert all("1 tensors" in words or "sound file" in words for words in found), found
    assert sum("sound file" in words for words in found) >= 14


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older"])
def test_mutated_files(new: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch writes the files")
    content = {"w": torch.arange(6.0).reshape(2, 3), "x": torch.ones(3).half(), "args": {"lr": 0.1}}
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    found = []
    for seed in range(400):
        path.write_bytes(mutate(whole, random.Random(seed)))
        found.append(read_all(path))
    refused = [words for words in found if not words.endswith(" tensors")]
    assert 100 < len(refused) < 400 and all(refused)
