"""Detect TensorRT-RTX on this machine."""

from __future__ import annotations

from typing import Any

from vitedge.device.hardware import gpus
from vitedge.runtimes._nvidia import engine

PACKAGE = "tensorrt_rtx"
NAME = engine.NAMES[PACKAGE]
EXTRA = engine.EXTRAS[PACKAGE]
ON_GPU = True


def installed() -> str | None:
    """Return the version of the installed package, or None."""
    return engine.installed(PACKAGE)


def runs_here(device: str) -> bool:
    """Whether a session can be opened on this machine: the package and an NVIDIA GPU are here."""
    return installed() is not None and bool(gpus())


def describe() -> dict[str, Any]:
    """Describe for the doctor: version, and the GPUs' names or "no GPU"."""
    return {"version": installed(), "gpus": ", ".join(gpu.name for gpu in gpus()) or "no GPU"}
