"""Precision in the graph: standard QuantizeLinear and DequantizeLinear around the inputs and on the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitedge.errors import ModelError
from vitedge.graph.folding import copied
from vitedge.graph.surgery import copy, linear_layers
from vitedge.quantization.prepare import replaced
from vitedge.quantization.rounding import QuantizedLayer


def insert_qdq(
    model: onnx.ModelProto,
    layers: Mapping[str, QuantizedLayer],
    *,
    dynamic: Collection[str] = (),
    weights_only: bool = False,
) -> onnx.ModelProto:
    """The float graph with each of ``layers`` quantized by standard operators of opset 20.

    The input of layer ``X`` goes through the nodes ``X.input.q`` and ``X.input.dq`` (layers that read one tensor with
    one scale share the pair of the first), its weights are stored as int8 under ``X.weight.q`` and go through
    ``X.weight.dq``, per output channel; its bias stays float32. Scales are ``X.input.scale`` [] and
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
    model = copy(model)
    graph = model.graph
    known = {linear.name: linear for linear in linear_layers(model)}
    if missing := sorted(layers.keys() - known.keys()):
        raise ModelError(
            "insert Q/DQ", f"the graph has no linear layer '{missing[0]}'", "use the graph that belongs to them"
        )
    nodes: list[onnx.NodeProto] = []
    pairs: dict[tuple[str, float, int, str, bool], str] = {}  # what was quantized how -> the tensor behind the pair

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    for node in graph.node:
        layer = layers.get(node.name)
        if layer is not None:
            name, linear = layer.name, known[layer.name]
            own = name in dynamic
            quantization = (linear.input, layer.input_scale, layer.input_zero_point, layer.input_type, own)
            if weights_only:
                pairs[quantization] = linear.input
            elif own and quantization not in pairs:
                parts = [f"{name}.input.{part}" for part in ("q.out", "scale", "zero_point")]
                pairs[quantization] = f"{name}.input.dq.out"
                nodes += [
                    helper.make_node("DynamicQuantizeLinear", [linear.input], parts, f"{name}.input.q"),
                    helper.make_node("DequantizeLinear", parts, [pairs[quantization]], f"{name}.input.dq"),
                ]
            elif quantization not in pairs:
                scale = constant(f"{name}.input.scale", np.float32(layer.input_scale))
                zero = constant(f"{name}.input.zero_point", np.dtype(layer.input_type).type(layer.input_zero_point))
                pairs[quantization] = f"{name}.input.dq.out"
                nodes += [
                    helper.make_node(
                        "QuantizeLinear", [linear.input, scale, zero], [f"{name}.input.q.out"], f"{name}.input.q"
                    ),
                    helper.make_node(
                        "DequantizeLinear",
                        [f"{name}.input.q.out", scale, zero],
                        [pairs[quantization]],
                        f"{name}.input.dq",
                    ),
                ]
            weight = [
                constant(f"{name}.weight.q", layer.weight),
                constant(f"{name}.weight.scale", layer.weight_scale),
                constant(f"{name}.weight.zero_point", np.zeros(len(layer.weight_scale), np.int8)),
            ]
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", weight, [f"{name}.weight.dq.out"], f"{name}.weight.dq", axis=layer.channel_axis
                )
            )
            node.input[0], node.input[1] = pairs[quantization], f"{name}.weight.dq.out"
        nodes.append(node)
    nodes = [copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(model, {known[name].weight for name in layers})
    return replaced(model, {known[name].bias or "": layer.bias for name, layer in layers.items()})


def drop_unused(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove those of the named initialisers that nothing reads any more, in place."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names or tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
