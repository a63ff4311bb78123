"""Typed ONNX for TensorRT: see :mod:`vitedge.runtimes._nvidia.lowering`."""

from __future__ import annotations

from vitedge.runtimes._nvidia import lowering
from vitedge.runtimes.base import Placed, Request

FORMS = lowering.FORMS


def place(request: Request) -> Placed:
    """One file, ``model.onnx``, that TensorRT 10.3 and newer build an engine from."""
    return lowering.place(request, FORMS, "TensorRT")
