"""The folders of engines: the cache of this device, or an export folder that travels beside the artifact.

Both are folders with an ``engines.json``, which lists the metadata of each engine. An engine is loaded only with the
digest that stands there, and only where its metadata fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from vitedge.core.cache import optional_writes
from vitedge.core.files import new_folder, require_writable, sha256, write_atomic
from vitedge.core.paths import cache_folder
from vitedge.core.progress import Progress, silent
from vitedge.device import hardware
from vitedge.errors import ArtifactError, ResourceError
from vitedge.formats.artifact import CANDIDATES, MANIFEST, Artifact
from vitedge.formats.engines import (
    COMPARED,
    ENGINES,
    SUFFIX,
    EngineMetadata,
    add,
    differences,
    folder_key,
    identity,
    index,
    sound,
)
from vitedge.runtimes._nvidia import engine
from vitedge.runtimes._nvidia.engine import BuildOptions
from vitedge.runtimes._nvidia.metadata import description

TIMINGS = "timings.cache"  # in an export folder of 0.1.0: what TensorRT measured there, under one name for all GPUs
#: TensorRT-RTX is the same software wherever it builds; TensorRT has to be where the engine will run.
AHEAD_OF_TIME = ("tensorrt_rtx",)
#: Building takes more memory than running: the libraries and CUDA's own, and several copies of the weights.
BASE_MB, COPIES = {"tensorrt": 900, "tensorrt_rtx": 230}, 4  # RTX: measured with 1.7.1; TensorRT: an estimate


class ObtainedEngine(NamedTuple):
    """An engine, its metadata, and where it came from."""

    plan: bytes
    metadata: EngineMetadata
    folder: Path
    built: bool  # just now
    rebuilt_because: str = ""  # why the existing engine didn't fit


class Outlook(NamedTuple):
    """The engine that building would reuse or make."""

    metadata: EngineMetadata  # of the existing engine, or of the one that would be built
    folder: Path  # where it lies, or would lie
    builds: bool  # there is none that fits
    because: str  # why the existing engine doesn't fit
    memory_mb: int  # that building takes, about
    earlier: tuple[EngineMetadata, ...]  # of the same graph, built anywhere, the most similar first


def cache_of(graph: str, name: str) -> Path:
    """Return the folder of this device's engines for one ONNX file; it need not exist."""
    readable = re.sub(r"[^\w.-]", "_", name)[:64]
    return cache_folder() / "engines" / f"{readable}-{graph[:24]}"


def beside(artifact: Path) -> Path:
    """Return an artifact's export folder: ``artifact.engines`` beside it, or beside the one that contains it."""
    whole = artifact.absolute()
    if whole.parent.name == CANDIDATES and (whole.parent.parent / MANIFEST).is_file():
        whole = whole.parent.parent
    return whole.with_name(f"{whole.name}{SUFFIX}")


def look_for(folder: Path, wanted: EngineMetadata) -> ObtainedEngine | list[str]:
    """Return the engine that fits, or the reason why the nearest one doesn't; an empty text where there is none."""
    nearest, least = list[str](), len(COMPARED)
    for metadata in index(folder).engines:
        if wanted.gpu is None and metadata.sm != wanted.sm:
            continue  # built ahead of time for another GPU, so it isn't a candidate
        against = differences(metadata, wanted)
        apart = len(against)
        if not against:
            try:
                plan = (folder / Path(metadata.file).name).read_bytes()
            except OSError:
                against = [f"its file {metadata.file} can't be read"]
            else:
                if sha256(plan) == metadata.engine:
                    return ObtainedEngine(plan, metadata, folder, built=False)
                against = [f"its file {metadata.file} isn't what was written"]
        if not nearest or apart < least:
            nearest, least = against, apart
    return nearest


def obtain(
    artifact: Artifact,
    wanted: EngineMetadata,
    options: BuildOptions,
    *,
    may_build: bool = True,
    progress: Progress = silent,
    action: str,
) -> ObtainedEngine:
    """Return the engine for ``wanted``: from the export folder beside the artifact, from the cache, or built now.

    Raises:
        ArtifactError: it would have to be built, and may not be; or the graph is refused, or the builder crashed.
        ResourceError: not enough memory to build.
    """
    graph = artifact.graph_path.read_bytes()
    cache = cache_of(wanted.graph, artifact.manifest.name)
    found = _look_everywhere(artifact, wanted)
    if isinstance(found, ObtainedEngine):
        return found
    because = found
    if not may_build:
        raise ArtifactError(
            action,
            because or f"there is no engine of it for {description(wanted)}, and building one wasn't permitted",
            f"run: vitedge build {artifact.path}",
        )
    carried = beside(artifact.path)
    seed = next((path for name in (timing_cache(wanted).name, TIMINGS) if (path := carried / name).is_file()), None)
    obtained = build_into(cache, artifact.manifest.name, graph, wanted, options, seed, progress=progress, action=action)
    return obtained._replace(rebuilt_because=because)


def _look_everywhere(artifact: Artifact, wanted: EngineMetadata) -> ObtainedEngine | str:
    """Return the engine that fits, or why the nearest one doesn't, in a sentence; empty where there is none."""
    against: list[str] = []
    for folder in (beside(artifact.path), cache_of(wanted.graph, artifact.manifest.name)):
        found = look_for(folder, wanted)
        if isinstance(found, ObtainedEngine):
            return found
        against = against or found
    return f"the engine that is there was built for something else: {'; '.join(against)}" if against else ""


