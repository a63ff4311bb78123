"""A folder of engines: ``engines.json`` lists each with its metadata, which says where it may run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar

from msgspec.structs import replace

from vitedge._version import __version__
from vitedge.core.files import FolderKind, sha256, write_atomic
from vitedge.core.schema import Record, decode_json, encode_json
from vitedge.errors import VitedgeError
from vitedge.formats.target import Option

INDEX = "engines.json"
ENGINES = FolderKind("a folder of engines", (INDEX,))
SUFFIX = ".engines"  # ARTIFACT.engines beside ARTIFACT
TIMING_CACHES = "*.cache"  # what building measured, one file for each version and GPU


class EngineMetadata(Record):
    """The metadata of an engine, or of one that would run here. None is an unknown value, and fits anything."""

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


class Engines(Record):
    """The contents of ``engines.json``."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    vitedge_version: str = __version__
    artifact: str = ""  # its name, for people
    engines: tuple[EngineMetadata, ...] = ()


#: What is compared, and the word for it. TensorRT loads an engine only in the version and on the GPU that built it.
COMPARED = {
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
    """Return the differences between an engine and this GPU, as ``version 10.3.0, here 10.7.0``; empty if it fits."""
    reasons = []
    for field, word in COMPARED.items():
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
    """Return the key by which a device's cache keeps one engine; a newer version's engine replaces the older one."""
    return metadata.package, metadata.sm, metadata.gpu, metadata.graph, tuple(sorted(metadata.options.items()))


def folder_key(metadata: EngineMetadata) -> tuple[Any, ...]:
    """Return the key by which a folder for several devices keeps one engine: everything that is compared."""
    return tuple(str(getattr(metadata, field)) for field in COMPARED)


def index(folder: Path) -> Engines:
    """Return the folder's list of engines; empty where there is none, or an incomplete one."""
    try:
        return decode_json((folder / INDEX).read_bytes(), Engines, action="look for an engine", file=INDEX)
    except (OSError, VitedgeError):
        return Engines()


def sound(folder: Path) -> Iterator[tuple[EngineMetadata, bytes]]:
    """Yield the folder's engines that are present and undamaged, each with its content."""
    for metadata in index(folder).engines:
        path = folder / Path(metadata.file).name
        if path.is_file() and sha256(plan := path.read_bytes()) == metadata.engine:
            yield metadata, plan


def add(
    folder: Path,
    name: str,
    plan: bytes,
    metadata: EngineMetadata,
    action: str,
    same: Callable[[EngineMetadata], Any] = identity,
) -> EngineMetadata:
    """Write an engine, then list it; the engine that it replaces is removed last.

    Args:
        folder: of engines; made where it isn't there.
        name: of the artifact, for people.
        plan: the engine.
        metadata: what it was built from, with and for.
        action: for error texts.
        same: engines for which this gives the same replace each other.

    Returns:
        The metadata with the engine's file and digest.

    Raises:
        ResourceError: it can't be written.
    """
    digest = sha256(plan)
    metadata = replace(metadata, engine=digest, file=f"sm{metadata.sm.replace('.', '')}-{digest[:12]}.plan")
    write_atomic(folder / metadata.file, plan, action)
    listed = index(folder).engines
    kept = tuple(other for other in listed if same(other) != same(metadata))
    write_atomic(folder / INDEX, encode_json(Engines(artifact=name, engines=(*kept, metadata))), action)
    files = {other.file for other in (*kept, metadata)}
    for other in listed:
        if other.file not in files:
            (folder / Path(other.file).name).unlink(missing_ok=True)
    return metadata


def merge(source: Path, into: Path, graphs: Collection[str], action: str) -> list[EngineMetadata]:
    """Copy the sound engines of one folder into another, beside those for other devices, with the timing caches.

    Args:
        source: a folder of engines; where it isn't one, nothing comes.
        into: likewise; made where something comes.
        graphs: SHA-256 of the ONNX files whose engines are wanted.
        action: for error texts.

    Returns:
        Of the engines that weren't there.

    Raises:
        ResourceError: it can't be written.
    """
    there = {(folder_key(one), one.engine) for one, _ in sound(into)}
    came = [
        add(into, index(source).artifact, plan, metadata, action, same=folder_key)
        for metadata, plan in sound(source)
        if metadata.graph in graphs and (folder_key(metadata), metadata.engine) not in there
    ]
    if came:
        for timings in source.glob(TIMING_CACHES):
            write_atomic(into / timings.name, timings.read_bytes(), action)
    return came
