"""Write precision into the graph: standard QuantizeLinear and DequantizeLinear for inputs and weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from vitedge.errors import ModelError
from vitedge.graph.builder import GraphBuilder
from vitedge.graph.surgery import linear_layers
from vitedge.quantization.prepare import replaced
from vitedge.quantization.rounding import QuantizedLayer


def insert_qdq(
    model: onnx.ModelProto,
    layers: Mapping[str, QuantizedLayer],
    *,
    dynamic: Collection[str] = (),
    weights_only: bool = False,
) -> onnx.ModelProto:
    """Return the float graph with each of ``layers`` quantized by standard operators of opset 20.

    The input of layer ``X`` goes through the nodes ``X.input.q`` and ``X.input.dq`` (layers that read one tensor with
    one scale share the pair of the first), its weights are stored as int8 under ``X.weight.q`` and go through
    ``X.weight.dq``, per output channel; its bias stays float32. Scales are ``X.input.scale`` [1] and
    ``X.weight.scale`` [C_out], zero points ``X.input.zero_point`` and ``X.weight.zero_point``.

    Args:
        model: the graph that :func:`vitedge.quantization.rounding.quantize_layers` returned.
        layers: what it returned beside it, or some of it.
        dynamic: layers whose inputs are rounded by each inference's own range (``DynamicQuantizeLinear``); the others'
            are by their observed scales.
        weights_only: leave all inputs in float.

    Raises:
        ModelError: a layer that the graph hasn't.
    """
    builder = GraphBuilder(model)
    linears = {linear.name: linear for linear in linear_layers(builder.model)}
    if missing := sorted(layers.keys() - linears.keys()):
        raise ModelError(
            "insert Q/DQ", f"the graph has no linear layer '{missing[0]}'", "use the graph that belongs to them"
        )
    rounded: dict[tuple[str, float, int, str, bool], str] = {}  # (tensor, grid) -> the tensor behind the pair
    for node in builder.model.graph.node:
        layer = layers.get(node.name)
        if layer is not None:
            source, own_range = linears[layer.name].input, layer.name in dynamic
            grid = (source, layer.input_scale, layer.input_zero_point, layer.input_type, own_range)
            if weights_only:
                rounded[grid] = source
            elif grid not in rounded:
                rounded[grid] = _input_pair(builder, layer, source, own_range)
            node.input[0], node.input[1] = rounded[grid], _weight(builder, layer)
        builder.nodes.append(node)
    model = builder.written()
    drop_unused(model, {linears[name].weight for name in layers})
    return replaced(model, {linears[name].bias or "": layer.bias for name, layer in layers.items()})


def _input_pair(builder: GraphBuilder, layer: QuantizedLayer, source: str, own_range: bool) -> str:
    """Insert QuantizeLinear and DequantizeLinear with each inference's or the observed range; return their output."""
    name = f"{layer.name}.input"
    if own_range:
        grid = (f"{name}.scale", f"{name}.zero_point")
        integers = builder.node("DynamicQuantizeLinear", f"{name}.q", source, out=[f"{name}.q.out", *grid])
    else:
        zero_point = np.array([layer.input_zero_point], layer.input_type)
        grid = (
            builder.constant(f"{name}.scale", np.array([layer.input_scale], np.float32)),
            builder.constant(f"{name}.zero_point", zero_point),
        )
        integers = builder.node("QuantizeLinear", f"{name}.q", source, *grid)
    return builder.node("DequantizeLinear", f"{name}.dq", integers, *grid)


def _weight(builder: GraphBuilder, layer: QuantizedLayer) -> str:
    """Store integers with a DequantizeLinear behind them; return the tensor that it writes."""
    name = f"{layer.name}.weight"
    stored = (
        builder.constant(f"{name}.q", layer.weight),
        builder.constant(f"{name}.scale", layer.weight_scale),
        builder.constant(f"{name}.zero_point", np.zeros(len(layer.weight_scale), np.int8)),
    )
    return builder.node("DequantizeLinear", f"{name}.dq", *stored, axis=layer.channel_axis)


def drop_unused(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove those of the named initialisers that nothing reads any more, in place."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names or tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
