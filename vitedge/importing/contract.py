"""One preprocessing contract from all that a source and its importer say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import UsageError


def contract_of(options: Mapping[str, Any], action: str) -> Preprocessing:
    """The contract that these fields make.

    Raises:
        UsageError: an unknown field, or a value out of its range.
    """
    try:
        return msgspec.convert(dict(options), Preprocessing, from_attributes=True)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(action, f"the preprocessing is wrong: {error}", "run: vitedge import --help") from error
