"""The hardware of this machine, read from ``/proc``, ``/sys``, ``/dev`` and ``/etc``.

Every reader takes the root of these trees, so that it's tested on copies of other machines' files. What can't be read
is None, which means unknown; no reader raises.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from vitedge.core import system
from vitedge.core.environment import for_children
from vitedge.core.schema import Record

ROOT = Path("/")

#: The kernel's names of the instruction sets that matter here, and their names in a target.
ISA = {
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sme": "sme",
}

#: (implementer, part) of ARM's MIDR_EL1, for the cores that boards and servers have.
_ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x004): "Carmel",
}

#: NVIDIA's systems on a chip as the device tree names them: GPU, compute capability.
_TEGRA = {
    "nvidia,tegra194": ("Xavier, integrated", "7.2"),
    "nvidia,tegra234": ("Orin, integrated", "8.7"),
    "nvidia,tegra264": ("Thor, integrated", "11.0"),
}

#: JetPack by NVIDIA's release of Jetson Linux, and by its major number for releases that aren't listed; docs/jetson.md
#: names the pages.
_JETPACK_OF_L4T = {
    **{"36.3": "6.0", "36.4": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "36.5": "6.2.2", "36.5.2": "6.2.3"},
    **{"38.2": "7.0", "38.2.1": "7.0", "38.4": "7.1", "39.2": "7.2", "39.2.1": "7.2.1"},
    **{"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"},
}
#: The package that brings all of JetPack, and its halves, which are installed alone as well.
_JETPACK_PACKAGE = re.compile(r"Package: nvidia-jetpack(-runtime|-dev)?\n")


class Processor(Record):
    """The CPU."""

    model: str | None
    architecture: str | None  # "x86_64", "aarch64"
    isa: tuple[str, ...] | None  # names of :data:`ISA` that it has
    logical_cores: int | None  # online
    physical_cores: int | None  # online
    allowed_cores: int | None  # logical, by this process's affinity
    quota_cores: float | None  # CPU time a control group grants, in cores; None: no limit
    governor: str | None
    max_mhz: int | None


class Memory(Record):
    """Main memory, in MiB, as far as this process may use it."""

    total_mb: int | None
    available_mb: int | None
    swap_mb: int | None
    limited: bool  # by a control group


class Board(Record):
    """The machine's model name, and its system software."""

    model: str | None
    os: str | None
    kernel: str | None
    l4t: str | None  # NVIDIA's release of a Jetson, "36.4.3"
    jetpack: str | None


class Gpu(Record):
    """An NVIDIA GPU."""

    name: str
    compute_capability: str | None
    memory_mb: int | None  # None: unknown, or shared with the CPU
    driver: str | None


class Camera(Record):
    """A video device."""

    device: str  # "/dev/video0"
    name: str | None
    by_id: str | None  # a name that stays when it's plugged elsewhere
    captures: bool | None  # None: it couldn't be asked
    problem: str | None = None  # why it couldn't


def read_text(path: Path) -> str | None:
    """Return the file's text without surrounding white space and NULs, or None when it can't be read."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace").strip(" \t\r\n\0")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text and text.lstrip("-").isdigit() else None


def _span(text: str | None) -> set[int]:
    """Parse the kernel's list format: ``"0-3,8"`` is {0, 1, 2, 3, 8}."""
    numbers: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text or ""):
        numbers.update(range(int(first), min(int(last or first), int(first) + 4096) + 1))
    return numbers


def _field(text: str | None, name: str) -> str | None:
    """Return the first ``name : value`` of /proc/cpuinfo, /proc/meminfo and similar files."""
    match = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(.*)$", text or "", re.MULTILINE)
    return match[1].strip() or None if match else None


# --- processor -------------------------------------------------------------------------------------------------------


