"""How far logits are from other logits: one definition for import, export, bench and verify."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def deviation(logits: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference over largest absolute expected value.

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
