"""Confidence intervals of proportions and of their differences, and McNemar's test.

Sources: Wilson (1927) for one proportion; McNemar's exact test and Bonett and Price (2012) for the difference of two
paired proportions, as Fagerland, Lydersen and Laake (2014) recommend.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def quantile(confidence: float = CONFIDENCE) -> float:
    """Return the normal quantile of a two-sided interval: 1.96 for 95 %."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(successes: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the score interval of a proportion.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= count or not count:
        raise ValueError(f"{successes} of {count}")
    z2 = quantile(confidence) ** 2
    p = successes / count
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2) / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return Interval(low, 1.0 if successes == count else min(1.0, centre + half))


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact test's two-sided p-value: without a difference, both discordant counts are equally likely."""
    discordant, fewer = gained + lost, min(gained, lost)
    term = total = 1
    for k in range(1, fewer + 1):
        term = term * (discordant - k + 1) // k  # binomial coefficients, exact
        total += term
    return min(1.0, 2 * total / (1 << discordant))


def paired_interval(gained: int, lost: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of (gained − lost) / count: Wald's with one pseudo-observation in each discordant cell.

    Raises:
        ValueError: more discordant pairs than pairs.
    """
    if min(gained, lost) < 0 or gained + lost > count or not count:
        raise ValueError(f"{gained} and {lost} of {count}")
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = quantile(confidence) * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
    return Interval(max(-1.0, up - down - half), min(1.0, up - down + half))
