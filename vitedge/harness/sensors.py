"""What the sensors say while something is measured.

Every reader takes the root of ``/proc`` and ``/sys``, so that it's tested on copies of other machines' files. What
can't be read is None: an unreadable sensor is neither cold nor unthrottled, and missing power isn't zero.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from vitedge import hardware
from vitedge.hardware import read_text
from vitedge.result import Reading

#: Words in the names of thermal zones and hwmon chips that mean the processor.
_PROCESSOR_SENSORS = ("cpu", "soc", "x86_pkg", "coretemp", "k10temp", "zenpower", "tj-thermal", "package")


class Sensors:
    """What can be read without root while measuring; the files are found once and read many times."""

    def __init__(self, root: Path = hardware.ROOT) -> None:
        cpus = root / "sys/devices/system/cpu"
        self._clocks = sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._temperatures = _temperature_files(root)
        self._powers = _jetson_rails(root)
        self._energies = _rapl_packages(root)
        self._energy: tuple[int, dict[Path, int]] | None = None
        self._events = {
            **{f"{file.parts[-3]}/{file.stem}": file for file in cpus.glob("cpu[0-9]*/thermal_throttle/*_count")},
            **{f"soctherm/{file.stem}": file for file in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")},
        }
        # The Raspberry Pi's firmware, as `vcgencmd get_throttled` prints it.
        self._throttled = next((root / "sys/devices/platform").glob("soc*/*firmware/get_throttled"), None)

    def read(self, since_ns: int) -> Reading:
        """One reading; ``at_ns`` counts from ``since_ns`` on the clock of :func:`time.perf_counter_ns`."""
        events = {name: count for name, file in self._events.items() if (count := _integer(file)) is not None}
        live: dict[str, bool] = {}
        if self._throttled and (bits := read_text(self._throttled)):
            live, sticky = raspberry_throttled(bits)
            events.update(sticky)
        clocks = [khz for file in self._clocks if (khz := _integer(file)) is not None]
        temperatures = [value for file in self._temperatures if (value := _integer(file)) is not None]
        return Reading(
            at_ns=max(0, time.perf_counter_ns() - since_ns),
            clock_mhz=max(clocks) / 1000 if clocks else None,
            temperature_c=max(temperatures) / 1000 if temperatures else None,
            power_w=self._power(),
            throttle_events=dict(sorted(events.items())),
            throttle_live=live,
        )

    def _power(self) -> float | None:
        """Watts at this moment from a Jetson's rails, or on average since the last reading from RAPL's counters."""
        if self._powers:
            rails = [(_integer(volts), _integer(amps)) for volts, amps in self._powers]
            if all(volts is not None and amps is not None for volts, amps in rails):
                return sum((volts or 0) * (amps or 0) for volts, amps in rails) / 1e6  # mV × mA
            return None
        now = time.perf_counter_ns()
        counts = {file: count for file in self._energies if (count := _integer(file)) is not None}
        before, self._energy = self._energy, (now, counts) if counts else None
        if before is None or before[1].keys() != counts.keys() or now == before[0]:
            return None
        joules = 0.0
        for file, count in counts.items():
            used = count - before[1][file]
            if used < 0:  # the counter has wrapped
                used += _integer(file.with_name("max_energy_range_uj")) or 0
            joules += used / 1e6
        return joules * 1e9 / (now - before[0]) if joules >= 0 else None


#: Bits of the Raspberry Pi's firmware, of which 0 to 3 are now and 16 to 19 have happened since boot.
_RASPBERRY_BITS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")


def raspberry_throttled(bits: str) -> tuple[dict[str, bool], dict[str, int]]:
    """(what holds now, what has happened since boot) from ``get_throttled``: ``"50005"`` or ``"throttled=0x50005"``."""
    try:
        value = int(bits.removeprefix("throttled=").strip(), 16)
    except ValueError:
        return {}, {}
    now = {name: bool(value >> bit & 1) for bit, name in enumerate(_RASPBERRY_BITS)}
    since_boot = {f"{name}_since_boot": value >> (16 + bit) & 1 for bit, name in enumerate(_RASPBERRY_BITS)}
    return now, since_boot


def resident_bytes(root: Path = hardware.ROOT) -> tuple[int | None, int | None]:
    """(resident set, its peak) of this process in bytes."""
    status = read_text(root / "proc/self/status") or ""
    found = [re.search(rf"^{name}:\s*(\d+) kB", status, re.MULTILINE) for name in ("VmRSS", "VmHWM")]
    now, peak = (int(match[1]) * 1024 if match else None for match in found)
    return now, peak


def _integer(file: Path) -> int | None:
    text = read_text(file)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def _temperature_files(root: Path) -> list[Path]:
    def of_processor(name: Path) -> bool:
        return any(word in (read_text(name) or "").lower() for word in _PROCESSOR_SENSORS)

    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    chips = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    return [
        *(zone / "temp" for zone in zones if of_processor(zone / "type")),
        *(file for chip in chips if of_processor(chip / "name") for file in sorted(chip.glob("temp*_input"))),
    ]


def _jetson_rails(root: Path) -> list[tuple[Path, Path]]:
    """(millivolts, milliamperes) of the rail that feeds the whole board, or of all rails where none is called so."""
    rails: dict[str, tuple[Path, Path]] = {}
    for label in sorted((root / "sys/bus/i2c/devices").glob("*/hwmon/hwmon*/in*_label")):
        number = label.name.removeprefix("in").removesuffix("_label")
        volts, amps = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        if amps.exists():
            rails[read_text(label) or label.name] = (volts, amps)
    whole = [pair for name, pair in rails.items() if name in ("VDD_IN", "VIN_SYS_5V0")]
    return whole or list(rails.values())


def _rapl_packages(root: Path) -> list[Path]:
    """Energy counters of the processor packages; since 2020 kernels let only root read them."""
    found = sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*/energy_uj"))
    return [file for file in found if file.parent.name.count(":") == 1 and read_text(file) is not None]
