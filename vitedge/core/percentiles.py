"""Percentiles by the definitions of well-known tools, and the number of samples that each needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Literal, TypeVar

Sample = TypeVar("Sample", int, float)
Method = Literal["nearest-rank", "loadgen", "trtexec"]
#: The method of every percentile that vitedge prints: the smallest sample that at least p % of the samples don't
#: exceed, without interpolation. benchmark_app's is the same.
METHOD: Method = "nearest-rank"


def percentile(ordered: Sequence[Sample], percent: float, method: Method = METHOD) -> Sample:
    """Return one percentile of ascending samples, by the rule of the tool that is named.

    With N samples, counted from 0, and p = percent / 100:

    - ``nearest-rank``: ⌈p·N⌉ − 1 (``percentile`` in OpenVINO's ``benchmark_app``);
    - ``loadgen``: ⌊p·N⌋ in double precision (``ProcessLatencies`` in MLPerf LoadGen's ``results.cc``);
    - ``trtexec``: N − 1 − ⌊(1 − p)·N⌋ in single precision, so that its 99th percentile of 100 samples is the largest
      (``findPercentile`` in TensorRT's ``sampleReporting.cpp``).

    Raises:
        ValueError: no samples, or a percentage outside 0 … 100.
    """
    import numpy as np

    count = len(ordered)
    if not count or not 0 <= percent <= 100:
        raise ValueError(f"{percent}th percentile of {count} samples")
    fraction = Fraction(str(percent)) / 100  # exact, so that 99.9 % of 1000 is 999
    index = {
        "nearest-rank": math.ceil(fraction * count) - 1,
        "loadgen": int(count * float(fraction)),
        "trtexec": count - 1 - int((np.float32(1) - np.float32(percent) / np.float32(100)) * np.float32(count)),
    }[method]
    return ordered[min(max(index, 0), count - 1)]


def median_of(samples: Sequence[int]) -> int:
    """Return the 50th percentile by :data:`METHOD` of samples in any order.

    Raises:
        ValueError: no samples.
    """
    return percentile(sorted(samples), 50)


@cache
def samples_needed(percent: float) -> int:
    """Return the samples that a percentile needs to be printed: 11, 64, 130, 662, 6636 for p50, 90, 95, 99, 99.9.

    The smallest N for which at most one of N samples beyond the true percentile has a probability of at most 1 %, as
    in MLPerf LoadGen's early stopping: pᴺ + N·(1 − p)·pᴺ⁻¹ ≤ 0.01.
    """
    p = percent / 100
    if not 0 < p < 1:
        return 1
    count = 1
    while p**count + count * (1 - p) * p ** (count - 1) > 0.01:
        count += 1
    return count


def early_stopping(ordered: Sequence[int], percent: float) -> int | None:
    """Return LoadGen's early-stopping estimate of a percentile of ascending samples; None with too few of them.

    The t-th largest sample, for the largest t ≥ 1 for which at most t of N samples beyond the true percentile have a
    probability of at most 1 % (``EarlyStopping`` in ``results.cc`` and ``odds`` in ``early_stopping.cc``).
    """
    count, p = len(ordered), percent / 100
    if count < samples_needed(percent):
        return None
    beyond, at_most = 0, count * math.log(p)  # log P(none beyond)
    term = at_most
    while beyond < count:
        term += math.log((count - beyond) / (beyond + 1)) + math.log((1 - p) / p)
        at_most = max(at_most, term) + math.log1p(math.exp(-abs(at_most - term)))
        if at_most > math.log(0.01):
            break
        beyond += 1
    return ordered[count - beyond]
