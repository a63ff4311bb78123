"""Typed graphs: float16 arithmetic where it's faster, float32 where precision needs it, and a Cast at each border."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from vitedge.errors import ModelError
from vitedge.graph.builder import GraphBuilder
from vitedge.graph.surgery import array, attribute, copied

HALF_MAX = 65504.0
#: Smallest scale of quantized weights: further down float16 keeps fewer than 7 of its bits.
HALF_SCALE_MIN = 2.0**-18


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that the model uses; 0 where it names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the ONNX element type of every tensor that shape inference finds.

    Raises:
        ModelError: the graph contradicts itself.
    """
    try:
        graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    except Exception as error:  # inference errors, and any exception from malformed attributes
        raise ModelError(
            "infer the types of an ONNX graph", f"it is inconsistent: {error}", "export it again"
        ) from error
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def type_variables(node: onnx.NodeProto, version: int) -> tuple[list[str], list[str], dict[str, set[str]]]:
    """Return a node's types in ONNX: the type (variable) of each input, of each output, and each variable's types.

    Raises:
        KeyError: this opset has no such operator.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except Exception as error:  # onnx's own SchemaError
        raise KeyError(node.op_type) from error
    inputs, outputs = (
        [formal[min(index, len(formal) - 1)].type_str if formal else "" for index in range(len(names))]
        for formal, names in ((schema.inputs, node.input), (schema.outputs, node.output))
    )
    allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
    return inputs, outputs, allowed


def to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model with its float32 arithmetic in float16; graph inputs and outputs keep their types.

    Constants become float16, and a Cast stands wherever a float16 and a float32 tensor meet. Operators that have no
    float16 form stay in float32. Scales of QuantizeLinear and DequantizeLinear take the type of their tensors (as ONNX
    has it from opset 19 on), and int8 weights are rounded anew to the rounded scale.

    Args:
        model: standard operators, opset 19 or newer, no control flow.
        keep: names of nodes that stay in float32.

    Raises:
        ModelError: a weight beyond ±65504, a scale that float16 can't hold, control flow, or an unknown operator.
    """
    return _Halving(model, keep).run()


_ACTION = "write this graph in float16"
_HINT = "export it in fp32"