def outlook(artifact: Artifact, wanted: EngineMetadata, options: BuildOptions) -> Outlook:
    """Return what :func:`obtain` would reuse or build; nothing is built."""
    cache = cache_of(wanted.graph, artifact.manifest.name)
    found = _look_everywhere(artifact, wanted)
    there = isinstance(found, ObtainedEngine)
    listed = [*index(beside(artifact.path)).engines, *index(cache).engines]
    earlier = {one.engine: one for one in listed if one.graph == wanted.graph and one.seconds is not None}
    return Outlook(
        metadata=found.metadata if isinstance(found, ObtainedEngine) else wanted,
        folder=found.folder if isinstance(found, ObtainedEngine) else cache,
        builds=not there,
        because="" if isinstance(found, ObtainedEngine) else found,
        memory_mb=needed_mb(wanted.package, artifact.graph_path.stat().st_size, options),
        earlier=tuple(sorted(earlier.values(), key=lambda one: len(differences(one, wanted)))),
    )


def build_into(
    folder: Path,
    name: str,
    graph: bytes,
    wanted: EngineMetadata,
    options: BuildOptions,
    seed: Path | None,
    *,
    progress: Progress = silent,
    action: str,
) -> ObtainedEngine:
    """Build one engine, and write it and its metadata into a folder; timings of earlier builds here are reused.

    Where nothing was built yet, what an equal device measured (``seed``) is; TensorRT itself refuses another GPU's.
    """
    if wanted.package not in AHEAD_OF_TIME:
        refuse_little_memory(len(graph), options, action)
    require_writable(folder, action)
    timings = timing_cache(wanted)
    earlier_timings = next((path.read_bytes() for path in (timings, seed) if path and path.is_file()), b"")
    built = engine.build_isolated(
        wanted.package, wanted.version, graph, options, earlier_timings, action=action, progress=progress
    )
    if built.timing_cache:
        with optional_writes():
            write_atomic(timings, built.timing_cache, action)
    taken = replace(wanted, seconds=round(built.seconds, 3), peak_mb=built.peak_mb)
    metadata = add(folder, name, built.plan, taken, action)
    return ObtainedEngine(built.plan, metadata, folder, built=True)


def timing_cache(metadata: EngineMetadata) -> Path:
    """Return the path of TensorRT's timing cache for this GPU and version, which all models share."""
    key = sha256(json.dumps([metadata.package, metadata.version, metadata.gpu, metadata.sm]).encode())[:16]
    return cache_folder() / "timings" / f"{metadata.package}-{metadata.version}-{key}.cache"


def export_engines(
    artifact: Artifact, obtained: Sequence[ObtainedEngine], out: Path, *, overwrite: bool, action: str
) -> Path:
    """Write engines as a folder that travels beside the artifact, named as :func:`beside` says, or otherwise.

    What lies there already for other GPUs, of the same graph, stays: so one folder comes to serve several devices.

    Raises:
        UsageError: it exists.
        ResourceError: disk, permission.
    """
    name = artifact.manifest.name
    with new_folder(out, ENGINES, overwrite=overwrite, action=action) as folder:
        for metadata, plan in _others(out, obtained):
            add(folder, name, plan, metadata, action)
            _carry_timings(out / timing_cache(metadata).name, folder, action)
        for each in obtained:
            add(folder, name, each.plan, each.metadata, action)
            _carry_timings(timing_cache(each.metadata), folder, action)
    return out


def _others(folder: Path, obtained: Sequence[ObtainedEngine]) -> Iterator[tuple[EngineMetadata, bytes]]:
    """Yield a folder's sound engines of the same graph that none of ``obtained`` replaces."""
    graphs, replaced = ({key(each.metadata) for each in obtained} for key in (lambda one: one.graph, identity))
    for metadata, plan in sound(folder):
        if metadata.graph in graphs and identity(metadata) not in replaced:
            yield metadata, plan


def carry(artifact: Artifact, outlooks: Sequence[Outlook], folder: Path, action: str) -> None:
    """Write the engines that this device built into a folder, and keep those for other devices there.

    What came with the artifact isn't written again.

    Raises:
        ResourceError: disk, permission.
    """
    for each in outlooks:
        if each.builds or each.folder == beside(artifact.path):
            continue
        plan = (each.folder / each.metadata.file).read_bytes()
        add(folder, artifact.manifest.name, plan, each.metadata, action, same=folder_key)
        _carry_timings(timing_cache(each.metadata), folder, action)


def _carry_timings(timings: Path, folder: Path, action: str) -> None:
    if timings.is_file():
        write_atomic(folder / timings.name, timings.read_bytes(), action)


def needed_mb(package: str, graph_bytes: int, options: BuildOptions) -> int:
    """Estimate the memory that building takes, in MiB."""
    return BASE_MB[package] + COPIES * (graph_bytes >> 20) + (options.workspace_mb or 0)


def refuse_little_memory(graph_bytes: int, options: BuildOptions, action: str, root: Path = hardware.ROOT) -> None:
    """Refuse a build that would run out of memory, on a board whose GPU shares the memory.

    Raises:
        ResourceError: what is there and what is needed, and what to lower.
    """
    if hardware.board(root).l4t is None:
        return
    memory = hardware.memory(root)
    needed = needed_mb("tensorrt", graph_bytes, options)
    if memory.available_mb is None or memory.available_mb + (memory.swap_mb or 0) >= needed:
        return
    raise ResourceError(
        action,
        f"building takes about {needed:,} MiB of the memory that GPU and processor share; {memory.available_mb:,} MiB "
        f"are free, with {memory.swap_mb or 0:,} MiB of swap",
        "free memory (sudo init 3 stops the desktop), add swap, or lower the batch or workspace_mb; see docs/jetson.md",
    )
