"""Deviations of logits from other logits: one definition of each measure for import, export, bench and verify."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def deviation(logits: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest absolute difference over the largest absolute expected value.

    Args:
        logits: float [n, classes].
        expected: what it's held against, of the same shape.

    Returns:
        0 where both are zero everywhere; infinity where the shapes differ, or a value of ``logits`` isn't finite.
    """
    if logits.shape != expected.shape or not np.isfinite(logits).all():
        return float("inf")
    largest = float(np.abs(expected).max(initial=0.0))
    difference = float(np.abs(logits.astype(np.float64) - expected).max(initial=0.0))
    return difference / largest if largest else (0.0 if difference == 0.0 else float("inf"))


def relative_rms(logits: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the root mean square of the difference over that of the expected logits about each picture's mean.

    A value here and there that was rounded the other way counts little; what changes every picture counts fully.

    Args:
        logits: float [n, classes].
        expected: what it's held against, of the same shape.

    Returns:
        0 where both are equal; infinity where the shapes differ, or a value of ``logits`` isn't finite.
    """
    if logits.shape != expected.shape or not np.isfinite(logits).all():
        return float("inf")
    exact = expected.astype(np.float64)
    spread = exact - exact.mean(axis=1, keepdims=True) if exact.shape[1] > 1 else exact
    difference, scale = (float(np.sqrt(np.square(each).sum())) for each in (logits - exact, spread))
    return difference / scale if scale else (0.0 if difference == 0.0 else float("inf"))
