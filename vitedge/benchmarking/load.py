"""The load generator. It knows neither model nor runtime: something answers batches, and it's asked by rules.

The loops are lean, because what they cost is measured with every result (the null runtime goes through the same code).
Python's garbage collector rests inside a block and works between blocks; objects that existed before are frozen, so
that it finds little to do. A block that's interrupted is forgotten, so whatever has been kept is whole.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vitedge.benchmarking.arrivals import Arrivals
from vitedge.core.deviation import deviation
from vitedge.core.percentiles import samples_needed
from vitedge.formats.samples import Audit, Block, Rules, Samples, Warmup, join_audits, join_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitedge.runtimes.base import Stages

OVERHEAD_SAMPLES = 32  # inferences of the null runtime in one block
SIDE_SAMPLES = 8  # pictures preprocessed, and batches postprocessed, beside one block's inferences
AUDIT_EVERY = 100
REPEAT_PAIRS, REPEAT_SAMPLES = 8, 40  # turns of varied and of repeated input, and the most inferences in each
STEADY = 1.05  # largest ratio between the medians of three successive warm-up windows that counts as stable


class System(Protocol):
    """What is measured."""

    def run_timed(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Stages]:
        """Uint8 [batch, h, w, 3] to float32 [batch, classes], owned by the caller, and the stages' nanoseconds."""
        ...

    def submit(self, images: NDArray[np.uint8]) -> int:
        """Start an inference."""
        ...

    def collect(self, ticket: int) -> NDArray[np.float32]:
        """Wait for one."""
        ...


