"""Other tools' measurement protocols on the same session, and the fields that each tool prints from the samples.

Each tool warms up, stops, times and counts in its own way; a number can only be checked against one that somebody
already has when all four are the same. Each protocol is described where it's defined, with the source of its formulas.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING, Literal, cast

from vitedge.benchmarking.scenarios import System, quiet
from vitedge.core.percentiles import early_stopping, percentile
from vitedge.formats.samples import Block, Latency, ProtocolRun, Samples, Tool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitedge.runtimes.base import Stages

Issue = Literal["sync", "async", "at once"]


@dataclass(frozen=True)
class Field:
    """One line of a tool's output."""

    name: str
    tool: float | None  # None: the runtime doesn't separate the stages that it needs
    vitedge: float | None  # the same statistic of vitedge's own samples, where there is one
    unit: str = ""


@dataclass(frozen=True)
class ToolProtocol:
    """A tool's measurement protocol.

    Attributes:
        title: the tool's name and mode.
        issue: one inference in flight, as many as there are slots, or all queued at the beginning.
        warmup_s: warm-up before the timed run (0: one inference).
        min_duration_s: the timed run lasts at least so long …
        min_samples: … and has at least so many inferences; 0: one pass over the frames.
        fields: from the samples, vitedge's own latency and the batch.
        why: in a sentence, why its numbers differ from vitedge's.
    """

    title: str
    issue: Issue
    warmup_s: float
    min_duration_s: float
    min_samples: int
    fields: Callable[[ProtocolRun, Latency, int], list[Field]]
    why: str


# --- running as a tool does -------------------------------------------------------------------------------------------


