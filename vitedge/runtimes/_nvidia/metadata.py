"""The metadata of an engine that would be built, for this GPU or another; :mod:`vitedge.formats.engines` compares."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vitedge.device import hardware
from vitedge.formats.engines import EngineMetadata
from vitedge.runtimes._nvidia.engine import NAMES, BuildOptions


def for_building(
    package: str, version: str, graph: str, options: BuildOptions, sm: str, **facts: Any
) -> EngineMetadata:
    """Return the metadata of an engine that is yet to be built."""
    settings = {key: value for key, value in asdict(options).items() if key != "sms"}
    return EngineMetadata(package=package, version=version, sm=sm, graph=graph, options=settings, **facts)


def here(package: str, version: str, graph: str, options: BuildOptions, cuda: Any) -> EngineMetadata:
    """Return the metadata of an engine for this GPU; ``cuda`` is a :class:`vitedge.runtimes._nvidia.driver.Cuda`."""
    gpu = cuda.gpu()
    return for_building(
        package,
        version,
        graph,
        options,
        gpu.sm,
        gpu=gpu.name,
        driver=cuda.version("cudaDriverGetVersion"),
        cuda=cuda.version("cudaRuntimeGetVersion"),
        jetpack=hardware.board().jetpack,
    )


def description(metadata: EngineMetadata) -> str:
    """Return ``TensorRT 10.3.0 for Orin, SM 8.7``."""
    gpu = f"{metadata.gpu}, " if metadata.gpu else ""
    return f"{NAMES[metadata.package]} {metadata.version} for {gpu}SM {metadata.sm}"
