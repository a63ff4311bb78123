"""The load generator on a clock that can be read beforehand."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.benchmarking.fakes import MS, Clock, Fake, frames
from vitedge.benchmarking import auditing, interleaving, load, scenarios
from vitedge.benchmarking.arrivals import Arrivals
from vitedge.benchmarking.interleaving import Run
from vitedge.benchmarking.load import Workload
from vitedge.core.deviation import deviation
from vitedge.errors import UsageError
from vitedge.formats.result import Memory, Rules, samples_needed

RULES = Rules(
    scenario="single",
    warmup_s=0.1,
    min_duration_s=1.0,
    min_samples=1,
    percentile=50,
    block_s=0.1,
    settle=2,
    seed=0,
    pictures="generated",
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (auditing, interleaving, load, scenarios):
        monkeypatch.setattr(module, "time", clock)
    return clock


def workload(system: Fake, *, prepare_ns: int = 0, audit: bool = True, **more: object) -> Workload:
    fed = frames()

    def preprocess(index: int) -> np.ndarray:
        system.clock.now += prepare_ns
        return np.array(fed[index, 0])

    expected = np.stack([system.answer(batch) for batch in fed]) if audit else None
    return Workload(system, fed, preprocess=preprocess, postprocess=lambda logits: None, expected=expected, **more)


def steady(clock: Clock, latency_ns: int = 2 * MS) -> Fake:
    return Fake(clock, lambda call: latency_ns)


@pytest.mark.parametrize(
    ("changes", "enough"),
    [
        ({"min_duration_s": 3.0}, lambda samples, spent: spent >= 3e9 and samples <= 1600),
        ({"min_samples": 2000}, lambda samples, spent: 2000 <= samples <= 2050),
        ({"percentile": 99.0, "min_duration_s": 0.01}, lambda samples, spent: 662 <= samples <= 712),
    ],
)
def test_stops_when_time_count_and_percentile_are_satisfied(
    clock: Clock, changes: dict[str, float], enough: Callable[[int, int], bool]
) -> None:
    measured = workload(steady(clock))
    Run([measured], replace(RULES, **changes)).measure()
    samples = measured.samples()
    assert enough(len(samples), measured.measured_ns), (len(samples), measured.measured_ns)
    assert set(samples.latency_ns) <= {2 * MS + 10}
    assert samples.percentile_ns(50) == 2 * MS + 10


def test_warms_up_until_the_median_stands_still(clock: Clock) -> None:
    cooling = workload(Fake(clock, lambda call: max(2 * MS, 20 * MS - call * MS // 10)))  # steady from call 180 on
    cooling.warm_up(RULES)
    assert cooling.warmup.stable is False and cooling.warmup.duration_ns >= 0.5e9  # five times the wish, then enough
    patient = workload(Fake(clock, lambda call: max(2 * MS, 20 * MS - call * MS // 10)))
    patient.warm_up(replace(RULES, warmup_s=1.0))
    assert patient.warmup.stable is True and patient.warmup.samples > 180
    at_once = workload(steady(clock))
    at_once.warm_up(RULES)
    assert at_once.warmup.stable is True and 0.1e9 <= at_once.warmup.duration_ns < 0.2e9


def test_no_warm_up_is_no_warm_up(clock: Clock) -> None:
    cold = workload(steady(clock))
    cold.warm_up(replace(RULES, warmup_s=0.0))
    assert cold.warmup.samples == 0 and cold.system.calls == 0


def test_turns_are_interleaved_in_a_seeded_random_order(clock: Clock) -> None:
    def order(seed: int) -> list[str]:
        log: list[str] = []
        both = [workload(Fake(clock, lambda call: 2 * MS, name, log), audit=False) for name in "ab"]
        Run(both, replace(RULES, seed=seed, warmup_s=0.0)).measure()
        assert [len(one.samples().blocks) for one in both] == [10, 10]
        return [name for index, name in enumerate(log) if index == 0 or log[index - 1] != name]

    first = order(1)
    assert first == order(1) and first != order(2)
    assert len(first) > 5  # neither ran all its blocks in one go


def test_block_of_every_workload_belongs_to_one_round(clock: Clock) -> None:
    fast, slow = workload(steady(clock, MS)), workload(steady(clock, 30 * MS))
    Run([fast, slow], RULES).measure()
    ours, theirs = fast.samples().blocks, slow.samples().blocks
    assert len(ours) == len(theirs)
    for first, second, following in zip(ours, theirs, [*ours[1:], None], strict=True):
        assert following is None or max(first.end_ns, second.end_ns) <= following.start_ns


def test_stages_and_what_is_timed_beside_the_inferences(clock: Clock) -> None:
    measured = workload(steady(clock), prepare_ns=5 * MS)
    Run([measured], RULES).measure()
    samples = measured.samples()
    assert samples.compute_ns == (2 * MS,) * len(samples)
    assert samples.transfer_in_ns == (1,) * len(samples)
    assert samples.transfer_out_ns == ()  # the runtime doesn't separate it
    assert len(samples.preprocess_ns) == 8 * len(samples.blocks)
    assert min(samples.preprocess_ns) >= 5 * MS and len(samples.postprocess_ns) == len(samples.preprocess_ns)


def test_overhead_takes_few_samples_in_the_same_rounds(clock: Clock) -> None:
    measured, overhead = workload(steady(clock)), workload(steady(clock, 1000), audit=False, max_block_samples=32)
    run = Run([measured], RULES, overheads=[overhead])
    run.measure()
    assert len(overhead.samples().blocks) == len(measured.samples().blocks)
    assert {block.samples for block in overhead.samples().blocks} == {32}


def test_offline_keeps_every_slot_busy(clock: Clock) -> None:
    rules = replace(RULES, scenario="offline")
    one, four = workload(steady(clock)), workload(steady(clock), slots=4)
    Run([one, four], rules).measure()
    single, overlapped = one.samples().throughput(1), four.samples().throughput(1)
    assert single == pytest.approx(500, rel=0.01)
    assert overlapped == pytest.approx(1000, rel=0.1)  # the fake finishes one every half of its latency
    assert four.audit().checked >= len(four.samples().blocks) and four.audit().differing == 0


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([1.0, 24.0, 30.0, 59.94, 120.0]),
    latency_ms=st.floats(0.01, 400),
    jitter=st.lists(st.floats(0, 3, allow_subnormal=False), min_size=1, max_size=5),
    oversleep_us=st.integers(0, 20_000),
)
def test_camera_accounts_for_every_arrival(
    rate: float, latency_ms: float, jitter: list[float], oversleep_us: int
) -> None:
    clock = Clock(oversleep_us * 1000)
    with pytest.MonkeyPatch.context() as patch:
        for module in (auditing, interleaving, load, scenarios):
            patch.setattr(module, "time", clock)
        measured = workload(Fake(clock, lambda call: round(latency_ms * MS * (1 + jitter[call % len(jitter)]))))
        rules = replace(RULES, scenario="camera", rate_hz=rate, block_s=0.5, warmup_s=0.0, min_duration_s=0.5)
        Run([measured], replace(rules, percentile=0.001)).measure()
        samples = measured.samples()
    period = 1e9 / rate
    assert all(abs(block.arrivals - rate * 0.5) <= 1 for block in samples.blocks)
    assert samples.arrivals == len(samples) + samples.missed
    start = 0
    for block in samples.blocks:
        starts = samples.start_ns[start : start + block.samples]
        latencies = samples.latency_ns[start : start + block.samples]
        start += block.samples
        arrivals = [round((due - block.start_ns) / period) - 1 for due in starts]
        assert arrivals == sorted(set(arrivals)) and arrivals[0] >= 0 and arrivals[-1] == block.arrivals - 1
        for due, index in zip(starts, arrivals, strict=True):
            assert abs(due - (block.start_ns + (index + 1) * period)) <= 2
        assert all(latency >= latency_ms * MS * 0.999 for latency in latencies)  # from the schedule, never before
        ends = [due + latency for due, latency in zip(starts, latencies, strict=True)]
        assert ends == sorted(ends)


@pytest.mark.parametrize("rate", [30.0, 120.0])
def test_blocks_of_arrivals_go_on_where_the_last_one_ended(rate: float) -> None:
    arrivals = Arrivals.steady(rate)
    numbers = [number for _ in range(7) for _, number in arrivals.block(100_000_000)]
    assert numbers == list(range(len(numbers))) and len(numbers) in (round(0.7 * rate), round(0.7 * rate) - 1)


def test_recorded_arrivals_are_replayed_with_their_gaps(clock: Clock) -> None:
    """Two pictures close together and a pause, over and over; the second of a pair comes while the first is busy."""
    times = [0, 5 * MS, 100 * MS, 105 * MS, 200 * MS]
    measured = workload(steady(clock, 20 * MS), arrivals=Arrivals.replayed(times))
    rules = replace(RULES, scenario="camera", rate_hz=20.0, replay="clip", block_s=0.5, warmup_s=0.0)
    Run([measured], replace(rules, min_duration_s=2.0)).measure()
    samples = measured.samples()
    assert samples.arrivals == len(samples) + samples.missed
    found = [due for block in [samples.blocks[0]] for due in samples.start_ns[: block.samples]]
    gaps = [round((after - before) / MS) for before, after in pairwise(found)]
    assert set(gaps) <= {5, 50, 95, 100} and 5 in gaps
    waited = [latency for latency in samples.latency_ns if latency > 30 * MS]
    assert waited and max(samples.latency_ns) <= 36 * MS  # the second of a pair waits for the first


def test_recorded_arrivals_that_are_none_are_refused() -> None:
    for times in ([], [1], [2, 1], [3, 3, 3]):
        with pytest.raises(UsageError, match="replay recorded arrivals"):
            Arrivals.replayed(times)


def test_camera_misses_only_what_it_is_too_slow_for(clock: Clock) -> None:
    rules = replace(RULES, scenario="camera", rate_hz=100.0, block_s=0.5)
    quick, slow = workload(steady(clock, 5 * MS)), workload(steady(clock, 25 * MS))
    Run([quick, slow], rules).measure()
    assert quick.samples().missed == 0
    assert max(quick.samples().latency_ns) < 6 * MS
    assert slow.samples().missed > slow.samples().arrivals / 2
    assert max(slow.samples().latency_ns) < 40 * MS  # the newest is taken: it doesn't fall further and further behind


def test_an_interrupted_block_is_forgotten(clock: Clock) -> None:
    def latency(call: int) -> int:
        if call == 600:
            raise KeyboardInterrupt
        return 2 * MS

    measured = workload(Fake(clock, latency), audit=False)
    run = Run([measured], replace(RULES, min_duration_s=100.0))
    with pytest.raises(KeyboardInterrupt):
        run.measure()
    samples = measured.samples()
    assert 400 < len(samples) < 600
    assert sum(block.samples for block in samples.blocks) == len(samples) == len(samples.compute_ns)
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_collector_rests_while_timing(clock: Clock) -> None:
    states: set[bool] = set()
    system = steady(clock)
    system.latency = lambda call: states.add(gc.isenabled()) or MS
    measured = workload(system, audit=False)
    measured.run_block(RULES)
    assert states == {False} and gc.isenabled()


def test_audit_finds_one_wrong_answer_in_a_hundred(clock: Clock) -> None:
    class Liar(Fake):
        def answer(self, images: np.ndarray) -> np.ndarray:
            return super().answer(images) * (1.5 if self.calls > 300 else 1.0)

    honest, liar = workload(steady(clock)), workload(Liar(clock, lambda call: MS))
    for one in (honest, liar):
        Run([one], replace(RULES, block_s=1.0)).measure()
    assert honest.audit().differing == 0 and honest.audit().checked >= len(honest.samples()) / 100
    assert liar.audit().differing > 0


def test_of_a_long_clip_some_frames_are_audited(clock: Clock) -> None:
    """Those that were run for reference, whenever they come."""
    fed = frames(200)
    honest, liar = Fake(clock, lambda call: MS), Fake(clock, lambda call: MS)
    reference = {index: honest.answer(fed[index]) for index in range(0, 200, 50)}
    liar.answer = lambda images: honest.answer(images) * np.float32(1.5 if images[0, 0, 0, 0] == 50 else 1)
    rules = replace(RULES, scenario="camera", rate_hz=100.0, min_duration_s=4.0, block_s=0.5)
    for system, differing in ((honest, False), (liar, True)):
        measured = Workload(
            system, fed, preprocess=lambda index: fed[index, 0], postprocess=lambda logits: None, expected=reference
        )
        Run([measured], rules).measure()
        audit = measured.audit()
        assert audit is not None and 6 <= audit.checked <= 12 and (audit.differing > 0) is differing


def test_a_runtime_that_remembers_is_timed_in_the_act(clock: Clock) -> None:
    class Remembering(Fake):
        last = b""

        def run_timed(self, images: np.ndarray) -> tuple[np.ndarray, object]:
            again, self.last = images.tobytes() == self.last, images.tobytes()
            self.latency = lambda call: MS // 2 if again else MS
            return super().run_timed(images)

    measured = workload(Remembering(clock, lambda call: MS))
    Run([measured], RULES).measure()
    audit = measured.audit()
    assert len(audit.varied_ns) == len(audit.repeated_ns) == auditing.REPEAT_PAIRS
    assert {taken for turn in audit.varied_ns for taken in turn} == {MS + 10}
    assert {taken for turn in audit.repeated_ns for taken in turn} == {MS // 2 + 10}


def test_deviation() -> None:
    reference = np.array([[2.0, -4.0]], np.float32)
    assert deviation(reference, reference) == 0.0
    assert deviation(reference + np.float32(1), reference) == 0.25
    assert deviation(np.full((1, 2), np.nan, np.float32), reference) == float("inf")
    assert deviation(reference[:, :1], reference) == float("inf")
    assert deviation(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)) == 0.0


def test_samples_needed_are_loadgens() -> None:
    assert [samples_needed(percent) for percent in (90, 95, 99, 99.9)] == [64, 130, 662, 6636]


def test_what_is_kept_meanwhile_is_whole(clock: Clock) -> None:
    measured = workload(steady(clock, 50 * MS))
    run = Run([measured], replace(RULES, min_duration_s=100.0, block_s=1.0))
    seen: list[int] = []

    def keep() -> None:
        samples = measured.samples(run.origin_ns)
        assert sum(block.samples for block in samples.blocks) == len(samples)
        seen.append(len(samples))
        clock.now += 10 * MS

    run.measure(keep=keep)
    assert 5 <= len(seen) <= 10 and seen == sorted(seen)


def test_an_interrupted_run_goes_on(clock: Clock) -> None:
    def latency(call: int) -> int:
        if call == 600:
            raise KeyboardInterrupt
        return 2 * MS

    cut = workload(Fake(clock, latency))
    first = Run([cut], replace(RULES, min_duration_s=3.0))
    with pytest.raises(KeyboardInterrupt):
        first.measure()
    memory = Memory(before_bytes=None, after_bytes=None, peak_bytes=None)
    before = first.latency(cut, load_ns=1, first_ns=1, memory=memory)
    assert before is not None and len(before.samples) < 600
    clock.now += 10**12  # a long time later
    again = workload(steady(clock))
    again.resume(before.samples, before.audit)
    second = Run([again], replace(RULES, min_duration_s=3.0), before=before)
    second.measure()
    whole = second.latency(again, load_ns=1, first_ns=1, memory=memory)
    assert whole is not None and whole.samples.latency_ns[: len(before.samples)] == before.samples.latency_ns
    assert 1450 <= len(whole.samples) <= 1600  # three seconds in all, not three more
    starts = whole.samples.start_ns
    assert list(starts) == sorted(starts) and max(starts) < 4 * 10**9  # the time in between is left out
    assert whole.resumed_ns == (before.samples.blocks[-1].end_ns,)
    assert whole.audit is not None and before.audit is not None
    assert whole.audit.checked > before.audit.checked and len(whole.audit.varied_ns) == auditing.REPEAT_PAIRS
