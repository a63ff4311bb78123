"""The ``model/`` folder: ``model.onnx`` (float32, canonical, symbolic batch) and ``model.json``.

Whatever trained or published the ViT, from here on nothing needs torch. A model made by ``vitedge train`` also keeps
``model.safetensors``: float16 weights under timm's names, whose float32 upcast is what ``model.onnx`` holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import msgspec
from msgspec import field
from msgspec.structs import replace

from vitedge._version import __version__
from vitedge.core.files import FolderKind, locked, new_folder, read_whole, sha256, sha256_file, write_atomic
from vitedge.core.schema import Record, decode_json, encode_json, seal
from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import ModelError, UsageError
from vitedge.formats.architecture import ViTConfig

MODEL_ONNX, MODEL_JSON, MODEL_WEIGHTS = "model.onnx", "model.json", "model.safetensors"
MODEL_FOLDER = FolderKind("a model folder", (MODEL_ONNX, MODEL_JSON))


class ClassLabel(Record):
    """One class: its index among the logits, its folder in data sets (None when unknown), its name for people."""

    id: int
    folder: str | None
    name: str


def class_table(names: Sequence[str], folders: Sequence[str | None] | None = None) -> tuple[ClassLabel, ...]:
    """Return the table for logits in the order of ``names``; ``folders`` default to the names themselves."""
    folders = list(names) if folders is None else list(folders)
    return tuple(
        ClassLabel(id=index, folder=folder, name=name)
        for index, (name, folder) in enumerate(zip(names, folders, strict=True))
    )


def class_numbers(labels: Iterable[ClassLabel]) -> dict[str, int]:
    """Return the index among the logits by name and by folder; the folder wins over another class's name."""
    listed = list(labels)
    return {label.name: label.id for label in listed} | {label.folder: label.id for label in listed if label.folder}


#: What gives a model its class names, and its artifacts.
GIVE_NAMES = "run: vitedge label MODEL --labels FOLDER|FILE, then export again"


def numbered_classes(count: int) -> tuple[ClassLabel, ...]:
    """Return the table of a model whose classes have no names."""
    return class_table([f"class {index}" for index in range(count)], [None] * count)


def nameless(names: Iterable[str]) -> bool:
    """Whether names of classes are the numbers of :func:`numbered_classes`."""
    listed = list(names)
    return bool(listed) and all(re.fullmatch(r"class \d+", name) for name in listed)


def contract_metadata(preprocessing: Preprocessing, classes: Sequence[ClassLabel]) -> dict[str, str]:
    """Return the contract as strings, for ONNX ``metadata_props`` and OpenVINO's runtime info: copies for other tools.

    The manifest stays the authority; ``vitedge verify`` compares.
    """
    return {
        "vitedge.schema_version": "1",
        "vitedge.preprocessing": msgspec.json.encode(preprocessing, order="deterministic").decode(),
        "vitedge.classes": msgspec.json.encode([label.name for label in classes]).decode(),
    }


class Parity(Record):
    """The deviation of the imported graph's logits from the source's, on real pictures."""

    reference: str  # what was compared with: "numpy float64 forward", "source ONNX in ONNX Runtime", …
    images: int
    max_abs_difference: float
    relative: float  # largest absolute difference over largest absolute logit


class Origin(Record):
    """The origin of the model."""

    kind: str  # "train", "timm", "huggingface", "factory", "onnx", "embedded"
    source: str  # a name, never a path of the machine that imported it
    details: dict[str, Any] = field(default_factory=dict)  # rewrites made, operators left alone, revision, …
    parity: Parity | None = None


class ModelRecord(Record):
    """The contents of ``model.json``."""

    SCHEMA_VERSION: ClassVar[int] = 3  # 2: record_digest; 3: widths of each block
    schema_version: int = 2
    vitedge_version: str = __version__
    name: str
    classes: tuple[ClassLabel, ...]
    preprocessing: Preprocessing
    origin: Origin
    licence: str | None = None
    architecture: ViTConfig | None = None  # None: an imported graph that isn't a plain ViT of ours
    training: dict[str, Any] | None = None  # command, options, seed, epochs, environment
    accuracy: dict[str, Any] | None = None  # figures with the environment that they were taken in
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of every other file in the folder

    def __post_init__(self) -> None:
        if [label.id for label in self.classes] != list(range(len(self.classes))) or not self.classes:
            raise ValueError("classes must be numbered 0, 1, 2, … and there must be at least one")