def processor(root: Path = ROOT) -> Processor:
    """Read model, instruction sets and cores of the CPU."""
    cpuinfo = read_text(root / "proc/cpuinfo")
    cpus = root / "sys/devices/system/cpu"
    online = _span(read_text(cpus / "online")) or {
        int(number) for number in re.findall(r"^processor\s*:\s*(\d+)", cpuinfo or "", re.MULTILINE)
    }
    allowed = _span(_field(read_text(root / "proc/self/status"), "Cpus_allowed_list")) & online
    max_khz = [khz for cpu in online if (khz := _number(cpus / f"cpu{cpu}/cpufreq/cpuinfo_max_freq"))]
    flags = _field(cpuinfo, "flags") or _field(cpuinfo, "Features")
    return Processor(
        model=_cpu_model(cpuinfo),
        architecture=_architecture(root, cpuinfo),
        isa=None if flags is None else tuple(name for word, name in ISA.items() if word in flags.split()),
        logical_cores=len(online) or None,
        physical_cores=_physical_cores(cpus, online),
        allowed_cores=len(allowed) or None,
        quota_cores=_cpu_quota(root),
        governor=read_text(cpus / "cpu0/cpufreq/scaling_governor"),
        max_mhz=max(max_khz) // 1000 if max_khz else None,
    )


def _cpu_model(cpuinfo: str | None) -> str | None:
    if name := _field(cpuinfo, "model name"):
        return re.sub(r"\s+", " ", name)
    implementer, part = _field(cpuinfo, "CPU implementer"), _field(cpuinfo, "CPU part")
    try:
        key = int(implementer or "", 16), int(part or "", 16)
    except ValueError:
        return None
    return _ARM_CORES.get(key, f"ARM core, implementer {implementer}, part {part}")


def _architecture(root: Path, cpuinfo: str | None) -> str | None:
    if root == ROOT:
        return platform.machine() or None
    if _field(cpuinfo, "CPU implementer"):
        return "aarch64"
    return "x86_64" if _field(cpuinfo, "vendor_id") else None


def _physical_cores(cpus: Path, online: set[int]) -> int | None:
    siblings = {read_text(cpus / f"cpu{cpu}/topology/thread_siblings_list") for cpu in online}
    return len(siblings) if siblings and None not in siblings else None


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the control groups of this process for one controller, the innermost first; versions 1 and 2."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        inner = Path(path.lstrip("/"))
        if ".." not in inner.parts:
            yield from (base / part for part in (inner, *inner.parents))


