"""How many times as long does one artifact take as another? An estimate with an interval, from interleaved blocks.

Noise only ever adds time, and another process's lasts for milliseconds: of each block the fastest inference counts, and
blocks of one round are compared with each other. The round is the unit. Its logarithm of the ratio is estimated by the
20 % trimmed mean, which a few disturbed rounds don't move; the interval is the symmetric bootstrap-t that Wilcox
recommends for it (*Introduction to Robust Estimation and Hypothesis Testing*), with the standard error of Tukey and
McLaughlin (1963) from the Winsorised variance.

Two openings of one and the same artifact differ: memory lies elsewhere. :data:`SAME` is more than that is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from vitedge.core.percentiles import median_of
from vitedge.core.randomness import generator
from vitedge.core.schema import Record
from vitedge.formats.result import Latency, Samples

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST_ROUNDS = 10  # below which no interval is given
TRIMMED = 0.2  # of the rounds, at either end
RESAMPLES = 1999
CONFIDENCE = 0.95
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
    """How many times as long ``candidate`` takes as ``baseline``; None with too few rounds.

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
    value, half = _estimate(groups, signs)
    low, middle, high = (float(np.exp(value + shift)) for shift in (-half, 0.0, half))
    return Ratio(value=middle, low=low, high=high, rounds=rounds)


def interleaved(first: Samples, second: Samples) -> bool:
    """Whether two artifacts were interleaved in one run: their i-th blocks precede either's next, and none overlap."""
    rounds = list(zip(first.blocks, second.blocks, strict=False))
    if not rounds or abs(len(first.blocks) - len(second.blocks)) > 1:
        return False
    blocks = [block for pair in rounds for block in sorted(pair, key=lambda block: block.start_ns)]
    return all(earlier.end_ns <= later.start_ns for earlier, later in pairwise(blocks))


def _costs(samples: Samples, scenario: str, statistic: str) -> list[float]:
    """What an inference of each block took, nanoseconds; 0 for an empty block."""
    if scenario == "offline":  # inferences overlap: what counts is how many were done
        return [(block.end_ns - block.start_ns) / block.samples if block.samples else 0.0 for block in samples.blocks]
    reduce = median_of if statistic == "median" else min
    return [float(reduce(block)) if block else 0.0 for block in samples.block_latencies()]


def _estimate(groups: Sequence[NDArray[np.float64]], signs: Sequence[float]) -> tuple[float, float]:
    """(sum of signed trimmed means, half of its interval's width) of independent groups [n]."""
    random = generator(0)
    means = [_trimmed(group) for group in groups]
    value = sum(sign * float(mean) for sign, (mean, _) in zip(signs, means, strict=True))
    error = _combined([error for _, error in means])
    resampled = [_trimmed(group[random.integers(0, len(group), (RESAMPLES, len(group)))]) for group in groups]
    shifts = [mean - centre for (mean, _), (centre, _) in zip(resampled, means, strict=True)]
    shift = sum(sign * each for sign, each in zip(signs, shifts, strict=True))
    errors = np.maximum(_combined([error for _, error in resampled]), 1e-12)
    return value, float(np.quantile(np.abs(shift) / errors, CONFIDENCE) * error)


def _trimmed(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Trimmed mean over the last axis, and its standard error: of [..., n], both [...]."""
    ordered = np.sort(values, axis=-1)
    count = ordered.shape[-1]
    cut = int(TRIMMED * count)
    kept = ordered[..., cut : count - cut]
    winsorised = np.clip(ordered, kept[..., :1], kept[..., -1:])
    error = winsorised.std(axis=-1, ddof=1) / ((1 - 2 * TRIMMED) * np.sqrt(count))
    return kept.mean(axis=-1), error


def _combined(errors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(sum(np.square(error) for error in errors)))