class Workload:
    """One system under measurement, what it's fed with, and what was measured so far.

    Args:
        system: what answers.
        frames: uint8 [k, batch, h, w, 3], fed in turn.
        expected: float32 [k, batch, classes], the answers of a reference run, or those of some frames by their index;
            None: outputs aren't audited.
        allowed_deviation: how far an answer may be from it, |difference| over the largest |expected|.
        preprocess: turns the i-th picture into a frame uint8 [h, w, 3].
        postprocess: turns logits [batch, classes] into predictions.
        slots: inferences that may be in flight in ``offline``.
        most: end a block after so many inferences.
        arrivals: when pictures arrive in ``camera``; None: at the steady rate of the rules.
    """

    def __init__(
        self,
        system: System,
        frames: NDArray[np.uint8],
        *,
        preprocess: Callable[[int], NDArray[np.uint8]],
        postprocess: Callable[[NDArray[np.float32]], Any],
        expected: NDArray[np.float32] | Mapping[int, NDArray[np.float32]] | None = None,
        allowed_deviation: float = 0.0,
        slots: int = 1,
        most: int | None = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        self.system, self.frames = system, list(frames)
        self.expected = dict(enumerate(expected)) if isinstance(expected, np.ndarray) else expected
        self._sparse = expected is not None and len(expected) < len(frames)
        self.preprocess, self.postprocess = preprocess, postprocess
        self.slots, self.most = slots, most if most is not None else 1 << 62
        self.warmup = Warmup(samples=0, duration_ns=0, stable=False)
        self._allowed, self._arrivals = allowed_deviation, arrivals
        self._before: Samples | None = None  # of an interrupted run that goes on
        self._audit_before: Audit | None = None
        self._taken: list[_Taken] = []
        self._checked = self._differing = 0
        self._deviation = 0.0
        self._pairs: list[list[tuple[int, ...]]] = []  # of turns: changing inputs, one repeated input

    # --- rules

    def go_on_from(self, samples: Samples, audit: Audit | None) -> None:
        """Count what an interrupted run had measured."""
        self._before, self._audit_before = samples, audit

    @property
    def elapsed_ns(self) -> int:
        """When the interrupted run's last block ended, on its own clock."""
        return self._before.blocks[-1].end_ns if self._before is not None and self._before.blocks else 0

    @property
    def measured_ns(self) -> int:
        """Time spent in whole blocks."""
        before = self._before.blocks if self._before is not None else ()
        return sum(block.end_ns - block.start_ns for block in before) + sum(
            taken.end - taken.begin for taken in self._taken
        )

    @property
    def count(self) -> int:
        """Inferences in whole blocks."""
        return len(self._before or ()) + sum(len(taken.latencies) for taken in self._taken)

    def progress(self, rules: Rules) -> float:
        """How much of what the rules demand is there; 1.0 and above is enough."""
        wanted = max(rules.min_samples, samples_needed(rules.percentile))
        by_time = self.measured_ns / (rules.min_duration_s * 1e9) if rules.min_duration_s else 1.0
        return min(by_time, self.count / wanted)

    # --- running

    def warm_up(self, rules: Rules) -> None:
        """Run untimed for at least ``rules.warmup_s``, until the rolling median is stable; five times that at most."""
        clock, frames = time.perf_counter_ns, itertools.cycle(self.frames)
        begin, count, medians = clock(), 0, deque[float](maxlen=3)
        wanted_ns = rules.warmup_s * 1e9
        stable = False
        while count < self.most and clock() < begin + wanted_ns * (1 if stable else 5):
            window: list[int] = []
            until = clock() + wanted_ns / 8
            while clock() < until or len(window) < 5:
                start = clock()
                self.system.run_timed(next(frames))
                window.append(clock() - start)
            count += len(window)
            medians.append(median(window))
            stable = len(medians) == 3 and max(medians) <= STEADY * min(medians)
        self.warmup = Warmup(samples=count, duration_ns=clock() - begin, stable=stable)

    def block(self, rules: Rules) -> None:
        """One turn: settle, time inferences, audit some of their outputs; kept only when it came to its end."""
        run = {"single": self._single, "offline": self._offline, "camera": self._camera}[rules.scenario]
        beside = 0 if rules.scenario == "camera" else min(SIDE_SAMPLES, self.most)
        prepared = [_time(self.preprocess, picture % len(self.frames)) for picture in range(beside)]
        with quiet():
            self._settle(rules)
            taken = run(rules)
        taken.preprocess += prepared
        taken.postprocess += [_time(self.postprocess, taken.kept[0][1]) for _ in range(beside)]
        self._audit(taken)
        self._taken.append(taken)

    def _settle(self, rules: Rules) -> None:
        """Let caches and threads come back after another's turn."""
        images = self.frames[self.count % len(self.frames)]
        for _ in range(rules.settle):
            if rules.scenario == "offline" and self.slots > 1:
                for ticket in [self.system.submit(images) for _ in range(self.slots)]:
                    self.system.collect(ticket)
            else:
                self.system.run_timed(images)

    def _single(self, rules: Rules) -> _Taken:
        taken, clock, run, frames = _Taken(), time.perf_counter_ns, self.system.run_timed, self._feed()
        starts, latencies, stages = taken.starts, taken.latencies, taken.stages
        taken.begin = end = clock()
        deadline = end + int(rules.block_s * 1e9)
        least, most = rules.block_samples, self.most
        while (end < deadline or len(latencies) < least) and len(latencies) < most:
            index, images = next(frames)
            start = clock()
            logits, parts = run(images)
            end = clock()
            starts.append(start)
            latencies.append(end - start)
            stages.append(parts)
            if len(latencies) % AUDIT_EVERY == 1:
                taken.kept.append((index, logits))
        taken.end = end
        return taken

    def _offline(self, rules: Rules) -> _Taken:
        """As many in flight as there are slots; with one slot there's nothing to overlap."""
        if self.slots == 1:
            return self._single(rules)
        taken, clock, system, frames = _Taken(), time.perf_counter_ns, self.system, self._feed()
        flying: deque[tuple[int, int, int]] = deque()

        def land() -> int:
            index, start, ticket = flying.popleft()
            logits = system.collect(ticket)
            end = clock()
            taken.starts.append(start)
            taken.latencies.append(end - start)
            if len(taken.latencies) % AUDIT_EVERY == 1:
                taken.kept.append((index, logits))
            return end

        taken.begin = end = clock()
        deadline = end + int(rules.block_s * 1e9)
        started = 0
        while (end < deadline or started < rules.block_samples) and started < self.most:
            index, images = next(frames)
            start = clock()
            flying.append((index, start, system.submit(images)))
            started += 1
            end = land() if len(flying) == self.slots else clock()
        while flying:
            end = land()
        taken.end = end
        return taken

    def _camera(self, rules: Rules) -> _Taken:
        """Pictures arrive when they arrive; the newest that has arrived is taken, older ones are missed."""
        if self._arrivals is None:
            assert rules.rate_hz is not None
            self._arrivals = Arrivals.steady(rules.rate_hz)
        taken, clock, run = _Taken(), time.perf_counter_ns, self.system.run_timed
        schedule = self._arrivals.block(int(rules.block_s * 1e9))[: self.most]
        taken.arrivals = len(schedule)
        taken.begin = clock()
        due = [taken.begin + offset for offset, _ in schedule]
        arrival = 0
        while arrival < taken.arrivals:
            now = clock()
            if now < due[arrival]:
                time.sleep((due[arrival] - now) / 1e9)
                continue
            arrival = bisect_right(due, now) - 1
            index = schedule[arrival][1] % len(self.frames)
            begin = clock()
            frame = self.preprocess(index)
            ready = clock()
            logits, parts = run(frame[None])
            answered = clock()
            self.postprocess(logits)
            end = clock()
            taken.starts.append(due[arrival])
            taken.latencies.append(end - due[arrival])
            taken.stages.append(parts)
            taken.preprocess.append(ready - begin)
            taken.postprocess.append(end - answered)
            if self._sparse or len(taken.latencies) % AUDIT_EVERY == 1:
                taken.kept.append((index, logits))
            arrival += 1
        taken.end = clock()
        return taken

    def _feed(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(index, frame) in turn, going on where the last block ended."""
        frames, start = list(enumerate(self.frames)), self.count % len(self.frames)
        return itertools.cycle(frames[start:] + frames[:start])

    # --- audit

    def _audit(self, taken: _Taken) -> None:
        if self.expected is None:
            return
        for index, logits in taken.kept:
            if index not in self.expected:
                continue
            far = deviation(logits, self.expected[index])
            self._checked += 1
            self._differing += not far <= self._allowed  # a NaN differs
            self._deviation = max(self._deviation, far)

    def audit_repeats(self, rules: Rules) -> None:
        """Time changing inputs and one repeated input in turns: a runtime that remembers answers gives itself away."""
        some = self.frames[:REPEAT_SAMPLES]
        different = list({images.tobytes(): images for images in some}.values())  # mirrored ones may be alike
        if self.expected is None or len(different) < 2:
            return
        clock, frames = time.perf_counter_ns, itertools.cycle(different)
        done = len(self._audit_before.varied_ns) if self._audit_before is not None else 0
        for _ in range(REPEAT_PAIRS - done):
            turns: list[tuple[int, ...]] = []
            for feed in (frames, itertools.repeat(self.frames[0])):
                taken: list[int] = []
                with quiet():
                    self.system.run_timed(next(feed))
                    until = clock() + int(rules.block_s * 1e9 / 2)
                    while len(taken) < 3 or (len(taken) < REPEAT_SAMPLES and clock() < until):
                        images = next(feed)
                        start = clock()
                        self.system.run_timed(images)
                        taken.append(clock() - start)
                turns.append(tuple(taken))
            self._pairs.append(turns)

    # --- what was measured

    def samples(self, origin_ns: int = 0) -> Samples:
        """Everything in whole blocks, an interrupted run's first; times count from ``origin_ns``."""
        blocks, starts = [], []
        for taken in self._taken:
            starts += [start - origin_ns for start in taken.starts]
            blocks.append(
                Block(
                    start_ns=taken.begin - origin_ns,
                    end_ns=taken.end - origin_ns,
                    samples=len(taken.latencies),
                    arrivals=taken.arrivals,
                )
            )
        stages = self._column("stages")
        transfer_in, compute, transfer_out = zip(*stages, strict=True) if stages else ((), (), ())
        found = Samples(
            start_ns=tuple(starts),
            latency_ns=self._column("latencies"),
            blocks=tuple(blocks),
            preprocess_ns=self._column("preprocess"),
            transfer_in_ns=_known(transfer_in),
            compute_ns=_known(compute),
            transfer_out_ns=_known(transfer_out),
            postprocess_ns=self._column("postprocess"),
        )
        return found if self._before is None else join_samples(self._before, found)

    def _column(self, name: str) -> tuple[Any, ...]:
        return tuple(itertools.chain.from_iterable(getattr(taken, name) for taken in self._taken))

    def audit(self) -> Audit | None:
        """What the audit saw; None when there was nothing to compare with."""
        if self.expected is None:
            return None
        found = Audit(
            checked=self._checked,
            differing=self._differing,
            max_deviation=self._deviation,
            allowed_deviation=self._allowed,
            varied_ns=tuple(varied for varied, _ in self._pairs),
            repeated_ns=tuple(repeated for _, repeated in self._pairs),
        )
        return found if self._audit_before is None else join_audits(self._audit_before, found)


class _Taken:
    """One block while it's being measured."""

    def __init__(self) -> None:
        self.begin = self.end = self.arrivals = 0
        self.starts: list[int] = []
        self.latencies: list[int] = []
        self.stages: list[Stages] = []
        self.preprocess: list[int] = []
        self.postprocess: list[int] = []
        self.kept: list[tuple[int, NDArray[np.float32]]] = []  # (index of the frame, its logits), for the audit


def _time(function: Callable[[Any], Any], argument: Any) -> int:
    """Nanoseconds of one call."""
    start = time.perf_counter_ns()
    function(argument)
    return time.perf_counter_ns() - start


def _known(stage: Sequence[int | None]) -> tuple[int, ...]:
    """One stage's column; empty where the runtime doesn't separate it."""
    return () if None in stage else tuple(value for value in stage if value is not None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Collect garbage now, and not before the end of this block."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
