"""Rewrites that fold factors and offsets into the constants of linear layers and convolutions.

As :mod:`vitedge.graph.rewrites`: each changes the model in place and counts its finds, and the caller compares.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vitedge.graph import surgery
from vitedge.graph.folding import Array, Index, reroute, set_constant, splice
from vitedge.graph.surgery import Linear, attribute, copied

Float64 = NDArray[np.float64]


def _float32(values: Array) -> Array:
    return np.asarray(values).astype(np.float32)


def gemm(model: onnx.ModelProto) -> int:
    """Turn Gemm with constant weights into MatMul and Add; alpha, beta and the transposition go into the constants."""
    index, replacements = Index(model), {}
    for node in model.graph.node:
        weight = index.constant(node.input[1]) if node.op_type == "Gemm" else None
        if weight is None or attribute(node, "transA", 0) or node.input[0] in index.constants:
            continue
        bias = index.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if len(node.input) > 2 and node.input[2] and bias is None:
            continue
        matrix = (weight.T if attribute(node, "transB", 0) else weight).astype(np.float64)
        name = node.name or node.output[0]
        product = node.output[0] if bias is None else f"{name}.out"
        inputs = [
            node.input[0],
            set_constant(model, f"{name}.weight", _float32(matrix * attribute(node, "alpha", 1.0))),
        ]
        replacements[node.output[0]] = [helper.make_node("MatMul", inputs, [product], name=name)]
        if bias is not None:
            offset = np.broadcast_to(
                bias.astype(np.float64) * attribute(node, "beta", 1.0), (*bias.shape[:-1], matrix.shape[1])
            )
            inputs = [product, set_constant(model, f"{name}.bias", _float32(offset))]
            replacements[node.output[0]].append(helper.make_node("Add", inputs, [node.output[0]], name=f"{name}.bias"))
    splice(model, replacements)
    return len(replacements)


def batch_norm(model: onnx.ModelProto) -> int:
    """Fold BatchNorm (Ioffe & Szegedy, 1502.03167) in inference form into the layer before it, or the one behind.

    Between a linear layer and its norm there may be a reshape of [N, T, C] to rows [N · T, C].
    """
    count = 0
    for name in [node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"]:
        index = Index(model)
        layers = {layer.output: layer for layer in surgery.linear_layers(model)}
        node = index.producers[name]
        parts = [index.constant(name) for name in node.input[1:5]]
        if any(part is None for part in parts) or name in index.outputs:
            continue
        gamma, beta, mean, var = (part.astype(np.float64) for part in parts if part is not None)
        gain = gamma / np.sqrt(var + float(attribute(node, "epsilon", 1e-5)))
        offset = beta - mean * gain
        layer_before = _layer_before(index, layers, node, len(gain))
        layer_behind = _layer_behind(index, layers, node, len(gain))
        if layer_before is not None:
            reroute(model, node.output[0], node.input[0])
            _scale_layer(model, index, layer_before, gain, offset)
        elif layer_behind is not None:
            reroute(model, node.output[0], node.input[0])
            _scale_input(model, index, layer_behind, gain, offset)
        count += layer_before is not None or layer_behind is not None
    return count


def _layer_before(index: Index, layers: dict[str, Linear], norm: onnx.NodeProto, channels: int) -> Linear | None:
    """Return the layer whose channels a BatchNorm alone normalises, directly or as rows."""
    source = norm.input[0]
    if source not in layers:
        rows = index.producers.get(source)
        shape = index.constant(rows.input[1]) if rows is not None and rows.op_type == "Reshape" else None
        as_rows = shape is not None and shape.size == 2 and shape[1] in (channels, -1)
        if rows is None or index.reader(source) is None or not (as_rows or rows.op_type == "Flatten"):
            return None
        source = rows.input[0]
        if source not in layers or layers[source].kind != "linear":
            return None
    layer = layers[source]
    alone = index.reader(source) is not None and _channels(index, layer) == channels
    return layer if alone else None


def _layer_behind(index: Index, layers: dict[str, Linear], norm: onnx.NodeProto, channels: int) -> Linear | None:
    """Return the MatMul that alone reads the output of a BatchNorm of rows."""
    reader = index.reader(norm.output[0])
    layer = next((layer for layer in layers.values() if reader is not None and layer.node is reader), None)
    if layer is None or layer.kind != "linear" or layer.channel_axis != 1 or layer.input != norm.output[0]:
        return None
    return layer if index.constants[layer.weight].dims[0] == channels else None


def _channels(index: Index, layer: Linear) -> int:
    return int(index.constants[layer.weight].dims[layer.channel_axis])


def _scale_input(model: onnx.ModelProto, index: Index, layer: Linear, gain: Float64, offset: Float64) -> None:
    """Fold x -> gain · x + offset in front of a MatMul into its constants, in place."""
    weight = surgery.array(index.constants[layer.weight]).astype(np.float64)
    name = f"{layer.name}.scaled_weight" if len(index.consumers[layer.weight]) > 1 else layer.weight
    layer.node.input[1] = set_constant(model, name, _float32(weight * gain[:, None]))
    _add_bias(model, index, layer, offset @ weight)


def _add_bias(model: onnx.ModelProto, index: Index, layer: Linear, offset: Float64) -> None:
    """Add an offset per output channel to the layer's own bias, in place; the bias is created where there is none."""
    if layer.bias is not None:
        bias = surgery.array(index.constants[layer.bias]).astype(np.float64)
        owner = layer.bias_node if layer.bias_node is not None else layer.node
        position = list(owner.input).index(layer.bias)
        name = f"{layer.name}.scaled_bias" if len(index.consumers[layer.bias]) > 1 else layer.bias
        owner.input[position] = set_constant(model, name, _float32(bias + offset))
    elif not offset.any():
        return
    elif layer.kind == "conv":
        inputs = [*layer.node.input[:2], set_constant(model, f"{layer.name}.bias", _float32(offset))]
        layer.node.input[:] = inputs
    else:
        product = copied(layer.node)
        product.output[0] = f"{layer.name}.out"
        inputs = [product.output[0], set_constant(model, f"{layer.name}.bias", _float32(offset))]
        add = helper.make_node("Add", inputs, [layer.output], name=f"{layer.name}.bias")
        splice(model, {layer.output: [product, add]})


