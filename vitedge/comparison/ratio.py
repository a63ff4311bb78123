"""Estimate the ratio of two artifacts' times, with an interval, from interleaved blocks.

Noise only ever adds time, and another process's lasts for milliseconds: of each block the fastest inference counts (or
its median), and blocks of one round are compared with each other, so that what slows both down cancels. The round is
the unit. Its logarithm of the ratio is estimated by the 20 % trimmed mean, which a few disturbed rounds don't move.

Neighbouring rounds resemble each other: another process stays for a while, a clock wanders. An interval that takes them
for independent is too narrow then. This one estimates the long-run variance of the Winsorised rounds (Tukey and
McLaughlin 1963) from their slowest few cosines and takes Student's t with as many degrees of freedom (equal-weighted
cosines: Müller 2007; Lazarus, Lewis, Stock and Watson 2018). ``benchmarks/interval_coverage.py`` shows what it covers.

Two openings of one and the same artifact differ: memory lies elsewhere. :data:`SAME` is more than that is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

from vitedge.core.percentiles import median_of
from vitedge.core.schema import Record
from vitedge.formats.result import Latency, Samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST_ROUNDS = 10  # below which no interval is given
TRIMMED = 0.2  # of the rounds, at either end
CONFIDENCE = 0.95
#: (rounds, cosines): with fewer rounds than this, this many cosines; fewer cosines capture slower disturbances.
COSINES = ((40, 2), (60, 3))
MOVED = 0.10  # between the first third of the rounds and the last: a ratio that changes so much isn't one number
SAME = 0.01  # ratios within 1 ± this are no difference: two openings of one artifact differ by about as much


class Ratio(Record):
    """Time of the candidate over time of the baseline."""

    value: float
    low: float  # of the 95 % interval
    high: float
    rounds: int  # units that it's estimated from


def ratio(
    baseline: Latency, candidate: Latency, *, statistic: Literal["fastest", "median"] = "fastest"
) -> Ratio | None:
    """Return the time of ``candidate`` over that of ``baseline``; None with too few rounds.

    Args:
        baseline: measured under the same rules.
        candidate: interleaved with ``baseline`` (:func:`interleaved`), or else in a run of its own; then the interval
            covers the noise within the two runs, and not what changed between them.
        statistic: of each block: its fastest inference gives the best-case ratio, its median the median ratio.
    """
    scenario = baseline.rules.scenario
    ours, theirs = (_costs(latency.samples, scenario, statistic) for latency in (baseline, candidate))
    if interleaved(baseline.samples, candidate.samples):
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a and b]
        groups = [np.log([b / a for a, b in pairs])]
        signs = [1.0]
    else:
        groups = [np.log([cost for cost in costs if cost]) for costs in (theirs, ours)]
        signs = [1.0, -1.0]
    rounds = min(len(group) for group in groups)
    if rounds < FEWEST_ROUNDS:
        return None
    value, half = interval(groups, signs)
    low, middle, high = (float(np.exp(value + shift)) for shift in (-half, 0.0, half))
    return Ratio(value=middle, low=low, high=high, rounds=rounds)


def interleaved(first: Samples, second: Samples) -> bool:
    """Whether two artifacts were interleaved in one run: their i-th blocks precede either's next, and none overlap."""
    rounds = list(zip(first.blocks, second.blocks, strict=False))
    if not rounds or abs(len(first.blocks) - len(second.blocks)) > 1:
        return False
    blocks = [block for pair in rounds for block in sorted(pair, key=lambda block: block.start_ns)]
    return all(earlier.end_ns <= later.start_ns for earlier, later in pairwise(blocks))


def drifts(latencies: Sequence[Latency]) -> list[float]:
    """Return how much slower each artifact became during an interleaved run, measured against the others.

    Of the last third of the rounds over the first third, as far as it's its own: what all share is taken off (their
    median; of two, the smaller move). 1.0 for less than :data:`MOVED` and for what noise explains. Rounds count by
    their fastest inference: another process that comes or goes disturbs one artifact more than another, and what heats
    up or throttles slows every inference down.

    Args:
        latencies: of one run, interleaved.
    """
    costs = [_costs(each.samples, each.rules.scenario, "fastest") for each in latencies]
    rounds = min((len(each) for each in costs), default=0)
    third = rounds // 3
    if len(costs) < 2 or rounds < FEWEST_ROUNDS or not all(all(each[:rounds]) for each in costs):
        return [1.0] * len(costs)
    logs = np.log([each[:rounds] for each in costs])  # [artifact, round]
    moves = np.array([_move(series, third) for series in logs])
    shared = np.median(moves) if len(moves) > 2 else moves[np.argmin(np.abs(moves))]
    factors = []
    for number, series in enumerate(logs):
        gap = series - np.median(np.delete(logs, number, axis=0), axis=0)
        noise = 1.86 * np.median(np.abs(np.diff(gap))) / math.sqrt(third)  # standard error of the gap's move
        own = moves[number] - shared
        certain = abs(own) > math.log1p(MOVED) and abs(_move(gap, third)) > 4 * noise
        factors.append(float(np.exp(own)) if certain else 1.0)
    return factors


def _move(series: NDArray[np.float64], third: int) -> float:
    """Return the change from the first third of the rounds to the last, by their medians."""
    return float(np.median(series[-third:]) - np.median(series[:third]))


def _costs(samples: Samples, scenario: str, statistic: str) -> list[float]:
    """Return the time of an inference in each block, nanoseconds; 0 for an empty block."""
    if scenario == "offline":  # inferences overlap: what counts is how many were done
        return [(block.end_ns - block.start_ns) / block.samples if block.samples else 0.0 for block in samples.blocks]
    reduce = median_of if statistic == "median" else min
    return [float(reduce(block)) if block else 0.0 for block in samples.block_latencies()]


def interval(groups: Sequence[NDArray[np.float64]], signs: Sequence[float]) -> tuple[float, float]:
    """Return (sum of signed trimmed means, half of its interval's width) of independent groups [n], in time order."""
    means, variances, freedoms = zip(*(_trimmed(group) for group in groups), strict=True)
    value = sum(sign * mean for sign, mean in zip(signs, means, strict=True))
    variance = sum(variances)
    if not variance:
        return value, 0.0
    terms = sum(each**2 / freedom for each, freedom in zip(variances, freedoms, strict=True))
    freedom = variance**2 / terms  # Welch and Satterthwaite's
    return value, student(freedom) * math.sqrt(variance)


def _trimmed(values: NDArray[np.float64]) -> tuple[float, float, int]:
    """Return (trimmed mean, its variance, degrees of freedom of that) of [n] in order of time."""
    count = len(values)
    cut = int(TRIMMED * count)
    kept = np.sort(values)[cut : count - cut]
    winsorised = np.clip(values, kept[0], kept[-1])
    influence = (winsorised - winsorised.mean()) / (1 - 2 * TRIMMED)
    cosines = next((few for rounds, few in COSINES if count < rounds), round(math.sqrt(count) / 2))
    angles = np.pi * np.arange(1, cosines + 1)[:, None] * (np.arange(count) + 0.5) / count
    projections = math.sqrt(2 / count) * np.cos(angles) @ influence
    return float(kept.mean()), float(np.mean(projections**2)) / count, cosines


def student(freedom: float) -> float:
    """Return Student's two-sided 95 % quantile with 2 or more degrees of freedom, to 0.8 %.

    The expansion of Cornish and Fisher, Abramowitz and Stegun 26.7.5.
    """
    z, n = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )
