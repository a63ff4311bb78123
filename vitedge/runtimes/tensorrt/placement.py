"""Typed ONNX for TensorRT: see :mod:`vitedge.runtimes._nvidia.placement`."""

from __future__ import annotations

from vitedge.runtimes._nvidia import placement
from vitedge.runtimes.contract import Placed, Request

FORMS = placement.FORMS


def place(request: Request) -> Placed:
    """One file, ``model.onnx``, that TensorRT 10.3 and newer build an engine from."""
    return placement.place(request, FORMS, "TensorRT")
