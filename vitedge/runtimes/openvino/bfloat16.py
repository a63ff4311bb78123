"""Write out the rounding of OpenVINO's bfloat16 hint in a float32 graph, for machines that can't run it."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from vitedge.graph.builder import GraphBuilder
from vitedge.graph.surgery import array
from vitedge.graph.typed import element_types


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every constant and every intermediate result rounded to bfloat16 and held in float32.

    OpenVINO accumulates in float32 and keeps the first operators (up to the first convolution) in float32; it may fuse
    operators and then rounds less often, so this errs on the side of rounding. Scales stay as they are, and what comes
    out of DequantizeLinear isn't rounded: that is the inside of an INT8 kernel.
    """
    types = element_types(model)
    builder = GraphBuilder(model)
    graph = builder.model.graph
    scaling = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {node.input[1] for node in scaling}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in scales:
            tensor.CopyFrom(numpy_helper.from_array(nearest_bfloat16(array(tensor).astype(np.float32)), tensor.name))
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        builder.nodes.append(node)
        for index, name in enumerate([] if node.op_type == "DequantizeLinear" else node.output):
            if types.get(name) == TensorProto.FLOAT and name not in outputs:
                node.output[index] = f"{name}.exact"
                builder.node("Cast", "", f"{name}.exact", out=f"{name}.bf16", to=TensorProto.BFLOAT16)
                builder.node("Cast", "", f"{name}.bf16", out=name, to=TensorProto.FLOAT)
    return builder.written()


def nearest_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the nearest bfloat16 values, halves to even; finite float32 of any shape."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.asarray(upper.astype(np.uint32).view(np.float32))
