"""Check a graph for a reader that isn't installed here: its versions, its operators, and its tensors' types."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto

from vitedge.errors import ModelError
from vitedge.graph.surgery import parse
from vitedge.graph.typed import element_types, opset, type_variables

Types = frozenset[str]
STANDARD = ("", "ai.onnx")

_NAMES = {number: name.lower() for name, number in TensorProto.DataType.items()}
_NAMES |= {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}


@dataclass(frozen=True)
class Limits:
    """The versions, operators and types that one reader of ONNX files accepts."""

    reader: str  # name and version, for the findings
    opsets: tuple[int, int]  # oldest and newest version of the standard operators
    ir_version: int  # newest
    operators: Mapping[str, Types] | None = None  # allowed types of data, by standard operator; None: every operator
    other_types: Types = frozenset()  # allowed types of inputs and outputs that aren't data
    slots: Mapping[tuple[str, int], Types] = field(default_factory=dict)  # exceptions: (operator, input), -1: outputs
    boundary_types: Types = frozenset()  # tensors of these may only be graph inputs and outputs
    constants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # inputs that have to be initialisers
    first_output_only: Collection[str] = ()
    static: bool = False  # no symbolic dimension


def read(graph: bytes) -> onnx.ModelProto | str:
    """Return the model, or the reason why these bytes aren't one."""
    try:
        return parse(graph)
    except ModelError as error:
        return error.reason


def findings(model: onnx.ModelProto, limits: Limits) -> list[str]:
    """Return findings that the reader can't accept, in words, in graph order; empty when it accepts everything."""
    problems = list(_versions(model, limits))
    if limits.static:
        problems += _dynamic(model)
    if limits.operators is not None:
        unknown = list(_unknown_operators(model, limits.operators, limits.reader))
        problems += unknown
        if not unknown and opset(model) <= limits.opsets[1]:
            problems += _types(model, limits)
    if not problems:
        problems += _inconsistent(model)
    return problems


def type_name(number: int) -> str:
    """Return "float32", "int8", … of an ONNX element type."""
    return str(_NAMES.get(number, f"type {number}"))


def _versions(model: onnx.ModelProto, limits: Limits) -> Iterator[str]:
    oldest, newest = limits.opsets
    if not oldest <= opset(model) <= newest:
        yield f"opset {opset(model)}: {limits.reader} reads {oldest} to {newest}"
    if model.ir_version > limits.ir_version:
        yield f"IR version {model.ir_version}: {limits.reader} reads up to {limits.ir_version}"


def _dynamic(model: onnx.ModelProto) -> Iterator[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value and value.name not in constants:
                yield f"input '{value.name}': dimension {axis} ('{dim.dim_param or '?'}') is dynamic; pin it"


def _unknown_operators(model: onnx.ModelProto, operators: Mapping[str, Types], reader: str) -> Iterator[str]:
    first: dict[str, str] = {}
    for node in model.graph.node:
        if node.domain not in STANDARD:
            first.setdefault(f"{node.domain}.{node.op_type}", node.name)
        elif node.op_type not in operators:
            first.setdefault(node.op_type, node.name)
    for operator, name in first.items():
        yield f"operator {operator} (first in node '{name}') isn't among those of {reader}"


def _types(model: onnx.ModelProto, limits: Limits) -> Iterator[str]:
    try:
        types = element_types(model)
    except ModelError as error:
        yield error.reason
        return
    boundary = {value.name for value in (*model.graph.input, *model.graph.output)}
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        where = f"node '{node.name}' ({node.op_type})"
        try:
            inputs, outputs, _ = type_variables(node, opset(model))
        except KeyError:
            yield f"{where}: opset {opset(model)} has no such operator"
            continue
        assert limits.operators is not None
        data = [*inputs, *outputs, ""][0]
        for index, (name, variable) in enumerate(zip((*node.input, *node.output), (*inputs, *outputs), strict=True)):
            if not name or name not in types:
                continue
            slot = index if index < len(inputs) else -1
            common = limits.operators[node.op_type] if variable == data else limits.other_types
            allowed = limits.slots.get((node.op_type, slot), common)
            kind = type_name(types[name])
            if kind not in allowed:
                role = f"input {slot}" if slot >= 0 else "output"
                yield f"{where}: {role} '{name}' is {kind}; {limits.reader} takes {', '.join(sorted(allowed))}"
            elif kind in limits.boundary_types and name not in boundary:
                yield f"{where}: '{name}' is {kind}, which {limits.reader} has only at the graph's inputs and outputs"
        for slot in limits.constants.get(node.op_type, ()):
            if slot < len(node.input) and node.input[slot] and node.input[slot] not in constants:
                yield f"{where}: input {slot} '{node.input[slot]}' has to be a constant"
        if node.op_type in limits.first_output_only and any(node.output[1:]):
            yield f"{where}: {limits.reader} writes its first output only"


def _inconsistent(model: onnx.ModelProto) -> Iterator[str]:
    try:
        onnx.checker.check_model(model, full_check=all(node.domain in STANDARD for node in model.graph.node))
    except Exception as error:  # the checker's exceptions have no common base
        yield f"the graph isn't consistent: {' '.join(str(error).split())[:300]}"
