"""Power meters that need no root: a Jetson's INA3221, the Raspberry Pi 5's PMIC, RAPL of Intel and AMD.

Each says what it's the power of, whether it can be read here, and the watts: at this moment, or on average since the
last reading. What can't be read is None, never zero.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vitedge.core.environment import for_children
from vitedge.device.hardware import read_text


class PowerMeter(Protocol):
    """A power meter, in watts."""

    @property
    def of(self) -> str:
        """The part of the machine whose power it measures."""
        ...

    @property
    def readable(self) -> bool:
        """Whether it exists and may be read."""
        ...

    def watts(self) -> float | None:
        """Return the present power, or the mean since the last call; None when it's unknown."""
        ...


class JetsonRails:
    """INA3221 on a Jetson's module: millivolts and milliamperes of up to three rails a chip.

    ``VDD_IN`` feeds the whole module. Where there is none (AGX), the rails are added; ``VDDQ_VDD2_1V8AO`` lies behind
    ``VIN_SYS_5V0`` and would count twice.
    """

    def __init__(self, root: Path) -> None:
        rails: dict[str, tuple[Path, Path]] = {}
        for label in sorted((root / "sys/bus/i2c/devices").glob("*/hwmon/hwmon*/in*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            volts, amps = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
            name = read_text(label) or label.name
            if amps.exists() and name not in ("NC", "VDDQ_VDD2_1V8AO"):
                rails[name] = (volts, amps)
        board = {name: pair for name, pair in rails.items() if name == "VDD_IN"}
        self._rails = board or rails

    @property
    def of(self) -> str:
        """The part of the machine whose power it measures."""
        return f"module ({' + '.join(self._rails)})"

    @property
    def readable(self) -> bool:
        """Whether there are rails."""
        return bool(self._rails)

    def watts(self) -> float | None:
        """Return the present power."""
        pairs = [(integer(volts), integer(amps)) for volts, amps in self._rails.values()]
        powers = [volts * amps / 1e6 for volts, amps in pairs if volts is not None and amps is not None]
        return sum(powers) if powers and len(powers) == len(pairs) else None  # mV × mA


class RaspberryPmic:
    """``vcgencmd pmic_read_adc`` of a Raspberry Pi 5: amperes and volts of every rail behind the PMIC.

    What the 5 V input feeds directly (USB, HATs, the fan) isn't in it.
    """

    of = "board's PMIC rails"

    def __init__(self, root: Path) -> None:
        self._ask = vcgencmd(root, "pmic_read_adc")
        self.readable = self._ask is not None and self.watts() is not None

    def watts(self) -> float | None:
        """Return the present power."""
        return pmic_watts((self._ask() if self._ask is not None else None) or "")


def pmic_watts(text: str) -> float | None:
    """Return the sum over the rails that have both an ampere and a volt line; None without any.

    The lines are ``VDD_CORE_A current(7)=1.65920000A`` and ``VDD_CORE_V volt(15)=0.72062740V``.
    """
    readings: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for rail, unit, value in re.findall(r"^\s*(\S+)_([AV]) (?:current|volt)\(\d+\)=(\d+\.?\d*)[AV]\s*$", text, re.M):
        readings[unit][rail] = float(value)
    powers = [amps * readings["V"][rail] for rail, amps in readings["A"].items() if rail in readings["V"]]
    return sum(powers) if powers else None


def vcgencmd(root: Path, question: str) -> Callable[[], str | None] | None:
    """Return a function that asks the Raspberry Pi's firmware one question; None where there is no such command."""
    command = root / "usr/bin/vcgencmd"
    if not os.access(command, os.X_OK):
        return None

    def ask() -> str | None:
        try:
            done = subprocess.run(
                [command, question], capture_output=True, text=True, timeout=2, check=False, env=for_children()
            )
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
            return None
        return done.stdout if done.returncode == 0 else None

    return ask


class RaplPackages:
    """Energy counters (µJ) of the processor's packages; since 2020 kernels let only root read them.

    Domains inside a package (core, uncore) and around it (psys) aren't added to it.
    """

    of = "processor packages (RAPL)"

    def __init__(self, root: Path) -> None:
        counters = sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*/energy_uj"))
        packages = [
            file
            for file in counters
            if file.parent.name.count(":") == 1 and read_text(file.with_name("name")) != "psys"
        ]
        self._counters = [file for file in packages if integer(file) is not None]
        self._before: tuple[int, dict[Path, int]] | None = None

    @property
    def readable(self) -> bool:
        """Whether this user may read the counters."""
        return bool(self._counters)

    def watts(self) -> float | None:
        """Return the mean power since the last call; a counter that has wrapped goes on at ``max_energy_range_uj``."""
        now = time.perf_counter_ns()
        counts = {file: count for file in self._counters if (count := integer(file)) is not None}
        before, self._before = self._before, (now, counts) if counts else None
        if before is None or before[1].keys() != counts.keys() or now == before[0]:
            return None
        microjoules = 0
        for file, count in counts.items():
            used = count - before[1][file]
            if used < 0:
                used += integer(file.with_name("max_energy_range_uj")) or 0
            if used < 0:  # the range can't be read
                return None
            microjoules += used
        return microjoules * 1e3 / (now - before[0])


def integer(file: Path) -> int | None:
    """Read a number from a kernel file; None when it can't be read, or isn't a number."""
    text = read_text(file)
    try:
        return int(text) if text else None
    except ValueError:
        return None
