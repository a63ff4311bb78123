"""The path of a picture into a graph: the operations on pixels before the first layer, in one canonical form.

A canonical graph begins with the nodes ``image.float`` (Cast), ``image.nchw`` (Transpose), ``image.order`` (Gather,
where the network wants BGR), ``image.mean`` (Sub) and ``image.scale`` (Mul). A foreign graph may do any of it itself,
in any order, on NCHW or NHWC tensors, as people export models with their normalisation inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from vitedge.graph.builder import GraphBuilder
from vitedge.graph.folding import Array, Index, set_constant
from vitedge.graph.surgery import attribute, write_nodes

Float64 = NDArray[np.float64]

JOINED = "the way of the image joined"  # the rewrite's name in reports

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")


@dataclass
class _Path:
    """The operations on a pixel so far: value · gain + offset for each of the network's channels, in this order."""

    tensor: str = "image"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    axes: Sequence[int] = (0, 1, 2, 3)  # where each axis of [N, H, W, C] comes from
    order: list[int] = field(default_factory=lambda: [0, 1, 2])
    gain: Float64 = field(default_factory=lambda: np.ones(3))
    offset: Float64 = field(default_factory=lambda: np.zeros(3))
    is_float: bool = False

    @property
    def channel_axis(self) -> int:
        return list(self.axes).index(3)


def image_path(model: onnx.ModelProto) -> int:
    """Replace everything elementwise between the image and the first layer by the canonical nodes, in place."""
    index, path = Index(model), _Path()
    while (node := index.reader(path.tensor)) is not None and _advance(index, path, node):
        path.nodes.append(node)
        path.tensor = node.output[0]
    foreign = [node for node in path.nodes if not node.name.startswith("image.")]
    if not foreign or not path.is_float or list(path.axes) != [0, 3, 1, 2] or not path.gain.all():
        return 0
    for node in path.nodes:
        if node.output[0] in index.outputs:
            return 0
    builder, tensor = GraphBuilder(), "image"

    def then(operator: str, name: str, *constants: tuple[str, Array], **attributes: Any) -> None:
        nonlocal tensor
        names = [set_constant(model, f"{name}.{part}", values) for part, values in constants]
        tensor = builder.node(operator, name, tensor, *names, **attributes)

    then("Cast", "image.float", to=TensorProto.FLOAT)
    then("Transpose", "image.nchw", perm=[0, 3, 1, 2])
    if path.order != [0, 1, 2]:
        then("Gather", "image.order", ("index", np.asarray(path.order, np.int64)), axis=1)
    if (path.gain != 1).any() or path.offset.any():
        mean = -path.offset / path.gain
        then("Sub", "image.mean", ("weight", mean.reshape(3, 1, 1).astype(np.float32)))
        then("Mul", "image.scale", ("weight", path.gain.reshape(3, 1, 1).astype(np.float32)))
    last = path.nodes[-1].output[0]
    builder.nodes[-1].output[0] = last
    gone = {node.output[0] for node in path.nodes}
    write_nodes(model, [*builder.nodes, *(node for node in model.graph.node if node.output[0] not in gone)])
    return len(foreign)


def _advance(index: Index, path: _Path, node: onnx.NodeProto) -> bool:
    """Follow one node, if it only converts, moves, reorders or scales the values."""
    if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT:
        path.is_float = True
    elif node.op_type == "Transpose" and len(attribute(node, "perm", [])) == 4:
        path.axes = [path.axes[axis] for axis in attribute(node, "perm")]
    elif node.op_type == "Gather" and attribute(node, "axis", 0) % 4 == path.channel_axis:
        taken = index.constant(node.input[1])
        if taken is None or sorted(taken.reshape(-1).tolist()) != [0, 1, 2] or taken.ndim != 1:
            return False
        order = [int(channel) for channel in taken]
        path.order = [path.order[channel] for channel in order]
        path.gain, path.offset = path.gain[order], path.offset[order]
    elif node.op_type in _ELEMENTWISE and path.is_float:
        return _scale(index, path, node)
    else:
        return node.op_type == "Identity"
    return True


def _scale(index: Index, path: _Path, node: onnx.NodeProto) -> bool:
    """Follow an addition of, or a multiplication by, one constant per channel."""
    pair = index.operand(node)
    values = _per_channel(index.constant(pair[1]), path.channel_axis) if pair is not None else None
    if pair is None or values is None or (node.op_type == "Div" and (node.input[0] != pair[0] or not values.all())):
        return False
    if node.op_type in ("Mul", "Div"):
        factor = values if node.op_type == "Mul" else 1 / values
        path.gain, path.offset = path.gain * factor, path.offset * factor
    elif node.op_type == "Sub" and node.input[0] != pair[0]:  # constant - x
        path.gain, path.offset = -path.gain, values - path.offset
    else:
        path.offset = path.offset + (values if node.op_type == "Add" else -values)
    return True


def _per_channel(values: Array | None, axis: int) -> Float64 | None:
    """Return a constant as one number per channel of a tensor of rank four; None if it has more values."""
    if values is None or values.ndim > 4:
        return None
    shape = [1] * (4 - values.ndim) + list(values.shape)
    if any(size != 1 for place, size in enumerate(shape) if place != axis) or shape[axis] not in (1, 3):
        return None
    return np.full(3, values.astype(np.float64).reshape(-1))


def normalisation_inside(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the normalisation of a graph's canonical nodes, as :func:`~vitedge.graph.author.author_vit` takes it."""
    index = Index(model)
    nodes = {node.name: node for node in model.graph.node}
    constants = [index.constant(nodes[name].input[1]) for name in ("image.mean", "image.scale") if name in nodes]
    mean, factor = constants if len(constants) == 2 else (np.zeros(3), np.ones(3))
    order = index.constant(nodes["image.order"].input[1]) if "image.order" in nodes else None
    assert mean is not None and factor is not None
    return {
        "mean": mean.reshape(-1).astype(np.float64).tolist(),
        "std": (1 / factor.reshape(-1).astype(np.float64)).tolist(),
        "rescale": 1.0,
        "channel_order": "bgr" if order is not None and order.tolist() == [2, 1, 0] else "rgb",
    }
