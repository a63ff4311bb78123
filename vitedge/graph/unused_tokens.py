"""Leave out unused tokens: behind the last attention, a classifier reads the class token only.

Most operators of a ViT treat every token by itself. A head that reads the class token alone therefore needs, of the
last block, the keys and values of all tokens, but one query, one row of the projection and one row of the MLP. Which
rows of a tensor are read is found from the outputs backward, as a compiler finds dead code, and the operators are given
those rows. Every value that reaches an output stays what it was; a ViT of twelve blocks has 6 % less to multiply.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from vitedge.graph.builder import GraphBuilder
from vitedge.graph.folding import prune
from vitedge.graph.surgery import array, attribute, initializers, pinned, shapes

_ALONE = ("Cast", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "Relu", "Sigmoid", "Softplus", "Tanh")
_BROADCAST = ("Add", "Div", "Mul", "Sub")
_OVER_AN_AXIS = ("LayerNormalization", "Softmax")

#: Largest fraction of the rows that may be read: where nearly all are read, a Slice costs more than it saves.
WORTHWHILE = 0.5

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Span:
    """The range of a tensor that is read: from ``start`` to before ``stop`` along an axis."""

    axis: int
    start: int
    stop: int

    def along(self, axis: int) -> Span:
        """Return the same rows of a tensor that has them along another axis."""
        return Span(axis, self.start, self.stop)


def without_unused_tokens(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph whose operators compute only rows that are read; the graph itself where no product gets smaller.

    Tensors keep their names. Where rows of a tensor are read that other readers need whole, a Slice
    ``<tensor>.rows`` stands between. Constants are cut once, under that name.
    """
    builder = GraphBuilder(model)
    nodes = builder.model.graph.node
    if any(attr.type in (attr.GRAPH, attr.GRAPHS) for node in nodes for attr in node.attribute):
        return builder.model  # what the bodies of loops and branches read isn't among a node's inputs
    plan = _Plan(builder.model)
    if not any(node.op_type == "MatMul" and node.output[0] in plan.made for node in nodes):
        return builder.model
    _rewrite(builder, plan)
    lean = builder.written()
    del lean.graph.value_info[:]
    prune(lean)
    return lean


def rows_computed(model: onnx.ModelProto) -> dict[str, Span]:
    """Return the rows that are read, of every tensor that isn't read whole; nothing for a graph with subgraphs."""
    if any(attr.type in (attr.GRAPH, attr.GRAPHS) for node in model.graph.node for attr in node.attribute):
        return {}  # what the bodies of loops and branches read isn't among a node's inputs
    return _Plan(model).made


