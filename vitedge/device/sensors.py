"""Read the sensors while something is measured.

Every reader takes the root of ``/proc`` and ``/sys``, so that it's tested on copies of other machines' files. What
can't be read is None: an unreadable sensor is neither cold nor unthrottled, and missing power isn't zero.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

from vitedge.core import system
from vitedge.device import hardware
from vitedge.device.clocks import gpu_devfreq
from vitedge.device.hardware import read_text
from vitedge.device.nvml import Nvml
from vitedge.device.power import JetsonRails, PowerMeter, RaplPackages, RaspberryPmic, integer, vcgencmd
from vitedge.device.reading import Reading

#: Words in the names of thermal zones and hwmon chips that mean the processor, or the GPU of a Jetson.
_PROCESSOR_SENSORS = ("cpu", "soc", "x86_pkg", "coretemp", "k10temp", "zenpower", "tj-thermal", "package")
_GPU_SENSORS = ("gpu",)
#: Clocks of so many of the processors that this process may use are read: on x86 each reading asks the core itself.
MOST_CLOCKS = 8


class Sensors:
    """The sensors that can be read without root while measuring; their files are found once and read many times.

    Args:
        root: of ``/proc``, ``/sys`` and ``/usr``.
        nvml: of the NVIDIA GPU that is measured; None: nothing is asked of a discrete GPU.
    """

    def __init__(self, root: Path = hardware.ROOT, nvml: Nvml | None = None) -> None:
        cpus = root / "sys/devices/system/cpu"
        clocks = sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"), key=_number_of_cpu)
        ours = system.processors() if root == hardware.ROOT else range(1 << 16)
        self._clocks = [file for file in clocks if _number_of_cpu(file) in ours][:MOST_CLOCKS]
        gpu = gpu_devfreq(root)
        self._gpu_clock = None if gpu is None else gpu / "cur_freq"
        self._temperatures = _temperature_files(root, _PROCESSOR_SENSORS)
        self._gpu_temperatures = _temperature_files(root, _GPU_SENSORS)
        self._events = sorted(cpus.glob("cpu[0-9]*/thermal_throttle/*_count"))
        self._soctherm = {
            f"soctherm/{file.stem}": file for file in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")
        }
        # The Raspberry Pi's firmware, as `vcgencmd get_throttled` prints it.
        self._throttled = next((root / "sys/devices/platform").glob("soc*/*firmware/get_throttled"), None)
        self._vcgencmd = vcgencmd(root, "get_throttled") if self._throttled is None else None
        self._nvml = nvml
        self._meters = _meters(root, nvml)

    @property
    def power_of(self) -> tuple[str, ...]:
        """The parts of the machine whose power a reading adds up."""
        return tuple(meter.of for meter in self._meters)

    def read(self) -> Reading:
        """One reading; ``at_ns`` is the clock of :func:`time.perf_counter_ns`, the same in every process."""
        live, events = self._firmware()
        for file in self._events:  # summed over all cores: one that throttles is enough
            if (count := integer(file)) is not None:
                events[file.name] = events.get(file.name, 0) + count
        events.update({name: count for name, file in self._soctherm.items() if (count := integer(file)) is not None})
        gpu = self._nvml.read() if self._nvml is not None else None
        watts = [meter.watts() for meter in self._meters]
        gpu_hz = integer(self._gpu_clock) if self._gpu_clock is not None else None
        gpu_clock_mhz = None if gpu_hz is None else gpu_hz / 1e6
        return Reading(
            at_ns=time.perf_counter_ns(),
            clock_mhz=_largest(self._clocks, 1000),
            temperature_c=_largest(self._temperatures, 1000),
            power_w=sum(value for value in watts if value is not None) if watts and None not in watts else None,
            throttle_events=dict(sorted(events.items())),
            throttle_live={**live, **(gpu.throttled if gpu else {})},
            gpu_clock_mhz=gpu.clock_mhz if gpu else gpu_clock_mhz,
            gpu_temperature_c=gpu.temperature_c if gpu else _largest(self._gpu_temperatures, 1000),
            power_capped=gpu.power_capped if gpu else None,
        )

    def _firmware(self) -> tuple[dict[str, bool], dict[str, int]]:
        if self._throttled is not None:
            return raspberry_throttled(read_text(self._throttled) or "")
        if self._vcgencmd is not None:
            return raspberry_throttled(self._vcgencmd() or "")
        return {}, {}


def _meters(root: Path, nvml: Nvml | None) -> list[PowerMeter]:
    """Return the board's input meter, else the processor packages'; and a discrete GPU's."""
    boards: list[PowerMeter] = [meter for meter in (JetsonRails(root), RaspberryPmic(root)) if meter.readable]
    processor = RaplPackages(root)
    meters = boards[:1] or ([processor] if processor.readable else [])
    return [*meters, nvml] if nvml is not None and nvml.readable else meters


#: Bits of the Raspberry Pi's firmware, of which 0 to 3 are now and 16 to 19 have happened since boot.
_RASPBERRY_BITS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")


def raspberry_throttled(bits: str) -> tuple[dict[str, bool], dict[str, int]]:
    """Return (present state, events since boot) from ``get_throttled``: ``"50005"`` or ``"throttled=0x50005"``."""
    try:
        value = int(bits.removeprefix("throttled=").strip(), 16)
    except ValueError:
        return {}, {}
    now = {name: bool(value >> bit & 1) for bit, name in enumerate(_RASPBERRY_BITS)}
    since_boot = {f"{name}_since_boot": value >> (16 + bit) & 1 for bit, name in enumerate(_RASPBERRY_BITS)}
    return now, since_boot


def resident_bytes(root: Path = hardware.ROOT) -> tuple[int | None, int | None]:
    """Return (resident set, its peak) of this process in bytes."""
    status = read_text(root / "proc/self/status") or ""
    matches = [re.search(rf"^{name}:\s*(\d+) kB", status, re.MULTILINE) for name in ("VmRSS", "VmHWM")]
    now, peak = (int(match[1]) * 1024 if match else None for match in matches)
    return now, peak


def _largest(files: Iterable[Path], unit: int) -> float | None:
    values = [value for file in files if (value := integer(file)) is not None]
    return max(values) / unit if values else None


def _number_of_cpu(file: Path) -> int:
    return int(file.parts[-3].removeprefix("cpu"))


def _temperature_files(root: Path, words: tuple[str, ...]) -> list[Path]:
    def wanted(name: Path) -> bool:
        return any(word in (read_text(name) or "").lower() for word in words)

    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    chips = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    return [
        *(zone / "temp" for zone in zones if wanted(zone / "type")),
        *(file for chip in chips if wanted(chip / "name") for file in sorted(chip.glob("temp*_input"))),
    ]
