"""Run a graph on all pictures part by part: the tensors at one point are kept, and later nodes are run from them.

A graph that is changed layer by layer is run layer by layer: each layer once or a few times on every picture, and none
again from the start. What later layers read is all that is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, shape_inference

from vitedge.errors import InvalidResultError
from vitedge.graph.surgery import batch_size, copied, initializers
from vitedge.quantization.observe import refused, session_of

_ACTION = "run the model on the pictures"

Tensors = dict[str, NDArray[Any]]


class Activations:
    """The tensors that a graph's next nodes read, for all pictures, batch by batch."""

    def __init__(self, model: onnx.ModelProto, pictures: NDArray[np.uint8], batch: int) -> None:
        """Start at the graph's input.

        Args:
            model: one input, uint8 [N, h, w, 3].
            pictures: uint8 [n, h, w, 3].
            batch: pictures at a time; a graph's fixed batch has the last one filled with the first pictures.
        """
        batch = batch_size(model) or batch
        missing = -len(pictures) % batch if batch_size(model) else 0
        padded = np.concatenate([pictures, np.resize(pictures, (missing, *pictures.shape[1:]))])
        name = model.graph.input[0].name
        self._values: list[Tensors] = [{name: padded[i : i + batch]} for i in range(0, len(padded), batch)]

    def advance(self, model: onnx.ModelProto, before: str) -> None:
        """Move on to the point before a node, and drop the tensors that no later node reads."""
        nodes = list(model.graph.node)
        position = next(i for i, node in enumerate(nodes) if node.name == before)
        made = {name for node in nodes[:position] for name in node.output} | {model.graph.input[0].name}
        read = [name for node in nodes[position:] for name in node.input]
        read += [value.name for value in model.graph.output]
        wanted = [name for name in dict.fromkeys(read) if name in made]
        for index, values in enumerate(self.run(model, wanted)):
            self._values[index] = values

    def run(self, model: onnx.ModelProto, wanted: Sequence[str]) -> Iterator[Tensors]:
        """Yield the named tensors, batch by batch.

        Raises:
            ModelError: the graph doesn't run.
            InvalidResultError: a value isn't finite.
        """
        here = self._values[0]
        later = [name for name in wanted if name not in here]
        part = _part(model, here, later) if later else None
        session = None if part is None else session_of(part, _ACTION)
        fed = [] if part is None else [value.name for value in part.graph.input]
        for values in self._values:
            try:
                made = [] if session is None else session.run(later, {name: values[name] for name in fed})
            except Exception as error:  # onnxruntime's exceptions have no common base of their own
                raise refused(error) from error
            for name, value in zip(later, made, strict=True):
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise InvalidResultError(
                        _ACTION,
                        f"the tensor '{name}' has NaN or infinite values on at least one picture",
                        "check the model's weights and its preprocessing",
                    )
            new = dict(zip(later, made, strict=True))
            yield {name: new[name] if name in new else values[name] for name in wanted}


def _part(model: onnx.ModelProto, here: Tensors, wanted: Iterable[str]) -> onnx.ModelProto:
    """Return the nodes between the tensors that are kept and those that are wanted, as a graph."""
    wanted = list(wanted)
    needed, nodes = set(wanted), []
    for node in reversed(model.graph.node):
        if any(name in needed and name not in here for name in node.output):
            nodes.append(copied(node))
            needed.update(node.input)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    constants = [copied(tensor) for name, tensor in initializers(model).items() if name in needed]
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.graph.initializer[:]
    del part.graph.value_info[:]
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(constants)
    for name, value in here.items():
        if name in needed:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            part.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * value.ndim))
    inferred = shape_inference.infer_shapes(part).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    part.graph.output.extend(
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None) for name in wanted
    )
    return part
