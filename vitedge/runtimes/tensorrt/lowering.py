"""Typed ONNX for TensorRT: see :mod:`vitedge.runtimes._nvidia.lowering`."""

from __future__ import annotations

from vitedge.runtimes._nvidia import lowering
from vitedge.runtimes.base import Lowered, Request
from vitedge.runtimes.tensorrt.detect import NAME

VARIANTS = lowering.VARIANTS


def lower(request: Request) -> Lowered:
    """Write one file, ``model.onnx``, that TensorRT 10.3 and newer build an engine from."""
    return lowering.lower(request, VARIANTS, NAME)
