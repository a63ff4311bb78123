"""An ONNX Runtime that is newer than any we know: another version, and another list of providers.

``python -m pytest -p tests.newer_onnxruntime …`` runs any tests with it.
"""

from __future__ import annotations

import importlib.metadata

import onnxruntime
import pytest

from vitedge.runtimes.onnxruntime import providers

VERSION, NEW = "9.99.0", "FutureExecutionProvider"
DROPPED = "CUDA"  # what no build of it knows any more
AVAILABLE = [NEW, "CPUExecutionProvider"]
ALL = [*AVAILABLE, *(full for name, (full, _) in providers.NAMES.items() if name != DROPPED)]


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that is here, with what a release may change."""
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: VERSION if name == "onnxruntime" else version(name))
    monkeypatch.setattr(onnxruntime, "__version__", VERSION)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(AVAILABLE))
    monkeypatch.setattr(onnxruntime, "get_all_providers", lambda: list(ALL))


def pytest_configure() -> None:
    plant(pytest.MonkeyPatch())
