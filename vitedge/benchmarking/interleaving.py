"""Several workloads under one set of rules, interleaved block by block within one run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

from vitedge.benchmarking.load import Workload
from vitedge.core.progress import Progress, silent
from vitedge.core.randomness import generator
from vitedge.device.reading import Reading
from vitedge.device.telemetry import Telemetry
from vitedge.formats.samples import Latency, Memory, Rules

KEEP_EVERY_S = 10.0  # the partial result is saved this often, between two rounds …
KEEP_FRACTION = 0.02  # … and less often where saving would take more than this fraction of the time


class Run:
    """Rounds of blocks, one block of each workload in a round, in a seeded random order.

    Args:
        workloads: what is measured.
        rules: how.
        overheads: null runtimes, measured in the same rounds, for a few inferences each.
        telemetry: reads the sensors meanwhile; None: nothing is read.
        before: what an interrupted run measured of any workload: its readings and times go on here.
    """

    def __init__(
        self,
        workloads: Sequence[Workload],
        rules: Rules,
        *,
        overheads: Sequence[Workload] = (),
        telemetry: Telemetry | None = None,
        before: Latency | None = None,
    ) -> None:
        self.workloads, self.rules, self.overheads = workloads, rules, overheads
        self._telemetry = telemetry
        self._readings_before = before.readings if before is not None else ()
        self._elapsed_ns = max(workload.elapsed_ns for workload in (*workloads, *overheads))
        self._resumed_ns = (*before.resumed_ns, self._elapsed_ns) if before is not None else ()
        self._start_ns = time.perf_counter_ns()

    @property
    def origin_ns(self) -> int:
        """The beginning of the run's time; time between an interruption and its end is left out."""
        return self._start_ns - self._elapsed_ns

    def measure(self, progress: Progress = silent, keep: Callable[[], None] | None = None) -> None:
        """Measure until every workload has what the rules demand; an exception leaves all complete blocks in place.

        Args:
            progress: called with (task, done, total).
            keep: called between rounds now and then, to save what there is.
        """
        rules, measured = self.rules, [*self.workloads, *self.overheads]
        for number, workload in enumerate(measured):
            progress("warm up", number, len(measured))
            workload.warm_up(rules)
        progress("warm up", len(measured), len(measured))
        order = generator(rules.seed + len(self._resumed_ns))
        self._start_ns = time.perf_counter_ns()
        due = self._start_ns + KEEP_EVERY_S * 1e9
        gc.collect()
        gc.freeze()
        try:
            while (fraction := min(workload.progress(rules) for workload in self.workloads)) < 1.0:
                progress("measure", int(100 * fraction), 100)
                for number in order.permutation(len(measured)):
                    measured[number].run_block(rules)
                if keep is not None and (now := time.perf_counter_ns()) >= due:
                    keep()
                    done = time.perf_counter_ns()
                    due = done + max(KEEP_EVERY_S * 1e9, (done - now) / KEEP_FRACTION)
            progress("measure", 100, 100)
            for workload in self.workloads:
                workload.audit_repeats(rules)
        finally:
            gc.unfreeze()

    def _readings(self) -> tuple[Reading, ...]:
        if self._telemetry is None:
            return self._readings_before
        return (*self._readings_before, *self._telemetry.readings(self._start_ns, self._elapsed_ns))

    def latency(
        self, workload: Workload, *, load_ns: int, first_ns: int, memory: Memory, overhead: Workload | None = None
    ) -> Latency | None:
        """Return a workload's measurement so far as a result's row keeps it; None without a single sample."""
        samples = workload.samples(self.origin_ns)
        if not len(samples):
            return None
        return Latency(
            rules=self.rules,
            load_ns=load_ns,
            first_ns=first_ns,
            warmup=workload.warmup,
            samples=samples,
            memory=memory,
            overhead=overhead.samples(self.origin_ns) if overhead is not None else None,
            readings=self._readings(),
            audit=workload.audit(),
            power_of=self._telemetry.power_of if self._telemetry is not None else (),
            resumed_ns=self._resumed_ns,
        )
