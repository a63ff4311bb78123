"""Nothing to check before flight: nothing flies."""

from __future__ import annotations

from vitedge.formats.target import Target


def check(graph: bytes, target: Target) -> list[str]:
    """No findings, ever."""
    return []
