"""The check that replaces TensorRT on machines without a GPU: see :mod:`vitedge.runtimes._nvidia.parser_check`."""

from __future__ import annotations

from vitedge.runtimes._nvidia.parser_check import check

__all__ = ["check"]
