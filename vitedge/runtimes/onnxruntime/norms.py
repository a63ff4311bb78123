"""LayerNormalizations whose input has no mean and that add nothing, as ONNX Runtime's kernel without either."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from vitedge.graph.folding import prune
from vitedge.graph.surgery import array, copy, initializers


def root_mean_squares(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The graph in which LayerNormalizations with these names are ``SimplifiedLayerNormalization`` where β is zero.

    Args:
        model: any graph.
        names: of those whose input's mean is zero (:func:`vitedge.quantize.centre.centred`).
    """
    model = copy(model)
    constants = initializers(model)
    for node in model.graph.node:
        beta = constants.get(node.input[2]) if len(node.input) > 2 else None
        if node.name in names and (beta is not None and not array(beta).any()):
            node.op_type = "SimplifiedLayerNormalization"
            del node.input[2:]
    prune(model)
    return model
