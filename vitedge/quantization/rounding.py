"""Rounding: from statistics and float weights to int8 weights, scales and corrected biases.

Everything works on a layer as rows [n, K] times a matrix [K, C_out] (see :mod:`vitedge.quantization.views`). Rounding
is to the nearest, halves to even, as ONNX's QuantizeLinear does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from vitedge.errors import ModelError
from vitedge.formats.recipe import Recipe
from vitedge.quantization.gptq import gptq
from vitedge.quantization.improve import improve
from vitedge.quantization.integers import Codes, Grid, Scheme, affine
from vitedge.quantization.prepare import with_own_constants
from vitedge.quantization.statistics import Observed, Statistics
from vitedge.quantization.views import Layer, pixel_tensors, quantizable

__all__ = ["QuantizedLayer", "Scheme", "quantize_layers"]


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer in integers: y = (q - zero_point) · input_scale @ (weight · weight_scale) + bias."""

    name: str  # the node's name in the graph
    kind: Literal["linear", "conv"]
    input: str  # tensor that is quantized
    input_scale: float  # exactly representable in float32
    input_zero_point: int
    input_type: Literal["uint8", "int8"]
    weight: NDArray[np.int8]  # in the graph's layout
    weight_scale: NDArray[np.float32]  # [C_out]; the zero points are 0
    bias: NDArray[np.float32]  # [C_out]
    channel_axis: int  # axis of the weight that runs over output channels


def quantize_layers(
    model: onnx.ModelProto,
    statistics: Statistics,
    recipe: Recipe,
    scheme: Scheme,
    layers: Collection[str] | None = None,
) -> tuple[onnx.ModelProto, dict[str, QuantizedLayer]]:
    """Improve the float graph exactly, then round the inputs and weights of its layers.

    Args:
        model: the float graph that was observed.
        statistics: of :func:`vitedge.quantization.observe.observe`.
        recipe: which improvements and which rounding.
        scheme: what the runtime's kernels take.
        layers: names of the layers to quantize; None takes all that can be.

    Returns:
        The improved float graph, in which every quantizable layer has a bias of its own, and what each layer becomes.

    Raises:
        ModelError: a layer that can't be quantized was asked for, or the statistics are another graph's.
    """
    model = with_own_constants(model)
    candidates, refused = quantizable(model)
    names = {layer.name for layer in candidates} if layers is None else set(layers)
    for name in sorted(names - {layer.name for layer in candidates}):
        reason = refused.get(name, "the graph has no such layer")
        raise ModelError(f"quantize the layer '{name}'", reason, "leave it in float")
    for layer in candidates:
        if layer.name in names and layer.view.key not in statistics.observed:
            raise ModelError(
                f"quantize the layer '{layer.name}'", "its input was never observed", "observe this graph again"
            )
    model, statistics = improve(model, statistics, recipe.improve, scheme, names)
    candidates, _ = quantizable(model)
    pixels = pixel_tensors(model)
    inputs: dict[str, list[Layer]] = {}
    for layer in candidates:
        if layer.name in names:
            inputs.setdefault(layer.view.key, []).append(layer)
    grids: dict[str, Grid] = {}
    for key, readers in inputs.items():
        together = np.concatenate([layer.matrix for layer in readers], axis=1)
        method, unbiased = recipe.round.activations, recipe.round.bias_correction
        if readers[0].view.tensor in pixels and scheme.activation == "uint8" and not scheme.symmetric:
            grids[key] = affine(0, 255, scheme)  # the pixels themselves: nothing to round
        else:
            grids[key] = activation_grid(statistics.observed[key], together, method, scheme, unbiased=unbiased)
    if scheme.symmetric:
        grids = _one_a_tensor(grids, inputs)
    done = {
        layer.name: _quantize(layer, statistics.observed[key], grids[key], recipe, scheme)
        for key, readers in inputs.items()
        for layer in readers
    }
    return model, {layer.name: done[layer.name] for layer in candidates if layer.name in names}


def _one_a_tensor(grids: Mapping[str, Grid], inputs: Mapping[str, Sequence[Layer]]) -> dict[str, Grid]:
    """Merge the grids that layers of several kernels need for one tensor into the widest, so that it's rounded once."""
    widest: dict[str, Grid] = {}
    for key, grid in grids.items():
        tensor = inputs[key][0].view.tensor
        widest[tensor] = max(grid, widest.get(tensor, grid), key=lambda each: each.scale)
    return {key: widest[inputs[key][0].view.tensor] for key in grids}