def channel_scale(model: onnx.ModelProto) -> int:
    """Fold a factor per output channel behind a linear layer or a convolution (LayerScale, for one) into the layer."""
    index, count = Index(model), 0
    for layer in surgery.linear_layers(model):
        reader = index.reader(layer.output)
        pair = index.operand(reader) if reader is not None and reader.op_type in ("Mul", "Div") else None
        if reader is None or pair is None or reader.output[0] in index.outputs:
            continue
        factor = surgery.array(index.constants[pair[1]]).astype(np.float64)
        if reader.op_type == "Div":
            if reader.input[0] != pair[0] or not factor.all():
                continue
            factor = 1 / factor
        channels = index.constants[layer.weight].dims[layer.channel_axis]
        axis = -1 if layer.kind == "linear" else -3
        along = factor.shape[axis] if factor.ndim >= -axis else 1
        if factor.size == 1:
            factor = np.full(channels, factor.reshape(-1)[0])
        elif factor.size != channels or along != channels:
            continue
        _scale_layer(model, index, layer, factor.reshape(-1), np.zeros(channels))
        reroute(model, reader.output[0], layer.output)
        index, count = Index(model), count + 1
    return count


def _scale_layer(model: onnx.ModelProto, index: Index, layer: Linear, gain: Float64, offset: Float64) -> None:
    """Fold y -> gain · y + offset, per output channel, into the layer's own constants, in place."""
    weight = surgery.array(index.constants[layer.weight]).astype(np.float64)
    shape = [1] * weight.ndim
    shape[layer.channel_axis] = -1
    name = f"{layer.name}.scaled_weight" if len(index.consumers[layer.weight]) > 1 else layer.weight
    layer.node.input[1] = set_constant(model, name, _float32(weight * gain.reshape(shape)))
    if layer.bias is not None:  # gain · (b + o) with o = offset + (gain - 1) · b
        offset = offset + (gain - 1) * surgery.array(index.constants[layer.bias]).astype(np.float64).reshape(-1)
    _add_bias(model, index, layer, offset)


