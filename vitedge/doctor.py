"""Examine this machine for ``vitedge doctor``: hardware, runtimes, extras, cache and targets.

Nothing here raises: what's broken or unreadable is a finding like any other. Runtimes are asked in child processes, so
one that crashes when it's imported is named instead of taking the doctor down.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from vitedge import runtimes
from vitedge._version import __version__
from vitedge.core import paths
from vitedge.core.isolation import ChildError, run_isolated
from vitedge.core.schema import Record
from vitedge.core.versions import older, release
from vitedge.device import cuda, hardware
from vitedge.device.clocks import Clocks, clocks, power_mode
from vitedge.errors import VitedgeError, printable
from vitedge.formats.target import Target, load_target
from vitedge.installation import install_command

#: What each extra brings: the packages it's recognised by, and what they are for.
EXTRAS = {
    "onnxruntime": (("onnxruntime",), "run ONNX Runtime artifacts"),
    "host": (("onnx", "onnxruntime", "safetensors"), "import models, quantize, export"),
    "openvino": (("openvino",), "export for OpenVINO and run its artifacts"),
    "nncf": (
        ("nncf", "openvino", "onnx", "onnxruntime", "safetensors"),
        "let NNCF's quantization compete on OpenVINO (export --autotune)",
    ),
    "tensorrt-cu13": (("tensorrt", "cuda"), "build and run TensorRT engines on an NVIDIA GPU, driver 580 or newer"),
    "tensorrt-cu12": (("tensorrt", "cuda"), "the same with CUDA 12, driver 535 or newer"),
    "tensorrt": (("tensorrt", "cuda"), "the same as tensorrt-cu12"),
    "tensorrt-rtx": (("tensorrt_rtx",), "build engines for RTX GPUs, and check TensorRT's graphs without a GPU"),
    "nvml": (("pynvml",), "an NVIDIA GPU's clocks, power and memory while measuring"),
    "report": (("jinja2", "matplotlib"), "reports as one HTML file"),
    "train": (
        ("torch", "onnx", "onnxruntime", "safetensors", "jinja2", "matplotlib"),
        "train models",
    ),
    "hub": (("huggingface_hub", "onnx", "onnxruntime", "safetensors"), "import models from the Hugging Face hub"),
    "ray": (("ray", "pyarrow", "pandas"), "evaluate and classify on a Ray cluster (--engine ray)"),
    "fleet": (("asyncssh", "packaging"), "work on boards over SSH: `vitedge fleet`"),
    "stream": (("av", "paho", "starlette", "uvicorn"), "cameras: `vitedge stream`"),
    "demo": (
        ("onnx", "onnxruntime", "safetensors", "openvino", "jinja2", "matplotlib"),
        "everything that `vitedge demo` shows",
    ),
}
#: CUDA's major version of an extra: of the bindings that it brings, and that the driver has to serve.
CUDA_OF = {"tensorrt-cu13": 13, "tensorrt-cu12": 12, "tensorrt": 12}


class RuntimeState(Record):
    """One runtime on this machine."""

    name: str
    extra: str  # what installs it; "" for the null runtime
    version: str | None  # None: not installed
    facts: dict[str, Any]  # providers, devices, … in the runtime's own words
    runs_on: dict[str, bool]  # by device, for the devices that targets name
    problem: str | None = None  # why it couldn't be asked
    untested: str = ""  # says that it's newer than what this release was tested with


class ExtraState(Record):
    """One extra of the package."""

    name: str
    adds: str
    missing: tuple[str, ...]  # packages that aren't installed; empty: complete
    install: str


class Cache(Record):
    """The folder of derived data; it may be deleted at any time."""

    path: str
    mb: float
    files: int
    free_mb: int | None  # of the disk it lies on


class TargetState(Record):
    """Whether artifacts of one target run here, and why not."""

    name: str
    summary: str
    runs: bool
    reasons: tuple[str, ...]


class Machine(Record):
    """All findings of ``vitedge doctor``."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    vitedge_version: str = __version__
    python: str
    processor: hardware.Processor
    memory: hardware.Memory
    board: hardware.Board
    power_mode: str | None = None  # of a Jetson
    clocks: Clocks | None = None  # of a board
    gpus: tuple[hardware.Gpu, ...]
    cuda: tuple[int, ...] | None = None  # major versions that the driver serves; None: unknown
    cameras: tuple[hardware.Camera, ...]
    runtimes: tuple[RuntimeState, ...]
    extras: tuple[ExtraState, ...]
    cache: Cache
    targets: tuple[TargetState, ...]


def examine(root: Path = hardware.ROOT) -> Machine:
    """Examine everything.

    Args:
        root: the root of ``/proc``, ``/sys``, ``/dev`` and ``/etc``.
    """
    processor, gpus, board = hardware.processor(root), hardware.gpus(root), hardware.board(root)
    targets, broken = readable_targets()
    with ThreadPoolExecutor() as pool:  # each waits for a child process
        states = list(pool.map(lambda name: runtime_state(name, targets), runtimes.names()))
    served = cuda.served(gpus, board)
    fits = [fit(target, processor, gpus, states) for target in targets]
    return Machine(
        python=platform.python_version(),
        processor=processor,
        memory=hardware.memory(root),
        board=board,
        power_mode=power_mode(root),
        clocks=clocks(root) if board.l4t is not None else None,
        gpus=tuple(gpus),
        cuda=served,
        cameras=tuple(hardware.cameras(root)),
        runtimes=tuple(states),
        extras=tuple(extras(on_jetson=board.l4t is not None, served=served)),
        cache=cache(),
        targets=tuple(sorted([*fits, *broken], key=lambda state: state.name)),
    )


