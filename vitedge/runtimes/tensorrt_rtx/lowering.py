"""Typed ONNX for TensorRT-RTX: TensorRT's variants without INT8, which is weight-only here and gains nothing."""

from __future__ import annotations

from vitedge.runtimes._nvidia import lowering
from vitedge.runtimes.base import Lowered, Request
from vitedge.runtimes.tensorrt_rtx.detect import NAME

#: Convolutions in FP8 aren't among them: TensorRT-RTX has FP8 for matrix products alone
#: (https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-quantized-types.html).
VARIANTS = ("float", "fp16", "linears-fp8-rest-fp16")


def lower(request: Request) -> Lowered:
    """Write one file, ``model.onnx``, that TensorRT-RTX builds an engine from."""
    return lowering.lower(request, VARIANTS, NAME)
