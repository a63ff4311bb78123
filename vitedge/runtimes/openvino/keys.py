"""Keys in two Transposes, of which OpenVINO's CPU plugin takes one into the attention kernel and shortens the other.

The graph brings keys from ``[N, T, heads, D]`` to ``[N, heads, D, T]`` in one step, which the plugin keeps as an
operator of its own that moves single numbers. In two steps, by way of ``[N, heads, T, D]``, the second becomes a flag
of the product, and rows of D numbers stay together.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from vitedge.graph.builder import GraphBuilder
from vitedge.graph.surgery import attribute, consumers


def with_keys_by_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the Transpose (0, 2, 3, 1) of keys in two steps; it computes the same numbers.

    Args:
        model: any graph; a Transpose that more than the second input of one MatMul reads stays as it is.
    """
    builder = GraphBuilder(model)
    readers = consumers(builder.model)
    for node in builder.model.graph.node:
        if _transposes_keys(node, readers.get(node.output[0], [])):
            rows = builder.transpose(f"{node.name}.rows", node.input[0], [0, 2, 1, 3])
            builder.transpose(node.name, rows, [0, 1, 3, 2], out=node.output[0])
        else:
            builder.nodes.append(node)
    return builder.written()


def _transposes_keys(node: onnx.NodeProto, readers: Sequence[onnx.NodeProto]) -> bool:
    if node.op_type != "Transpose" or list(attribute(node, "perm", ())) != [0, 2, 3, 1] or len(readers) != 1:
        return False
    (reader,) = readers
    return reader.op_type == "MatMul" and reader.input[1] == node.output[0]
