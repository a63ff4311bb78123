"""Preprocessing options: command-line spellings, and the contract that options make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import UsageError


def preprocessing_options(
    *,
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    fill: str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Command-line spellings as fields of :class:`~vitedge.data.preprocessing.Preprocessing`; what is None is left out.

    Args:
        size: ``HEIGHT`` or ``HEIGHTxWIDTH`` in pixels.
        mean: three numbers with commas between.
        std: likewise.
        fill: three whole numbers, red, green, blue.
        **others: fields whose values need no parsing.

    Raises:
        UsageError: not numbers.
    """
    options = {name: value for name, value in others.items() if value is not None}
    if size is not None:
        sides = size.lower().replace("×", "x").split("x")
        if not all(side.strip().isdecimal() for side in sides) or len(sides) > 2:
            raise UsageError("set the input size", f"'{size}' isn't HEIGHT or HEIGHTxWIDTH", "write, say, --size 224")
        options["size"] = (int(sides[0]), int(sides[-1]))
    for name, text in (("mean", mean), ("std", std), ("fill", fill)):
        if text is None:
            continue
        try:
            options[name] = tuple((int if name == "fill" else float)(part) for part in text.split(","))
        except ValueError as error:
            hint = f"write, say, --{name} {'0,0,0' if name == 'fill' else '0.5,0.5,0.5'}"
            raise UsageError(f"set --{name}", f"'{text}' isn't three numbers with commas between", hint) from error
    return options


def contract_of(options: Mapping[str, Any], action: str) -> Preprocessing:
    """The contract that these fields make.

    Raises:
        UsageError: an unknown field, or a value out of its range.
    """
    try:
        return msgspec.convert(dict(options), Preprocessing, from_attributes=True)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(action, f"the preprocessing is wrong: {error}", "run: vitedge import --help") from error
