"""The ratio of two artifacts: right on known times, honest in noise, and deaf to a neighbour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from tests.comparison.disturbances import KINDS, costs
from tests.reporting import results
from vitedge.comparison import ratio as module
from vitedge.comparison.ratio import SAME, Ratio, drifts, interleaved, interval, ratio
from vitedge.formats.samples import Block, Latency, Samples

MS = 1_000_000


def turns(
    times: NDArray[np.float64], other: NDArray[np.float64], second: bool = False, scenario: str = "single"
) -> Latency:
    """One of two artifacts that took turns: ``times`` and ``other`` are [rounds, inferences] in milliseconds."""
    starts, latencies, blocks, now = [], [], [], 0
    for mine, theirs in zip((times * MS).astype(int).tolist(), (other * MS).astype(int).tolist(), strict=True):
        now += sum(theirs) if second else 0
        begin = now
        for value in mine:
            starts.append(now)
            latencies.append(value)
            now += value
        blocks.append(Block(start_ns=begin, end_ns=now, samples=len(mine)))
        now += 0 if second else sum(theirs)
    samples = Samples(start_ns=tuple(starts), latency_ns=tuple(latencies), blocks=tuple(blocks))
    rules = replace(results.RULES, scenario=scenario)
    return replace(results.latency(1.0), rules=rules, samples=samples, overhead=None)


def interleaved_samples(times: Sequence[NDArray[np.float64]]) -> list[Samples]:
    """Of several artifacts that took turns, each [rounds, inferences] in milliseconds."""
    now, columns = 0, [([], [], []) for _ in times]  # starts, latencies, blocks
    for turn in range(len(times[0])):
        for (starts, latencies, blocks), each in zip(columns, times, strict=True):
            begin = now
            for value in (each[turn] * MS).astype(int).tolist():
                starts.append(now)
                latencies.append(value)
                now += value
            blocks.append(Block(start_ns=begin, end_ns=now, samples=each.shape[1]))
    return [Samples(start_ns=tuple(a), latency_ns=tuple(b), blocks=tuple(c)) for a, b, c in columns]


def both(
    draw: np.random.Generator, factor: float, noise: float = 0.03, busy: float = 0.0, rounds: int = 60
) -> tuple[Latency, Latency]:
    """Turns of 12 inferences of 3 ms; a neighbour lengthens the share ``busy`` of them two- to eightfold."""

    def times(median_ms: float) -> NDArray[np.float64]:
        shape = (rounds, 12)
        taken = draw.random(shape) < busy
        return (
            median_ms * np.exp(noise * np.abs(draw.normal(size=shape))) * np.where(taken, draw.uniform(2, 8, shape), 1)
        )

    a, b = times(3.0), times(3.0 * factor)
    return turns(a, b), turns(b, a, second=True)


def found(pair: tuple[Latency, Latency], *, statistic: Literal["fastest", "median"] = "fastest") -> Ratio:
    value = ratio(*pair, statistic=statistic)
    assert value is not None
    return value


def test_times_without_noise_give_their_ratio() -> None:
    exact = found(both(np.random.default_rng(0), 1.25, noise=0.0))
    assert exact.value == pytest.approx(1.25) and (exact.low, exact.high) == pytest.approx((1.25, 1.25))
    assert exact.rounds == 60


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(0.3, 3.0, allow_subnormal=False), seed=st.integers(0, 1000))
def test_swapping_the_two_inverts_the_ratio(factor: float, seed: int) -> None:
    a, b = both(np.random.default_rng(seed), factor, rounds=15)
    forth, back = found((a, b)), found((b, a))
    assert forth.low <= forth.value <= forth.high
    assert (back.value, back.low, back.high) == pytest.approx((1 / forth.value, 1 / forth.high, 1 / forth.low))


@pytest.mark.parametrize("busy", [0.0, 0.5])
def test_intervals_cover_and_find_five_percent(busy: float) -> None:
    """On two hundred runs with a busy neighbour: few false alarms, and a slow-down of 5 % is seen."""
    draw = np.random.default_rng(7)
    same = [found(both(draw, 1.0, busy=busy)) for _ in range(100)]
    slower = [found(both(draw, 1.05, busy=busy)) for _ in range(100)]
    assert sum(not one.low <= 1 <= one.high for one in same) <= 12  # 95 % intervals
    assert sum(not one.low <= 1.05 <= one.high for one in slower) <= 12
    assert not any(one.low > 1 + SAME or one.high < 1 / (1 + SAME) for one in same)
    assert sum(one.low > 1 + SAME for one in slower) >= 90


def test_a_few_disturbed_rounds_do_not_move_it() -> None:
    a, b = both(np.random.default_rng(3), 1.1)
    hit = list(b.samples.latency_ns)
    for round_ in (4, 5, 6, 30, 31):
        hit[12 * round_ : 12 * (round_ + 1)] = [50 * MS] * 12
    disturbed = replace(b, samples=replace(b.samples, latency_ns=tuple(hit)))
    assert found((a, disturbed)).value == pytest.approx(found((a, b)).value, rel=0.005)


def test_medians_tell_what_the_fastest_do_not() -> None:
    """A candidate that is slow in most of its inferences and as fast as ever in some."""
    a, b = both(np.random.default_rng(3), 1.0)
    often = tuple(2 * value if number % 3 else value for number, value in enumerate(b.samples.latency_ns))
    slow = replace(b, samples=replace(b.samples, latency_ns=often))
    assert found((a, slow)).value == pytest.approx(1.0, rel=0.02)
    assert found((a, slow), statistic="median").low > 1.8


def test_throughput_is_compared_where_inferences_overlap() -> None:
    times, half = np.full((20, 12), 4.0), np.full((20, 12), 2.0)
    pair = turns(times, half, scenario="offline"), turns(half, times, second=True, scenario="offline")
    assert found(pair).value == pytest.approx(0.5)


def test_only_turns_of_one_run_are_interleaved() -> None:
    a, b = (latency.samples for latency in both(np.random.default_rng(0), 1.0))
    assert interleaved(a, b) and interleaved(b, a)
    assert not interleaved(a, a)  # at the same time
    shifted = tuple(
        replace(block, start_ns=block.start_ns + 10**12, end_ns=block.end_ns + 10**12) for block in b.blocks
    )
    assert not interleaved(a, replace(b, blocks=shifted))  # one after the other
    assert not interleaved(a, Samples(start_ns=(), latency_ns=(), blocks=()))


def test_two_runs_are_compared_as_two_samples() -> None:
    draw = np.random.default_rng(5)
    one, other = both(draw, 1.0)[0], both(draw, 1.2)[1]
    moved = tuple(replace(block, end_ns=block.end_ns + 1) for block in other.samples.blocks)  # not those turns
    apart = replace(other, samples=replace(other.samples, blocks=moved))
    value = found((one, apart))
    assert not interleaved(one.samples, apart.samples)
    assert value.low < 1.2 < value.high and value.high / value.low < 1.05


def test_too_few_rounds_give_no_ratio() -> None:
    assert ratio(*both(np.random.default_rng(0), 1.0, rounds=module.FEWEST_ROUNDS - 1)) is None
    assert ratio(*both(np.random.default_rng(0), 1.0, rounds=module.FEWEST_ROUNDS)) is not None


@pytest.mark.parametrize("statistic", ["fastest", "median"])
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_what_they_say(kind: str, statistic: str) -> None:
    """95 % of the intervals hold the true ratio, whatever disturbs the machine; four standard errors of 800 runs."""
    draw, hits, runs = np.random.default_rng(11), 0, 800
    for _ in range(runs):
        blocks = costs(draw, kind, 60, 1.05)
        each = np.median(blocks, axis=2) if statistic == "median" else blocks.min(axis=2)
        value, half = interval([np.log(each[:, 1] / each[:, 0])], [1.0])
        hits += abs(value - np.log(1.05)) <= half
    assert 0.92 <= hits / runs <= 0.98


def test_a_drift_of_its_own_is_told_from_a_shared_one() -> None:
    draw = np.random.default_rng(2)

    def run(first: float, second: float) -> list[float]:
        """By how much each rises from the first round to the last."""
        rounds = np.arange(60)[:, None] / 60
        noise = np.exp(np.abs(draw.normal(0, 0.03, (2, 60, 12))))
        a, b = 3.0 * (1 + first * rounds) * noise[0], 4.0 * (1 + second * rounds) * noise[1]
        return drifts([turns(a, b), turns(b, a, second=True)])

    steady, rising, slightly = 0.0, 0.6, 0.05
    assert run(steady, steady) == [1.0, 1.0]
    assert run(rising, rising) == [1.0, 1.0]
    assert run(steady, slightly) == [1.0, 1.0]
    first, second = run(steady, rising)
    assert first == 1.0 and second == pytest.approx(1.5 / 1.1, rel=0.05)
    first, second = run(rising, steady)
    assert second == 1.0 and first == pytest.approx(1.5 / 1.1, rel=0.05)


def test_noise_is_no_drift() -> None:
    draw = np.random.default_rng(4)
    pairs_ = [both(draw, 1.0, noise=0.4, busy=0.5, rounds=20) for _ in range(200)]
    assert sum(drifts(list(pair)) != [1.0, 1.0] for pair in pairs_) <= 4
