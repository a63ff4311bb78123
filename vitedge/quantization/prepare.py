"""Prepare a graph for rounding: give every quantizable layer a weight and a bias of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vitedge.graph.surgery import array, copy, initializers
from vitedge.quantization.views import quantizable


def with_own_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in which no two layers share a weight or a bias, and every layer has a bias.

    New initialisers are called ``X.weight`` and ``X.bias`` (with a prime where the name is taken), an Add ``X.bias``.
    """
    model = copy(model)
    graph = model.graph
    uses = Counter(name for node in graph.node for name in node.input)
    taken = set(initializers(model)) | {name for node in graph.node for name in (*node.input, *node.output)}

    def own(name: str, values: NDArray[np.generic]) -> str:
        while name in taken:
            name += "'"
        taken.add(name)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    for layer in quantizable(model)[0]:
        linear = layer.linear
        node = next(node for node in graph.node if node.name == linear.name)
        if uses[linear.weight] > 1:
            node.input[1] = own(f"{layer.name}.weight", layer.weight)
        if layer.bias is None:
            zeros = own(f"{layer.name}.bias", np.zeros(layer.matrix.shape[1], np.float32))
            if node.op_type == "MatMul":
                add_behind(graph, node, zeros)
            elif len(node.input) == 2:
                node.input.append(zeros)
            else:
                node.input[2] = zeros
        elif linear.bias is not None and uses[linear.bias] > 1:
            reader = node if linear.bias_node is None else linear.bias_node
            at = list(reader.input).index(linear.bias)
            own_bias = own(f"{layer.name}.bias", array(initializers(model)[linear.bias]))
            next(other for other in graph.node if other.name == reader.name).input[at] = own_bias
    return model


def replaced(model: onnx.ModelProto, values: Mapping[str, NDArray[np.generic]]) -> onnx.ModelProto:
    """Return the graph with new values in the named initialisers; their shapes and types don't change."""
    model = copy(model)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            old = array(tensor)
            new = np.ascontiguousarray(values[tensor.name].reshape(old.shape).astype(old.dtype))
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return model


def add_behind(graph: onnx.GraphProto, node: onnx.NodeProto, bias: str) -> None:
    """Replace ``node``'s output by the sum of its product and ``bias``."""
    output = node.output[0]
    node.output[0] = f"{node.name}.product.out"
    add = helper.make_node("Add", [node.output[0], bias], [output], f"{node.name}.bias")
    graph.node.insert(list(graph.node).index(node) + 1, add)
