"""An artifact of the null runtime holds no network, so that the harness can be tried without one."""

from __future__ import annotations

from vitedge._version import __version__
from vitedge.runtimes.base import Lowered, Request

VARIANTS = ("null",)


def lower(request: Request) -> Lowered:
    """Write one empty file: the session needs the manifest alone."""
    return Lowered(
        graph="null.graph",
        files={"null.graph": b""},
        layers=(),
        runtime_options={},
        built_with={"vitedge": __version__},
    )
