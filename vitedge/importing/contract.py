"""Make one preprocessing contract from a source's own values and the importer's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from vitedge.data.preprocessing import Preprocessing
from vitedge.errors import UsageError


def contract_of(options: Mapping[str, Any], action: str) -> Preprocessing:
    """Return the contract with these fields.

    Raises:
        UsageError: an unknown field, or a value out of its range.
    """
    try:
        return msgspec.convert(dict(options), Preprocessing, from_attributes=True)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(action, f"the preprocessing is wrong: {error}", "run: vitedge import --help") from error
