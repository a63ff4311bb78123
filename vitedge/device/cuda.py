"""Tell which of the two CUDA versions that TensorRT's packages are made for an NVIDIA driver supports."""

from __future__ import annotations

from collections.abc import Sequence

from vitedge.core.versions import release
from vitedge.device.hardware import Board, Gpu

#: The oldest driver on Linux for TensorRT's wheels, by CUDA's major version
#: (https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/installing-tensorrt/prerequisites.html).
OLDEST_DRIVER = {13: 580, 12: 535}
#: On a Jetson the driver is part of Jetson Linux: JetPack 6 has CUDA 12, JetPack 7 CUDA 13 (docs/jetson.md).
_OLDEST_L4T = {13: 38, 12: 36}


def served(gpus: Sequence[Gpu], board: Board) -> tuple[int, ...] | None:
    """Return CUDA's major versions that the driver supports, the newest first; a driver supports older ones, too.

    Args:
        gpus: of this machine.
        board: this machine; on a Jetson its L4T release decides.

    Returns:
        Empty where the driver is older than TensorRT takes; None where it's unknown.
    """
    if board.l4t is not None:
        return _from(_OLDEST_L4T, board.l4t)
    drivers = [gpu.driver for gpu in gpus if gpu.driver and release(gpu.driver)]
    return _from(OLDEST_DRIVER, min(drivers, key=release)) if drivers else None


def _from(oldest: dict[int, int], version: str) -> tuple[int, ...]:
    return tuple(cuda for cuda, major in oldest.items() if release(version) >= (major,))
