"""Simplify foreign graphs: compute constants, resolve shape arithmetic, remove no-ops, widen types.

Also the small editor that these and :mod:`vitedge.graph.rewrites` share. Every function changes the model in place
and counts its finds.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vitedge.graph import surgery
from vitedge.graph.surgery import attribute, copied, write_nodes

Array = NDArray[Any]

MAX_FOLDED = 1 << 24  # elements of a constant that folding may create
# What may be computed at import; anything that draws random numbers or runs a subgraph is left to the runtime.
_FOLDABLE = re.compile(
    r"Add|Cast|Ceil|Concat|ConstantOfShape|Div|Equal|Exp|Expand|Flatten|Floor|Gather|Greater|Identity|Less|Max|Min|Mod|"
    r"Mul|Neg|Not|Pow|Range|Reciprocal|ReduceProd|Reshape|Shape|Size|Slice|Split|Sqrt|Squeeze|Sub|Transpose|Unsqueeze|"
    r"Where"
)


class Index:
    """The producers, consumers and constants of a graph, as they are when the index is made."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = surgery.initializers(model)
        self.producers = surgery.producers(model)
        self.consumers = surgery.consumers(model)
        self.outputs = {value.name for value in model.graph.output}

    def constant(self, name: str) -> Array | None:
        """Return the values of a constant tensor; None if it isn't one."""
        return surgery.array(self.constants[name]) if name in self.constants else None

    def scalar(self, name: str) -> float | None:
        """Return the value of a constant float tensor with one element."""
        tensor = self.constants.get(name)
        if tensor is None or math.prod(tensor.dims) != 1 or tensor.data_type != TensorProto.FLOAT:
            return None
        return float(surgery.array(tensor).reshape(-1)[0])

    def reader(self, name: str) -> onnx.NodeProto | None:
        """Return the only node that reads ``name``, which is no graph output."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def operand(self, node: onnx.NodeProto) -> tuple[str, str] | None:
        """Return (dynamic input, constant input) of a node with one of each."""
        if len(node.input) != 2 or (node.input[0] in self.constants) == (node.input[1] in self.constants):
            return None
        first, second = node.input
        return (second, first) if first in self.constants else (first, second)

    def factor(self, node: onnx.NodeProto) -> tuple[str, float] | None:
        """Return (input, factor) of a node that multiplies by a constant scalar."""
        pair = self.operand(node) if node.op_type in ("Mul", "Div") else None
        value = self.scalar(pair[1]) if pair else None
        if pair is None or value is None or (node.op_type == "Div" and (node.input[0] != pair[0] or value == 0)):
            return None
        return pair[0], value if node.op_type == "Mul" else 1 / value


def prune(model: onnx.ModelProto) -> None:
    """Drop, in place, nodes and initialisers that no output needs."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if any(output in needed for output in node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(name for graph in _subgraphs(node) for name in _reads(graph))
    write_nodes(model, reversed(kept))
    weights = [copied(tensor) for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attr in node.attribute:
        yield from ([attr.g] if attr.HasField("g") else []) + list(attr.graphs)


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for inner in _subgraphs(node):
            yield from _reads(inner)


def sort(model: onnx.ModelProto) -> None:
    """Sort nodes topologically, in place; converters leave nodes that read what later nodes write.

    Where there is none (a cycle) nothing is changed.
    """
    nodes = list(model.graph.node)
    writers = {output: position for position, node in enumerate(nodes) for output in node.output if output}
    readers: dict[int, list[int]] = {}
    missing = []  # of each node: writers that don't stand before it yet
    for position, node in enumerate(nodes):
        inner = (name for graph in _subgraphs(node) for name in _reads(graph))
        before = {writers[name] for name in (*node.input, *inner) if name in writers}
        missing.append(len(before))
        for writer in before:
            readers.setdefault(writer, []).append(position)
    ready, order = [position for position, count in enumerate(missing) if count == 0], []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], []):
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) == len(nodes) and order != sorted(order):
        write_nodes(model, (nodes[position] for position in order))


def splice(model: onnx.ModelProto, replacements: Mapping[str, Sequence[onnx.NodeProto]]) -> None:
    """Replace the nodes that write these tensors by other nodes, in place."""
    write_nodes(model, [new for old in model.graph.node for new in replacements.get(old.output[0]) or [old]])