def _cpu_quota(root: Path) -> float | None:
    quotas: list[float] = []
    for folder in _cgroup_folders(root, "cpu"):
        words = (read_text(folder / "cpu.max") or "").split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            quotas.append(int(words[0]) / max(1, int(words[1])))
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas) if quotas else None


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(root: Path = ROOT) -> Memory:
    """Read the memory of the machine, or of the control group that limits this process."""
    text = read_text(root / "proc/meminfo")
    total, available, swap = (_kilobytes(text, name) for name in ("MemTotal", "MemAvailable", "SwapTotal"))
    limited = False
    for folder in _cgroup_folders(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if limit is None or (total is not None and limit >= total):
            continue
        total, limited = limit, True
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if used is not None:
            free = max(0, limit - used + _reclaimable(folder))
            available = free if available is None else min(available, free)
    return Memory(total_mb=_mebi(total), available_mb=_mebi(available), swap_mb=_mebi(swap), limited=limited)


def _kilobytes(text: str | None, name: str) -> int | None:
    match = re.match(r"(\d+) kB", _field(text, name) or "")
    return int(match[1]) * 1024 if match else None


def _reclaimable(folder: Path) -> int:
    """Return the bytes of cached files that count as used and are released when they are needed."""
    match = re.search(r"^(?:total_)?inactive_file (\d+)$", read_text(folder / "memory.stat") or "", re.MULTILINE)
    return int(match[1]) if match else 0


def _mebi(size: int | None) -> int | None:
    return None if size is None else size >> 20


# --- board -----------------------------------------------------------------------------------------------------------


def board(root: Path = ROOT) -> Board:
    """Read model and system software; for a Jetson its L4T and JetPack releases."""
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', read_text(root / "etc/os-release") or "", re.MULTILINE)
    l4t = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    return Board(
        model=read_text(root / "proc/device-tree/model") or _desktop_model(root),
        os=release[1] if release else None,
        kernel=read_text(root / "proc/sys/kernel/osrelease"),
        l4t=f"{l4t[1]}.{l4t[2]}" if l4t else None,
        jetpack=_jetpack(root, f"{l4t[1]}.{l4t[2]}") if l4t else None,
    )


def _desktop_model(root: Path) -> str | None:
    words = [read_text(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name")]
    fillers = ("to be filled", "default string", "system manufacturer", "system product name", "not specified")
    kept = [word for word in words if word and not word.lower().startswith(fillers)]
    return " ".join(kept) or None


def _jetpack(root: Path, l4t: str) -> str | None:
    """Return JetPack's version: its package's where that is installed, or the one that fits Jetson Linux's release."""
    for stanza in (read_text(root / "var/lib/dpkg/status") or "").split("\n\n"):
        if _JETPACK_PACKAGE.match(stanza) and (_field(stanza, "Status") or "installed").endswith(" installed"):
            version = _field(stanza, "Version")
            return version.split("+")[0].split("-")[0] if version else None
    release = l4t.removesuffix(".0")
    return _JETPACK_OF_L4T.get(release) or _JETPACK_OF_L4T.get(release.split(".")[0])


# --- GPU and cameras -------------------------------------------------------------------------------------------------


def gpus(root: Path = ROOT) -> list[Gpu]:
    """List the NVIDIA GPUs: those of ``nvidia-smi``, and the integrated one of a Jetson."""
    listed = parse_nvidia_smi(_nvidia_smi()) if root == ROOT else []
    chips = (read_text(root / "proc/device-tree/compatible") or "").split("\0")
    for name, capability in (_TEGRA[chip] for chip in chips if chip in _TEGRA):
        if not any(gpu.compute_capability == capability for gpu in listed):
            listed.append(Gpu(name=name, compute_capability=capability, memory_mb=None, driver=None))
    return listed


def _nvidia_smi() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    try:
        done = subprocess.run(
            [command, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env=for_children(),
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Parse rows of ``name, compute capability, memory in MiB, driver``; ``[N/A]`` is unknown."""
    listed = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 4 and cells[0]:
            _, capability, size, driver = (None if cell.startswith("[") or not cell else cell for cell in cells)
            megabytes = int(size) if size and size.isdigit() else None
            listed.append(Gpu(name=cells[0], compute_capability=capability, memory_mb=megabytes, driver=driver))
    return listed


def cameras(root: Path = ROOT) -> list[Camera]:
    """List the video devices, and whether they capture."""
    links: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for link in sorted((root / "dev/v4l/by-id").iterdir()):
            links.setdefault(link.readlink().name, f"/dev/v4l/by-id/{link.name}")
    listed = []
    with contextlib.suppress(OSError):
        devices = [path for path in (root / "dev").iterdir() if re.fullmatch(r"video\d+", path.name)]
        for path in sorted(devices, key=lambda path: int(path.name.removeprefix("video"))):
            captures, problem = _captures(path)
            name = read_text(root / "sys/class/video4linux" / path.name / "name")
            by_id = links.get(path.name)
            listed.append(
                Camera(device=f"/dev/{path.name}", name=name, by_id=by_id, captures=captures, problem=problem)
            )
    return listed


def _captures(device: Path) -> tuple[bool | None, str | None]:
    """Ask a video device what it can do (VIDIOC_QUERYCAP): (whether it captures, why it couldn't be asked)."""
    if (fcntl := system.module("fcntl")) is None:
        return None, "cameras can be asked on Linux alone"
    query_capabilities, capture, capture_planes = 0x80685600, 0x1, 0x1000
    try:
        descriptor = os.open(device, system.flags("O_RDWR", "O_NONBLOCK", "O_CLOEXEC"))
    except OSError as error:
        return None, error.strerror
    try:
        answer = fcntl.ioctl(descriptor, query_capabilities, bytes(104))
        return bool(struct.unpack_from("=I", answer, 88)[0] & (capture | capture_planes)), None
    except OSError as error:
        return None, error.strerror
    finally:
        os.close(descriptor)
