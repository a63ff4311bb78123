"""FP8: linears whose inputs and weights are rounded to float8 (E4M3, largest 448), by standard operators of opset 19.

A float rounds each value to three bits of its own magnitude, so one scale a tensor is enough, and what integers need
(ranges clipped, channels migrated, weights compensated) gains nothing here: the scale is the largest magnitude over
448. The mean error of a layer's output is taken out through its bias, as for integers. Format: "FP8 Formats for Deep
Learning", arXiv 2209.05433.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from vitedge.errors import ModelError
from vitedge.formats.recipe import Recipe
from vitedge.graph.builder import GraphBuilder
from vitedge.quantization.prepare import replaced, with_own_constants
from vitedge.quantization.qdq import drop_unused
from vitedge.quantization.statistics import Observed, Statistics
from vitedge.quantization.views import Layer, quantizable

LARGEST = 448.0
#: Scales are float16 numbers, so that a float16 graph keeps them exactly; this one is float16's smallest normal.
LEAST_SCALE = 2.0**-14
_FLOAT8 = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
_ZERO = np.zeros((), _FLOAT8)


def round_to_float8(values: NDArray[Any], scale: float) -> NDArray[Any]:
    """Round ``values`` / ``scale`` to float8 E4M3, saturated, halves to even; any shape."""
    scaled = np.clip(np.asarray(values, np.float32) / np.float32(scale), -LARGEST, LARGEST)
    rounded: NDArray[Any] = scaled.astype(_FLOAT8)
    return rounded


def fake(values: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Return the nearest representable values, float32, any shape."""
    return np.asarray(round_to_float8(values, scale).astype(np.float32) * np.float32(scale))


def scale_for(largest: float) -> float:
    """Return the least float16 scale at which ``largest`` is representable."""
    scale = np.float16(max(largest / LARGEST, LEAST_SCALE))
    return float(scale if float(scale) * LARGEST >= largest else np.nextafter(scale, np.float16(np.inf)))


def quantize_fp8(
    model: onnx.ModelProto, statistics: Statistics, recipe: Recipe, layers: Collection[str]
) -> onnx.ModelProto:
    """Return the float graph with the named layers in FP8.

    The input of layer ``X`` goes through ``X.input.q`` and ``X.input.dq`` (layers that read one tensor share the pair
    of the first), its weights are stored as float8 under ``X.weight.q`` and go through ``X.weight.dq``; both have one
    scale, float32 []. Its bias stays float32.

    Args:
        model: the float graph that was observed.
        statistics: of :func:`vitedge.quantization.observe.observe`.
        recipe: whether biases are corrected.
        layers: names of linears and convolutions.

    Raises:
        ModelError: a layer that can't be quantized, or was never observed.
    """
    builder = GraphBuilder(with_own_constants(model))
    linears = {layer.name: layer for layer in quantizable(builder.model)[0]}
    for name in sorted(layers):
        if name not in linears or linears[name].view.key not in statistics.observed:
            reason = "the graph has no such layer" if name not in linears else "its input was never observed"
            raise ModelError(f"quantize the layer '{name}' to FP8", reason, "leave it in float")
    rounded: dict[str, str] = {}  # a quantized tensor -> its values behind the pair
    biases: dict[str, NDArray[np.generic]] = {}
    for node in builder.model.graph.node:
        layer = linears.get(node.name)
        if layer is not None and layer.name in layers:
            source, observed = layer.linear.input, statistics.observed[layer.view.key]
            input_scale = scale_for(float(max(-observed.minimum.min(), observed.maximum.max())))
            weight_scale = scale_for(float(np.abs(layer.weight).max(initial=0.0)))
            if source not in rounded:
                rounded[source] = _input_pair(builder, layer.name, source, input_scale)
            node.input[0], node.input[1] = rounded[source], _weight(builder, layer, weight_scale)
            if recipe.round.bias_correction and layer.linear.bias is not None and layer.bias is not None:
                biases[layer.linear.bias] = layer.bias + _mean_error(layer, observed, input_scale, weight_scale)
        builder.nodes.append(node)
    new = builder.written()
    drop_unused(new, {linears[name].linear.weight for name in layers})
    return replaced(new, biases)


def _input_pair(builder: GraphBuilder, name: str, source: str, scale: float) -> str:
    """Insert QuantizeLinear and DequantizeLinear before a layer's input; return the tensor behind them."""
    grid = (
        builder.constant(f"{name}.input.scale", np.asarray(scale, np.float32)),
        builder.constant(f"{name}.input.zero_point", _ZERO),
    )
    return builder.node(
        "DequantizeLinear", f"{name}.input.dq", builder.node("QuantizeLinear", f"{name}.input.q", source, *grid), *grid
    )


def _weight(builder: GraphBuilder, layer: Layer, scale: float) -> str:
    """Store float8 weights with a DequantizeLinear behind them; return the tensor that it writes."""
    name = f"{layer.name}.weight"
    stored = (
        builder.constant(f"{name}.q", round_to_float8(layer.weight, scale)),
        builder.constant(f"{name}.scale", np.asarray(scale, np.float32)),
        builder.constant(f"{name}.zero_point", _ZERO),
    )
    return builder.node("DequantizeLinear", f"{name}.dq", *stored)


def _mean_error(layer: Layer, observed: Observed, input_scale: float, weight_scale: float) -> NDArray[np.float64]:
    """Return E[x] W - E[x̂] Ŵ, float64 [C_out]; E[x] is over all rows, the mean error of x̂ over the kept rows."""
    rounded = layer.to_matrix(fake(layer.weight, weight_scale))
    rows = observed.rows.astype(np.float32)
    shift = (rows - fake(rows, input_scale)).mean(axis=0, dtype=np.float64)
    error: NDArray[np.float64] = observed.mean @ (layer.matrix - rounded) + shift @ rounded
    return error
