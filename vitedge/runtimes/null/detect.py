"""The null runtime is everywhere."""

from __future__ import annotations

from typing import Any

from vitedge._version import __version__

NAME = "the null runtime"
EXTRA = ""


def installed() -> str | None:
    """It's part of vitedge and has its version."""
    return __version__


def runs_here(device: str) -> bool:
    """On every device."""
    return True


def describe() -> dict[str, Any]:
    """For the doctor."""
    return {"version": __version__}
