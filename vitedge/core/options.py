"""Options as records: help text, unit and group beside type, bounds and default; all interfaces are made from them.

A field of a :class:`~vitedge.core.schema.Record` becomes an option of the command line when its type is annotated with
a :class:`Flag`. Bounds are msgspec's ``Meta``, so a command line, a file and a Python call refuse the same values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vitedge.core.schema import Record as Record
from vitedge.core.schema import load_toml
from vitedge.errors import UsageError, nearest

R = TypeVar("R", bound=Record)
TIME = "time"  # how the command line calls a value that :func:`parse_time` reads


@dataclass(frozen=True)
class Flag:
    """The command line's text about a field, beside its type, bounds and default.

    Args:
        help: one sentence that stands alone.
        names: its spellings; without them ``--field-name``.
        group: the heading that it stands under.
        unit: of a number, or what a text is: shown in place of its type.
        default: what None, or an empty list, stands for.
        parse: from the command line's text to the field's value; it raises a :class:`~vitedge.errors.UsageError`.
    """

    help: str
    names: tuple[str, ...] = ()
    group: str = ""
    unit: str = ""
    default: str = ""
    parse: Callable[[str], Any] | None = None


def parse_time(text: str) -> float:
    """Parse ``90``, ``90s``, ``10m`` or ``1h`` as seconds.

    Raises:
        UsageError: another text.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([smh]?)", text.strip())
    if match is None:
        raise UsageError("read a time", f"'{text}' isn't one", "write 90, 90s, 10m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def time_flag(help: str, names: tuple[str, ...] = (), *, group: str = "", default: str = "") -> Flag:
    """Return the :class:`Flag` of a field that holds seconds; the command line takes minutes and hours, too."""
    return Flag(help, names, group, TIME, default, parse_time)


def filled(kind: type[R], fields: Mapping[str, Any], base: R | None = None, *, action: str, verb: str) -> R:
    """Return a record with some fields given and the others as in ``base``, everything checked.

    Args:
        kind: the record.
        fields: by Python's names. Paths become text and lists tuples.
        base: None: the defaults.
        action: for error texts: ``export a model``.
        verb: of the command line, for error texts.

    Raises:
        UsageError: an unknown name, or a value that isn't possible.
    """
    hint = f"see: vitedge {verb} --help"
    for name in fields:
        if name not in kind.__struct_fields__:
            suggestion = nearest(name, kind.__struct_fields__)
            raise UsageError(action, f"there is no option '{name}'{suggestion}", hint)
    values = {} if base is None else {name: getattr(base, name) for name in kind.__struct_fields__}
    values |= {name: os.fspath(value) if isinstance(value, Path) else value for name, value in fields.items()}
    encoded = dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))
    try:
        return msgspec.convert({encoded[name]: value for name, value in values.items()}, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        option = f"--{place.rstrip('`').replace('_', '-')}: " if place else ""
        raise UsageError(action, f"{option}{reason or 'a value is wrong'}", hint) from error


def from_file(kind: type[R], path: str | Path | None, fields: Mapping[str, Any], *, action: str, verb: str) -> R:
    """Read a record from a TOML file, with ``fields`` in place of its own.

    Args:
        kind: the record.
        path: the file; None: the defaults.
        fields: by Python's names.
        action: for error texts.
        verb: of the command line, for error texts.

    Raises:
        UsageError: an unreadable file, an unknown key, a value that isn't possible.
    """
    base = None if path is None else load_toml(Path(path), kind, action)
    return filled(kind, fields, base, action=action, verb=verb)
