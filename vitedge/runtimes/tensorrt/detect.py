"""What is true of TensorRT on this machine."""

from __future__ import annotations

from typing import Any

from vitedge.device.hardware import board, gpus
from vitedge.runtimes._nvidia import engine

PACKAGE = "tensorrt"
NAME = engine.NAMES[PACKAGE]
EXTRA = engine.EXTRAS[PACKAGE]
ON_GPU = True


def installed() -> str | None:
    """Version of the installed package, or None."""
    return engine.installed(PACKAGE)


def not_from_pip() -> str | None:
    """On a Jetson TensorRT comes with JetPack and is no wheel: how to get at it; None elsewhere."""
    if board().l4t is None:
        return None
    return "run: sudo apt install nvidia-jetpack && python3 -m venv --system-site-packages .venv"


def runs_here(device: str) -> bool:
    """Whether a session can be opened on this machine: the package and an NVIDIA GPU are here."""
    return installed() is not None and bool(gpus())


def describe() -> dict[str, Any]:
    """For the doctor: version, and the GPUs' names or "no GPU"."""
    return {"version": installed(), "gpus": ", ".join(gpu.name for gpu in gpus()) or "no GPU"}
