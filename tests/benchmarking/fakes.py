"""A clock that moves only when something takes time, and systems that take a known time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitedge.runtimes.base import Stages

MS = 1_000_000


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self, oversleep_ns: int = 0) -> None:
        self.now = 0
        self.oversleep_ns = oversleep_ns

    def perf_counter_ns(self) -> int:
        self.now += 10  # reading a clock takes time, too
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9) + self.oversleep_ns


class Fake:
    """Answers batch i of the frames with its first byte, after ``latency(how many were answered)`` nanoseconds."""

    def __init__(
        self, clock: Clock, latency: Callable[[int], int], name: str = "", log: list[str] | None = None
    ) -> None:
        self.clock, self.latency, self.name = clock, latency, name
        self.calls = 0
        self.log = [] if log is None else log
        self.busy_until = 0
        self.flying: dict[int, tuple[int, np.ndarray]] = {}

    def run_timed(self, images: np.ndarray) -> tuple[np.ndarray, Stages]:
        took = self.latency(self.calls)
        self.calls += 1
        self.log.append(self.name)
        self.clock.now += took
        return self.answer(images), Stages(1, took, None)

    def answer(self, images: np.ndarray) -> np.ndarray:
        return np.stack([images[:, 0, 0, 0], np.ones(len(images))], axis=1).astype(np.float32)

    def submit(self, images: np.ndarray) -> int:
        """Inferences overlap: one finishes every half of its latency."""
        took = self.latency(self.calls)
        self.busy_until = max(self.busy_until + took // 2, self.clock.now + took)
        self.calls += 1
        self.flying[self.calls] = (self.busy_until, self.answer(images))
        return self.calls

    def collect(self, ticket: int) -> np.ndarray:
        done, logits = self.flying.pop(ticket)
        self.clock.now = max(self.clock.now, done)
        return logits


def frames(count: int = 4) -> np.ndarray:
    """uint8 [count, 1, 2, 2, 3], all different."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None, None], (count, 1, 2, 2, 3)).copy()
