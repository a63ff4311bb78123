"""GPTQ: round weights one input at a time, and let the inputs that aren't rounded yet compensate each error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitedge.quantization.integers import Codes

DAMPING = 0.01  # of the mean variance, added to each: keeps the factor sound where inputs are nearly dependent
_BLOCK = 64


def gptq(
    matrix: NDArray[np.float64], scale: NDArray[np.float32], codes: Codes, covariance: NDArray[Any]
) -> NDArray[np.int8]:
    """Return integers with a small Δwᵀ C Δw for every output channel (GPTQ, 2210.17323; scales are given).

    Inputs are taken in the order of falling variance; what is left of the error of those that are done goes into the
    next. Written as Babai's nearest plane, which rounds the same (2507.18553): with C = L Lᵀ, last input first, input k
    is rounded so that row k of Lᵀ Δw is least. That takes one Cholesky factor and no inverse.

    Args:
        matrix: weights [K, C_out].
        scale: of each output channel [C_out].
        codes: which integers they may be.
        covariance: C of the inputs [K, K].

    Returns:
        int8 [K, C_out].
    """
    size = len(matrix)
    order = np.argsort(-np.diag(covariance), kind="stable")[::-1]
    factor = _factor(covariance[np.ix_(order, order)].astype(np.float64))
    weights, steps = matrix[order], scale.astype(np.float64)
    rounded = np.zeros(matrix.shape, np.int8)
    errors = np.zeros(matrix.shape)  # of the inputs that are rounded
    for end in range(size, 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        carried = factor[end:, start:end].T @ errors[end:]
        for k in range(end - 1, start - 1, -1):
            wanted = weights[k] + (carried[k - start] + factor[k + 1 : end, k] @ errors[k + 1 : end]) / factor[k, k]
            levels = np.clip(np.rint(wanted / steps), *codes.limits(order[k], rounded))
            rounded[order[k]] = levels
            errors[k] = weights[k] - levels * steps
    return rounded


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lower Cholesky factor of the covariance, which is damped in place."""
    diagonal = np.diag_indices(len(covariance))
    ridge = DAMPING * float(np.maximum(covariance[diagonal], 0).mean()) or 1.0
    covariance[diagonal] += ridge / 2
    try:
        np.linalg.cholesky(covariance)
        covariance[diagonal] += ridge / 2
    except np.linalg.LinAlgError:  # of inputs that hardly vary, the moments' own rounding may be all that there is
        covariance[diagonal] += ridge - float(np.linalg.eigvalsh(covariance)[0])
    return np.asarray(np.linalg.cholesky(covariance))
