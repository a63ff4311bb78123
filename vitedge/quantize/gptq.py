"""Rounding weights one input at a time, each error taken up by the inputs that are still to come."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitedge.quantize.integers import weight_limit

DAMPING = 0.01  # of the mean variance, added to each: keeps the inverse sound where inputs are nearly dependent
_BLOCK = 64


def gptq(
    matrix: NDArray[np.float64], scale: NDArray[np.float32], bits: Literal[7, 8], covariance: NDArray[Any]
) -> NDArray[np.int8]:
    """Integers with a small Δwᵀ C Δw for every output channel (GPTQ, 2210.17323; scales are given).

    Inputs are taken in the order of falling variance. After input k is rounded, its error times the row of the inverse
    covariance of what is left goes into the weights that are left; rows of one Cholesky factor give all of these.

    Args:
        matrix: weights [K, C_out].
        scale: of each output channel [C_out].
        bits: 7 or 8.
        covariance: C of the inputs [K, K].

    Returns:
        int8 [K, C_out].
    """
    limit, size = weight_limit(bits), len(matrix)
    order = np.argsort(-np.diag(covariance), kind="stable")
    ridge = DAMPING * float(np.maximum(np.diag(covariance), 0).mean()) or 1.0
    damped = covariance[np.ix_(order, order)].astype(np.float64) + ridge * np.eye(size)
    lowest = float(np.linalg.eigvalsh(damped)[0])
    if lowest < ridge / 2:  # of inputs that hardly vary, the moments' own rounding may be all that there is
        damped += (ridge - lowest) * np.eye(size)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper: inverse = factorᵀ factor
    weights, steps = matrix[order], scale.astype(np.float64)
    rounded = np.zeros(matrix.shape, np.int8)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = np.zeros((end - start, matrix.shape[1]))
        for k in range(start, end):
            levels = np.clip(np.rint(weights[k] / steps), -limit, limit)
            rounded[order[k]] = levels
            errors[k - start] = (weights[k] - levels * steps) / factor[k, k]
            weights[k + 1 : end] -= np.outer(factor[k, k + 1 : end], errors[k - start])
        weights[end:] -= factor[start:end, end:].T @ errors
    return rounded
