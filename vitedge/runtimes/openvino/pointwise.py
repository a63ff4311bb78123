"""Quantized linears as pointwise convolutions: OpenVINO has better INT8 kernels for those where VNNI is missing.

The CPU plugin keeps INT8 convolutions channels-last in memory, so a Transpose before one and a Transpose behind it move
nothing: the plugin makes them another reading of the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from vitedge.graph.builder import GraphBuilder
from vitedge.graph.surgery import (
    Linear,
    array,
    attribute,
    consumers,
    copy,
    initializers,
    linear_layers,
    pin_batch,
    producers,
    shapes,
    write_nodes,
)

#: Operators that treat values at every position alike, as long as their other inputs are scalars.
_POSITIONLESS = ("DequantizeLinear", "Gelu", "HardSigmoid", "HardSwish", "QuantizeLinear", "Relu", "Sigmoid", "Tanh")
_AXIS = "channels_first.axis"


def pointwise_linears(model: onnx.ModelProto, plain: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return the graph with linears as convolutions of kernel size one; the arithmetic doesn't change.

    ``X`` from [N, .., C_in] to [N, .., C_out] becomes the nodes ``X.channels_first`` (Transpose), ``X`` (Conv with the
    bias inside) and ``X.channels_last`` (Transpose); one row a picture, [N, C_in], gets and loses an axis instead.
    Transposes that undo each other across an activation and its quantization are taken out.

    Args:
        model: what :func:`vitedge.quantization.qdq.insert_qdq` made of ``plain``: weights come through ``X.weight.dq``.
        plain: the float graph.
        names: of quantized layers; convolutions, and linears whose input's shape isn't known, stay as they are. So do
            linears behind a Concat: the plugin rounds its parts one by one, which only its linears then take.
    """
    inferred, writers = shapes(pin_batch(plain, 1)), producers(plain)
    joined = {tensor for tensor, node in writers.items() if node.op_type == "Concat"}
    axes = {layer.name: len(inferred.get(layer.input, ())) for layer in linear_layers(plain) if layer.kind == "linear"}
    chosen = {
        layer.name: layer
        for layer in linear_layers(plain)
        if layer.name in names and axes.get(layer.name, 0) > 1 and layer.input not in joined
    }
    weights = {f"{name}.weight.dq": layer for name, layer in chosen.items()}
    biases = {layer.bias_node.name for layer in chosen.values() if layer.bias_node}
    builder = GraphBuilder(model)
    constants = initializers(builder.model)
    for node in builder.model.graph.node:
        if node.name in chosen:
            _convolution(builder, node, chosen[node.name], axes[node.name])
        elif node.name in weights:
            layer, stored = weights[node.name], constants[node.input[0]]
            matrix = array(stored) if layer.channel_axis == 0 else array(stored).T  # [C_out, C_in]
            kernel = matrix.reshape(*matrix.shape, *[1] * max(1, axes[layer.name] - 2))
            stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kernel), stored.name))
            builder.node("DequantizeLinear", node.name, *node.input, out=node.output, axis=0)
        elif node.name not in biases:
            builder.nodes.append(node)
    if any(axes[name] == 2 for name in chosen):
        builder.integers(_AXIS, [2])
    return without_undone_transposes(builder.written())


def _convolution(builder: GraphBuilder, node: onnx.NodeProto, layer: Linear, axes: int) -> None:
    """Add the three nodes that replace ``node``, a linear of input [N, .., C_in] with ``axes`` axes."""
    before, after = f"{layer.name}.channels_first", f"{layer.name}.channels_last"
    if axes == 2:
        x = builder.node("Unsqueeze", before, node.input[0], _AXIS)
    else:
        x = builder.transpose(before, node.input[0], [0, axes - 1, *range(1, axes - 1)])
    constants = [node.input[1], *([layer.bias] if layer.bias else [])]
    product = builder.node("Conv", layer.name, x, *constants, out=f"{after}.in")
    if axes == 2:
        builder.node("Squeeze", after, product, _AXIS, out=layer.output)
    else:
        builder.transpose(after, product, [0, *range(2, axes), 1], out=layer.output)


def without_undone_transposes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove pairs of Transposes that cancel each other, with only positionless operators between them."""
    model = copy(model)
    scalars = {tensor.name for tensor in model.graph.initializer if not any(size > 1 for size in tensor.dims)}
    outputs = {value.name for value in model.graph.output}
    writers, readers = producers(model), consumers(model)
    gone: set[str] = set()

    def alone(node: onnx.NodeProto | None) -> bool:
        return node is not None and len(readers.get(node.output[0], ())) == 1 and node.output[0] not in outputs

    for last in model.graph.node:
        between, first = [last], writers.get(last.input[0]) if last.op_type == "Transpose" else None
        while first is not None and alone(first) and first.op_type in _POSITIONLESS:
            if not scalars.issuperset(first.input[1:]):
                break
            between.append(first)
            first = writers.get(first.input[0])
        if first is None or not alone(first) or not _undoes(first, last) or last.output[0] in outputs:
            continue
        between[-1].input[0] = first.input[0]
        for reader in readers.get(last.output[0], ()):
            reader.input[:] = [last.input[0] if name == last.output[0] else name for name in reader.input]
        gone.update((first.output[0], last.output[0]))
    write_nodes(model, [node for node in model.graph.node if node.output[0] not in gone])
    return model


def _undoes(first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
    if first.op_type != "Transpose":
        return False
    perm, undoing = attribute(first, "perm"), attribute(second, "perm")
    return bool(perm and undoing) and [perm[axis] for axis in undoing] == list(range(len(perm)))
