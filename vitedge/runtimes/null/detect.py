"""The null runtime is everywhere."""

from __future__ import annotations

from typing import Any

from vitedge._version import __version__

NAME = "the null runtime"
EXTRA = ""


def installed() -> str | None:
    """Return vitedge's own version: the null runtime is part of it."""
    return __version__


def runs_here(device: str) -> bool:
    """Return True: it runs on every device."""
    return True


def describe() -> dict[str, Any]:
    """Describe the runtime for the doctor."""
    return {"version": __version__}
