"""TensorRT sessions: see :mod:`vitedge.runtimes._nvidia.session`."""

from __future__ import annotations

from vitedge.formats.artifact import Artifact
from vitedge.runtimes._nvidia import session
from vitedge.runtimes.base import Backend, OpenOptions
from vitedge.runtimes.tensorrt.detect import PACKAGE, installed

read_contract = session.read_contract


def open_backend(artifact: Artifact, options: OpenOptions) -> Backend:
    """Open an artifact on this machine's GPU; the engine is built once and kept in the cache."""
    return session.open_backend(PACKAGE, installed() or "", artifact, options)