def _quantize(layer: Layer, observed: Observed, grid: Grid, recipe: Recipe, scheme: Scheme) -> QuantizedLayer:
    exact = layer.matrix
    assert layer.bias is not None  # with_own_constants gave it one
    unbiased = recipe.round.bias_correction
    moments = observed.covariance() if unbiased else observed.moments
    matrix = compensated(exact, observed, grid, unbiased=unbiased) if recipe.round.ridge else exact
    channels = len(observed.minimum)
    codes = Codes.of(scheme, channels, len(matrix) // channels)
    scale = weight_scales(matrix, moments if recipe.round.weights == "mse" else None, codes)
    weight = gptq(matrix, scale, codes, moments) if recipe.round.rounding == "gptq" else codes.round(matrix, scale)
    bias = layer.bias.astype(np.float64)
    if unbiased:
        bias += mean_output_error(observed, exact, grid, weight * scale.astype(np.float64))
    return QuantizedLayer(
        name=layer.name,
        kind=layer.linear.kind,
        input=layer.linear.input,
        input_scale=float(grid.scale),
        input_zero_point=grid.zero_point,
        input_type=scheme.activation,
        weight=layer.from_matrix(weight),
        weight_scale=scale,
        bias=bias.astype(np.float32),
        channel_axis=layer.linear.channel_axis,
    )


# --- activations -----------------------------------------------------------------------------------------------------

_SHRINK = tuple(2 ** (-k / 3) for k in range(16))  # from the whole range to a 32nd of it
_NEAR = tuple(2 ** (k / 9) for k in range(-2, 3))  # then around the best of them
_POOLED_BINS = 4096
_RESCORED = 8


def activation_grid(
    observed: Observed,
    matrix: NDArray[np.float64],
    method: Literal["minmax", "mse"],
    scheme: Scheme,
    *,
    unbiased: bool = False,
) -> Grid:
    """Return scale and zero point for a layer's input.

    ``mse`` clips: candidates of all pairs of shrunken ends are ranked by the squared error over the histograms, each
    channel weighted by the squared norm of its row of ``matrix``; the best few and the whole range are then held
    against each other by the layer's output error over the kept rows.

    Args:
        observed: of the input.
        matrix: weights of all layers that read it, side by side, [K, ΣC_out].
        method: whole range, or least error.
        scheme: type and symmetry.
        unbiased: the mean error will be taken out through the bias, so it doesn't count.
    """
    low, high = float(observed.minimum.min()), float(observed.maximum.max())
    whole = affine(low, high, scheme)
    if method == "minmax":
        return whole
    taps = len(matrix) // len(observed.minimum)
    importance = (matrix**2).sum(axis=1).reshape(-1, taps).sum(axis=1)
    values, weights = pooled(observed, importance)

    def ranked(pairs: Iterable[tuple[float, float]]) -> list[tuple[float, Grid, tuple[float, float]]]:
        grids = {affine(low * a, high * b, scheme): (a, b) for a, b in pairs}
        errors = {grid: float(weights @ (values - grid.fake(values)) ** 2) for grid in grids}
        return sorted(((errors[grid], grid, grids[grid]) for grid in grids), key=lambda entry: entry[0])

    coarse = ranked(product(_SHRINK, _SHRINK))
    a, b = coarse[0][2]
    near = ranked((min(1.0, a * x), min(1.0, b * y)) for x, y in product(_NEAR, _NEAR))
    best = [grid for _, grid, _ in sorted([*coarse, *near], key=lambda entry: entry[0])[:_RESCORED]]
    rows = observed.rows.astype(np.float32)
    if matrix.shape[1] > len(matrix):  # errors of the same size with as many columns as there are inputs
        matrix = np.transpose(np.linalg.qr(matrix.T, mode="r"))
    read_by = matrix.astype(np.float32)
    choice: Grid = min([whole, *best], key=lambda grid: _output_error(rows, grid, read_by, unbiased))
    return choice


def pooled(observed: Observed, importance: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pool channels, weighted by ``importance`` [C], into one histogram: bin centres and weights, both [bins]."""
    bins = observed.histogram.shape[1]
    width = (observed.high - observed.low) / bins
    centres = observed.low[:, None] + (np.arange(bins) + 0.5) * width[:, None]
    centres = np.clip(centres, observed.minimum[:, None], observed.maximum[:, None])
    low, high = float(observed.minimum.min()), float(observed.maximum.max())
    step = max((high - low) / _POOLED_BINS, 1e-30)
    index = np.clip(((centres - low) / step).astype(np.int64), 0, _POOLED_BINS - 1)
    counts = (observed.histogram * importance[:, None]).reshape(-1)
    weights = np.bincount(index.reshape(-1), counts, minlength=_POOLED_BINS)
    return np.asarray(low + (np.arange(_POOLED_BINS) + 0.5) * step, np.float64), weights.astype(np.float64)


def _output_error(rows: NDArray[np.float32], grid: Grid, matrix: NDArray[np.float32], unbiased: bool) -> float:
    """Return Σ over rows of |(x - x̂) W|²."""
    error = rows - grid.fake(rows)
    if unbiased:
        error = error - error.mean(axis=0)
    return float(np.square(error @ matrix).sum(dtype=np.float64))


# --- weights and bias ------------------------------------------------------------------------------------------------

_WEIGHT_SHRINK = np.linspace(1.0, 0.6, 17)


def weight_scales(
    matrix: NDArray[np.float64], moments: NDArray[np.float32] | None, codes: Codes
) -> NDArray[np.float32]:
    """Return the symmetric scale of every output channel, float32 [C_out].

    Args:
        matrix: weights [K, C_out].
        moments: E[x xᵀ] (or the covariance) [K, K], for the scale with the least error Δwᵀ E[x xᵀ] Δw; None takes the
            largest weight of each channel.
        codes: which integers the weights may be.
    """
    whole = codes.scale(matrix)
    if moments is None:
        return whole
    best, least = whole, np.full(len(whole), np.inf)
    weights = matrix.astype(np.float32)
    for shrink in _WEIGHT_SHRINK:
        scale = (whole * shrink).astype(np.float32)
        error = weights - codes.round(weights, scale) * scale
        cost = ((moments @ error) * error).sum(axis=0, dtype=np.float64)
        best, least = np.where(cost < least, scale, best), np.minimum(cost, least)
    return best


_RIDGE = (0.003, 0.03, 0.3)  # of the mean variance
_UNSEEN = 4  # every fourth row is held out to check the fit to the others


def compensated(matrix: NDArray[np.float64], observed: Observed, grid: Grid, *, unbiased: bool) -> NDArray[np.float64]:
    """Return weights that compensate the rounding of their inputs, W + dW (ridge regression, ERQ, 2407.06794).

    dW = (E[x̂x̂ᵀ] + λI)⁻¹ E[x̂ (x - x̂)ᵀ] W, from the kept rows. λ is chosen, and dW = 0 among the candidates, by the
    output error over rows that weren't fitted.

    Args:
        matrix: weights W [K, C_out].
        observed: of the input x.
        grid: what x is rounded to: x̂.
        unbiased: the mean error will be taken out through the bias, so everything is centred.
    """
    rows = observed.rows.astype(np.float64)
    rounded = grid.fake(rows)
    if unbiased:
        rows, rounded = rows - rows.mean(axis=0), rounded - rounded.mean(axis=0)
    unseen = np.arange(len(rows)) % _UNSEEN == 0
    if unseen.all():
        return matrix
    x, error = rounded[~unseen], (rows - rounded)[~unseen]
    gram, cross = x.T @ x, x.T @ (error @ matrix)
    mean_variance = float(np.diag(gram).mean()) or 1.0
    wanted, held = rows[unseen] @ matrix, rounded[unseen]
    ridges = (strength * mean_variance * np.eye(len(gram)) for strength in _RIDGE)
    candidates = [matrix, *(matrix + np.linalg.solve(gram + ridge, cross) for ridge in ridges)]
    errors = [float(((held @ candidate - wanted) ** 2).sum()) for candidate in candidates]
    return candidates[int(np.argmin(errors))]


def mean_output_error(
    observed: Observed, matrix: NDArray[np.float64], grid: Grid, rounded: NDArray[Any]
) -> NDArray[np.float64]:
    """Return E[x] W - E[x̂] Ŵ, float64 [C_out], which the bias has to compensate.

    E[x] is exact over all rows; the mean error of x̂ comes from the kept rows.
    """
    rows = observed.rows.astype(np.float32)
    shift = (rows - grid.fake(rows)).mean(axis=0, dtype=np.float64)  # E[x] - E[x̂]
    error: NDArray[np.float64] = observed.mean @ (matrix - rounded) + shift @ rounded
    return error
