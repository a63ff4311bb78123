"""TensorRT's limits: its ONNX parser's operators and types by version, and the rules of its explicit quantization.

A graph is held against the newest table that the target's ``runtime_min`` reaches; what a version takes, newer ones do,
too. The tables stand on NVIDIA's published operator matrix of ONNX-TensorRT (docs/operators.md there):

- 10.3 (JetPack 6): 10.0's matrix says opset 9 to 20 (whose IR version is 9), 10.6's gives operators and types, and the
  changelog between them takes away what came after 10.3 (BlackmanWindow, HammingWindow, HannWindow and Pad's ``axes``
  in 10.4, STFT in 10.5).
- 10.15 (10.16 is JetPack 7.2's): its matrix says opset 9 to 24, so IR version 12, and gives the operators. What 10.16
  added isn't published there.
- 11: NVIDIA's opset guide (https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html) says
  opset 9 to 25 and onnx 1.20, so IR version 13. Its operators are those of 10.15; the few added since are left out.

Left out on purpose: control flow, recurrent layers, random numbers, windows, 4-bit floats and plugins, which no vision
transformer needs.

TensorRT-RTX accepts more than this (RMSNormalization-23, IR version 13), so it can't stand in for the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx

from vitedge.core.versions import as_of, older
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

#: Operators that later versions added, or that accept more types there.
_LATER: dict[Types, str] = {_FLOATS: "Attention RMSNormalization RotaryEmbedding", _NUMBERS: "Pow"}

TENSORRT_10_15 = replace(
    TENSORRT_10_3,
    reader="TensorRT 10.15",
    opsets=(9, 24),
    ir_version=12,
    operators={
        **(TENSORRT_10_3.operators or {}),
        **{name: types for types, names in _LATER.items() for name in names.split()},
    },
    first_output_only=(*TENSORRT_10_3.first_output_only, "Attention"),
)

TENSORRT_11 = replace(TENSORRT_10_15, reader="TensorRT 11", opsets=(9, 25), ir_version=13)

TABLES = {"10.3": TENSORRT_10_3, "10.15": TENSORRT_10_15, "11": TENSORRT_11}

#: Attributes of Attention that the importer doesn't support.
_ATTENTION = {"q_num_heads", "kv_num_heads", "softcap", "qk_matmul_output_mode"}

#: Compute capability from which on a type exists.
_FIRST_SM = {"float8e4m3fn": (8, 9), "bfloat16": (8, 0)}


def check(graph: bytes, target: Target) -> list[str]:
    """Return what the target's oldest TensorRT or its GPU doesn't support in an ONNX file, in words; empty: nothing.

    TensorRT-RTX, whose versions count otherwise, is held to TensorRT 10.3's table.
    """
    if older(target.runtime_min, "10.3") and target.runtime == "tensorrt":
        return [f"runtime_min {target.runtime_min}: vitedge knows TensorRT from 10.3 on"]
    model = read(graph)
    if isinstance(model, str):
        return [model]
    try:
        oldest = target.runtime_min if target.runtime == "tensorrt" else "10.3"
        limits = as_of(TABLES, oldest, TENSORRT_10_3)
        problems = findings(model, limits)
        return problems or [*_attributes(model, limits), *_quantization(model), *_hardware(model, target)]
    except ModelError as error:  # a tensor whose data doesn't fit its shape
        return [error.reason]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _attributes(model: onnx.ModelProto, limits: Limits) -> Iterator[str]:
    """Yield attributes and inputs of operators that the parser doesn't support."""
    for node in model.graph.node:
        where = f"node '{node.name}' ({node.op_type})"
        values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == "Pad" and len(node.input) > 3 and node.input[3] and limits is TENSORRT_10_3:
            yield f"{where}: the input 'axes' came with TensorRT 10.4"
        if node.op_type == "Resize" and (values.get("antialias") or values.get("mode", b"nearest") == b"cubic"):
            yield f"{where}: TensorRT resizes by nearest or linear, without antialias"
        if node.op_type in ("AveragePool", "MaxPool", "LpPool") and set(values.get("dilations", ())) - {1}:
            yield f"{where}: TensorRT pools without dilation"
        if node.op_type == "BatchNormalization" and values.get("training_mode"):
            yield f"{where}: TensorRT has no training mode"
        if node.op_type == "Attention" and (any(node.input[4:]) or values.keys() & _ATTENTION):
            yield f"{where}: TensorRT takes queries, keys and values with four dimensions, without a cache or a cap"
        if node.op_type == "ScatterND" and values.get("reduction", b"none") != b"none":
            yield f"{where}: TensorRT scatters without reduction"


def _quantization(model: onnx.ModelProto) -> Iterator[str]:
    """Yield violations of explicit quantization: zero points of 0, positive scales, channels in weights only."""
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
