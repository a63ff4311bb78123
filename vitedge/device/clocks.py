"""A board's power mode, and the clocks of processor and GPU with their limits.

Read from plain files, without root: on a Jetson, ``nvpmodel`` writes the number of its mode to
``/var/lib/nvpmodel/status``, and ``/etc/nvpmodel.conf`` gives the names. What can't be read is None.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec.structs import replace

from vitedge.core.schema import Record
from vitedge.device.hardware import ROOT, read_text

_GPUS = ("*.gpu", "*.ga10b", "*.gv11b", "gpu-gpc-*")  # devfreq's names: Orin's, older kernels', Xavier's, Thor's


class Clock(Record):
    """One clock domain, in MHz."""

    now_mhz: int | None
    least_mhz: int | None  # what the governor may go down to
    most_mhz: int | None  # and up to, in this power mode
    able_mhz: int | None = None  # what the hardware could do

    @property
    def locked(self) -> bool:
        """Whether it can't change, as after ``jetson_clocks``."""
        return self.most_mhz is not None and self.least_mhz == self.most_mhz


class Clocks(Record):
    """A board's clocks."""

    processor: Clock | None
    gpu: Clock | None

    @property
    def locked(self) -> bool:
        """Whether no known clock can change."""
        clocks = [clock for clock in (self.processor, self.gpu) if clock is not None]
        return bool(clocks) and all(clock.locked for clock in clocks)


def clocks(root: Path = ROOT) -> Clocks:
    """Read the first processor's clock and the integrated GPU's."""
    cpu = root / "sys/devices/system/cpu/cpu0/cpufreq"
    processor = _clock(cpu, ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", "cpuinfo_max_freq"), 1000)
    folder = gpu_devfreq(root)
    gpu = None if folder is None else _clock(folder, ("cur_freq", "min_freq", "max_freq", ""), 1_000_000)
    if folder is not None and gpu is not None:
        steps = [int(word) for word in (read_text(folder / "available_frequencies") or "").split() if word.isdigit()]
        gpu = replace(gpu, able_mhz=max(steps) // 1_000_000 if steps else None)
    return Clocks(processor=processor, gpu=gpu)


def gpu_devfreq(root: Path = ROOT) -> Path | None:
    """Return the folder with the clock of the integrated GPU, in Hz (``cur_freq``, ``min_freq``, …)."""
    devices = root / "sys/class/devfreq"
    return next((folder for name in _GPUS for folder in sorted(devices.glob(name))), None)


def power_mode(root: Path = ROOT) -> str | None:
    """Return a Jetson's power mode: ``"MAXN_SUPER (2 of 15W, 25W, MAXN_SUPER, 7W)"``, or its number without a name."""
    number = re.search(r"pmode:0*(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    if number is None:
        return None
    modes = re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", read_text(root / "etc/nvpmodel.conf") or "")
    names = {int(mode): name.rstrip(">") for mode, name in modes}
    mode = int(number[1])
    return f"{names[mode]} ({mode} of {', '.join(names.values())})" if mode in names else str(mode)


def _clock(folder: Path, names: tuple[str, str, str, str], unit: int) -> Clock | None:
    values = [_number(folder / name) if name else None for name in names]
    if all(value is None for value in values):
        return None
    now, least, most, able = (None if value is None else value // unit for value in values)
    return Clock(now_mhz=now, least_mhz=least, most_mhz=most, able_mhz=able)


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text and text.isdigit() else None
