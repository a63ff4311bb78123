"""An engine's metadata: what it was built from, with and for; compared with where it would run, before it's loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vitedge.core.schema import Record
from vitedge.device import hardware
from vitedge.formats.target import Option
from vitedge.runtimes._nvidia.engine import NAMES, BuildOptions


class EngineMetadata(Record):
    """Of one engine, or of one that would run here. None is what wasn't known when it was built, and fits anything."""

    package: str  # "tensorrt" or "tensorrt_rtx"
    version: str  # of the package, "10.3.0"
    sm: str  # compute capability
    graph: str  # SHA-256 of the ONNX file
    options: dict[str, Option | None]  # as :class:`vitedge.runtimes._nvidia.engine.BuildOptions`, without the SM
    gpu: str | None = None  # its name
    driver: str | None = None  # the newest CUDA that the driver serves, "12.6"
    cuda: str | None = None  # of the runtime library that sessions call
    jetpack: str | None = None
    file: str = ""  # name of the engine's file
    engine: str = ""  # SHA-256 of the engine
    seconds: float | None = None  # that building it took
    peak_mb: int | None = None  # largest resident memory of the process that built it, in MiB


#: What is compared, and the word for it. TensorRT loads an engine only in the version and on the GPU that built it.
_COMPARED = {
    "package": "package",
    "version": "version",
    "gpu": "GPU",
    "sm": "compute capability",
    "driver": "driver",
    "cuda": "CUDA",
    "jetpack": "JetPack",
    "graph": "graph",
    "options": "build options",
}


def differences(built: EngineMetadata, here: EngineMetadata) -> list[str]:
    """What stands between an engine and this GPU, as ``version 10.3.0, here 10.7.0``; empty where it fits."""
    reasons = []
    for field, word in _COMPARED.items():
        then, now = getattr(built, field), getattr(here, field)
        if then == now or then is None or now is None:
            continue
        if field == "graph":
            then, now = f"{then[:8]}…", f"{now[:8]}…"
        elif field == "options":
            keys = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
            then, now = (", ".join(f"{key} = {side.get(key)}" for key in keys) for side in (then, now))
        reasons.append(f"{word} {then}, here {now}")
    return reasons


def identity(metadata: EngineMetadata) -> tuple[Any, ...]:
    """What one folder keeps one engine of: the newer replaces the older."""
    return metadata.package, metadata.sm, metadata.gpu, metadata.graph, tuple(sorted(metadata.options.items()))


def for_building(
    package: str, version: str, graph: str, options: BuildOptions, sm: str, **facts: Any
) -> EngineMetadata:
    """The metadata of an engine that is yet to be built."""
    settings = {key: value for key, value in asdict(options).items() if key != "sms"}
    return EngineMetadata(package=package, version=version, sm=sm, graph=graph, options=settings, **facts)


def here(package: str, version: str, graph: str, options: BuildOptions, cuda: Any) -> EngineMetadata:
    """The metadata of an engine for this GPU; ``cuda`` is a :class:`vitedge.runtimes._nvidia.driver.Cuda`."""
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
    """``TensorRT 10.3.0 for Orin, SM 8.7``."""
    gpu = f"{metadata.gpu}, " if metadata.gpu else ""
    return f"{NAMES[metadata.package]} {metadata.version} for {gpu}SM {metadata.sm}"
