"""What TensorRT 10.3 takes: its ONNX parser's operators and types, and the rules of its explicit quantization.

10.3 is the oldest TensorRT that vitedge serves (JetPack 6) and everything newer takes the same graphs, so every graph
for either package is held against this one table. It stands on NVIDIA's published operator matrix of ONNX-TensorRT:
10.0's says opset 9 to 20 (whose IR version is 9), 10.6's gives operators and types, and the changelog between them
takes away what came after 10.3 (BlackmanWindow, HammingWindow, HannWindow and Pad's ``axes`` in 10.4, STFT in 10.5).
Left out on purpose: control flow, recurrent layers, random numbers and plugins, which no vision transformer needs.

TensorRT-RTX accepts more than this (RMSNormalization-23, IR version 13), so it can't stand in for the table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from vitedge.core.versions import older
from vitedge.errors import ModelError
from vitedge.formats.target import Target
from vitedge.graph.preflight import Limits, Types, findings, read, type_name
from vitedge.graph.surgery import array, initializers
from vitedge.graph.typed import element_types

_HALVES: Types = frozenset({"float32", "float16"})
_FLOATS: Types = _HALVES | {"bfloat16"}
_NUMBERS: Types = _FLOATS | {"int32", "int64"}
_ALL: Types = _NUMBERS | {"bool"}
_BOOL: Types = frozenset({"bool"})
_QUANTIZED: Types = frozenset({"int8", "int4", "float8e4m3fn"})

_OPERATORS: dict[Types, str] = {
    _BOOL: "And Not Or Xor",
    _HALVES: "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign",
    _FLOATS: """
        Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh
        CumSum Dropout Einsum Elu Erf Exp Floor Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
        GroupNormalization HardSigmoid HardSwish Hardmax InstanceNormalization IsInf LRN LayerNormalization LeakyRelu
        Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu Pow QuantizeLinear
        Reciprocal Resize Round Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu
        """,
    _NUMBERS: """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod Mul
        Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
        ReduceSumSquare Relu ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK
        """,
    _ALL: """
        Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity OneHot Reshape
        ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where
        """,
    _ALL | {"uint8"}: "Cast CastLike",
    _QUANTIZED: "DequantizeLinear",
}

TENSORRT_10_3 = Limits(
    reader="TensorRT 10.3",
    opsets=(9, 20),
    ir_version=9,
    operators={name: types for types, names in _OPERATORS.items() for name in names.split()},
    other_types=_ALL,
    slots={
        ("Cast", -1): _ALL | {"uint8"},
        ("QuantizeLinear", 2): _QUANTIZED,
        ("QuantizeLinear", -1): _QUANTIZED,
        ("DequantizeLinear", 1): _FLOATS,
        ("DequantizeLinear", 2): _QUANTIZED,
        ("DequantizeLinear", -1): _FLOATS,
    },
    boundary_types=frozenset({"uint8"}),
    constants={
        **{name: (1,) for name in _OPERATORS[_NUMBERS].split() if name.startswith("Reduce")},
        **dict.fromkeys(["CumSum", "OneHot", "Pad", "Squeeze", "Unsqueeze"], (1,)),
        "QuantizeLinear": (1, 2),
        "DequantizeLinear": (1, 2),
    },
    first_output_only=("BatchNormalization", "Dropout", "LayerNormalization", "MaxPool"),
    static=True,
)

#: Compute capability from which on a type exists.
_FIRST_SM = {"float8e4m3fn": (8, 9), "bfloat16": (8, 0)}


def check(graph: bytes, target: Target) -> list[str]:
    """What TensorRT 10.3, or the target's GPU, can't take of an ONNX file, in words; empty when they take it all."""
    if older(target.runtime_min, "10.3") and target.runtime == "tensorrt":
        return [f"runtime_min {target.runtime_min}: vitedge knows TensorRT from 10.3 on"]
    model = read(graph)
    if isinstance(model, str):
        return [model]
    try:
        problems = findings(model, TENSORRT_10_3)
        return problems or [*_attributes(model), *_quantization(model), *_hardware(model, target)]
    except ModelError as error:  # a tensor whose data doesn't fit its shape
        return [error.reason]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _attributes(model: onnx.ModelProto) -> Iterator[str]:
    """Attributes and inputs of an operator that the parser hasn't."""
    for node in model.graph.node:
        where = f"node '{node.name}' ({node.op_type})"
        values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == "Pad" and len(node.input) > 3 and node.input[3]:
            yield f"{where}: the input 'axes' came with TensorRT 10.4"
        if node.op_type == "Resize" and (values.get("antialias") or values.get("mode", b"nearest") == b"cubic"):
            yield f"{where}: TensorRT resizes by nearest or linear, without antialias"
        if node.op_type in ("AveragePool", "MaxPool", "LpPool") and set(values.get("dilations", ())) - {1}:
            yield f"{where}: TensorRT pools without dilation"
        if node.op_type == "BatchNormalization" and values.get("training_mode"):
            yield f"{where}: TensorRT has no training mode"
        if node.op_type == "ScatterND" and values.get("reduction", b"none") != b"none":
            yield f"{where}: TensorRT scatters without reduction"


def _quantization(model: onnx.ModelProto) -> Iterator[str]:
    """Explicit quantization: zero points of 0, positive scales, channels in weights only."""
    constants = initializers(model)
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        where = f"node '{node.name}' ({node.op_type})"
        scale = array(constants[node.input[1]])
        if not (np.asarray(scale, np.float64) > 0).all():
            yield f"{where}: a scale isn't positive"
        if scale.size > 1 and node.input[0] not in constants:
            yield f"{where}: scales per channel are for weights; activations have one"
        if len(node.input) > 2 and node.input[2]:
            zero = array(constants[node.input[2]])
            if np.asarray(zero, np.float64).any():
                yield f"{where}: the zero point isn't 0; TensorRT quantizes symmetrically"
            elif zero.size != scale.size:
                yield f"{where}: {zero.size} zero points for {scale.size} scales"


def _hardware(model: onnx.ModelProto, target: Target) -> Iterator[str]:
    sms = [target.sm] if target.sm else list(target.sms)
    if not sms:
        return
    kinds = {type_name(kind) for kind in element_types(model).values()}
    oldest = min(sms, key=_numbers)
    for kind in sorted(kinds & _FIRST_SM.keys()):
        if _numbers(oldest) < _FIRST_SM[kind]:
            major, minor = _FIRST_SM[kind]
            yield f"{kind} needs compute capability {major}.{minor}; this target has {oldest}"
