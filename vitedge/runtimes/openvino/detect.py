"""Detect OpenVINO on this machine."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from types import ModuleType
from typing import Any

NAME = "OpenVINO"
EXTRA = "openvino"
NNCF = "nncf"
WRITES_ITS_FILES = True  # the intermediate representation (IR)


def installed() -> str | None:
    """Return the version of the installed package, or None; nothing is imported."""
    if importlib.util.find_spec("openvino") is None:
        return None
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None


def load(package: str = "openvino") -> ModuleType:
    """Import OpenVINO, or NNCF, without the usage report that their import otherwise sends over the network."""
    name = "openvino_telemetry"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # type: ignore[assignment]  # makes the import fail; both then use a stub
    try:
        return importlib.import_module(package)
    finally:
        if absent:
            del sys.modules[name]


@functools.cache
def core() -> Any:
    """Return this process's only Core, which is never destroyed.

    Each Core's CPU plugin installs an alternate signal stack and, when it is destroyed, restores the one that it found,
    even if that one's owner has freed it since. After two Cores were destroyed in the order in which they were made,
    the next signal, a Ctrl-C, killed the process with a segmentation fault (OpenVINO 2026.4).
    """
    return load().Core()


def package(variant: str) -> str:
    """Return NNCF where it makes a kernel variant; else empty."""
    return NNCF if variant.startswith(NNCF) else ""


def devices() -> list[str]:
    """Return the devices that OpenVINO's plugins find here: "CPU", "GPU", "GPU.1", "NPU"."""
    return [str(device) for device in core().available_devices]


def runs_here(device: str) -> bool:
    """Whether a session can be opened on ``device`` on this machine."""
    return installed() is not None and (device == "CPU" or device in devices())


def describe() -> dict[str, Any]:
    """Describe for the doctor: version, and name and numeric formats of each device."""
    version = installed()
    if version is None:
        return {"version": None}
    return {
        "version": version,
        "devices": {
            str(device): {
                "name": str(core().get_property(device, "FULL_DEVICE_NAME")),
                "precisions": [str(word) for word in core().get_property(device, "OPTIMIZATION_CAPABILITIES")],
            }
            for device in core().available_devices
        },
    }
