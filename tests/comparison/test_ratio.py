"""The ratio of two artifacts: right on known times, honest in noise, and deaf to a neighbour."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from tests.reporting import results
from vitedge.comparison import ratio as module
from vitedge.comparison.ratio import SAME, Ratio, interleaved, ratio
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
