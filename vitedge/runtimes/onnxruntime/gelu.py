"""Approximate GELU by tanh where its output is rounded far more coarsely than the two differ."""

from __future__ import annotations

import onnx
from onnx import helper

from vitedge.graph.surgery import attribute, consumers, copy, linear_layers
from vitedge.runtimes.onnxruntime.rewriter import Layers

#: Largest difference of x Φ(x) and its approximation by tanh (Hendrycks and Gimpel, 1606.08415), at |x| = 2.7.
LARGEST_ERROR = 4.74e-4
#: Steps of the grid that the difference may be; rounding itself is up to half a step wrong.
ALLOWED_STEPS = 1 / 16


def tanh_gelus(model: onnx.ModelProto, layers: Layers) -> onnx.ModelProto:
    """Return the graph with tanh GELUs where only coarsely rounded inputs of ``layers`` read them."""
    model = copy(model)
    readers = consumers(model)
    inputs = {linear.name: linear.input for linear in linear_layers(model)}
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.op_type != "Gelu" or attribute(node, "approximate", "none") != "none" or node.output[0] in outputs:
            continue
        steps = [
            layers[reader.name].input_scale
            for reader in readers.get(node.output[0], [])
            if reader.name in layers and inputs[reader.name] == node.output[0]
        ]
        if len(steps) == len(readers.get(node.output[0], [])) > 0 and ALLOWED_STEPS * min(steps) >= LARGEST_ERROR:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("approximate", "tanh"))
    return model
