"""Detect TensorRT on this machine."""

from __future__ import annotations

import platform
from typing import Any

from vitedge.device.hardware import board, gpus
from vitedge.installation import pip
from vitedge.runtimes._nvidia import engine

PACKAGE = "tensorrt"
NAME = engine.NAMES[PACKAGE]
EXTRA = engine.EXTRAS[PACKAGE]
ON_GPU = True


def installed() -> str | None:
    """Return the version of the installed package, or None."""
    return engine.installed(PACKAGE)


def extra() -> str:
    """Return ``tensorrt-cu13`` or ``tensorrt-cu12``, by this machine's driver; ``tensorrt`` where that's unknown."""
    return engine.extra(PACKAGE)


def not_from_pip() -> str | None:
    """Return how to get TensorRT where the extra brings none: JetPack has it, and ARM servers use their own wheels."""
    if board().l4t is not None:
        return "run: sudo apt install nvidia-jetpack && python3 -m venv --system-site-packages .venv"
    if platform.machine() == "aarch64":
        return f'run: {pip()} install tensorrt-cu13 "cuda-bindings>=13"'
    return None


def runs_here(device: str) -> bool:
    """Whether a session can be opened on this machine: the package and an NVIDIA GPU are here."""
    return installed() is not None and bool(gpus())


def describe() -> dict[str, Any]:
    """Describe for the doctor: version, and the GPUs' names or "no GPU"."""
    return {"version": installed(), "gpus": ", ".join(gpu.name for gpu in gpus()) or "no GPU"}