class _Plan:
    """The rows of each tensor that are read, found backward from the outputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = initializers(model)
        self.shapes = shapes(pinned(model))
        self.read: dict[str, Span | None] = {value.name: None for value in model.graph.output}  # None: all of them
        self.made: dict[str, Span] = {}  # tensors of which less than all is computed
        self.wanted: dict[str, list[Span | None]] = {}  # by a node's first output: what of its inputs it's given
        for node in reversed(model.graph.node):
            self.wanted[node.output[0]] = wanted = self.wants(node)
            for name, rows in zip(node.input, wanted, strict=True):
                self.read[name] = rows if self.read.get(name, rows) == rows else None

    def wants(self, node: onnx.NodeProto) -> list[Span | None]:
        """Return the rows of each input that the node needs for the rows of its outputs that are read."""
        whole: list[Span | None] = [None] * len(node.input)
        if node.domain not in ("", "ai.onnx") or not all(name in self.shapes for name in node.input if name):
            return whole
        selected = self.selection(node)
        if selected is not None:
            return [selected, *whole[1:]]
        read = {self.read[name] for name in node.output if name in self.read}
        rows = read.pop() if len(read) == 1 else None
        leading = [] if rows is None else self.inputs(node, rows)
        if rows is not None and leading:
            self.made |= dict.fromkeys(node.output, rows)
        return [*leading, *whole][: len(whole)]

    def selection(self, node: onnx.NodeProto) -> Span | None:
        """Return the range that a Gather of one index or a Slice along one axis takes from its input."""
        shape, bounds = self.shapes.get(node.input[0], ()), [self.constants.get(name) for name in node.input[1:]]
        if node.op_type not in ("Gather", "Slice") or not bounds or None in bounds:
            return None
        values = [array(tensor).reshape(-1).tolist() for tensor in bounds if tensor is not None]
        if any(len(value) != 1 for value in values):
            return None
        numbers = [int(value[0]) for value in values]
        if node.op_type == "Gather":
            axis, start, stop = attribute(node, "axis", 0), numbers[0], numbers[0] + 1
        elif len(numbers) >= 3 and numbers[3:] in ([], [1]):
            start, stop, axis = numbers[:3]
        else:
            return None
        axis %= max(1, len(shape))
        size = shape[axis] if shape else None
        if size is None or not 0 <= start < min(stop, size) or min(stop, size) - start > size * WORTHWHILE:
            return None
        return Span(axis, start, min(stop, size))

    def inputs(self, node: onnx.NodeProto, rows: Span) -> list[Span | None]:
        """Return the leading inputs' rows that give these rows of the output; nothing where an operator mixes rows."""
        out = self.shapes.get(node.output[0], ())
        first = self.shapes.get(node.input[0], ())
        last = len(out) - 1
        if node.op_type in _ALONE:
            return [rows]
        if node.op_type in _BROADCAST:
            return [self.aligned(name, out, rows) for name in node.input]
        if node.op_type in _OVER_AN_AXIS and attribute(node, "axis", -1) in (-1, last) and rows.axis < last:
            return [rows]
        if node.op_type == "MatMul" and rows.axis == last - 1 and len(first) == len(out):
            return [rows]
        if node.op_type == "Transpose" and attribute(node, "perm"):
            return [rows.along(attribute(node, "perm")[rows.axis])]
        if node.op_type == "Reshape" and self.keeps(node, rows.axis):
            return [rows]
        if node.op_type == "Split" and attribute(node, "axis", 0) % len(first) != rows.axis:
            return [rows]
        if node.op_type == "Concat" and attribute(node, "axis") % len(out) != rows.axis:
            return [rows] * len(node.input)
        return []

    def aligned(self, name: str, out: Shape, rows: Span) -> Span | None:
        """Return the rows of an operand that is broadcast to the output's shape."""
        shape = self.shapes[name]
        axis = rows.axis - (len(out) - len(shape))
        return rows.along(axis) if axis >= 0 and shape[axis] == out[rows.axis] else None

    def keeps(self, node: onnx.NodeProto, axis: int) -> bool:
        """Whether a Reshape leaves the axes up to this one unchanged, for any length of this one."""
        constant = self.constants.get(node.input[1])
        before, after = self.shapes[node.input[0]][: axis + 1], self.shapes.get(node.output[0], ())[: axis + 1]
        if constant is None or attribute(node, "allowzero", 0) or before != after or None in before:
            return False
        return array(constant).reshape(-1).tolist()[axis] in (0, -1)


def _rewrite(builder: GraphBuilder, plan: _Plan) -> None:
    """Rebuild the nodes, with the rows that they are planned to read."""
    cut: dict[tuple[str, Span], str] = {}
    for node in builder.model.graph.node:
        selected = plan.selection(node)
        if selected is not None:
            if plan.made.get(node.input[0]) == selected:  # the rows that are computed are those
                _select_from_first(builder, plan, node, selected)
            builder.nodes.append(node)
            continue
        for index, (name, rows) in enumerate(zip(node.input, plan.wanted[node.output[0]], strict=True)):
            if rows is None or plan.made.get(name) == rows:
                continue
            if (name, rows) not in cut:
                others = sum(tensor == name for tensor, _ in cut)
                cut[name, rows] = f"{name}.rows.{others}" if others else f"{name}.rows"
                _cut(builder, plan, name, rows, cut[name, rows])
            node.input[index] = cut[name, rows]
        builder.nodes.append(node)


def _select_from_first(builder: GraphBuilder, plan: _Plan, node: onnx.NodeProto, rows: Span) -> None:
    """Let a Gather or a Slice count from the first row that is computed."""
    starts = {1: 0} if node.op_type == "Gather" else {1: 0, 2: rows.stop - rows.start}
    for index, value in starts.items():
        old = array(plan.constants[node.input[index]])
        node.input[index] = builder.constant(f"{node.name}.rows.{index}", np.full(old.shape, value, old.dtype))


def _cut(builder: GraphBuilder, plan: _Plan, name: str, rows: Span, out: str) -> None:
    """Write some rows of a tensor under another name: of a constant directly, else through a Slice."""
    constant = plan.constants.get(name)
    if constant is not None:
        builder.constant(out, np.take(array(constant), range(rows.start, rows.stop), rows.axis))
        return
    bounds = (("start", rows.start), ("end", rows.stop), ("axis", rows.axis))
    inputs = [builder.integers(f"{out}.{part}", [value]) for part, value in bounds]
    builder.node("Slice", out, name, *inputs, out=out)
