"""Read and write structured files: JSON records and TOML settings, checked against msgspec structs.

Unknown keys are errors with the nearest known one; a record written by a newer version is refused by name.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from vitedge.core.files import sha256
from vitedge.errors import ArtifactError, InputError, UsageError, nearest
from vitedge.installation import upgrade_hint

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - JetPack 6 has Python 3.10
    import tomli as tomllib

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: object) -> object:
        """Mark a class for type checkers; Python 3.10's standard library has no such decorator."""
        return lambda cls: cls


T = TypeVar("T")

#: A number above 0. Not ``gt=0``: msgspec compares with the smallest subnormal, which *is* 0 once a runtime has set
#: the processor to flush subnormals.
PositiveReal = Annotated[float, msgspec.Meta(ge=1e-9)]
Count = Annotated[int, msgspec.Meta(ge=0)]
PositiveCount = Annotated[int, msgspec.Meta(ge=1)]

_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`")
_MISSING = re.compile(r"missing required field `(?P<key>[^`]*)`")


class _KeywordOnly(msgspec.StructMeta):
    """A base that passes on ``kw_only``, the only option of a struct that msgspec doesn't inherit."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        return super().__new__(mcls, name, bases, namespace, **{"kw_only": True, **options})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Record(msgspec.Struct, metaclass=_KeywordOnly, frozen=True, forbid_unknown_fields=True):
    """Base of every structured value: immutable, keyword-only, and no unknown keys."""


def _known_keys(kind: Any, seen: set[Any] | None = None) -> set[str]:
    """Return every field name in ``kind`` and the structs inside it."""
    seen = set() if seen is None else seen
    if kind in seen:
        return set()
    seen.add(kind)
    keys: set[str] = set()
    info = msgspec.inspect.type_info(kind)
    stack: list[Any] = [info]
    visited: list[Any] = []
    while stack:
        node = stack.pop()
        if any(node is other for other in visited):
            continue
        visited.append(node)
        if isinstance(node, msgspec.inspect.StructType):
            for field in node.fields:
                keys.add(field.encode_name)
                stack.append(field.type)
        for attribute in ("item_type", "value_type", "types", "item_types"):
            child = getattr(node, attribute, None)
            if child is not None:
                stack.extend(child if isinstance(child, tuple) else [child])
    return keys


def _explain(error: Exception, kind: Any, text: str | None) -> tuple[str, str]:
    """Return (reason, hint) for a validation error; ``text`` is the TOML source, for line numbers."""
    message = str(error)
    where = ""
    path = re.search(r" - at `\$?\.?(?P<path>[^`]*)`", message)
    plain = message.split(" - at `")[0]
    if path and path["path"]:
        where = f" in [{path['path']}]"
    if unknown := _UNKNOWN.search(message):
        key = unknown["key"]
        line = _line_of(text, key)
        return f"unknown key '{key}'{where}{line}{nearest(key, _known_keys(kind))}", "correct or remove the key"
    if missing := _MISSING.search(message):
        return f"the key '{missing['key']}' is missing{where}", "add it; nothing is assumed"
    line = _line_of(text, path["path"].split(".")[-1].split("[")[0]) if path and path["path"] else ""
    plain = plain or "a value is wrong"
    return f"{plain[0].lower()}{plain[1:]}{where}{line}", "correct the value"


def _line_of(text: str | None, key: str) -> str:
    if text is not None and key:
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(rf"\s*(\[+\s*)?\"?{re.escape(key)}\"?\s*(=|\]|\.)", line):
                return f" (line {number})"
    return ""


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} isn't a finite number")
    return value


def load_toml(path: Path, kind: type[T], action: str) -> T:
    """Read ``path`` as TOML into ``kind``.

    Raises:
        UsageError: unreadable file, TOML syntax, unknown or missing key (with its line), value out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return msgspec.convert(tomllib.loads(text, parse_float=_finite), kind)
    except OSError as error:
        raise UsageError(action, f"{path} can't be read: {error.strerror}", "name a readable TOML file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(action, f"{path} isn't TOML: {error}", "correct the file") from error
    except RecursionError as error:
        raise UsageError(action, f"{path} is nested too deeply", "correct the file") from error
    except (msgspec.ValidationError, ValueError) as error:
        reason, hint = _explain(error, kind, text)
        raise UsageError(action, f"{path}: {reason}", hint) from error


def readable(name: str) -> str:
    """Return a file name as text that can be written: bytes that aren't UTF-8 as ``\\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def encode_json(value: Any) -> bytes:
    """Encode as deterministic, indented UTF-8 JSON with a final newline; other file names are made readable."""
    try:
        data = msgspec.json.encode(value, order="deterministic")
    except UnicodeEncodeError:
        data = msgspec.json.encode(_readable(msgspec.to_builtins(value)), order="deterministic")
    return msgspec.json.format(data, indent=2) + b"\n"


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {_readable(key): _readable(inner) for key, inner in value.items()}
    return [_readable(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def seal(text: bytes) -> bytes:
    """Return a record's JSON with ``record_digest`` as its last key: SHA-256 of all the others' canonical text.

    The digest detects corruption, not attackers. White space and the order of keys don't change it, nor do keys that a
    later version adds to the record. :func:`decode_json` checks it where it's there; version 0.1.0 wrote none.
    """
    end = text.rindex(b"}")
    digest = _canonical_digest(msgspec.json.decode(text))
    return text[:end].rstrip() + f',\n  "record_digest": "{digest}"\n}}'.encode() + text[end + 1 :]


def _canonical_digest(fields: Any) -> str:
    return sha256(msgspec.json.encode(fields, order="deterministic"))


def decode_json(
    data: bytes, kind: type[T], *, action: str, file: str, error_type: type[InputError] = ArtifactError
) -> T:
    """Decode a JSON record that carries ``schema_version``; a newer one is refused with the version that wrote it.

    Raises:
        InputError: (as ``error_type``) not JSON, wrong shape, altered, or written by a newer version.
    """
    newest = getattr(kind, "SCHEMA_VERSION", 1)
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.schema_version < 1:
            raise ValueError(f"schema version {head.schema_version} doesn't exist")
        if head.schema_version > newest:
            raise error_type(
                action,
                f"{file} has schema version {head.schema_version}; this vitedge reads up to {newest}",
                upgrade_hint(head.vitedge_version),
            )
        if head.record_digest is None:
            return msgspec.json.decode(data, type=kind)
        fields = msgspec.json.decode(data)
        del fields["record_digest"]
        if _canonical_digest(fields) != head.record_digest:
            raise error_type(
                action,
                f"{file} isn't what was written (its digest differs)",
                "copy it again, or make it again; if you edited it yourself, remove its key 'record_digest'",
            )
        return msgspec.convert(fields, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason, _ = _explain(error, kind, None)
        raise error_type(action, f"{file} isn't a valid record: {reason}", "make it again, or copy it again") from error


class _Head(msgspec.Struct):
    """The keys that are read first of any record, newer ones included."""

    schema_version: int
    vitedge_version: str = "?"
    record_digest: str | None = None  # of :func:`seal`
