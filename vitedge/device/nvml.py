"""A discrete NVIDIA GPU's clock, temperature, power, memory and throttle reasons, from NVML.

The package nvidia-ml-py is optional: without it, or without a driver, nothing is known. A Jetson's NVML answers
NotSupported to most of it; its readings come from ``/sys``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

#: Bits of ``nvmlDeviceGetCurrentClocksEventReasons`` that mean a fault, and the one that means a limit kept.
REASONS = {0x8: "hw_slowdown", 0x20: "sw_thermal_slowdown", 0x40: "hw_thermal_slowdown", 0x80: "hw_power_brake"}
POWER_CAP = 0x4
_TEMPERATURE_GPU, _CLOCK_SM = 0, 1  # NVML_TEMPERATURE_GPU, NVML_CLOCK_SM


class GpuReading(NamedTuple):
    """One reading; None where NVML gives no value."""

    clock_mhz: float | None
    temperature_c: float | None
    throttled: dict[str, bool]
    power_capped: bool | None


class Nvml:
    """The GPU that CUDA calls 0. Construct with :func:`open_nvml`."""

    of = "GPU (NVML)"

    def __init__(self, package: Any, handle: Any) -> None:
        self._package, self._handle = package, handle
        self._energy: tuple[int, int] | None = None
        self.readable = self._ask("nvmlDeviceGetPowerUsage") is not None

    def read(self) -> GpuReading:
        """Read everything but power."""
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # before driver 535 it was called so
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        clock, temperature = (
            self._ask("nvmlDeviceGetClockInfo", _CLOCK_SM),
            self._ask("nvmlDeviceGetTemperature", _TEMPERATURE_GPU),
        )
        return GpuReading(
            clock_mhz=None if clock is None else float(clock),
            temperature_c=None if temperature is None else float(temperature),
            throttled={} if bits is None else {f"gpu_{name}": bool(bits & bit) for bit, name in REASONS.items()},
            power_capped=None if bits is None else bool(bits & POWER_CAP),
        )

    def watts(self) -> float | None:
        """Return the mean power since the last call, by the energy counter (mJ); without one the present power (mW)."""
        energy, now = self._ask("nvmlDeviceGetTotalEnergyConsumption"), time.perf_counter_ns()
        if energy is None:
            power = self._ask("nvmlDeviceGetPowerUsage")
            return None if power is None else power / 1e3
        before, self._energy = self._energy, (now, energy)
        if before is None or now == before[0] or energy < before[1]:
            return None
        return float((energy - before[1]) * 1e6 / (now - before[0]))

    def memory_used(self) -> int | None:
        """Return the bytes in use on the GPU, by all processes."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def _ask(self, function: str, *arguments: Any) -> Any:
        call = getattr(self._package, function, None)
        if call is None:
            return None
        try:
            return call(self._handle, *arguments)
        except self._package.NVMLError:  # not supported on this GPU, no permission, GPU lost
            return None


def open_nvml(package: Any = None, environ: Mapping[str, str] = os.environ) -> Nvml | None:
    """Open NVML for the first GPU that CUDA shows; None without the package, a driver or a GPU.

    Args:
        package: the module ``pynvml``; None imports it.
        environ: where ``CUDA_VISIBLE_DEVICES`` stands.
    """
    if package is None:
        try:
            package = importlib.import_module("pynvml")
        except ImportError:
            return None
    first = environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    with contextlib.suppress(package.NVMLError):
        package.nvmlInit()
        if first.isdigit():
            return Nvml(package, package.nvmlDeviceGetHandleByIndex(int(first)))
        return Nvml(package, package.nvmlDeviceGetHandleByUUID(first))
    return None
