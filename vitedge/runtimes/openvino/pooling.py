"""An Add behind each MaxPool, where OpenVINO's CPU plugin computes what the graph says.

The plugin takes an activation behind a MaxPool into the convolution before it, as if every activation were monotonic.
GELU and SiLU aren't, so the logits of a pooled stem were off by 16 % of the largest. No activation is taken across an
Add.
"""

from __future__ import annotations

import numpy as np
import onnx

from vitedge.graph.builder import GraphBuilder
from vitedge.graph.surgery import attribute, consumers

_ADDED = np.float32(1e-30)  # an Add of zeros would be left out
#: Operators that may read a MaxPool directly: nothing is taken across them, or it makes no difference.
_HARMLESS = frozenset(
    ("Add", "BatchNormalization", "Conv", "MaxPool", "QuantizeLinear", "Relu", "Reshape", "Transpose")
)


def with_adds_behind_pools(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in which 1e-30 is added behind each MaxPool that an activation may read; it changes no logit.

    Args:
        model: any graph.
    """
    builder = GraphBuilder(model)
    readers = consumers(builder.model)
    for node in builder.model.graph.node:
        builder.nodes.append(node)
        read = {reader.op_type for reader in readers.get(node.output[0], [])} if node.op_type == "MaxPool" else set()
        if read - _HARMLESS and len(node.output) == 1:
            out, name = node.output[0], f"{node.name}.apart"
            node.output[0] = f"{name}.in"
            shape = [1] * (2 + len(attribute(node, "kernel_shape")))
            constant = builder.constant(f"{name}.added", np.full(shape, _ADDED))
            builder.node("Add", name, node.output[0], constant, out=out)
    return builder.written()
