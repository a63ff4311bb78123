"""The NVIDIA GPUs of this machine, read without CUDA: from nvidia-smi, and on a Jetson from the device tree."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

#: Compute capability of Jetson's chips, by their name in the device tree. CUDA 13's numbering.
_TEGRA = {"tegra234": "8.7", "tegra264": "11.0"}
_QUERY = "name,compute_cap,driver_version,memory.total"


class Gpu(NamedTuple):
    """One GPU; an empty string or None where the system doesn't tell."""

    name: str
    sm: str  # compute capability, "8.7"
    driver: str
    memory_mb: int | None  # None on a Jetson: it shares the system's


def gpus(root: Path = Path("/")) -> list[Gpu]:
    """Every GPU, in the driver's order; ``root`` is where /proc lies."""
    tegra = _jetson(root)
    return [tegra] if tegra else _smi()


def _smi() -> list[Gpu]:
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_smi(done.stdout)


def parse_smi(text: str) -> list[Gpu]:
    """The lines that nvidia-smi prints for the query above."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(_QUERY.split(",")):
            continue
        name, sm, driver, memory = ("" if field.startswith("[") else field for field in fields)  # "[N/A]"
        found.append(Gpu(name, sm, driver, int(memory) if memory.isdigit() else None))
    return found


def _jetson(root: Path) -> Gpu | None:
    tree = root / "proc/device-tree"
    try:
        compatible = (tree / "compatible").read_bytes().decode(errors="replace")
        model = (tree / "model").read_bytes().decode(errors="replace").strip("\0 \n")
    except OSError:
        return None
    for chip, sm in _TEGRA.items():
        if chip in compatible:
            return Gpu(model, sm, "", None)
    return None
