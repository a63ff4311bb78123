"""Build engines before they are first needed: for this machine's GPU or, with TensorRT-RTX, for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vitedge.core.files import sha256
from vitedge.core.progress import Progress
from vitedge.device.hardware import gpus
from vitedge.errors import ResourceError, UsageError
from vitedge.formats.artifact import Artifact
from vitedge.formats.engines import EngineMetadata
from vitedge.formats.target import Option
from vitedge.runtimes._nvidia import engine, engines, metadata, session
from vitedge.runtimes._nvidia.driver import Cuda
from vitedge.runtimes._nvidia.engine import BuildOptions
from vitedge.runtimes._nvidia.engines import ObtainedEngine, Outlook


def build(
    package: str,
    version: str,
    artifact: Artifact,
    sms: Sequence[str],
    options: Mapping[str, Option],
    progress: Progress,
) -> list[ObtainedEngine]:
    """Return the engines of one artifact from the cache, after building those that are missing or don't fit.

    Args:
        package: "tensorrt" or "tensorrt_rtx".
        version: of the package.
        artifact: opened.
        sms: compute capabilities to build for; none: those that the target names, or the GPU that is here.
        options: over the manifest's.
        progress: called with (task, done, total).

    Raises:
        UsageError: an unknown option or compute capability, or one that this package can't build for from here.
        ResourceError: no GPU where one is needed, or not enough memory.
        ArtifactError: the graph is refused, or the builder crashed.
    """
    action = f"build the engines of {artifact.path}"
    return [
        engines.obtain(artifact, wanted, settings, progress=progress, action=action)
        for wanted, settings in _wanted(package, version, artifact, sms, options, action)
    ]


def plan(
    package: str, version: str, artifact: Artifact, sms: Sequence[str], options: Mapping[str, Option]
) -> list[Outlook]:
    """Return the engines that :func:`build` would build or reuse with the same arguments; nothing is built.

    Raises:
        UsageError, ResourceError: as :func:`build`, before it builds.
    """
    action = f"plan the engines of {artifact.path}"
    return [
        engines.outlook(artifact, wanted, settings)
        for wanted, settings in _wanted(package, version, artifact, sms, options, action)
    ]


def _wanted(
    package: str, version: str, artifact: Artifact, sms: Sequence[str], options: Mapping[str, Option], action: str
) -> list[tuple[EngineMetadata, BuildOptions]]:
    """Return the metadata and build options of each requested engine."""
    wanted = session.build_options({**artifact.manifest.runtime_options, **options}, action)
    graph = sha256(artifact.graph_path.read_bytes())
    if package in engines.AHEAD_OF_TIME:
        sms = sms or artifact.manifest.target.sms
    elif sms:
        raise UsageError(
            action,
            f"{engine.NAMES[package]} builds for the GPU that it finds, not for compute capability {', '.join(sms)}",
            f"copy the artifact to the device and run there: vitedge build {artifact.path.name}",
        )
    if not sms:
        if not gpus():
            raise ResourceError(
                action,
                f"no NVIDIA GPU answers here, and {engine.NAMES[package]} builds for the one that it finds",
                f"copy the artifact to the device and run there: vitedge build {artifact.path.name}",
            )
        this_gpu = metadata.here(package, version, graph, wanted, Cuda(action, package))
        session.refuse_missing_types(artifact, this_gpu.sm, action)
        return [(this_gpu, wanted)]
    for sm in sms:
        session.refuse_missing_types(artifact, sm, action)
    return [(metadata.for_building(package, version, graph, wanted, sm), replace(wanted, sms=(sm,))) for sm in sms]
