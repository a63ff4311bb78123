"""Other tools' rules on the same session, and their fields from the samples taken by them.

Each tool warms up, stops, times and counts in its own way; a number can only be checked against the one that somebody
has when all four are the same. What a tool does is described where it's defined, with the source of each formula.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING, Literal

from vitedge.benchmarking.load import System, quiet
from vitedge.core.percentiles import early_stopping, percentile
from vitedge.formats.samples import Block, Dialect, Latency, Samples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitedge.runtimes.base import Stages

Issue = Literal["sync", "async", "at once"]


@dataclass(frozen=True)
class Field:
    """One line of a tool's output; ``ours`` is the same statistic of our own samples, where there is one."""

    name: str
    theirs: float | None  # None: the runtime doesn't tell what it takes
    ours: float | None
    unit: str = ""


@dataclass(frozen=True)
class Tool:
    """A tool's rules.

    Attributes:
        title: its name and the mode that is meant.
        issue: one in flight, as many as there are slots, or everything at once.
        warmup_s: runs so long before it counts (0: one inference).
        min_duration_s: counts at least so long …
        min_samples: … and at least so many inferences.
        fields: from the samples, our own latency and the batch.
        why: in a sentence, why its numbers differ from ours.
    """

    title: str
    issue: Issue
    warmup_s: float
    min_duration_s: float
    min_samples: int
    fields: Callable[[Dialect, Latency, int], list[Field]]
    why: str


# --- running by a tool's rules ---------------------------------------------------------------------------------------


