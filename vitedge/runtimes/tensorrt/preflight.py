"""Check a typed ONNX graph for the target's oldest TensorRT: see :mod:`vitedge.runtimes._nvidia.table`."""

from __future__ import annotations

from vitedge.runtimes._nvidia.fusing import sentences
from vitedge.runtimes._nvidia.table import check

__all__ = ["check", "sentences"]
