"""The few functions of the CUDA runtime that sessions call: a thin interface, so that a stand-in can take its place."""

from __future__ import annotations

import ctypes
import importlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitedge.device import cuda, hardware
from vitedge.errors import NotInstalledError, ResourceError
from vitedge.installation import install_command
from vitedge.runtimes._nvidia import engine

if TYPE_CHECKING:
    from numpy.typing import NDArray


class GpuFacts(NamedTuple):
    """The GPU that a session runs on."""

    name: str
    sm: str
    integrated: bool  # it shares the processor's memory, as a Jetson's does
    memory_mb: int


class Cuda:
    """``cuda("cudaMalloc", 64)``: the CUDA runtime's functions, whose error codes become exceptions.

    Args:
        action: for error texts.
        package: "tensorrt" or "tensorrt_rtx", for whose sake it's called.

    Raises:
        NotInstalledError: cuda-bindings isn't here.
    """

    def __init__(self, action: str, package: str) -> None:
        try:
            self.names: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise NotInstalledError.for_extra(action, "cuda-bindings", engine.extra(package)) from error
        self._action, self._package = action, package

    def __call__(self, function: str, *arguments: Any) -> Any:
        code, *values = getattr(self.names, function)(*arguments)
        if code != self.names.cudaError_t.cudaSuccess:
            hint = "check the driver: nvidia-smi, or on a Jetson: tegrastats"
            if code.name == "cudaErrorMemoryAllocation":
                hint = "lower the batch or the option 'contexts', or free GPU memory"
            elif code.name == "cudaErrorInsufficientDriver":
                hint = newer_driver(self._package)
            raise ResourceError(self._action, f"{function}: {code.name}", hint)
        return values[0] if values else None

    def gpu(self) -> GpuFacts:
        """Return the first GPU that CUDA shows."""
        properties = self("cudaGetDeviceProperties", 0)
        return GpuFacts(
            name=properties.name.decode().strip("\0"),
            sm=f"{properties.major}.{properties.minor}",
            integrated=bool(properties.integrated),
            memory_mb=int(properties.totalGlobalMem) >> 20,
        )

    def version(self, function: str) -> str:
        """Return ``cudaDriverGetVersion`` and ``cudaRuntimeGetVersion`` as "12.6"."""
        number = int(self(function))
        return f"{number // 1000}.{number % 1000 // 10}"


def newer_driver(package: str) -> str:
    """Return the hint where the driver is older than the CUDA runtime that ``cuda-bindings`` brings."""
    oldest = ", ".join(f"CUDA {major} takes driver {driver} or newer" for major, driver in cuda.OLDEST_DRIVER.items())
    if package == "tensorrt" and cuda.served(hardware.gpus(), hardware.board()) == (12,):
        return f"this driver serves CUDA 12; run: {install_command('tensorrt-cu12')}"
    return f"update the driver: {oldest}"


class Resources:
    """CUDA resources that were created, and the calls that destroy them, last first."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._resources: list[tuple[str, Any]] = []

    def keep(self, destroy: str, thing: Any) -> Any:
        """Register ``destroy(thing)`` for :meth:`release`; return the thing."""
        self._resources.append((destroy, thing))
        return thing

    def release(self) -> None:
        """Destroy all resources; a second call does nothing."""
        while self._resources:
            self._cuda(*self._resources.pop())


class Buffer(NamedTuple):
    """A pinned array on the host, and the address at which the GPU reads or writes it."""

    host: NDArray[Any]
    device: int
    copied: bool  # False: the GPU works in the host's own memory


def buffer(
    cuda: Cuda, resources: Resources, shape: tuple[int, ...], dtype: type[np.generic], *, zero_copy: bool
) -> Buffer:
    """Allocate memory for one tensor; with ``zero_copy`` the host's pages are mapped into the GPU's address space."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if zero_copy:
        pinned = resources.keep("cudaFreeHost", cuda("cudaHostAlloc", size, cuda.names.cudaHostAllocMapped))
        device = cuda("cudaHostGetDevicePointer", pinned, 0)
    else:
        pinned = resources.keep("cudaFreeHost", cuda("cudaMallocHost", size))
        device = resources.keep("cudaFree", cuda("cudaMalloc", size))
    pages = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pinned)))
    return Buffer(pages.view(dtype).reshape(shape), int(device), not zero_copy)