def run_like(
    tool: str, system: System, frames: Sequence[NDArray[np.uint8]], slots: int, duration_s: float | None = None
) -> Dialect:
    """Run by a tool's rules.

    Args:
        tool: a key of :data:`TOOLS`.
        system: what answers.
        frames: fed in turn, each uint8 [batch, h, w, 3].
        slots: inferences that may be in flight.
        duration_s: instead of the tool's own where that is longer; the result says so.
    """
    rules, feed, clock = TOOLS[tool], itertools.cycle(frames), time.perf_counter_ns
    wanted_s = rules.min_duration_s if duration_s is None else min(duration_s, rules.min_duration_s)
    start = clock()
    system.run_timed(next(feed))
    first_ns = clock() - start
    until = clock() + rules.warmup_s * 1e9
    while clock() < until:
        system.run_timed(next(feed))
    least = len(frames) if rules.min_samples == 0 else rules.min_samples
    with quiet():
        if rules.issue == "at once":
            count = _expected(system, feed, slots, wanted_s, -(-least // frames[0].shape[0]))
            samples = _flying(system, feed, slots, 0.0, count, at_once=True)
        elif rules.issue == "async" and slots > 1:
            samples = _flying(system, feed, slots, wanted_s, least, at_once=False)
        else:
            samples = _one_by_one(system, feed, wanted_s, least)
    return Dialect(
        tool=tool,
        samples=samples,
        first_ns=first_ns,
        min_duration_s=wanted_s,
        shortened=wanted_s < rules.min_duration_s,
    )


def _expected(
    system: System, feed: itertools.cycle[NDArray[np.uint8]], slots: int, duration_s: float, least: int
) -> int:
    """How many inferences last so long, with LoadGen's tenth on top: everything is asked for before it begins."""
    probe = _flying(system, feed, slots, min(1.0, duration_s / 10), slots, at_once=False)
    return max(least, math.ceil(1.1 * duration_s * len(probe) / _wall_s(probe)))


def _one_by_one(system: System, feed: itertools.cycle[NDArray[np.uint8]], duration_s: float, least: int) -> Samples:
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


def _flying(
    system: System,
    feed: itertools.cycle[NDArray[np.uint8]],
    slots: int,
    duration_s: float,
    least: int,
    *,
    at_once: bool,
) -> Samples:
    """With ``at_once`` every inference counts from the beginning, when all of them were asked for."""
    clock = time.perf_counter_ns
    flying: deque[tuple[int, int]] = deque()
    starts: list[int] = []
    latencies: list[int] = []

    def land() -> int:
        start, ticket = flying.popleft()
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
        flying.append((start, system.submit(images)))
        started += 1
        end = land() if len(flying) == slots else clock()
    while flying:
        end = land()
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
    """``getPerformanceResult``: min, max, mean, median (of an even number: the mean of the middle two), percentiles."""
    if not column:
        return [Field(f"{name}: median", None, None, "ms")]
    ordered = sorted(column)
    own = sorted(ours.samples.latency_ns) if ours is not None else []

    def line(word: str, theirs: float, statistic: float | None) -> Field:
        return Field(f"{name}: {word}", theirs / 1e6, statistic, "ms")

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


def _trtexec(dialect: Dialect, ours: Latency, batch: int, *, compute_only: bool) -> list[Field]:
    """``printEpilog`` of ``sampleReporting.cpp``; throughput counts queries, whatever the batch.

    Where the runtime doesn't separate the copies, the call as a whole is the latency, and the stages stay unknown.
    """
    samples = dialect.samples
    moves = (samples.transfer_in_ns, samples.transfer_out_ns)
    separated = bool(samples.compute_ns) and all(moves)
    if compute_only:
        whole: Sequence[int] = samples.compute_ns if separated else samples.latency_ns
    else:
        columns = (samples.transfer_in_ns, samples.compute_ns, samples.transfer_out_ns)
        whole = [sum(parts) for parts in zip(*columns, strict=True)] if separated else samples.latency_ns
    compute = samples.compute_ns if separated else ()
    wall = _wall_s(samples)
    spread = pstdev(whole) / fmean(whole)
    return [
        Field("Throughput", len(samples) / wall, (ours.samples.throughput(1) or None), "qps"),
        *_trtexec_summary("Latency", whole, ours),
        *_trtexec_summary("H2D Latency", samples.transfer_in_ns if separated and not compute_only else (), None),
        *_trtexec_summary("GPU Compute Time", compute, None),
        *_trtexec_summary("D2H Latency", samples.transfer_out_ns if separated and not compute_only else (), None),
        Field("Total Host Walltime", wall, _wall_s(ours.samples), "s"),
        Field("Total GPU Compute Time", sum(compute) / 1e9 if compute else None, None, "s"),
        Field("Coefficient of variance", 100 * spread, None, "%"),
    ]


def _trtexec10(dialect: Dialect, ours: Latency, batch: int) -> list[Field]:
    return _trtexec(dialect, ours, batch, compute_only=False)


def _trtexec11(dialect: Dialect, ours: Latency, batch: int) -> list[Field]:
    return _trtexec(dialect, ours, batch, compute_only=True)


def _benchmark_app(dialect: Dialect, ours: Latency, batch: int) -> list[Field]:
    """``main_loop`` and the report of ``main.py``; the median is the 50th percentile by nearest rank."""
    samples = dialect.samples
    ordered, own = sorted(samples.latency_ns), sorted(ours.samples.latency_ns)
    wall = _wall_s(samples)
    return [
        Field("First inference", dialect.first_ns / 1e6, ours.first_ns / 1e6, "ms"),
        Field("Count", len(samples), len(own), "iterations"),
        Field("Duration", wall * 1e3, _wall_s(ours.samples) * 1e3, "ms"),
        Field("Latency: Median", percentile(ordered, 50) / 1e6, _ours(ours, 50), "ms"),
        Field("Latency: Average", fmean(ordered) / 1e6, fmean(own) / 1e6, "ms"),
        Field("Latency: Min", ordered[0] / 1e6, own[0] / 1e6, "ms"),
        Field("Latency: Max", ordered[-1] / 1e6, own[-1] / 1e6, "ms"),
        Field("Throughput", batch * len(samples) / wall, ours.samples.throughput(batch), "FPS"),
    ]


def _loadgen_stats(dialect: Dialect, ours: Latency) -> list[Field]:
    """``Additional Stats`` of ``results.cc``, in nanoseconds."""
    ordered, own = sorted(dialect.samples.latency_ns), sorted(ours.samples.latency_ns)
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


def _loadgen(dialect: Dialect, ours: Latency, batch: int) -> list[Field]:
    """``LogSummary`` for SingleStream; the early-stopping estimate is what counts as the result."""
    samples = dialect.samples
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
        *_loadgen_stats(dialect, ours),
    ]


def _loadgen_offline(dialect: Dialect, ours: Latency, batch: int) -> list[Field]:
    """``LogSummary`` for Offline: one query with all samples, over the latency of the last."""
    samples = dialect.samples
    longest_s = max(samples.latency_ns) / 1e9
    return [
        Field("Samples per second", batch * len(samples) / longest_s, ours.samples.throughput(batch), "samples/s"),
        Field("Result is VALID", float(batch * len(samples) >= OFFLINE_SAMPLES and longest_s >= LOADGEN_S), None),
        *_loadgen_stats(dialect, ours),
    ]


def _ultralytics(dialect: Dialect, ours: Latency, batch: int) -> list[Field]:
    """``benchmark`` of ``utils/benchmarks.py``: the mean an image, and FPS = 1000 / (mean + 0.001), both rounded."""
    mean_ms = fmean(dialect.samples.latency_ns) / 1e6 / batch
    return [
        Field("Images", batch * len(dialect.samples), batch * len(ours.samples)),
        Field("Inference time", round(mean_ms, 2), fmean(ours.samples.latency_ns) / 1e6 / batch, "ms/im"),
        Field("FPS", round(1000 / (mean_ms + 1e-3), 2), ours.samples.throughput(batch), "images/s"),
    ]


LOADGEN_S, OFFLINE_SAMPLES = 600.0, 24576

TOOLS: dict[str, Tool] = {
    "trtexec10": Tool(
        "trtexec of TensorRT 8 to 10",
        "sync",
        warmup_s=0.2,
        min_duration_s=3.0,
        min_samples=10,
        fields=_trtexec10,
        why="It adds the GPU's own times for copying in, computing and copying out; ours is the whole call as the "
        "caller sees it, in turns with others, and after a warm-up that lasts until it's stable.",
    ),
    "trtexec11": Tool(
        "trtexec of TensorRT 11",
        "sync",
        warmup_s=0.2,
        min_duration_s=3.0,
        min_samples=10,
        fields=_trtexec11,
        why="Its latency is the computation alone, replayed as a CUDA graph with a spinning wait, which this session "
        "doesn't do; ours has the copies and the waiting in it.",
    ),
    "benchmark-app": Tool(
        "OpenVINO's benchmark_app, asynchronous as it is by default",
        "async",
        warmup_s=0.0,
        min_duration_s=60.0,
        min_samples=1,
        fields=_benchmark_app,
        why="It keeps every request busy, so a latency has waiting for the others in it, and throughput is what it's "
        "after; ours keeps one in flight. It would also compile for throughput; the artifact's own options stay here.",
    ),
    "loadgen": Tool(
        "MLPerf LoadGen, SingleStream",
        "sync",
        warmup_s=0.0,
        min_duration_s=LOADGEN_S,
        min_samples=100,
        fields=_loadgen,
        why="Its headline is a 90th percentile, estimated on the safe side, of ten minutes without a warm-up in the "
        "timed run; ours is a median and the percentile asked for, after a warm-up.",
    ),
    "loadgen-offline": Tool(
        "MLPerf LoadGen, Offline",
        "at once",
        warmup_s=0.0,
        min_duration_s=LOADGEN_S,
        min_samples=OFFLINE_SAMPLES,
        fields=_loadgen_offline,
        why="Everything is asked for at once and counts from the beginning, so its latencies are places in a queue and "
        "its number is the throughput; ours is the time of one inference.",
    ),
    "ultralytics": Tool(
        "Ultralytics' benchmark",
        "sync",
        warmup_s=0.0,
        min_duration_s=0.0,
        min_samples=0,
        fields=_ultralytics,
        why="It's the mean over one pass, in which a single slow inference counts in full, and it says nothing of the "
        "spread; ours is the median of many.",
    ),
}


def fields(dialect: Dialect, ours: Latency, batch: int) -> list[Field]:
    """What the tool would print of these samples, beside the same statistics of our own."""
    return TOOLS[dialect.tool].fields(dialect, ours, batch)
