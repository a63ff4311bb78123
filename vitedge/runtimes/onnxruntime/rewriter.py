"""A graph that is written anew, node by node: what the kernel variants of this folder are made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vitedge.graph.folding import copied
from vitedge.graph.surgery import copy
from vitedge.quantization.rounding import QuantizedLayer

CONTRIB = "com.microsoft"
Layers = Mapping[str, QuantizedLayer]


class Rewriter:
    """A graph that is written anew, node by node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copy(model)
        self.nodes: list[onnx.NodeProto] = []
        self._quantized: dict[tuple[str, float, int], str] = {}

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """Add an array; its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """Add int64 values; their name."""
        return self.constant(name, np.asarray(values, np.int64))

    def scalar(self, name: str, value: np.generic) -> str:
        """Add a value without axes; its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, name: str, inputs: Sequence[str], *, out: str | None = None, **extra: Any) -> str:
        """Append a node of one output; the name of what it writes."""
        out = out or f"{name}.out"
        self.nodes.append(helper.make_node(operator, list(inputs), [out], name=name, **extra))
        return out

    def reshape(self, name: str, x: str, shape: Sequence[int]) -> str:
        """Append a Reshape; the name of what it writes."""
        return self.node("Reshape", name, [x, self.integers(f"{name}.shape", shape)])

    def grid(self, layer: QuantizedLayer) -> tuple[str, str]:
        """Scale and zero point of the layer's input as constants."""
        return (
            self.scalar(f"{layer.name}.input.scale", np.float32(layer.input_scale)),
            self.scalar(f"{layer.name}.input.zero_point", np.uint8(layer.input_zero_point)),
        )

    def quantize(self, layer: QuantizedLayer, x: str, scale: str, zero_point: str) -> str:
        """``x`` as u8; layers that read one tensor with one scale share it."""
        key = (x, layer.input_scale, layer.input_zero_point)
        if key not in self._quantized:
            self._quantized[key] = self.node("QuantizeLinear", f"{layer.name}.input.q", [x, scale, zero_point])
        return self._quantized[key]

    def quantize_by_range(self, layer: QuantizedLayer, x: str) -> tuple[str, tuple[str, str]]:
        """``x`` as u8 by its own range in each inference; and its scale and zero point."""
        parts = [f"{layer.name}.input.{part}" for part in ("q.out", "own_scale", "own_zero_point")]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], parts, name=f"{layer.name}.input.q"))
        return parts[0], (parts[1], parts[2])

    def multiply(
        self, layer: QuantizedLayer, x: str, grid: tuple[str, str], matrix: NDArray[np.int8], out: str
    ) -> None:
        """u8 rows times the s8 matrix [K, C_out], to float32 with the bias added."""
        scale, zero_point = grid
        inputs = [
            x,
            self.constant(f"{layer.name}.weight.q", matrix),
            scale,
            self.constant(f"{layer.name}.weight.scale", layer.weight_scale),
            zero_point,
            "",  # the weights' zero point is 0
            self.constant(f"{layer.name}.bias.q", layer.bias),
        ]
        self.node("MatMulIntegerToFloat", layer.name, inputs, out=out, domain=CONTRIB)

    def finish(self) -> onnx.ModelProto:
        """The graph without what nothing needs any more."""
        graph = self.model.graph
        needed = {value.name for value in graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(copied(node))
        del graph.node[:], graph.value_info[:]
        graph.node.extend(reversed(kept))
        tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        if all(opset.domain != CONTRIB for opset in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        return self.model
