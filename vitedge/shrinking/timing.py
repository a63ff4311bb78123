"""Measure the time of graphs as they would be deployed, interleaved with the original.

A graph is lowered as ``vitedge export`` would lower it, and opened in the target's runtime. Where that quantizes, the
statistics are made up from random pictures: what they are changes numbers, not time.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace as changed
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from msgspec.structs import replace

from vitedge.benchmarking.interleaving import Run
from vitedge.benchmarking.load import Workload
from vitedge.comparison.ratio import FEWEST_ROUNDS, ratio
from vitedge.core.percentiles import median_of
from vitedge.core.progress import Progress
from vitedge.core.randomness import generator
from vitedge.exporting.candidates import ExportInputs, draft_manifest
from vitedge.exporting.plan import Plan
from vitedge.exporting.runnable import opened
from vitedge.formats.artifact import Manifest
from vitedge.formats.recipe import load_recipe
from vitedge.formats.result import Latency
from vitedge.formats.samples import Memory, Rules
from vitedge.formats.target import QUANTIZED
from vitedge.quantization.observe import observe
from vitedge.runtimes.base import Lowered

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from vitedge.runtimes.session import Session

ROUNDS = 3 * FEWEST_ROUNDS
AT_ONCE = 8  # graphs that are open together with the original
OBSERVED = 2  # random pictures
ENTRY_S, WHOLE_S = 1.5, 3.0  # that each graph is measured for, at least: of a table's entry, of a whole model
WARMUP = 1 / 8  # of that
NO_MEMORY = Memory(before_bytes=None, after_bytes=None, peak_bytes=None)


class Timing(NamedTuple):
    """The measured time of a graph."""

    ns: float  # median of the original, times ``ratio``
    ratio: float  # to the original
    low: float  # of the ratio's 95 % interval
    high: float


class Stopwatch:
    """Measures narrower graphs against the original.

    Args:
        plan: the target, the candidate and the batch; the first candidate is measured.
        original: the model's float graph.
        threads: of each session; None: the target's.
        duration_s: that each graph is measured for, at least.
        statistic: of each block: its fastest inference has the least noise; its median is what a budget speaks of.
    """

    def __init__(
        self,
        plan: Plan,
        original: onnx.ModelProto,
        *,
        threads: int | None = None,
        duration_s: float,
        statistic: Literal["fastest", "median"] = "fastest",
    ) -> None:
        self.plan, self.original, self.threads, self.duration_s = plan, original, threads, duration_s
        self.statistic, self.rounds = statistic, ROUNDS

    def longer(self, factor: int) -> Stopwatch:
        """Return a stopwatch with so many times as many rounds, of the same length."""
        other = copy.copy(self)  # with the lowered original, where there is one already
        other.duration_s, other.rounds = factor * self.duration_s, factor * self.rounds
        return other

    def times(self, graphs: Sequence[onnx.ModelProto], progress: Progress) -> tuple[float, list[Timing]]:
        """Return the original's median in nanoseconds, and each graph's timing.

        Args:
            graphs: float graphs with the original's output; their inputs may be smaller.
            progress: called with ("measure", graphs done, graphs).

        Raises:
            ArtifactError: the target's runtime can't open a graph.
        """
        medians, timings = [], list[Timing]()
        for start in range(0, len(graphs), AT_ONCE):
            progress("measure", start, len(graphs))
            first, *others = self._measured(graphs[start : start + AT_ONCE])
            medians.append(float(median_of(first.samples.latency_ns)))
            for other in others:
                against = ratio(first, other, statistic=self.statistic)
                assert against is not None, "there are enough rounds"
                timings.append(Timing(medians[-1] * against.value, against.value, against.low, against.high))
        progress("measure", len(graphs), len(graphs))
        return float(np.median(medians)), timings

    def _measured(self, graphs: Sequence[onnx.ModelProto]) -> list[Latency]:
        """Measure the original and some graphs, interleaved block by block."""
        with contextlib.ExitStack() as stack:
            lowered = [self._lowered_original, *map(self._lower, graphs)]
            sessions = [stack.enter_context(self._open(*each)) for each in lowered]
            count = self._block_samples(sessions[0])
            rules = Rules(
                scenario="single",
                warmup_s=WARMUP * self.duration_s,
                min_duration_s=0.0,
                min_samples=self.rounds * count,  # a block has at most ``count``: all rounds on a busy machine, too
                percentile=50.0,
                block_s=self.duration_s / self.rounds,
                settle=2,
                seed=0,
                pictures="random",
            )
            workloads = [self._workload(session, count) for session in sessions]
            run = Run(workloads, rules)
            run.measure()
            latencies = [run.latency(each, load_ns=0, first_ns=0, memory=NO_MEMORY) for each in workloads]
        return [each for each in latencies if each is not None]

    def _block_samples(self, session: Session) -> int:
        """Return how many inferences of the original fill a block."""
        frame = self._frames(session)[0]
        times_ns = []
        for _ in range(1 + OBSERVED):
            start = time.perf_counter_ns()
            session.run_timed(frame)
            times_ns.append(time.perf_counter_ns() - start)
        return max(1, int(1e9 * self.duration_s / self.rounds / min(times_ns)))

    def _pictures(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return random pictures of (height, width) pixels, uint8 [n, h, w, 3]."""
        return generator(0).integers(0, 256, (max(OBSERVED, self.plan.batch + 1), *size, 3), dtype=np.uint8)

    def _frames(self, session: Session) -> NDArray[np.uint8]:
        """Return random pictures as a session takes them, uint8 [2, batch, h, w, 3]."""
        batch, height, width, _ = session.input_shape
        pictures = self._pictures((height, width))
        return np.stack([np.resize(np.roll(pictures, turn, 0), (batch, height, width, 3)) for turn in (0, 1)])

    @contextlib.contextmanager
    def _open(self, manifest: Manifest, lowered: Lowered) -> Iterator[Session]:
        """Open a graph in the target's runtime."""
        with opened(manifest, lowered, self.plan.action, threads=self.threads) as runnable:
            assert runnable.session is not None, "what is measured runs here"
            yield runnable.session

    @cached_property
    def _lowered_original(self) -> tuple[Manifest, Lowered]:
        return self._lower(self.original)

    def _lower(self, graph: onnx.ModelProto) -> tuple[Manifest, Lowered]:
        """Lower a graph to the target's runtime, with the manifest that opening it needs."""
        fast, plan, statistics = load_recipe("fast"), _for_input_of(graph, self.plan), None
        recipe, candidate = plan.recipe, plan.candidates[0]
        pictures = self._pictures(plan.model.record.preprocessing.size)[:OBSERVED]
        if candidate.precision in QUANTIZED and recipe is not None:
            recipe = replace(recipe, round=fast.round)  # the values of the weights don't change the time
            statistics = observe(graph, pictures, fast.observe, key="random pictures")
        none = np.empty((0, 0), np.float32)
        inputs = ExportInputs(changed(plan, recipe=recipe), graph, {}, pictures, none, statistics=statistics)
        lowered = inputs.lower(candidate)
        return draft_manifest(inputs, candidate, lowered), lowered

    def _workload(self, session: Session, most: int) -> Workload:
        """Run random pictures through a session; outputs mean nothing here and aren't audited."""
        pictures = self._pictures((session.input_shape[1], session.input_shape[2]))

        def prepared(index: int) -> NDArray[np.uint8]:
            return np.asarray(pictures[index])

        return Workload(session, self._frames(session), preprocess=prepared, postprocess=len, max_block_samples=most)


def _for_input_of(graph: onnx.ModelProto, plan: Plan) -> Plan:
    """Return the plan with the preprocessing for a graph's input, which may be smaller than the model's."""
    _, height, width, _ = (each.dim_value for each in graph.graph.input[0].type.tensor_type.shape.dim)
    record = plan.model.record
    record = replace(record, preprocessing=replace(record.preprocessing, size=(height, width)))
    return changed(plan, model=changed(plan.model, record=record))
