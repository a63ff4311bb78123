"""Addresses that hold secrets: they can come from the environment, and are shown without what is secret."""

from __future__ import annotations

import os

from vitedge.errors import UsageError


def from_environment(text: str, action: str) -> str:
    """The text, or the content of the environment variable that ``env:NAME`` names.

    Raises:
        UsageError: the variable isn't set.
    """
    if not text.startswith("env:"):
        return text
    value = os.environ.get(text.removeprefix("env:"))
    if value is None:
        raise UsageError(action, f"the environment variable {text.removeprefix('env:')} isn't set", "set it")
    return value.strip()
