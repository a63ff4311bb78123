"""The load generator: measure one workload block by block. It knows neither model nor runtime.

Python's garbage collector rests inside a block and works between blocks; objects that existed before are frozen, so
that it finds little to do. An interrupted block is dropped, so whatever has been kept is whole.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.benchmarking import scenarios
from vitedge.benchmarking.arrivals import Arrivals
from vitedge.benchmarking.auditing import Auditor
from vitedge.benchmarking.scenarios import BlockLimits, BlockRecord, System, quiet
from vitedge.core.percentiles import samples_needed
from vitedge.formats.samples import Audit, Block, Column, Rules, Samples, Warmup, join_samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVERHEAD_SAMPLES = 32  # inferences of the null runtime in one block
STAGE_SAMPLES = 8  # pictures preprocessed, and batches postprocessed, before and after one block's inferences
STEADY = 1.05  # largest ratio between the fastest of three successive warm-up windows that counts as stable
WARMUP_WINDOWS = 8  # of the minimum warm-up time
WARMUP_LIMIT = 5  # an unstable warm-up ends after this multiple of the minimum


class Workload:
    """One system under measurement, its inputs, and the samples so far.

    Args:
        system: what answers.
        frames: uint8 [k, batch, h, w, 3], fed one after the other.
        expected: float32 [k, batch, classes], the outputs of a reference run, or those of some frames by their index;
            None: outputs aren't audited.
        allowed_deviation: how far an output may be from it, |difference| over the largest |expected|.
        preprocess: turns the i-th picture into a frame uint8 [h, w, 3].
        postprocess: turns logits [batch, classes] into predictions.
        slots: inferences that may be in flight in ``offline``.
        max_block_samples: a block ends after so many inferences; None: no limit.
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
        max_block_samples: int | None = None,
        arrivals: Arrivals | None = None,
    ) -> None:
        self.system, self.frames = system, list(frames)
        self.preprocess, self.postprocess, self.slots = preprocess, postprocess, slots
        self.max_block_samples = 1 << 62 if max_block_samples is None else max_block_samples
        self.warmup = Warmup(samples=0, duration_ns=0, stable=False)
        self._arrivals = arrivals
        self._auditor: Auditor | None = None
        self._audit_all = False
        if expected is not None:
            outputs = dict(enumerate(expected)) if isinstance(expected, np.ndarray) else expected
            self._auditor = Auditor(outputs, allowed_deviation)
            self._audit_all = len(outputs) < len(frames)  # most outputs have no reference, so keep all that have one
        self._earlier: Samples | None = None  # of an interrupted run that goes on
        self._records: list[BlockRecord] = []

    # --- progress

    def resume(self, samples: Samples, audit: Audit | None) -> None:
        """Count the samples of an interrupted run."""
        self._earlier = samples
        if self._auditor is not None:
            self._auditor.earlier = audit

    @property
    def elapsed_ns(self) -> int:
        """The end of the interrupted run's last block, on that run's own clock."""
        return self._earlier.blocks[-1].end_ns if self._earlier is not None and self._earlier.blocks else 0

    @property
    def measured_ns(self) -> int:
        """Time spent in complete blocks."""
        earlier = self._earlier.blocks if self._earlier is not None else ()
        earlier_ns = sum(block.end_ns - block.start_ns for block in earlier)
        return earlier_ns + sum(record.end_ns - record.start_ns for record in self._records)

    @property
    def count(self) -> int:
        """Inferences in complete blocks."""
        return len(self._earlier or ()) + sum(len(record.latencies_ns) for record in self._records)

    def progress(self, rules: Rules) -> float:
        """Return the measured fraction of what the rules demand; 1.0 and above is enough."""
        min_samples = max(rules.min_samples, samples_needed(rules.percentile))
        by_time = self.measured_ns / (rules.min_duration_s * 1e9) if rules.min_duration_s else 1.0
        return min(by_time, self.count / min_samples)

    # --- running

    def warm_up(self, rules: Rules) -> None:
        """Run untimed for at least ``rules.warmup_s``, until three windows' fastest agree; five times that at most."""
        clock, frames = time.perf_counter_ns, itertools.cycle(self.frames)
        begin, count, fastest = clock(), 0, deque[int](maxlen=3)
        minimum_ns = rules.warmup_s * 1e9
        stable = False
        while count < self.max_block_samples and clock() < begin + minimum_ns * (1 if stable else WARMUP_LIMIT):
            window: list[int] = []
            window_end = clock() + minimum_ns / WARMUP_WINDOWS
            while clock() < window_end or len(window) < 5:
                start = clock()
                self.system.run_timed(next(frames))
                window.append(clock() - start)
            count += len(window)
            fastest.append(min(window))  # other processes move medians; clocks and caches that warm up move both
            stable = len(fastest) == 3 and max(fastest) <= STEADY * min(fastest)
        self.warmup = Warmup(samples=count, duration_ns=clock() - begin, stable=stable)

    def run_block(self, rules: Rules) -> None:
        """Settle, time inferences, audit some of their outputs; keep the block only when it's complete."""
        timed_apart = 0 if rules.scenario == "camera" else min(STAGE_SAMPLES, self.max_block_samples)
        preprocess_ns = [_duration_ns(self.preprocess, picture % len(self.frames)) for picture in range(timed_apart)]
        with quiet():
            self._settle(rules)
            record = self._measure(rules)
        record.preprocess_ns += preprocess_ns
        record.postprocess_ns += [_duration_ns(self.postprocess, record.outputs[0][1]) for _ in range(timed_apart)]
        if self._auditor is not None:
            self._auditor.check(record.outputs)
        record.outputs.clear()
        self._records.append(record)

    def _settle(self, rules: Rules) -> None:
        """Let caches and threads recover after another workload's block."""
        images = self.frames[self.count % len(self.frames)]
        for _ in range(rules.settle):
            if rules.scenario == "offline" and self.slots > 1:
                for ticket in [self.system.submit(images) for _ in range(self.slots)]:
                    self.system.collect(ticket)
            else:
                self.system.run_timed(images)

    def _measure(self, rules: Rules) -> BlockRecord:
        duration_ns = int(rules.block_s * 1e9)
        if rules.scenario == "camera":
            if self._arrivals is None:
                assert rules.rate_hz is not None
                self._arrivals = Arrivals.steady(rules.rate_hz)
            arrivals = self._arrivals.block(duration_ns)[: self.max_block_samples]
            return scenarios.camera(
                self.system,
                [(offset, number % len(self.frames)) for offset, number in arrivals],
                preprocess=self.preprocess,
                postprocess=self.postprocess,
                keep_every=1 if self._audit_all else scenarios.AUDIT_EVERY,
            )
        limits = BlockLimits(duration_ns, rules.block_samples, self.max_block_samples)
        if rules.scenario == "offline":
            return scenarios.offline(self.system, self._feed(), limits, self.slots)
        return scenarios.single(self.system, self._feed(), limits)

    def _feed(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Return (index, frame) pairs in order, from the end of the last block on."""
        frames, start = list(enumerate(self.frames)), self.count % len(self.frames)
        return itertools.cycle(frames[start:] + frames[:start])

    def audit_repeats(self, rules: Rules) -> None:
        """Time changing inputs against one repeated input; do nothing where outputs aren't audited."""
        if self._auditor is not None:
            self._auditor.time_repeats(self.system, self.frames, int(rules.block_s * 1e9 / 2))

    # --- what was measured

    def samples(self, origin_ns: int = 0) -> Samples:
        """Return the samples of all complete blocks, an interrupted run's first; times count from ``origin_ns``."""
        records = self._records
        stages = _joined(record.stages for record in records)
        transfer_in, compute, transfer_out = zip(*stages, strict=True) if stages else ((), (), ())
        samples = Samples(
            start_ns=tuple(start - origin_ns for record in records for start in record.starts_ns),
            latency_ns=_joined(record.latencies_ns for record in records),
            blocks=tuple(
                Block(
                    start_ns=record.start_ns - origin_ns,
                    end_ns=record.end_ns - origin_ns,
                    samples=len(record.latencies_ns),
                    arrivals=record.arrivals,
                )
                for record in records
            ),
            preprocess_ns=_joined(record.preprocess_ns for record in records),
            transfer_in_ns=_separated(transfer_in),
            compute_ns=_separated(compute),
            transfer_out_ns=_separated(transfer_out),
            postprocess_ns=_joined(record.postprocess_ns for record in records),
        )
        return samples if self._earlier is None else join_samples(self._earlier, samples)

    def audit(self) -> Audit | None:
        """Return the audit; None where outputs aren't audited."""
        return None if self._auditor is None else self._auditor.audit()


def _duration_ns(function: Callable[[Any], Any], argument: Any) -> int:
    """Return the nanoseconds of one call."""
    start = time.perf_counter_ns()
    function(argument)
    return time.perf_counter_ns() - start


def _joined(columns: Iterator[list[Any]]) -> tuple[Any, ...]:
    return tuple(itertools.chain.from_iterable(columns))


def _separated(stage: Sequence[int | None]) -> Column:
    """Return one stage's column; empty where the runtime doesn't separate it."""
    return () if None in stage else tuple(value for value in stage if value is not None)