def set_constant(model: onnx.ModelProto, name: str, values: Array) -> str:
    """Set an initialiser, in place."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
    for existing in model.graph.initializer:
        if existing.name == name:
            existing.CopyFrom(tensor)
            return name
    model.graph.initializer.append(tensor)
    return name


def reroute(model: onnx.ModelProto, old: str, new: str) -> None:
    """Let every reader of ``old`` read ``new``. ``old`` must be no graph output."""
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new


def widen(model: onnx.ModelProto) -> int:
    """Convert float16 and bfloat16 to float32 in weights, casts and interfaces."""
    narrow = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    count = 0
    for tensor in surgery.tensors(model):
        if tensor.data_type in narrow:
            wide = numpy_helper.from_array(surgery.array(tensor).astype(np.float32), tensor.name)
            tensor.CopyFrom(wide)
            count += 1
    for node in model.graph.node:
        for attr in node.attribute:
            if (
                node.op_type in ("Cast", "RandomNormal", "EyeLike")
                and attr.name in ("to", "dtype")
                and attr.i in narrow
            ):
                attr.i = TensorProto.FLOAT
                count += 1
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type in narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            count += 1
    return count


def constants(model: onnx.ModelProto) -> int:
    """Turn Constant nodes into initialisers, and compute everything that depends on constants alone."""
    graph, count, values_of = model.graph, 0, surgery.initializers(model)
    kept = []
    for node in graph.node:
        if node.op_type == "Constant":
            results: list[Array] | None = _evaluate(node, [])
        elif (
            _FOLDABLE.fullmatch(node.op_type)
            and node.domain in ("", "ai.onnx")
            and all(not n or n in values_of for n in node.input)
        ):
            arrays = [surgery.array(values_of[name]) if name else None for name in node.input]
            results = _evaluate(node, arrays) if _small(node, arrays) else None
        else:
            results = None
        if results is None or any(output in {value.name for value in graph.output} for output in node.output):
            kept.append(node)
            continue
        count += node.op_type != "Constant"
        for output, values in zip(node.output, results, strict=False):
            if output:
                values_of[output] = numpy_helper.from_array(np.asarray(values), output)
                graph.initializer.append(values_of[output])
    changed = len(kept) != len(graph.node)
    write_nodes(model, kept)
    return max(count, int(changed))


def _evaluate(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array] | None:
    """Evaluate a node whose inputs are known with ONNX's own reference; None where that fails."""
    names = [name for name in node.input if name]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(names)],
        [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    try:
        feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if name}
        return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feeds)]
    except Exception:  # a foreign node may be malformed in any way; it then stays as it is
        return None


def _small(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> bool:
    """Whether computing this node can't create a huge tensor."""
    sizes = [array.size for array in arrays if array is not None]
    if node.op_type in ("Expand", "ConstantOfShape"):
        shape = arrays[-1]
        return shape is not None and math.prod(abs(int(n)) for n in shape.reshape(-1)) * max(sizes) <= MAX_FOLDED
    if node.op_type == "Range":
        bounds = [float(array.reshape(-1)[0]) for array in arrays if array is not None and array.size]
        return len(bounds) == 3 and bounds[2] != 0 and abs((bounds[1] - bounds[0]) / bounds[2]) <= MAX_FOLDED
    if node.op_type in ("Concat", "Reshape", "Slice", "Split", "Transpose", "Unsqueeze", "Squeeze"):
        return sum(sizes) <= MAX_FOLDED
    if node.op_type == "Gather":
        return math.prod(sizes) <= MAX_FOLDED
    try:
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays if array is not None))) <= MAX_FOLDED
    except ValueError:
        return False


def identities(model: onnx.ModelProto) -> int:
    """Remove Identity, Dropout, Concat of one, casts from float32 to float32 and scalings by one."""
    index, count = Index(model), 0
    floats = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    for node in model.graph.node:
        cast = (
            node.op_type == "Cast"
            and attribute(node, "to") == TensorProto.FLOAT
            and _is_float(index, node.input[0], floats)
        )
        step = index.factor(node)
        scaling = step is not None and step[1] == 1.0
        source = step[0] if step is not None else node.input[0] if node.input else ""
        alone = node.op_type == "Concat" and len(node.input) == 1
        passed = node.op_type in ("Identity", "Dropout") or alone or cast or scaling
        if passed and node.output[0] not in index.outputs:
            reroute(model, node.output[0], source)
            count += 1
            index = Index(model)
    return count


def _is_float(index: Index, name: str, floats: set[str]) -> bool:
    """Whether a tensor is certainly float32: an input, a constant, or the output of an operator that writes floats."""
    producer = index.producers.get(name)
    if producer is None:
        return name in floats or (name in index.constants and index.constants[name].data_type == TensorProto.FLOAT)
    if producer.op_type == "Cast":
        return bool(attribute(producer, "to") == TensorProto.FLOAT)
    makers = ("Conv", "Gemm", "LayerNormalization", "Gelu", "Softmax", "Erf", "Tanh", "Sqrt", "BatchNormalization")
    if producer.op_type in makers:
        return True
    keepers = ("Add", "Sub", "Mul", "Div", "MatMul", "Transpose", "Reshape", "ReduceMean", "Pow")
    return producer.op_type in keepers and _is_float(index, producer.input[0], floats)