class _Halving:
    """One conversion to float16, node by node in graph order."""

    def __init__(self, model: onnx.ModelProto, keep: Collection[str]) -> None:
        self.builder = GraphBuilder(model)
        self.new, self.nodes = self.builder.model, self.builder.nodes
        self.version = opset(model)
        self.keep = keep
        self.floats = {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT}
        self.constants = {tensor.name: tensor for tensor in self.new.graph.initializer}
        self.halves: dict[str, onnx.TensorProto] = {}  # "X.half" of a constant X
        self.is_half = {value.name: False for value in self.new.graph.input}  # of what was float32
        self.outputs = {value.name for value in self.new.graph.output}

    def run(self) -> onnx.ModelProto:
        graph = self.new.graph
        for original in graph.node:
            self._convert(original)
        self._round_weights()
        used = {name for node in self.nodes for name in node.input}
        alone = {f"{name}.half": name for name in self.constants if name not in used}  # these keep their name
        for node in self.nodes:
            node.input[:] = [alone.get(name, name) for name in node.input]
        for half in self.halves.values():
            half.name = alone.get(half.name, half.name)
        constants = [*(tensor for name, tensor in self.constants.items() if name in used), *self.halves.values()]
        self.builder.written()
        del graph.initializer[:], graph.value_info[:]
        graph.initializer.extend(constants)
        try:
            onnx.checker.check_model(self.new, full_check=True)
        except Exception as error:  # the checker's exceptions have no common base
            raise ModelError(_ACTION, f"it doesn't stay consistent: {error}", _HINT) from error
        return self.new

    def _convert(self, original: onnx.NodeProto) -> None:
        node = copied(original)
        if any(entry.HasField("g") or entry.graphs for entry in node.attribute):
            raise ModelError(_ACTION, f"node '{node.name}' ({node.op_type}) holds a graph of its own", _HINT)
        try:
            inputs, outputs, allowed = type_variables(node, self.version)
        except KeyError:
            reason = f"opset {self.version} has no operator {node.op_type} (node '{node.name}')"
            raise ModelError(_ACTION, reason, _HINT) from None

        def takes_half(variable: str) -> bool:
            return "tensor(float16)" in allowed.get(variable, {variable})

        written = [(name, kind) for name, kind in zip(node.output, outputs, strict=True) if name in self.floats]
        half = node.name not in self.keep and all(takes_half(kind) for _, kind in written)
        for index, (name, kind) in enumerate(zip(node.input, inputs, strict=True)):
            if name in self.floats:
                node.input[index] = self._read(name, half and takes_half(kind))
        if half and written:
            self._type_attributes(node)
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if name in self.floats:
                self.is_half[name] = half
                if half and name in self.outputs:
                    node.output[index] = f"{name}.half"
                    self._cast(f"{name}.half", name, TensorProto.FLOAT)

    def _read(self, name: str, half: bool) -> str:
        """Return the name of the tensor in the needed type for ``name``, which was float32."""
        if name in self.constants:
            if half and f"{name}.half" not in self.halves:
                self.halves[f"{name}.half"] = _half_tensor(self.constants[name], f"{name}.half")
            return f"{name}.half" if half else name
        if name in self.outputs and self.is_half[name]:
            return f"{name}.half" if half else name
        if self.is_half[name] == half:
            return name
        other = f"{name}.half" if half else f"{name}.float"
        if other not in self.is_half:
            self._cast(name, other, TensorProto.FLOAT16 if half else TensorProto.FLOAT)
            self.is_half[other] = half
        return other

    def _cast(self, source: str, target: str, to: int) -> None:
        self.builder.node("Cast", f"{target}.cast", source, out=target, to=to)

    def _type_attributes(self, node: onnx.NodeProto) -> None:
        """Convert constant values, and the attributes that name the type of the output."""
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.TENSOR and entry.t.data_type == TensorProto.FLOAT:
                entry.t.CopyFrom(_half_tensor(entry.t, entry.t.name))
            elif entry.name in ("to", "dtype") and entry.i == TensorProto.FLOAT:
                entry.i = TensorProto.FLOAT16
            elif entry.name in ("value_float", "value_floats"):
                values = numpy_helper.from_array(np.asarray(helper.get_attribute_value(entry), np.float32), node.name)
                entry.CopyFrom(helper.make_attribute("value", _half_tensor(values, node.name)))

    def _round_weights(self) -> None:
        """Rounding a scale to float16 moves it by up to 2^-12 of itself, and more under 2^-14; the integers follow."""
        for node in self.nodes:
            if node.op_type != "DequantizeLinear" or node.input[1] not in self.halves:
                continue
            weight, half = self.constants.get(node.input[0]), self.halves[node.input[1]]
            if weight is None or weight.data_type != TensorProto.INT8:
                continue
            exact = _numbers(self.constants[node.input[1].removesuffix(".half")])
            rounded = np.maximum(array(half), np.float16(HALF_SCALE_MIN)).astype(np.float16)
            half.CopyFrom(numpy_helper.from_array(rounded, half.name))
            integers = _numbers(weight)
            ratio = exact / rounded.astype(np.float64)
            if ratio.size > 1:
                axis = attribute(node, "axis", 1)
                assert isinstance(axis, int)
                shape = [1] * integers.ndim
                shape[axis] = -1
                ratio = ratio.reshape(shape)
            integers = np.clip(np.rint(integers * ratio), -128, 127)
            weight.CopyFrom(numpy_helper.from_array(integers.astype(np.int8), weight.name))
        for node in self.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in self.halves:
                scale = _numbers(self.halves[node.input[1]])
                if not (scale > 0).all():
                    raise ModelError(_ACTION, f"a scale of node '{node.name}' is too small for float16", _HINT)


def _half_tensor(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = _numbers(tensor)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= HALF_MAX:
        raise ModelError(_ACTION, f"'{tensor.name}' holds {largest:g}; float16 ends at {HALF_MAX:g}", _HINT)
    return numpy_helper.from_array(values.astype(np.float16), name)


def _numbers(tensor: onnx.TensorProto) -> NDArray[np.float64]:
    return np.asarray(array(tensor), np.float64)
