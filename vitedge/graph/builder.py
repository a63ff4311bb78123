"""The builder of graphs, which starts from nothing or from an existing graph whose nodes are rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import helper, numpy_helper

from vitedge.graph.surgery import copy, write_nodes


class GraphBuilder:
    """Nodes and constants in the order they run. Methods append, and return the name of the tensor they write.

    To rewrite a graph, go over ``model.graph.node``: append to ``nodes`` what stays, and build what replaces the rest.
    """

    def __init__(self, model: onnx.ModelProto | None = None) -> None:
        """Start from nothing, or from a copy of ``model`` whose nodes will be rewritten."""
        self.model = onnx.ModelProto() if model is None else copy(model)
        self.nodes: list[onnx.NodeProto] = []

    def constant(self, name: str, values: ArrayLike) -> str:
        """Add an initialiser of the array's own type and shape; a scalar has no axes."""
        tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
        self.model.graph.initializer.append(tensor)
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """Add an int64 initialiser."""
        return self.constant(name, np.asarray(values, np.int64))

    def node(
        self, operator: str, name: str, *inputs: str, out: str | Sequence[str] | None = None, **attributes: Any
    ) -> str:
        """Add a node that writes ``out``, else ``<name>.out``; of several outputs, return the first one's name."""
        outputs = [f"{name}.out"] if out is None else [out] if isinstance(out, str) else list(out)
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
        return outputs[0]

    def reshape(self, name: str, x: str, shape: Sequence[int]) -> str:
        """Reshape to a constant shape, the initialiser ``<name>.shape``; 0 keeps a size, -1 infers it."""
        return self.node("Reshape", name, x, self.integers(f"{name}.shape", shape))

    def transpose(self, name: str, x: str, perm: Sequence[int], *, out: str | None = None) -> str:
        """Transpose to another order of axes."""
        return self.node("Transpose", name, x, out=out, perm=list(perm))

    def written(self) -> onnx.ModelProto:
        """Return the model with the nodes that were built; it belongs to the builder."""
        write_nodes(self.model, self.nodes)
        return self.model