@dataclass(frozen=True)
class Model:
    """An opened model folder whose digests were checked."""

    path: Path
    record: ModelRecord

    @classmethod
    def open(cls, path: str | Path) -> Model:
        """Open a model folder and check every digest.

        Raises:
            UsageError: there is no such folder.
            ModelError: not a model folder, a newer schema, a missing or altered file.
        """
        folder = Path(path)
        action = f"open the model {folder}"
        if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for names that are too long
            raise UsageError(action, "there is no such folder", "run: vitedge import SOURCE --out MODEL")
        record = read_model_record(folder, action)
        check_digests(folder, record.files, action, ModelError, "import or copy the model again")
        if MODEL_ONNX not in record.files:
            raise ModelError(action, f"{MODEL_JSON} doesn't list {MODEL_ONNX}", "import the model again")
        return cls(folder, record)

    @property
    def digest(self) -> str:
        """The hex SHA-256 that changes whenever anything about the model does, but not with the version of its file."""
        return sha256(encode_json(replace(self.record, schema_version=1)))

    @property
    def onnx_path(self) -> Path:
        """The canonical float32 graph."""
        return self.path / MODEL_ONNX


def read_model_record(folder: Path, action: str) -> ModelRecord:
    """Read ``model.json`` alone.

    Raises:
        ModelError: missing, malformed or newer.
    """
    try:
        data = read_whole(folder / MODEL_JSON, follow_links=False)
    except OSError as error:
        raise ModelError(
            action, f"{MODEL_JSON} can't be read: {error.strerror}", "run: vitedge import SOURCE --out MODEL"
        ) from error
    return decode_json(data, ModelRecord, action=action, file=MODEL_JSON, error_type=ModelError)


def check_digests(
    folder: Path, files: Mapping[str, str], action: str, error: type[ModelError] | Any, hint: str
) -> None:
    """Compare every listed file with its SHA-256; refuse links, and names that leave the folder.

    Raises:
        InputError: (as ``error``) the first file that differs, by name.
    """
    for name, expected in files.items():
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not parts:
            raise error(action, f"the file name {name} leaves the folder", hint)
        try:
            if any((folder / Path(*parts[:depth])).is_symlink() for depth in range(1, len(parts) + 1)):
                raise error(action, f"the file {name} is a link", hint)
            if not (folder / name).is_file():
                raise error(action, f"the file {name} is missing", hint)
            digest = sha256_file(folder / name)
        except OSError as reason:
            raise error(action, f"the file {name} can't be read: {reason.strerror}", hint) from reason
        if digest != expected:
            raise error(action, f"the file {name} isn't what was written (its SHA-256 differs)", hint)


def _as_written(record: ModelRecord, files: Mapping[str, str]) -> ModelRecord:
    """Return the record with the oldest schema version that suffices, so that older versions read uniform models."""
    narrowed = record.architecture is not None and bool(record.architecture.blocks)
    return replace(record, files=dict(files), schema_version=3 if narrowed else 2)


def write_model(
    out: str | Path, record: ModelRecord, files: Mapping[str, bytes], *, overwrite: bool = False, action: str = ""
) -> Model:
    """Write a model folder atomically and open it.

    Args:
        out: destination folder.
        record: its ``files`` are filled in here.
        files: content of every file beside ``model.json``; ``model.onnx`` is obligatory.
        overwrite: permit replacing an existing model folder.
        action: for error texts.

    Raises:
        UsageError, ResourceError: as :func:`vitedge.core.files.new_folder`.
    """
    out = Path(out)
    digests = {name: sha256(data) for name, data in sorted(files.items())}
    record = _as_written(record, digests)
    action = action or f"write the model {out}"
    with new_folder(out, MODEL_FOLDER, overwrite=overwrite, action=action) as folder:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        (folder / MODEL_JSON).write_bytes(seal(encode_json(record)))
    return Model.open(out)


def replace_record(model: Model, record: ModelRecord, action: str) -> Model:
    """Replace ``model.json`` of a model folder, atomically and sealed again; its other files don't change.

    Raises:
        ResourceError: disk, permission, or another process is writing there.
    """
    record = _as_written(record, model.record.files)
    folder = model.path.resolve()
    with locked(folder, action):
        write_atomic(folder / MODEL_JSON, seal(encode_json(record)), action)
    return Model.open(model.path)
