"""The answers to one shard of pictures: a Parquet file with a row for each picture, and a header about the worker.

Of an evaluation with artifacts 1 to n the columns are

=================  ============================================================================================
``picture``        its name
``class``          its class folder, or the label in its shard
``sha256``         of the encoded picture; null where it couldn't be read
``label``          number of its class in the model
``predicted_1``…   number of the class of the largest logit; null where the picture couldn't be decoded
``answer_1``…      name of that class
``rank_1``…        classes before the true one; 0 is top-1 correct, below 5 is top-5 correct
=================  ============================================================================================

and of a classification ``picture``, ``labels`` and ``probabilities`` (lists, best first), and ``problem``: why it
couldn't be read, else empty. The header is JSON under the key ``vitedge`` of the file's metadata.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from vitedge._version import __version__
from vitedge.core.files import sha256
from vitedge.core.schema import Record, decode_json, encode_json, seal
from vitedge.errors import ArtifactError, NotInstalledError
from vitedge.formats.result import Accuracy, Environment
from vitedge.formats.target import Option

KEY = b"vitedge"
SUFFIX = ".parquet"


class Worker(Record):
    """The worker that answered: equal workers give equal answers."""

    artifacts: tuple[str, ...]  # digests
    sessions: tuple[dict[str, Option], ...]  # of each artifact: as read back from the runtime
    precision_executed: tuple[dict[str, float] | None, ...]
    versions: dict[str, str]  # python, vitedge, numpy


class Header(Record):
    """The facts that all answers in a file share."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    vitedge_version: str = __version__
    shard: str
    kind: str  # of the shard
    worker: Worker
    environment: Environment
    sums: tuple[Accuracy, ...] = ()  # of each artifact, without columns; empty: pictures without labels
    columns_digest: str = ""  # hex SHA-256 of all columns as JSON: Parquet's own checksums don't cover a whole file


def columns_of_evaluation(artifacts: int) -> dict[str, Any]:
    """Return name and Arrow type of each column."""
    import pyarrow as arrow

    columns = {"picture": arrow.string(), "class": arrow.string(), "sha256": arrow.string(), "label": arrow.int32()}
    for number in range(1, artifacts + 1):
        columns |= {
            f"predicted_{number}": arrow.int32(),
            f"answer_{number}": arrow.string(),
            f"rank_{number}": arrow.int32(),
        }
    return columns


def columns_of_classification() -> dict[str, Any]:
    """Return name and Arrow type of each column."""
    import pyarrow as arrow

    return {
        "picture": arrow.string(),
        "labels": arrow.list_(arrow.string()),
        "probabilities": arrow.list_(arrow.float32()),
        "problem": arrow.string(),
    }


def encode_answers(header: Header, types: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Encode columns, all of one length, as a Parquet file."""
    import pyarrow as arrow
    import pyarrow.parquet

    table = arrow.table({name: arrow.array(columns[name], kind) for name, kind in types.items()})
    header = replace(header, columns_digest=_digest(table.to_pydict()))
    stream = io.BytesIO()
    table = table.replace_schema_metadata({KEY: seal(encode_json(header))})
    pyarrow.parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def read_header(file: Path | bytes, name: str) -> Header:
    """Read the facts that all answers in a file share.

    Raises:
        as :func:`read_answers`; damaged columns aren't noticed.
    """
    return _read(file, name, [])[0]


def read_answers(file: Path | bytes, name: str) -> tuple[Header, dict[str, list[Any]]]:
    """Decode a file of :func:`encode_answers`.

    Raises:
        ArtifactError: damaged, something else, or written by a newer version.
        NotInstalledError: pyarrow isn't installed.
    """
    header, columns = _read(file, name, None)
    if _digest(columns) != header.columns_digest:
        raise _damaged(name, "they aren't what was written (their digest differs)")
    return header, columns


def _read(file: Path | bytes, name: str, columns: list[str] | None) -> tuple[Header, dict[str, list[Any]]]:
    """Return the header, and the named columns; None: all of them."""
    action = f"read the answers {name}"
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise NotInstalledError.for_extra(action, "pyarrow", "ray") from error
    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(file) if isinstance(file, bytes) else file) as parquet:
            head = (parquet.schema_arrow.metadata or {})[KEY]
            rows = parquet.read(columns=columns).to_pydict()
    except (arrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise _damaged(name, f"they can't be read: {type(error).__name__}: {error}") from error
    try:
        return decode_json(head, Header, action=action, file=name), rows
    except ArtifactError as error:
        raise _damaged(name, error.reason) from error


def _digest(columns: Mapping[str, list[Any]]) -> str:
    return sha256(msgspec.json.encode(columns, order="deterministic"))


def _damaged(name: str, reason: str) -> ArtifactError:
    hint = "remove this file, and run the command again with --resume"
    return ArtifactError(f"read the answers {name}", reason, hint)
