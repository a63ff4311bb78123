"""Secrets in environment variables: who may read them, and what child processes inherit."""

from __future__ import annotations

import os

from vitedge.errors import UsageError

_secret_names: set[str] = set()


def secret(name: str, action: str, hint: str) -> str:
    """The value of a variable that holds a secret; no child process that starts afterwards inherits it.

    Args:
        name: of the variable.
        action: for the error text.
        hint: what the variable should hold.

    Raises:
        UsageError: it isn't set.
    """
    value = os.environ.get(name)
    if value is None:
        raise UsageError(action, f"the environment variable {name} isn't set", hint)
    _secret_names.add(name)
    return value


def for_children() -> dict[str, str]:
    """This process's environment without the variables that :func:`secret` has read."""
    return {name: value for name, value in os.environ.items() if name not in _secret_names}