def readable_targets() -> tuple[list[Target], list[TargetState]]:
    """Return the targets that load, and a line for each file that doesn't."""
    good, broken = [], []
    for name in paths.names("targets"):
        try:
            good.append(load_target(name))
        except VitedgeError as error:
            broken.append(TargetState(name=name, summary="", runs=False, reasons=(error.reason,)))
    return good, broken


def runtime_state(name: str, targets: Sequence[Target]) -> RuntimeState:
    """Ask one runtime in a child process."""
    devices = sorted({target.device for target in targets if target.runtime == name})
    try:
        extra, version, facts, runs_on = run_isolated(_ask_runtime, name, devices, timeout_s=60.0)
    except (VitedgeError, ChildError, OSError) as error:
        problem = printable(str(error)).replace("\n", " ")
        return RuntimeState(
            name=name, extra=name.replace("_", "-"), version=None, facts={}, runs_on={}, problem=problem
        )
    untested = runtimes.untested(name, version) if version is not None else ""
    return RuntimeState(name=name, extra=extra, version=version, facts=facts, runs_on=runs_on, untested=untested)


def _ask_runtime(name: str, devices: list[str]) -> tuple[str, str | None, dict[str, Any], dict[str, bool]]:
    """Return, in the child, (extra, version, facts, whether each device runs)."""
    facts = runtimes.part(name, "detect")
    version = facts.installed()
    if version is None:
        return runtimes.extra(name), None, {}, {}
    return facts.EXTRA, str(version), facts.describe(), {device: bool(facts.runs_here(device)) for device in devices}


def fit(
    target: Target, processor: hardware.Processor, gpus: Sequence[hardware.Gpu], states: Sequence[RuntimeState]
) -> TargetState:
    """Compare a target with this machine; unknown values are no reason against it."""
    state = next(state for state in states if state.name == target.runtime)
    if target.arch not in ("any", processor.architecture or target.arch):
        reasons = [f"it's for {target.arch}; this machine is {processor.architecture}"]
    else:
        reasons = [*_missing_hardware(target, processor, gpus, state), *_missing_runtime(target, state)]
        if not reasons and not state.runs_on.get(target.device, False):
            reasons = [f"{target.runtime} finds no device {target.device}"]
    return TargetState(name=target.name, summary=target.summary, runs=not reasons, reasons=tuple(reasons))


def _missing_hardware(
    target: Target, processor: hardware.Processor, gpus: Sequence[hardware.Gpu], state: RuntimeState
) -> list[str]:
    reasons = []
    if target.isa != "any" and processor.isa is not None and target.isa not in processor.isa:
        reasons.append(f"this CPU has no {target.isa}")
    capabilities = [target.sm] if target.sm else list(target.sms)
    present = {gpu.compute_capability for gpu in gpus}
    unseen = not gpus and state.runs_on.get(target.device, False)  # the runtime finds a GPU that nvidia-smi doesn't
    if (
        target.device.startswith("cuda")
        and capabilities
        and not (unseen or None in present or present & set(capabilities))
    ):
        reasons.append(f"no NVIDIA GPU with compute capability {' or '.join(capabilities)}")
    return reasons


def _missing_runtime(target: Target, state: RuntimeState) -> list[str]:
    if state.problem:
        return [f"{target.runtime} is broken: {state.problem}"]
    if state.version is None:
        return [f"{target.runtime} isn't installed"]
    if older(state.version, target.runtime_min):
        return [f"{target.runtime} {state.version} is older than {target.runtime_min}"]
    available, unknown = (state.facts.get(key, ()) for key in ("providers", "unknown_providers"))
    for provider in target.providers:
        if why := runtimes.part(target.runtime, "providers").missing(provider, available, unknown):
            return [why]
    return []


def extras(*, on_jetson: bool = False, served: Sequence[int] | None = None) -> list[ExtraState]:
    """Return each extra with its missing packages; nothing is imported.

    Args:
        on_jetson: JetPack brings TensorRT.
        served: CUDA's major versions that the driver serves; None: unknown.
    """
    return [
        ExtraState(name=name, adds=adds, missing=_missing(name, packages), install=_install(name, on_jetson, served))
        for name, (packages, adds) in EXTRAS.items()
    ]


def _install(name: str, on_jetson: bool, served: Sequence[int] | None) -> str:
    """Return the command that adds an extra, or the reason why it can't serve here."""
    major = CUDA_OF.get(name)
    if major is not None and served is not None and major not in served:
        return f"not here: CUDA {major} takes driver {cuda.OLDEST_DRIVER[major]} or newer"
    if major is not None and on_jetson:
        return "JetPack brings it: python3 -m venv --system-site-packages"
    return install_command(name)


def _missing(name: str, packages: Sequence[str]) -> tuple[str, ...]:
    missing = [package for package in packages if not _present(package)]
    if (major := CUDA_OF.get(name)) is not None and "cuda" not in missing:
        try:
            installed = release(importlib.metadata.version("cuda-bindings"))
        except importlib.metadata.PackageNotFoundError:
            installed = ()
        if installed[:1] != (major,):
            missing.append(f"cuda-bindings {major}")
    return tuple(missing)


def _present(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a half-removed package
        return False


def cache() -> Cache:
    """Return the size of the cache folder, and the free space on its disk."""
    folder = paths.cache_folder()
    size = files = 0
    for parent, _, names in os.walk(folder):  # unreadable folders are skipped
        for name in names:
            try:
                size += (Path(parent) / name).lstat().st_size
                files += 1
            except OSError:
                continue
    existing = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
    try:
        free = shutil.disk_usage(existing).free >> 20 if existing else None
    except OSError:
        free = None
    return Cache(path=str(folder), mb=round(size / 1e6, 1), files=files, free_mb=free)
