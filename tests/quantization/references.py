"""Slow and obvious float64 versions of what the quantizer does, written independently of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def quantized(x: Float64, scale: float, zero_point: int, low: int, high: int) -> Float64:
    """One value at a time, by ONNX's definition of QuantizeLinear."""
    flat = [min(max(round(value / scale) + zero_point, low), high) for value in np.asarray(x, np.float64).ravel()]
    return np.array(flat, np.float64).reshape(np.shape(x))


def dequantized(x: Float64, scale: float, zero_point: int, low: int, high: int) -> Float64:
    return (quantized(x, scale, zero_point, low, high) - zero_point) * scale


def weight_error(matrix: Float64, scale: Float64, limit: int, moments: Float64) -> Float64:
    """Δwᵀ E[x xᵀ] Δw of every output channel."""
    errors = []
    for column, step in zip(matrix.T, scale, strict=True):
        delta = column - dequantized(column, float(step), 0, -limit, limit)
        errors.append(delta @ moments @ delta)
    return np.array(errors)


def brain_surgeon(matrix: Float64, scale: Float64, limit: int, hessian: Float64) -> Float64:
    """Rounding in the order of falling variance, the inverse of what is left computed anew after every input."""
    weights, levels = matrix.copy(), np.zeros_like(matrix)
    left = [int(k) for k in np.argsort(-np.diag(hessian), kind="stable")]
    while left:
        k, inverse = left[0], np.linalg.inv(hessian[np.ix_(left, left)])
        levels[k] = np.clip(np.rint(weights[k] / scale), -limit, limit)
        error = (weights[k] - levels[k] * scale) / inverse[0, 0]
        weights[left] -= np.outer(inverse[0], error)
        left.pop(0)
    return levels


def convolution(x: Float64, weight: Float64, strides: tuple[int, int], pads: tuple[int, ...]) -> Float64:
    """[N, C, H, W] and [C_out, C, kh, kw] -> [N, C_out, rows, columns], tap by tap."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    _, _, kernel_height, kernel_width = weight.shape
    rows = (x.shape[2] - kernel_height) // strides[0] + 1
    columns = (x.shape[3] - kernel_width) // strides[1] + 1
    y = np.zeros((len(x), len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            field = x[:, :, i * strides[0] : i * strides[0] + kernel_height, j * strides[1] :][..., :kernel_width]
            y[:, :, i, j] = np.einsum("nckl,ockl->no", field, weight)
    return y
