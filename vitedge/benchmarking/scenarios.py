"""The three scenarios as loops: run one block of inputs through a system; keep the raw times and some outputs.

The loops are lean, because what they cost is measured with every result (the null runtime goes through the same code).
They know neither model nor runtime.
"""

from __future__ import annotations

import contextlib
import gc
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitedge.runtimes.base import Stages

    Feed = Iterator[tuple[int, NDArray[np.uint8]]]  # (index of the frame, uint8 [batch, h, w, 3])

AUDIT_EVERY = 100  # one output of this number is audited


class System(Protocol):
    """The system under measurement."""

    def run_timed(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Stages]:
        """Run uint8 [batch, h, w, 3]; return float32 [batch, classes], owned, and the stages' nanoseconds."""
        ...

    def submit(self, images: NDArray[np.uint8]) -> int:
        """Start an inference; return its ticket."""
        ...

    def collect(self, ticket: int) -> NDArray[np.float32]:
        """Wait for the logits of a ticket."""
        ...


@dataclass
class BlockRecord:
    """The measurements of one block; times in nanoseconds of the monotonic clock, one entry for each inference."""

    start_ns: int = 0
    end_ns: int = 0
    arrivals: int = 0  # scheduled in ``camera``
    starts_ns: list[int] = field(default_factory=list)  # the call; in ``camera`` the scheduled arrival
    latencies_ns: list[int] = field(default_factory=list)
    stages: list[Stages] = field(default_factory=list)
    preprocess_ns: list[int] = field(default_factory=list)
    postprocess_ns: list[int] = field(default_factory=list)
    outputs: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)  # (index of the frame, its logits)


@dataclass(frozen=True)
class BlockLimits:
    """The limits of a block, which ends after both the duration and the minimum, or at the maximum."""

    duration_ns: int
    min_samples: int
    max_samples: int


def single(system: System, feed: Feed, limits: BlockLimits) -> BlockRecord:
    """Run with one inference in flight."""
    record, clock, run = BlockRecord(), time.perf_counter_ns, system.run_timed
    starts, latencies, stages = record.starts_ns, record.latencies_ns, record.stages
    minimum, maximum = limits.min_samples, limits.max_samples
    record.start_ns = end = clock()
    deadline = end + limits.duration_ns
    while (end < deadline or len(latencies) < minimum) and len(latencies) < maximum:
        index, images = next(feed)
        start = clock()
        logits, inside = run(images)
        end = clock()
        starts.append(start)
        latencies.append(end - start)
        stages.append(inside)
        if len(latencies) % AUDIT_EVERY == 1:
            record.outputs.append((index, logits))
    record.end_ns = end
    return record


def offline(system: System, feed: Feed, limits: BlockLimits, slots: int) -> BlockRecord:
    """Run with as many inferences in flight as there are slots; with one slot there's nothing to overlap."""
    if slots == 1:
        return single(system, feed, limits)
    record, clock = BlockRecord(), time.perf_counter_ns
    in_flight: deque[tuple[int, int, int]] = deque()  # (index of the frame, start, ticket), the oldest first

    def complete_oldest() -> int:
        index, start, ticket = in_flight.popleft()
        logits = system.collect(ticket)
        end = clock()
        record.starts_ns.append(start)
        record.latencies_ns.append(end - start)
        if len(record.latencies_ns) % AUDIT_EVERY == 1:
            record.outputs.append((index, logits))
        return end

    record.start_ns = end = clock()
    deadline = end + limits.duration_ns
    submitted = 0
    while (end < deadline or submitted < limits.min_samples) and submitted < limits.max_samples:
        index, images = next(feed)
        start = clock()
        in_flight.append((index, start, system.submit(images)))
        submitted += 1
        end = complete_oldest() if len(in_flight) == slots else clock()
    while in_flight:
        end = complete_oldest()
    record.end_ns = end
    return record


def camera(
    system: System,
    schedule: Sequence[tuple[int, int]],
    *,
    preprocess: Callable[[int], NDArray[np.uint8]],
    postprocess: Callable[[NDArray[np.float32]], Any],
    keep_every: int = AUDIT_EVERY,
) -> BlockRecord:
    """Take pictures as they arrive by a schedule, always the newest that has arrived; older ones are missed.

    Args:
        system: what answers.
        schedule: of each arrival (nanoseconds from the block's beginning, index of the picture), in order of time.
        preprocess: turns a picture into a frame uint8 [h, w, 3].
        postprocess: turns logits [1, classes] into predictions.
        keep_every: keep one of so many outputs for the audit.
    """
    record, clock, run = BlockRecord(arrivals=len(schedule)), time.perf_counter_ns, system.run_timed
    record.start_ns = clock()
    due_ns = [record.start_ns + offset for offset, _ in schedule]
    arrival = 0
    while arrival < len(schedule):
        now = clock()
        if now < due_ns[arrival]:
            time.sleep((due_ns[arrival] - now) / 1e9)
            continue
        arrival = bisect_right(due_ns, now) - 1  # the newest
        index = schedule[arrival][1]
        start = clock()
        frame = preprocess(index)
        prepared = clock()
        logits, inside = run(frame[None])
        answered = clock()
        postprocess(logits)
        end = clock()
        record.starts_ns.append(due_ns[arrival])
        record.latencies_ns.append(end - due_ns[arrival])
        record.stages.append(inside)
        record.preprocess_ns.append(prepared - start)
        record.postprocess_ns.append(end - answered)
        if (len(record.latencies_ns) - 1) % keep_every == 0:
            record.outputs.append((index, logits))
        arrival += 1
    record.end_ns = clock()
    return record


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Collect garbage now, and not before the end of this context."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
