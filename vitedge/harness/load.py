"""The load generator. It knows neither model nor runtime: something answers batches, and it's asked by rules.

The loops are lean, because what they cost is measured with every result (the null runtime goes through the same code).
Python's garbage collector rests inside a block and works between blocks; objects that existed before are frozen, so
that it finds little to do. A block that's interrupted is forgotten, so whatever has been kept is whole.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vitedge.deviation import deviation
from vitedge.harness.sensors import Sensors
from vitedge.progress import Progress, silent
from vitedge.result import Audit, Block, Latency, Memory, Reading, Rules, Samples, Warmup, samples_needed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitedge.runtimes.contract import Stages

FLOOR_SAMPLES = 32  # inferences of the null runtime in one block
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


class Contender:
    """One system under measurement, what it's fed with, and what was measured so far.

    Args:
        system: what answers.
        frames: uint8 [k, batch, h, w, 3], fed in turn.
        expected: float32 [k, batch, classes], the answers of a reference run; None: outputs aren't audited.
        allowed_deviation: how far an answer may be from it, |difference| over the largest |expected|.
        preprocess: turns the i-th picture into a frame uint8 [h, w, 3].
        postprocess: turns logits [batch, classes] into predictions.
        slots: inferences that may be in flight in ``offline``.
        most: end a block after so many inferences.
    """

    def __init__(
        self,
        system: System,
        frames: NDArray[np.uint8],
        *,
        preprocess: Callable[[int], NDArray[np.uint8]],
        postprocess: Callable[[NDArray[np.float32]], Any],
        expected: NDArray[np.float32] | None = None,
        allowed_deviation: float = 0.0,
        slots: int = 1,
        most: int | None = None,
    ) -> None:
        self.system, self.frames, self.expected = system, list(frames), expected
        self.preprocess, self.postprocess = preprocess, postprocess
        self.slots, self.most = slots, most if most is not None else 1 << 62
        self.warmup = Warmup(samples=0, duration_ns=0, stable=False)
        self._allowed = allowed_deviation
        self._taken: list[_Taken] = []
        self._checked = self._differing = 0
        self._deviation = 0.0
        self._pairs: list[list[tuple[int, ...]]] = []  # of turns: changing inputs, one repeated input

    # --- rules

    @property
    def measured_ns(self) -> int:
        """Time spent in whole blocks."""
        return sum(taken.end - taken.begin for taken in self._taken)

    @property
    def count(self) -> int:
        """Inferences in whole blocks."""
        return sum(len(taken.latencies) for taken in self._taken)

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
        with _quiet():
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
        most = self.most
        while end < deadline and len(latencies) < most:
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
        while end < deadline and started < self.most:
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
        """Pictures arrive at a steady rate; the newest that has arrived is taken, older ones are missed."""
        assert rules.rate_hz is not None
        taken, clock, run = _Taken(), time.perf_counter_ns, self.system.run_timed
        period = 1e9 / rules.rate_hz
        taken.arrivals = min(self.most, max(1, round(rules.block_s * rules.rate_hz)))
        taken.begin = clock()
        first = taken.begin + round(period)
        arrival = 0
        while arrival < taken.arrivals:
            now = clock()
            due = first + round(arrival * period)
            if now < due:
                time.sleep((due - now) / 1e9)
                continue
            newest = min(taken.arrivals - 1, int((now - first) / period))
            if newest > arrival:
                arrival, due = newest, first + round(newest * period)
            index = (self.count + arrival) % len(self.frames)
            begin = clock()
            frame = self.preprocess(index)
            ready = clock()
            logits, parts = run(frame[None])
            answered = clock()
            self.postprocess(logits)
            end = clock()
            taken.starts.append(due)
            taken.latencies.append(end - due)
            taken.stages.append(parts)
            taken.preprocess.append(ready - begin)
            taken.postprocess.append(end - answered)
            if len(taken.latencies) % AUDIT_EVERY == 1:
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
            far = deviation(logits, self.expected[index])
            self._checked += 1
            self._differing += not far <= self._allowed  # a NaN differs
            self._deviation = max(self._deviation, far)

    def audit_repeats(self, rules: Rules) -> None:
        """Time changing inputs and one repeated input in turns: a runtime that remembers answers gives itself away."""
        if self.expected is None:
            return
        clock, frames = time.perf_counter_ns, itertools.cycle(self.frames)
        for _ in range(REPEAT_PAIRS):
            turns: list[tuple[int, ...]] = []
            for feed in (frames, itertools.repeat(self.frames[0])):
                taken: list[int] = []
                with _quiet():
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
        """Everything in whole blocks; times count from ``origin_ns``."""
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
        return Samples(
            start_ns=tuple(starts),
            latency_ns=self._column("latencies"),
            blocks=tuple(blocks),
            preprocess_ns=self._column("preprocess"),
            transfer_in_ns=_known(transfer_in),
            compute_ns=_known(compute),
            transfer_out_ns=_known(transfer_out),
            postprocess_ns=self._column("postprocess"),
        )

    def _column(self, name: str) -> tuple[Any, ...]:
        return tuple(itertools.chain.from_iterable(getattr(taken, name) for taken in self._taken))

    def audit(self) -> Audit | None:
        """What the audit saw; None when there was nothing to compare with."""
        if self.expected is None:
            return None
        return Audit(
            checked=self._checked,
            differing=self._differing,
            max_deviation=self._deviation,
            allowed_deviation=self._allowed,
            varied_ns=tuple(varied for varied, _ in self._pairs),
            repeated_ns=tuple(repeated for _, repeated in self._pairs),
        )


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


class Run:
    """Contenders that take turns in blocks, in a seeded random order within each round.

    Args:
        contenders: what is measured.
        rules: how.
        floors: null runtimes, measured in the same rounds, for a few inferences each.
        sensors: read before the first block and after every one; None: nothing is read.
    """

    def __init__(
        self,
        contenders: Sequence[Contender],
        rules: Rules,
        *,
        floors: Sequence[Contender] = (),
        sensors: Sensors | None = None,
    ) -> None:
        self.contenders, self.rules, self.floors, self.sensors = contenders, rules, floors, sensors
        self.readings: list[Reading] = []
        self.origin_ns = time.perf_counter_ns()

    def measure(self, progress: Progress = silent) -> None:
        """Measure until every contender has what the rules demand; an exception leaves all whole blocks in place.

        Args:
            progress: called with (task, done, total).
        """
        rules, turns = self.rules, [*self.contenders, *self.floors]
        for number, contender in enumerate(turns):
            progress("warm up", number, len(turns))
            contender.warm_up(rules)
        progress("warm up", len(turns), len(turns))
        order = random.Random(rules.seed)
        self.origin_ns = time.perf_counter_ns()
        self._look()
        gc.collect()
        gc.freeze()
        try:
            while (enough := min(contender.progress(rules) for contender in self.contenders)) < 1.0:
                progress("measure", int(100 * enough), 100)
                for contender in order.sample(turns, len(turns)):
                    contender.block(rules)
                    self._look()
            progress("measure", 100, 100)
            for contender in self.contenders:
                contender.audit_repeats(rules)
        finally:
            gc.unfreeze()

    def _look(self) -> None:
        if self.sensors is not None:
            self.readings.append(self.sensors.read(self.origin_ns))

    def latency(
        self, contender: Contender, *, load_ns: int, first_ns: int, memory: Memory, floor: Contender | None = None
    ) -> Latency | None:
        """What a contender has measured so far, as a result's row has it; None without a single sample."""
        samples = contender.samples(self.origin_ns)
        if not len(samples):
            return None
        return Latency(
            rules=self.rules,
            load_ns=load_ns,
            first_ns=first_ns,
            warmup=contender.warmup,
            samples=samples,
            memory=memory,
            floor=floor.samples(self.origin_ns) if floor is not None else None,
            readings=tuple(self.readings),
            audit=contender.audit(),
        )


def _time(function: Callable[[Any], Any], argument: Any) -> int:
    """Nanoseconds of one call."""
    start = time.perf_counter_ns()
    function(argument)
    return time.perf_counter_ns() - start


def _known(stage: Sequence[int | None]) -> tuple[int, ...]:
    """One stage's column; empty where the runtime doesn't separate it."""
    return () if None in stage else tuple(value for value in stage if value is not None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Collect garbage now, and not before the end of this block."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
