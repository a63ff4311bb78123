"""The null runtime has no limits to check."""

from __future__ import annotations

from vitedge.formats.target import Target


def check(graph: bytes, target: Target) -> list[str]:
    """Return no findings."""
    return []
