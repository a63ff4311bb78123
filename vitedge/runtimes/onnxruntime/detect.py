"""Detect ONNX Runtime on this machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType
from typing import Any

from vitedge.formats.target import Target
from vitedge.runtimes.onnxruntime.providers import NAMES, missing, unknown

NAME = "ONNX Runtime"
EXTRA = "onnxruntime"


def installed() -> str | None:
    """Return the version of whichever distribution provides the package, or None; nothing is imported.

    ``onnxruntime-gpu``, ``onnxruntime-openvino`` and other sisters share the import name.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:  # reading every distribution takes a while, so it comes second
        names = importlib.metadata.packages_distributions().get("onnxruntime", ())
        return next((importlib.metadata.version(name) for name in sorted(names)), None)


def load() -> ModuleType:
    """Import ONNX Runtime, and silence its log except for errors."""
    package = importlib.import_module("onnxruntime")
    package.set_default_logger_severity(3)
    return package


def runs_here(device: str) -> bool:
    """Whether a session can be opened on ``device`` on this machine: the CPU, anywhere it's installed.

    Another device is a provider's: see :func:`missing_provider`. Providers that no target can name open nothing.
    """
    if installed() is None:
        return False
    return device == "cpu" or not {full for full, _ in NAMES.values()}.isdisjoint(load().get_available_providers())


def missing_provider(target: Target) -> str:
    """Return the reason why this build can't serve a target's provider; empty where it can, or where there is none."""
    package = load()
    available, absent = package.get_available_providers(), unknown(package.get_all_providers())
    return next((why for provider in target.providers if (why := missing(provider, available, absent))), "")


def describe() -> dict[str, Any]:
    """Describe for the doctor: version, the execution providers of this build, and those that no build of it has."""
    version = installed()
    if version is None:
        return {"version": None}
    package = load()
    return {
        "version": version,
        "providers": list(package.get_available_providers()),
        "unknown_providers": unknown(package.get_all_providers()),
    }
