"""Exact changes of the float graph that make it easier to round: outliers move from activations into weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vitedge.graph.surgery import array, consumers, copy, initializers
from vitedge.quantize.integers import Scheme, affine, round_weights, weight_limit
from vitedge.quantize.prepare import replaced
from vitedge.quantize.statistics import Observed, Statistics
from vitedge.quantize.views import Layer, quantizable

#: How much of a channel's spread moves into the weights; None leaves shift and scale alone.
ALPHAS: tuple[float | None, ...] = (None, 0.0, 0.25, 0.5, 0.75, 1.0)
_ROWS = 1024  # of the reservoir, for choosing among them
_SMALLEST = 1e-3  # a channel's share of the largest spread, below which it isn't widened any further

Float64 = NDArray[np.float64]


def migrate_layernorms(
    model: onnx.ModelProto, statistics: Statistics, scheme: Scheme, layers: Collection[str]
) -> tuple[onnx.ModelProto, Statistics]:
    """Shift and scale every LayerNormalization's channels, and undo it in the linears behind it (RepQ-ViT, 2212.08254).

    With γ, β of the LayerNormalization and y = x W + b behind it: γ' = γ/s, β' = (β - c)/s, W' = diag(s) W,
    b' = b + Wᵀ c. Only where nothing but linears of ``layers`` reads the LayerNormalization. The strength is chosen
    for each by the output error over the kept rows, "not at all" among the candidates.

    Args:
        model: a float graph whose layers have constants of their own
            (:func:`vitedge.quantize.prepare.with_own_constants`).
        statistics: of its layers.
        scheme: what it will be rounded to.
        layers: names of the layers that will be rounded.

    Returns:
        The graph with other constants and the same function, and its statistics.
    """
    model = _with_affine(model)
    constants, readers = initializers(model), consumers(model)
    by_name = {layer.name: layer for layer in quantizable(model)[0] if layer.name in layers}
    outputs = {value.name for value in model.graph.output}
    values: dict[str, Float64] = {}
    observed = dict(statistics.observed)
    for node in model.graph.node:
        behind = readers.get(node.output[0], [])
        if node.op_type != "LayerNormalization" or node.output[0] in outputs or node.output[0] not in observed:
            continue
        if not behind or any(reader.name not in by_name for reader in behind):
            continue
        if any(name not in constants or len(readers[name]) > 1 for name in node.input[1:]):
            continue
        linears = [by_name[reader.name] for reader in behind]
        together = np.concatenate([layer.matrix for layer in linears], axis=1)
        shift, scale = choose_migration(observed[node.output[0]], together, scheme)
        gamma, beta = (array(constants[name]).astype(np.float64) for name in node.input[1:])
        values[node.input[1]], values[node.input[2]] = gamma / scale, (beta - shift) / scale
        for layer in linears:
            values.update(_moved(layer, shift, scale))
        observed[node.output[0]] = observed[node.output[0]].moved(shift, scale)
    return replaced(model, values), replace(statistics, observed=observed)


def choose_migration(observed: Observed, matrix: Float64, scheme: Scheme) -> tuple[Float64, Float64]:
    """Shift and scale [C] with the least output error once inputs and weights [C, C_out] are rounded."""
    tries = [migration(observed, matrix, alpha) for alpha in ALPHAS]
    rows = observed.rows[:_ROWS].astype(np.float64)
    exact = rows @ matrix
    errors = [_rounded_error(observed, rows, exact, matrix, scheme, *moved) for moved in tries]
    return tries[int(np.argmin(errors))]


def migration(observed: Observed, matrix: Float64, alpha: float | None) -> tuple[Float64, Float64]:
    """Shift c = (max + min)/2 and scale s = r^α / max|W|^(1-α), r = (max - min)/2, both [C]; None changes nothing.

    s is normalised to a geometric mean of 1, which no rounding notices and half precision likes.
    """
    if alpha is None:
        return np.zeros(len(matrix)), np.ones(len(matrix))
    low, high = observed.minimum.astype(np.float64), observed.maximum.astype(np.float64)
    spread, weight = (high - low) / 2, np.abs(matrix).max(axis=1)
    spread = np.maximum(spread, max(_SMALLEST * spread.max(), 1e-12))
    weight = np.maximum(weight, max(_SMALLEST * weight.max(), 1e-12))
    logarithm = alpha * np.log(spread) - (1 - alpha) * np.log(weight)
    return (high + low) / 2, np.exp(logarithm - logarithm.mean())


def _rounded_error(
    observed: Observed,
    rows: Float64,
    exact: Float64,
    matrix: Float64,
    scheme: Scheme,
    shift: Float64,
    scale: Float64,
) -> float:
    """Mean squared output error, its mean taken out, with plain ranges on both sides."""
    grid = affine(((observed.minimum - shift) / scale).min(), ((observed.maximum - shift) / scale).max(), scheme)
    inputs, weights = (rows - shift) / scale, matrix * scale[:, None]
    steps = (np.maximum(np.abs(weights).max(axis=0), 1e-30) / weight_limit(scheme.weight_bits)).astype(np.float32)
    rounded = round_weights(weights, steps, scheme.weight_bits) * steps.astype(np.float64)
    error = exact - grid.fake(inputs) @ rounded  # less the constant shift @ matrix, which the variance ignores
    return float(error.var(axis=0).sum())


def _moved(layer: Layer, shift: Float64, scale: Float64) -> dict[str, Float64]:
    """Weight and bias initialisers of a linear whose input became (x - shift)/scale."""
    matrix = layer.matrix
    assert layer.bias is not None and layer.linear.bias is not None
    weight: Float64 = layer.from_matrix(matrix * scale[:, None])
    return {layer.linear.weight: weight, layer.linear.bias: layer.bias + shift @ matrix}


def _with_affine(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in which every LayerNormalization with a constant scale has a bias."""
    model = copy(model)
    constants = initializers(model)
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or node.input[1] not in constants:
            continue
        if len(node.input) == 2 or not node.input[2]:
            zeros = np.zeros_like(array(constants[node.input[1]]))
            del node.input[2:]
            node.input.append(f"{node.name}.bias'")
            model.graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))
    return model
