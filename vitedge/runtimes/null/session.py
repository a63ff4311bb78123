"""A session that computes nothing, and the faults that can be planted in it to try a harness.

Options (``OpenOptions.options``), all off by default:

- ``latency_ms``: each inference waits so long;
- ``drift_ms``: and so much longer than the one before it;
- ``cached``: every answer is the first one's, whatever the picture;
- ``remembers``: the last picture is answered again at once, without ``latency_ms``;
- ``another``: the answers are another model's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vitedge.errors import UsageError, nearest
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import Option
from vitedge.runtimes.base import Executed, LayerTime, OpenOptions, Stages
from vitedge.runtimes.null.detect import installed
from vitedge.runtimes.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAULTS: dict[str, Option] = {
    "latency_ms": 0.0,
    "drift_ms": 0.0,
    "cached": False,
    "remembers": False,
    "another": False,
}


def read_contract(artifact: Artifact) -> dict[str, str] | None:
    """Return None: the null graph carries no copy of the contract."""
    return None


def open_backend(artifact: Artifact, options: OpenOptions) -> NullBackend:
    """Open a backend with the artifact's shapes; its graph isn't read.

    Raises:
        UsageError: an option that isn't one of :data:`FAULTS`, or a value of another kind.
    """
    manifest = artifact.manifest
    own = manifest.runtime_options if manifest.target.runtime == "null" else {}  # another runtime's mean nothing here
    planted = {**FAULTS, **own, **options.options}
    for key, value in planted.items():
        if key not in FAULTS or isinstance(value, (bool, str)) is not (FAULTS[key] is False):
            raise UsageError(
                f"open the artifact {artifact.path}",
                f"the null runtime has no option '{key}' = {value!r}{nearest(key, FAULTS)}",
                f"use {', '.join(FAULTS)}",
            )
    return NullBackend(
        manifest.batch,
        len(manifest.classes),
        planted,
        device=options.device or manifest.target.device,
        threads=options.threads or 1,
    )


def null_session(like: Artifact, **faults: Option) -> Session:
    """Return a null session with the shapes of ``like``: times measured with it are the harness's overhead."""
    options = {**FAULTS, **faults}  # none of those that are planted in the artifact itself
    return Session(like, open_backend(like, OpenOptions(device="null", options=options)))


class NullBackend:
    """One-hot logits chosen by each picture's first byte: different pictures, different answers, no arithmetic."""

    def __init__(self, batch: int, classes: int, planted: Mapping[str, Option], *, device: str, threads: int) -> None:
        self.batch, self.slots = batch, 1
        self.info: Mapping[str, Option] = {
            "runtime": "null",
            "version": str(installed()),
            "device": device,
            "threads": threads,
            **planted,
        }
        self._answers = np.eye(classes, dtype=np.float32)[np.arange(256) % classes]  # [256, classes]
        self._wait_s, self._drift_s = (float(planted[key]) / 1000 for key in ("latency_ms", "drift_ms"))
        self._cached, self._first = planted["cached"], np.empty((0, classes), np.float32)
        self._remembers, self._last = planted["remembers"], b""
        if planted["another"]:
            self._answers = np.roll(self._answers, 1, axis=1)
        self._tickets = itertools.count()
        self._done: dict[int, NDArray[np.float32]] = {}

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Stages]:
        """Run the contract's ``infer``."""
        start = time.perf_counter_ns()
        again = False
        if self._remembers:
            previous, self._last = self._last, images.tobytes()
            again = previous == self._last
        if (self._wait_s or self._drift_s) and not again:
            time.sleep(self._wait_s)
            self._wait_s += self._drift_s
        logits = self._answers[images[:, 0, 0, 0]]
        if self._cached:
            self._first = logits = self._first if len(self._first) else logits
        return logits, Stages(None, time.perf_counter_ns() - start, None)

    def submit(self, images: NDArray[np.uint8]) -> int:
        """Run the contract's ``submit``; the logits are ready at once."""
        ticket = next(self._tickets)
        self._done[ticket] = self.infer(images)[0].copy()
        return ticket

    def wait(self, ticket: int) -> None:
        """Do nothing: no inference is ever in flight, see :meth:`submit`."""

    def collect(self, ticket: int) -> NDArray[np.float32]:
        """Run the contract's ``collect``."""
        return self._done.pop(ticket)

    def executed(self) -> list[Executed]:
        """Return an empty list: no node is executed."""
        return []

    def profile(self, images: NDArray[np.uint8], repeats: int) -> list[list[LayerTime]]:
        """Return empty lists: no node takes time."""
        return [[] for _ in range(repeats)]

    def close(self) -> None:
        """Run the contract's ``close``."""
        self._done.clear()
