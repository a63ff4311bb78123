"""Check a typed ONNX graph against TensorRT 10.3's table: see :mod:`vitedge.runtimes._nvidia.table`."""

from __future__ import annotations

from vitedge.runtimes._nvidia.fusing import sentences
from vitedge.runtimes._nvidia.table import check

__all__ = ["check", "sentences"]