def attention_scale(model: onnx.ModelProto) -> int:
    """Merge factors around q·kᵀ, on q, on k, on both (as torch writes it) or on the scores, into one: in the query's
    own linear layer where nothing but transposition lies between, else one Mul on q."""
    count = 0
    for name in [node.output[0] for node in model.graph.node if node.op_type == "MatMul"]:
        index = Index(model)
        scores = index.producers[name]
        if any(source in index.constants for source in scores.input):
            continue
        downstream, total, tail = [], 1.0, scores.output[0]
        while (reader := index.reader(tail)) is not None and (step := index.factor(reader)) is not None:
            downstream.append(reader)
            total, tail = total * step[1], reader.output[0]
        softmax = index.reader(tail)
        if softmax is None or softmax.op_type != "Softmax":
            continue
        query, key = (_scale_chain(index, source) for source in scores.input[:2])
        factors = [*query[0], *key[0]]
        total *= math.prod(factor for _, factor in factors)
        layers = {layer.output: layer for layer in surgery.linear_layers(model)}
        layer = layers.get(query[1])
        on_query = len(query[0]) == 1 and not key[0] and not downstream
        if total == 1.0 or not (factors or downstream) or (on_query and layer is None):
            continue
        for node in [*downstream, *(node for node, _ in factors)]:
            step = index.factor(node)
            if step is not None:
                reroute(model, node.output[0], step[0])
        if layer is not None:
            channels = index.constants[layer.weight].dims[layer.channel_axis]
            _scale_layer(model, index, layer, np.full(channels, total), np.zeros(channels))
        else:
            prefix = scores.name or scores.output[0]
            factor = set_constant(model, f"{prefix}.scale.weight", np.asarray(total, np.float32))
            scaled = helper.make_node("Mul", [scores.input[0], factor], [f"{prefix}.scale.out"], name=f"{prefix}.scale")
            new = copied(scores)
            new.input[0] = f"{prefix}.scale.out"
            splice(model, {scores.output[0]: [scaled, new]})
        count += 1
    return count


def _scale_chain(index: Index, name: str) -> tuple[list[tuple[onnx.NodeProto, float]], str]:
    """Return the scalings between ``name`` and its source through data movement alone, and the source tensor."""
    scalings: list[tuple[onnx.NodeProto, float]] = []
    while True:
        node = index.producers.get(name)
        if node is None or index.reader(name) is None:
            return scalings, name
        step = index.factor(node)
        if step is not None:
            scalings.append((node, step[1]))
            name = step[0]
        elif node.op_type in ("Transpose", "Reshape"):
            name = node.input[0]
        else:
            return scalings, name


def normalisation(model: onnx.ModelProto) -> int:
    """Fold mean and factor in front of a convolution without padding into the convolution.

    They are the nodes ``image.mean`` (Sub) and ``image.scale`` (Mul), constants [3, 1, 1], that import puts there.
    """
    index = Index(model)
    nodes = {node.name: node for node in model.graph.node}
    subtract, multiply = nodes.get("image.mean"), nodes.get("image.scale")
    if subtract is None or multiply is None:
        return 0
    conv = index.reader(multiply.output[0])
    layer = next(
        (layer for layer in surgery.linear_layers(model) if conv is not None and layer.output == conv.output[0]), None
    )
    if conv is None or layer is None or conv.op_type != "Conv" or attribute(conv, "group", 1) != 1:
        return 0
    padded = any(attribute(conv, "pads", []) or []) or attribute(conv, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if padded or (len(conv.input) > 2 and layer.bias is None):
        return 0
    mean, factor = (
        surgery.array(index.constants[node.input[1]]).astype(np.float64).reshape(3) for node in (subtract, multiply)
    )
    weight = surgery.array(index.constants[layer.weight]).astype(np.float64) * factor[:, None, None]
    bias = (
        np.zeros(weight.shape[0])
        if layer.bias is None
        else surgery.array(index.constants[layer.bias]).astype(np.float64)
    )
    new = copied(conv)
    del new.input[:]
    new.input.extend(
        [
            subtract.input[0],
            set_constant(model, f"{conv.name}.weight", _float32(weight)),
            set_constant(model, f"{conv.name}.bias", _float32(bias - np.einsum("oikl,i->o", weight, mean))),
        ]
    )
    splice(model, {conv.output[0]: [new]})
    return 1
