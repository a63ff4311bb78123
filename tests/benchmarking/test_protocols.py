"""Other tools' fields from known samples, by each tool's own formula; and their rules on a clock that can be read."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from msgspec.structs import replace

from tests.benchmarking.fakes import MS, Clock, Fake, frames
from tests.formats.test_result import RECORDED, latency, samples
from vitedge.benchmarking import protocols
from vitedge.benchmarking.protocols import TOOLS, Field, fields, run_protocol
from vitedge.formats.samples import Block, ProtocolRun, Samples

NS = [1000 * microseconds for microseconds in RECORDED]  # 43 samples
OURS = latency(samples([2 * MS] * 700, block=70))


def fields_of(tool: str, recorded: Samples | None = None, batch: int = 1, **more: object) -> dict[str, Field]:
    whole = ProtocolRun(
        tool=tool, samples=recorded or samples(NS), first_ns=9 * MS, min_duration_s=3.0, shortened=False, **more
    )
    return {field.name: field for field in fields(whole, OURS, batch)}


def separated(count: int = 10) -> Samples:
    """Copies of 1 and 2 ms around computations of 10, 11, … ms; every call takes 1 ms more than its stages."""
    compute = [(10 + number) * MS for number in range(count)]
    calls = [value + 4 * MS for value in compute]
    starts = (0, *itertools.accumulate(calls))
    return Samples(
        start_ns=tuple(starts[:-1]),
        latency_ns=tuple(calls),
        blocks=(Block(start_ns=0, end_ns=sum(calls), samples=count),),
        transfer_in_ns=(1 * MS,) * count,
        compute_ns=tuple(compute),
        transfer_out_ns=(2 * MS,) * count,
    )


def test_trtexec_10_adds_the_stages() -> None:
    """getPerformanceResult: findMedian averages the middle two; findPercentile leaves out int((1 - p)·N)."""
    found = fields_of("trtexec10", separated())
    assert [found[f"Latency: {word}"].tool for word in ("min", "max", "mean", "median")] == [13, 22, 17.5, 17.5]
    assert found["Latency: percentile(90%)"].tool == 21  # ten samples, one left out
    assert found["Latency: percentile(95%)"].tool == found["Latency: percentile(99%)"].tool == 22
    assert found["GPU Compute Time: median"].tool == 14.5 and found["H2D Latency: max"].tool == 1
    assert found["D2H Latency: median"].tool == 2
    assert found["Total GPU Compute Time"].tool == pytest.approx(0.145)
    assert found["Total Host Walltime"].tool == pytest.approx(0.185)
    assert found["Throughput"].tool == pytest.approx(10 / 0.185)
    spread = statistics.pstdev(range(13, 23)) / 17.5
    assert found["Coefficient of variance"].tool == pytest.approx(100 * spread)
    assert (found["Latency: median"].vitedge, found["Throughput"].vitedge) == (2, pytest.approx(500))


def test_trtexec_11_takes_the_computation_alone() -> None:
    found = fields_of("trtexec11", separated())
    assert found["Latency: median"].tool == found["GPU Compute Time: median"].tool == 14.5


def test_trtexec_where_the_runtime_does_not_separate_the_copies() -> None:
    found = fields_of("trtexec10")
    assert found["Latency: median"].tool == statistics.median(RECORDED) / 1e3
    assert found["Latency: percentile(90%)"].tool == sorted(RECORDED)[43 - 1 - int(43 * 0.1)] / 1e3
    assert found["H2D Latency: median"].tool is None and found["GPU Compute Time: median"].tool is None


def test_benchmark_app() -> None:
    """percentile(): values[ceil(len · percent / 100) - 1]; FPS = batch · iterations / duration."""
    found = fields_of("benchmark-app", batch=4)
    ordered = sorted(RECORDED)
    assert found["Latency: Median"].tool == ordered[math.ceil(43 * 50 / 100) - 1] / 1e3
    assert found["Latency: Average"].tool == pytest.approx(sum(RECORDED) / 43 / 1e3)
    assert (found["Latency: Min"].tool, found["Latency: Max"].tool) == (3.087, 5.12)
    assert found["Throughput"].tool == pytest.approx(4 * 43 / (sum(RECORDED) / 1e6))
    assert (found["Count"].tool, found["First inference"].tool) == (43, 9)


def test_loadgen_single_stream() -> None:
    """results.cc: sorted[int(N · p)]; QPS with overhead counts N - 1 over the last issue, without it 1 / mean."""
    many = samples([value for value in NS for _ in range(3)])  # 129
    found, ordered = fields_of("loadgen", many), sorted(value for value in NS for _ in range(3))
    assert found["90th percentile latency"].tool == found["90.00 percentile latency"].tool == ordered[int(129 * 0.9)]
    assert found["97.00 percentile latency"].tool == ordered[int(129 * 0.97)]
    assert found["Mean latency"].tool == sum(ordered) // 129
    assert found["QPS w/o loadgen overhead"].tool == pytest.approx(1e9 / (sum(ordered) // 129))
    assert found["QPS w/ loadgen overhead"].tool == pytest.approx(128 / (many.start_ns[-1] / 1e9))
    # at most 5 of 129 beyond the 90th percentile have a probability of 0.9 %, at most 6 of 2.2 %
    assert found["Early stopping 90th percentile estimate"].tool == ordered[129 - 5]
    assert found["Early stopping 99th percentile estimate"].tool is None  # 662 are needed
    assert found["Result is VALID"].tool == 0  # it hasn't lasted ten minutes


def test_loadgen_single_stream_is_valid_after_ten_minutes() -> None:
    assert fields_of("loadgen", samples([4 * 10**9] * 200))["Result is VALID"].tool == 1


def test_loadgen_offline() -> None:
    """samples per second = samples / the largest latency; all of them count from the beginning."""
    queue = Samples(
        start_ns=(0,) * 50,
        latency_ns=tuple(10 * MS * (number + 1) for number in range(50)),
        blocks=(Block(start_ns=0, end_ns=500 * MS, samples=50),),
    )
    found = fields_of("loadgen-offline", queue, batch=8)
    assert found["Samples per second"].tool == pytest.approx(800)
    assert found["50.00 percentile latency"].tool == 260 * MS and found["Result is VALID"].tool == 0


def test_ultralytics() -> None:
    """fps = round(1000 / (speed + eps), 2) with eps = 0.001; the speed is a mean in milliseconds."""
    found, mean = fields_of("ultralytics"), sum(RECORDED) / 43 / 1e3
    assert found["Inference time"].tool == round(mean, 2)
    assert found["FPS"].tool == round(1000 / (mean + 1e-3), 2)
    assert found["Images"].tool == 43


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_says_why_and_compares(tool: str) -> None:
    found = fields_of(tool)
    assert TOOLS[tool].why.endswith(".") and any(field.vitedge is not None for field in found.values())


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(protocols, "time", clock)
    return clock


def fed() -> list[np.ndarray]:
    return list(frames())


def test_trtexec_warms_up_and_goes_on_for_three_seconds(clock: Clock) -> None:
    system = Fake(clock, lambda call: 10 * MS)
    found = run_protocol("trtexec10", system, fed(), slots=4)
    assert len(found.samples) == pytest.approx(300, abs=1) and system.calls - len(found.samples) == pytest.approx(
        21, abs=1
    )
    slow = run_protocol("trtexec10", Fake(clock, lambda call: 1000 * MS), fed(), slots=1)
    assert len(slow.samples) == 10 and not slow.shortened
    brief = run_protocol("trtexec10", Fake(clock, lambda call: 10 * MS), fed(), slots=1, duration_s=0.5)
    assert brief.shortened and len(brief.samples) == pytest.approx(50, abs=1)


def test_loadgen_has_no_warm_up_and_at_least_a_hundred_queries(clock: Clock) -> None:
    system = Fake(clock, lambda call: 10 * MS)
    found = run_protocol("loadgen", system, fed(), slots=4, duration_s=0.1)
    assert len(found.samples) == 100 and system.calls == 101
    whole = run_protocol("loadgen", Fake(clock, lambda call: 3000 * MS), fed(), slots=1)
    assert len(whole.samples) == pytest.approx(200, abs=1) and not whole.shortened


def test_benchmark_app_keeps_all_requests_busy(clock: Clock) -> None:
    found = run_protocol("benchmark-app", Fake(clock, lambda call: 10 * MS), fed(), slots=4, duration_s=2.0)
    assert found.first_ns == pytest.approx(10 * MS, abs=100)
    assert len(found.samples) == pytest.approx(400, rel=0.03)  # the fake finishes one every half of its latency
    assert statistics.median(found.samples.latency_ns) > 15 * MS  # waiting for the others is in it
    alone = run_protocol("benchmark-app", Fake(clock, lambda call: 10 * MS), fed(), slots=1, duration_s=2.0)
    assert len(alone.samples) == pytest.approx(200, abs=1)


def test_offline_asks_for_everything_at_once(clock: Clock) -> None:
    found = run_protocol("loadgen-offline", Fake(clock, lambda call: 100 * MS), fed(), slots=4)
    assert len(found.samples) == protocols.OFFLINE_SAMPLES and not found.shortened
    assert set(found.samples.start_ns) == {0}
    assert list(found.samples.latency_ns) == sorted(found.samples.latency_ns)
    assert found.samples.latency_ns[-1] == pytest.approx(found.samples.blocks[0].end_ns, abs=100)
    eight = np.repeat(frames(), 8, axis=1)
    batches = run_protocol("loadgen-offline", Fake(clock, lambda call: 800 * MS), list(eight), slots=4)
    assert len(batches.samples) == protocols.OFFLINE_SAMPLES / 8  # samples are pictures


def test_a_shorter_offline_run_has_a_shorter_queue(clock: Clock) -> None:
    slow = run_protocol("loadgen-offline", Fake(clock, lambda call: 1000 * MS), fed(), slots=1, duration_s=60.0)
    assert slow.shortened and len(slow.samples) == -(-protocols.OFFLINE_SAMPLES // 10)


def test_offline_asks_for_as_much_as_lasts_long_enough(clock: Clock) -> None:
    """The first inference is slow; it mustn't be taken for the rate."""
    system = Fake(clock, lambda call: 1000 * MS if call == 0 else 40 * MS)
    found = run_protocol("loadgen-offline", system, fed(), slots=1, duration_s=600.0)
    longer = run_protocol("loadgen-offline", Fake(clock, lambda call: 100 * MS), fed(), slots=1)
    assert len(found.samples) == protocols.OFFLINE_SAMPLES  # 983 s
    assert len(longer.samples) == protocols.OFFLINE_SAMPLES and not longer.shortened
    quick = run_protocol("loadgen-offline", Fake(clock, lambda call: 2 * MS), fed(), slots=1, duration_s=100.0)
    assert len(quick.samples) == pytest.approx(55_000, rel=0.01) and quick.samples.blocks[0].end_ns > 100e9


def test_ultralytics_takes_one_pass(clock: Clock) -> None:
    system = Fake(clock, lambda call: 10 * MS)
    found = run_protocol("ultralytics", system, fed(), slots=4)
    assert len(found.samples) == 4 and system.calls == 5 and not found.shortened
    assert replace(found, shortened=True) != found
