"""Measure an artifact's memory: read in this process, or in one of its own where several are open."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitedge.core.isolation import ChildError, run_isolated
from vitedge.device.sensors import resident_bytes
from vitedge.formats.samples import Memory
from vitedge.runtimes.base import OpenOptions

TIMEOUT_S = 600.0


def memory_alone(path: Path, options: OpenOptions) -> Memory:
    """Open an artifact in a fresh process, run it a few times, and read that process's resident set.

    Everything is unknown when the process dies.
    """
    try:
        return run_isolated(_opened, str(path), options, timeout_s=TIMEOUT_S)
    except ChildError:
        return Memory(before_bytes=None, after_bytes=None, peak_bytes=None, alone=True)


def _opened(path: str, options: OpenOptions) -> Memory:
    from vitedge.runtimes.session import open_session

    before, _ = resident_bytes()
    with open_session(path, options) as session:
        for _ in range(3):
            session.run(np.zeros(session.input_shape, np.uint8))
        after, peak = resident_bytes()
    return Memory(before_bytes=before, after_bytes=after, peak_bytes=peak, alone=True)
