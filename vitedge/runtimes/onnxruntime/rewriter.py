"""The builder of this folder's integer kernel variants, which knows ONNX Runtime's own operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vitedge.graph.builder import GraphBuilder
from vitedge.graph.folding import prune
from vitedge.quantization.rounding import QuantizedLayer

CONTRIB = "com.microsoft"
Layers = Mapping[str, QuantizedLayer]
Grid = tuple[str, str]  # names of a scale and a zero point, tensors without axes


class Rewriter(GraphBuilder):
    """A graph that is rewritten in integers, node by node."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self._quantized: dict[tuple[str, float, int], str] = {}

    def contrib(self, operator: str, name: str, *inputs: str, out: str | None = None, **attributes: int | float) -> str:
        """Add a node of ONNX Runtime's own domain; return the name of its output."""
        return self.node(operator, name, *inputs, out=out, domain=CONTRIB, **attributes)

    def grid(self, layer: QuantizedLayer) -> Grid:
        """Return scale and zero point of the layer's input as constants."""
        return (
            self.constant(f"{layer.name}.input.scale", np.float32(layer.input_scale)),
            self.constant(f"{layer.name}.input.zero_point", np.uint8(layer.input_zero_point)),
        )

    def quantize(self, layer: QuantizedLayer, x: str, grid: Grid) -> str:
        """Quantize ``x`` to u8; layers that read one tensor with one scale share it."""
        key = (x, layer.input_scale, layer.input_zero_point)
        if key not in self._quantized:
            self._quantized[key] = self.node("QuantizeLinear", f"{layer.name}.input.q", x, *grid)
        return self._quantized[key]

    def quantize_by_range(self, layer: QuantizedLayer, x: str) -> tuple[str, Grid]:
        """Quantize ``x`` to u8 by its own range in each inference; return it with its scale and zero point."""
        name = f"{layer.name}.input"
        grid = (f"{name}.own_scale", f"{name}.own_zero_point")
        return self.node("DynamicQuantizeLinear", f"{name}.q", x, out=[f"{name}.q.out", *grid]), grid

    def multiply(self, layer: QuantizedLayer, x: str, grid: Grid, matrix: NDArray[np.int8], out: str) -> str:
        """Multiply u8 rows by the s8 matrix [K, C_out], to float32 with the bias added."""
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
        return self.contrib("MatMulIntegerToFloat", layer.name, *inputs, out=out)

    def finish(self) -> onnx.ModelProto:
        """Return the graph without unused nodes and constants."""
        model = self.written()
        del model.graph.value_info[:]
        prune(model)
        if all(opset.domain != CONTRIB for opset in model.opset_import):
            model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        return model