def run_protocol(
    tool: str, system: System, frames: Sequence[NDArray[np.uint8]], slots: int, duration_s: float | None = None
) -> ProtocolRun:
    """Run a measurement by a tool's protocol.

    Args:
        tool: a key of :data:`TOOLS`.
        system: what answers.
        frames: fed one after the other, each uint8 [batch, h, w, 3].
        slots: inferences that may be in flight.
        duration_s: instead of the tool's own where that is longer; the result is then marked as shortened, and the
            queue of LoadGen's Offline holds fewer samples in the same proportion.
    """
    protocol, feed, clock = TOOLS[tool], itertools.cycle(frames), time.perf_counter_ns
    wanted_s = seconds(tool, duration_s)
    start = clock()
    system.run_timed(next(feed))
    first_ns = clock() - start
    until = clock() + protocol.warmup_s * 1e9
    while clock() < until:
        system.run_timed(next(feed))
    least = len(frames) if protocol.min_samples == 0 else protocol.min_samples
    with quiet():
        if protocol.issue == "at once":
            least = math.ceil(least * wanted_s / protocol.min_duration_s)  # queued work can't end when time is up
            count = _expected(system, feed, slots, wanted_s, -(-least // frames[0].shape[0]))
            samples = _in_flight(system, feed, slots, 0.0, count, at_once=True)
        elif protocol.issue == "async" and slots > 1:
            samples = _in_flight(system, feed, slots, wanted_s, least, at_once=False)
        else:
            samples = _synchronous(system, feed, wanted_s, least)
    return ProtocolRun(
        tool=cast(Tool, tool),
        samples=samples,
        first_ns=first_ns,
        min_duration_s=wanted_s,
        shortened=wanted_s < protocol.min_duration_s,
    )


def seconds(tool: str, duration_s: float | None) -> float:
    """Return the shortest duration of a tool's timed run of one artifact."""
    longest = TOOLS[tool].min_duration_s
    return longest if duration_s is None else min(duration_s, longest)


def _expected(
    system: System, feed: itertools.cycle[NDArray[np.uint8]], slots: int, duration_s: float, least: int
) -> int:
    """Estimate the inferences in this duration, plus LoadGen's tenth: all are queued at the beginning."""
    probe = _in_flight(system, feed, slots, min(1.0, duration_s / 10), slots, at_once=False)
    return max(least, math.ceil(1.1 * duration_s * len(probe) / _wall_s(probe)))


def _synchronous(system: System, feed: itertools.cycle[NDArray[np.uint8]], duration_s: float, least: int) -> Samples:
    clock = time.perf_counter_ns
    starts: list[int] = []
    latencies: list[int] = []
    stages: list[Stages] = []
    begin = end = clock()
    while end < begin + duration_s * 1e9 or len(latencies) < least:
        images = next(feed)
        start = clock()
        _, parts = system.run_timed(images)
        end = clock()
        starts.append(start - begin)
        latencies.append(end - start)
        stages.append(parts)
    columns = zip(*stages, strict=True)
    transfer_in, compute, transfer_out = (() if None in column else column for column in columns)
    return Samples(
        start_ns=tuple(starts),
        latency_ns=tuple(latencies),
        blocks=(Block(start_ns=0, end_ns=end - begin, samples=len(latencies)),),
        transfer_in_ns=transfer_in,
        compute_ns=compute,
        transfer_out_ns=transfer_out,
    )


def _in_flight(
    system: System,
    feed: itertools.cycle[NDArray[np.uint8]],
    slots: int,
    duration_s: float,
    least: int,
    *,
    at_once: bool,
) -> Samples:
    """Run asynchronously, ``slots`` in flight; with ``at_once`` latencies count from the start, when all are queued."""
    clock = time.perf_counter_ns
    in_flight: deque[tuple[int, int]] = deque()
    starts: list[int] = []
    latencies: list[int] = []

    def complete() -> int:
        start, ticket = in_flight.popleft()
        system.collect(ticket)
        end = clock()
        starts.append(0 if at_once else start - begin)
        latencies.append(end - (begin if at_once else start))
        return end

    begin = end = clock()
    started = 0
    while end < begin + duration_s * 1e9 or started < least:
        images = next(feed)
        start = clock()
        in_flight.append((start, system.submit(images)))
        started += 1
        end = complete() if len(in_flight) == slots else clock()
    while in_flight:
        end = complete()
    block = Block(start_ns=0, end_ns=end - begin, samples=len(latencies))
    return Samples(start_ns=tuple(starts), latency_ns=tuple(latencies), blocks=(block,))


# --- fields ----------------------------------------------------------------------------------------------------------


def _wall_s(samples: Samples) -> float:
    return sum(block.end_ns - block.start_ns for block in samples.blocks) / 1e9


def _ms(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _ours(latency: Latency, percent: float) -> float | None:
    return _ms(latency.samples.percentile_ns(percent))


def _trtexec_summary(name: str, column: Sequence[int], ours: Latency | None) -> list[Field]:
    """Compute ``getPerformanceResult``: min, max, mean, median (mean of the middle two if even), percentiles."""
    if not column:
        return [Field(f"{name}: median", None, None, "ms")]
    ordered = sorted(column)
    own = sorted(ours.samples.latency_ns) if ours is not None else []

    def line(statistic: str, tool: float, vitedge: float | None) -> Field:
        return Field(f"{name}: {statistic}", tool / 1e6, vitedge, "ms")

    return [
        line("min", ordered[0], own[0] / 1e6 if own else None),
        line("max", ordered[-1], own[-1] / 1e6 if own else None),
        line("mean", fmean(ordered), fmean(own) / 1e6 if own else None),
        line("median", median(ordered), _ours(ours, 50) if ours else None),
        *(
            line(
                f"percentile({percent}%)",
                percentile(ordered, percent, "trtexec"),
                _ours(ours, percent) if ours else None,
            )
            for percent in (90, 95, 99)
        ),
    ]


def _trtexec(run: ProtocolRun, ours: Latency, batch: int, *, compute_only: bool) -> list[Field]:
    """Compute ``printEpilog`` of ``sampleReporting.cpp``; throughput counts queries, whatever the batch.

    Where the runtime doesn't separate the copies, the call as a whole is the latency, and the stages stay unknown.
    """
    samples = run.samples
    moves = (samples.transfer_in_ns, samples.transfer_out_ns)
    separated = bool(samples.compute_ns) and all(moves)
    if compute_only:
        latencies: Sequence[int] = samples.compute_ns if separated else samples.latency_ns
    else:
        columns = (samples.transfer_in_ns, samples.compute_ns, samples.transfer_out_ns)
        latencies = [sum(parts) for parts in zip(*columns, strict=True)] if separated else samples.latency_ns
    compute = samples.compute_ns if separated else ()
    wall = _wall_s(samples)
    spread = pstdev(latencies) / fmean(latencies)
    return [
        Field("Throughput", len(samples) / wall, (ours.samples.throughput(1) or None), "qps"),
        *_trtexec_summary("Latency", latencies, ours),
        *_trtexec_summary("H2D Latency", samples.transfer_in_ns if separated and not compute_only else (), None),
        *_trtexec_summary("GPU Compute Time", compute, None),
        *_trtexec_summary("D2H Latency", samples.transfer_out_ns if separated and not compute_only else (), None),
        Field("Total Host Walltime", wall, _wall_s(ours.samples), "s"),
        Field("Total GPU Compute Time", sum(compute) / 1e9 if compute else None, None, "s"),
        Field("Coefficient of variance", 100 * spread, None, "%"),
    ]


def _trtexec10(run: ProtocolRun, ours: Latency, batch: int) -> list[Field]:
    return _trtexec(run, ours, batch, compute_only=False)


def _trtexec11(run: ProtocolRun, ours: Latency, batch: int) -> list[Field]:
    return _trtexec(run, ours, batch, compute_only=True)


def _benchmark_app(run: ProtocolRun, ours: Latency, batch: int) -> list[Field]:
    """Compute ``main_loop`` and the report of ``main.py``; the median is the 50th percentile by nearest rank."""
    samples = run.samples
    ordered, own = sorted(samples.latency_ns), sorted(ours.samples.latency_ns)
    wall = _wall_s(samples)
    return [
        Field("First inference", run.first_ns / 1e6, ours.first_ns / 1e6, "ms"),
        Field("Count", len(samples), len(own), "iterations"),
        Field("Duration", wall * 1e3, _wall_s(ours.samples) * 1e3, "ms"),
        Field("Latency: Median", percentile(ordered, 50) / 1e6, _ours(ours, 50), "ms"),
        Field("Latency: Average", fmean(ordered) / 1e6, fmean(own) / 1e6, "ms"),
        Field("Latency: Min", ordered[0] / 1e6, own[0] / 1e6, "ms"),
        Field("Latency: Max", ordered[-1] / 1e6, own[-1] / 1e6, "ms"),
        Field("Throughput", batch * len(samples) / wall, ours.samples.throughput(batch), "FPS"),
    ]


def _loadgen_stats(run: ProtocolRun, ours: Latency) -> list[Field]:
    """Compute ``Additional Stats`` of ``results.cc``, in nanoseconds."""
    ordered, own = sorted(run.samples.latency_ns), sorted(ours.samples.latency_ns)
    return [
        Field("Min latency", ordered[0], own[0], "ns"),
        Field("Max latency", ordered[-1], own[-1], "ns"),
        Field("Mean latency", sum(ordered) // len(ordered), sum(own) // len(own), "ns"),
        *(
            Field(
                f"{percent:.2f} percentile latency",
                percentile(ordered, percent, "loadgen"),
                ours.samples.percentile_ns(percent),
                "ns",
            )
            for percent in (50, 90, 95, 97, 99, 99.9)
        ),
    ]


def _loadgen(run: ProtocolRun, ours: Latency, batch: int) -> list[Field]:
    """Compute ``LogSummary`` for SingleStream; the early-stopping estimate is the result."""
    samples = run.samples
    ordered = sorted(samples.latency_ns)
    issued_s = samples.start_ns[-1] / 1e9
    valid = len(ordered) >= 100 and issued_s >= LOADGEN_S and early_stopping(ordered, 90) is not None
    return [
        Field("90th percentile latency", percentile(ordered, 90, "loadgen"), ours.samples.percentile_ns(90), "ns"),
        Field("Result is VALID", float(valid), None),
        Field("Early stopping 90th percentile estimate", early_stopping(ordered, 90), None, "ns"),
        Field("Early stopping 99th percentile estimate", early_stopping(ordered, 99), None, "ns"),
        Field("QPS w/ loadgen overhead", (len(ordered) - 1) / issued_s if issued_s else None, None, "qps"),
        Field("QPS w/o loadgen overhead", 1e9 / (sum(ordered) // len(ordered)), ours.samples.throughput(1), "qps"),
        *_loadgen_stats(run, ours),
    ]


def _loadgen_offline(run: ProtocolRun, ours: Latency, batch: int) -> list[Field]:
    """Compute ``LogSummary`` for Offline: one query with all samples, over the latency of the last."""
    samples = run.samples
    longest_s = max(samples.latency_ns) / 1e9
    return [
        Field("Samples per second", batch * len(samples) / longest_s, ours.samples.throughput(batch), "samples/s"),
        Field("Result is VALID", float(batch * len(samples) >= OFFLINE_SAMPLES and longest_s >= LOADGEN_S), None),
        *_loadgen_stats(run, ours),
    ]


def _ultralytics(run: ProtocolRun, ours: Latency, batch: int) -> list[Field]:
    """Compute ``benchmark`` of ``utils/benchmarks.py``: mean per image, FPS = 1000 / (mean + 0.001), both rounded."""
    mean_ms = fmean(run.samples.latency_ns) / 1e6 / batch
    return [
        Field("Images", batch * len(run.samples), batch * len(ours.samples)),
        Field("Inference time", round(mean_ms, 2), fmean(ours.samples.latency_ns) / 1e6 / batch, "ms/im"),
        Field("FPS", round(1000 / (mean_ms + 1e-3), 2), ours.samples.throughput(batch), "images/s"),
    ]


LOADGEN_S, OFFLINE_SAMPLES = 600.0, 24576

TOOLS: dict[str, ToolProtocol] = {
    "trtexec10": ToolProtocol(
        "trtexec of TensorRT 8 to 10",
        "sync",
        warmup_s=0.2,
        min_duration_s=3.0,
        min_samples=10,
        fields=_trtexec10,
        why="It adds the GPU's own times for copying in, computing and copying out; vitedge's is the whole call as the "
        "caller sees it, interleaved with the other artifacts, after a warm-up that lasts until the latency is stable.",
    ),
    "trtexec11": ToolProtocol(
        "trtexec of TensorRT 11",
        "sync",
        warmup_s=0.2,
        min_duration_s=3.0,
        min_samples=10,
        fields=_trtexec11,
        why="Its latency is the computation alone, replayed as a CUDA graph with a spinning wait, which this session "
        "doesn't do; vitedge's includes the copies and the waiting.",
    ),
    "benchmark-app": ToolProtocol(
        "OpenVINO's benchmark_app, asynchronous as it is by default",
        "async",
        warmup_s=0.0,
        min_duration_s=60.0,
        min_samples=1,
        fields=_benchmark_app,
        why="It keeps every request busy, so a latency includes waiting for the others, and it aims at throughput; "
        "vitedge keeps one inference in flight. It would also compile for throughput; here the artifact's "
        "own options stay.",
    ),
    "loadgen": ToolProtocol(
        "MLPerf LoadGen, SingleStream",
        "sync",
        warmup_s=0.0,
        min_duration_s=LOADGEN_S,
        min_samples=100,
        fields=_loadgen,
        why="Its headline is a 90th percentile, estimated on the safe side, of ten minutes without a warm-up in the "
        "timed run; vitedge's is a median and a chosen percentile, after a warm-up.",
    ),
    "loadgen-offline": ToolProtocol(
        "MLPerf LoadGen, Offline",
        "at once",
        warmup_s=0.0,
        min_duration_s=LOADGEN_S,
        min_samples=OFFLINE_SAMPLES,
        fields=_loadgen_offline,
        why="Everything is queued at once and counts from the beginning, so its latencies are positions in a queue and "
        "its result is the throughput; vitedge's is the time of one inference.",
    ),
    "ultralytics": ToolProtocol(
        "Ultralytics' benchmark",
        "sync",
        warmup_s=0.0,
        min_duration_s=0.0,
        min_samples=0,
        fields=_ultralytics,
        why="It's the mean over one pass, in which a single slow inference counts in full, and it says nothing of the "
        "spread; vitedge's is the median of many.",
    ),
}


def fields(run: ProtocolRun, ours: Latency, batch: int) -> list[Field]:
    """Return the fields that the tool would print of these samples, and vitedge's own statistics of the same."""
    return TOOLS[run.tool].fields(run, ours, batch)
