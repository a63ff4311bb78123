"""The audit of a workload, after MLPerf's compliance tests: are its outputs right, and does it cache outputs?"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vitedge.benchmarking.scenarios import System, quiet
from vitedge.core.deviation import deviation
from vitedge.formats.samples import Audit, Column, join_audits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REPEAT_PAIRS, REPEAT_SAMPLES = 8, 40  # pairs of columns (changing inputs, one repeated input), and the most in each
REPEAT_MIN_SAMPLES = 3


class Auditor:
    """Compares outputs of the timed run with a reference run, and times repeated inputs against changing ones.

    Args:
        expected: float32 [batch, classes] of the reference run, by the frame's index; it may lack frames.
        allowed_deviation: how far an output may be from it, |difference| over the largest |expected|.
        earlier: the audit of an interrupted run that goes on.
    """

    def __init__(
        self, expected: Mapping[int, NDArray[np.float32]], allowed_deviation: float, earlier: Audit | None = None
    ) -> None:
        self._expected, self._allowed, self.earlier = expected, allowed_deviation, earlier
        self._checked = self._differing = 0
        self._max_deviation = 0.0
        self._varied: list[Column] = []
        self._repeated: list[Column] = []

    def check(self, outputs: Iterable[tuple[int, NDArray[np.float32]]]) -> None:
        """Compare outputs, each (index of the frame, float32 [batch, classes]), with the reference run's."""
        for index, logits in outputs:
            if index not in self._expected:
                continue
            difference = deviation(logits, self._expected[index])
            self._checked += 1
            self._differing += not difference <= self._allowed  # a NaN differs
            self._max_deviation = max(self._max_deviation, difference)

    def time_repeats(self, system: System, frames: Sequence[NDArray[np.uint8]], duration_ns: int) -> None:
        """Time changing inputs and a repeated one, alternately: a runtime that caches outputs is faster on the latter.

        Args:
            system: what answers.
            frames: each uint8 [batch, h, w, 3].
            duration_ns: of one column of times.
        """
        different = list({images.tobytes(): images for images in frames[:REPEAT_SAMPLES]}.values())
        if len(different) < 2:
            return
        changing, repeated = itertools.cycle(different), itertools.repeat(frames[0])
        done = len(self.earlier.varied_ns) if self.earlier is not None else 0
        for _ in range(REPEAT_PAIRS - done):
            for feed, columns in ((changing, self._varied), (repeated, self._repeated)):
                with quiet():
                    columns.append(_times(system, feed, duration_ns))

    def audit(self) -> Audit:
        """Return all results, with those of an interrupted run."""
        audit = Audit(
            checked=self._checked,
            differing=self._differing,
            max_deviation=self._max_deviation,
            allowed_deviation=self._allowed,
            varied_ns=tuple(self._varied[: len(self._repeated)]),  # an interruption can leave one unpaired
            repeated_ns=tuple(self._repeated),
        )
        return audit if self.earlier is None else join_audits(self.earlier, audit)


def _times(system: System, feed: Iterator[NDArray[np.uint8]], duration_ns: int) -> Column:
    """Return latencies of one column, after one inference that isn't counted."""
    clock, latencies = time.perf_counter_ns, list[int]()
    system.run_timed(next(feed))
    deadline = clock() + duration_ns
    while len(latencies) < REPEAT_MIN_SAMPLES or (len(latencies) < REPEAT_SAMPLES and clock() < deadline):
        images = next(feed)
        start = clock()
        system.run_timed(images)
        latencies.append(clock() - start)
    return tuple(latencies)
