"""Typed ONNX for TensorRT-RTX: TensorRT's forms without INT8, which is weight-only here and gains nothing."""

from __future__ import annotations

from vitedge.runtimes._nvidia import lowering
from vitedge.runtimes.base import Placed, Request

FORMS = ("float", "fp16", "linears-fp8-rest-fp16")


def place(request: Request) -> Placed:
    """One file, ``model.onnx``, that TensorRT-RTX builds an engine from."""
    return lowering.place(request, FORMS, "TensorRT-RTX")
