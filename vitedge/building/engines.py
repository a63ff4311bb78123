"""Engines of an artifact: build them into the cache or into a folder beside the artifact, and explain them.

A runtime that builds has a module ``build`` in its folder; the others open their files as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vitedge import runtimes
from vitedge.core.files import refuse_existing
from vitedge.core.progress import Progress, silent
from vitedge.device.hardware import memory
from vitedge.errors import UsageError
from vitedge.formats.artifact import GOLDEN_INPUTS, Artifact
from vitedge.formats.engines import ENGINES
from vitedge.formats.target import Option
from vitedge.runtimes.base import OpenOptions
from vitedge.runtimes.session import open_session

PROFILES = 20


def builds(runtime: str) -> bool:
    """Whether a runtime makes engines of its graphs."""
    return runtimes.has(runtime, "build")


def builder_of(artifact: Artifact, action: str) -> ModuleType:
    """Return the runtime's module that builds.

    Raises:
        UsageError: this runtime opens its files as they are.
        NotInstalledError: it isn't installed.
    """
    runtime = artifact.manifest.target.runtime
    if not builds(runtime):
        raise UsageError(
            action, f"{runtime} opens its files as they are: there is no engine to build", "use the artifact as it is"
        )
    runtimes.require(runtime, action)
    return runtimes.part(runtime, "build")


def build(
    artifact: Artifact,
    *,
    sms: Sequence[str] = (),
    out: Path | None = None,
    options: Mapping[str, Option] | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Build the engines of an artifact into the cache; one flat row for each.

    Args:
        artifact: opened.
        sms: compute capabilities, where the runtime builds for GPUs that aren't here; none: the target's.
        out: write them into a folder, too, to be copied beside the artifact.
        options: build options over the manifest's.
        overwrite: permit replacing ``out``.
        progress: called with (task, done, total).

    Raises:
        UsageError, ArtifactError, ResourceError, NotInstalledError: as the runtime's ``build``.
    """
    action = f"build the engines of {artifact.path}"
    module = builder_of(artifact, action)
    if out is not None:
        refuse_existing(out, ENGINES, overwrite=overwrite, action=action)
    engines = module.build(artifact, sms, options or {}, progress)
    if out is not None:
        module.export_engines(artifact, engines, out, overwrite=overwrite, action=action)
    return [
        {
            "artifact": str(artifact.path),
            "runtime": f"{engine.metadata.package} {engine.metadata.version}",
            "gpu": engine.metadata.gpu,
            "sm": engine.metadata.sm,
            "bytes": len(engine.plan),
            "built": engine.built,
            "seconds": engine.metadata.seconds,
            "because": engine.rebuilt_because,
            "folder": str(engine.folder if out is None else out),
        }
        for engine in engines
    ]


def carry(
    artifacts: Sequence[Artifact],
    folder: Path,
    *,
    sms: Sequence[str] = (),
    options: Mapping[str, Option] | None = None,
) -> None:
    """Write the engines that this device built of some artifacts into a folder, for equal devices.

    Called ``ARTIFACT.engines``, the folder is found beside the artifact, also for the candidates within it. Engines for
    other devices that lie there stay. Of runtimes that build none, and of what isn't built, nothing is written.

    Args:
        artifacts: an artifact, its candidates.
        folder: made where there is something to write.
        sms: as for :func:`build`.
        options: as for :func:`build`.

    Raises:
        UsageError, ResourceError, NotInstalledError: as :func:`plan`; the folder can't be written.
    """
    for artifact in artifacts:
        if builds(artifact.manifest.target.runtime):
            action = f"write the engines of {artifact.path}"
            module = builder_of(artifact, action)
            module.carry(artifact, module.plan(artifact, sms, options or {}), folder, action)


def plan(
    artifact: Artifact, *, sms: Sequence[str] = (), options: Mapping[str, Option] | None = None
) -> list[dict[str, Any]]:
    """Return the engines that :func:`build` would build or reuse, in one row each; nothing is built.

    Returns:
        ``builds`` (there is no engine that fits), ``because``, ``folder``, ``memory_mb`` that building takes, about,
        ``available_mb`` of this machine's, and ``earlier``: builds of the same graph, with the ``seconds`` and the
        ``peak_mb`` of resident memory that they took.

    Raises:
        UsageError, ResourceError, NotInstalledError: as :func:`build`, before it builds.
    """
    module = builder_of(artifact, f"plan the engines of {artifact.path}")
    available_mb = memory().available_mb
    return [
        {
            "artifact": str(artifact.path),
            "runtime": f"{each.metadata.package} {each.metadata.version}",
            "gpu": each.metadata.gpu,
            "sm": each.metadata.sm,
            "builds": each.builds,
            "because": each.because,
            "folder": str(each.folder),
            "memory_mb": each.memory_mb,
            "available_mb": available_mb,
            "earlier": [
                {
                    "runtime": f"{one.package} {one.version}",
                    "gpu": one.gpu,
                    "sm": one.sm,
                    "seconds": one.seconds,
                    "peak_mb": one.peak_mb,
                }
                for one in each.earlier
            ],
        }
        for each in module.plan(artifact, sms, options or {})
    ]


def commands(artifact: Artifact) -> list[dict[str, str]]:
    """Return command lines of the runtime's own tools for the same graph: each one's ``purpose`` and ``command``.

    Raises:
        UsageError: vitedge knows none for this runtime.
    """
    runtime = artifact.manifest.target.runtime
    if not runtimes.has(runtime, "commands"):
        raise UsageError(
            f"write command lines for {artifact.path}",
            f"there are none for {runtime}: trtexec and Polygraphy build for TensorRT",
            "see docs/without-vitedge.md for a program that runs its graph",
        )
    rows = runtimes.part(runtime, "commands").commands(artifact)
    return [{"purpose": purpose, "command": command} for purpose, command in rows]


def explain(
    artifacts: Sequence[Artifact], options: OpenOptions | None = None, progress: Progress = silent
) -> tuple[dict[str, Any], list[str]]:
    """Explain each artifact's engine, and why one is slower than another.

    Returns:
        An explanation by artifact, and sentences that compare them.

    Raises:
        as :func:`vitedge.runtimes.session.open_session`: it takes a GPU to read an engine.
    """
    explanations: dict[str, Any] = {}
    module = builder_of(artifacts[0], "explain an engine")
    for number, artifact in enumerate(artifacts):
        progress("explain", number, len(artifacts))
        builder_of(artifact, f"explain the engine of {artifact.path}")
        with open_session(artifact, options) as session:
            frames = artifact.array(GOLDEN_INPUTS)
            images = np.resize(frames, session.input_shape) if len(frames) else np.zeros(session.input_shape, np.uint8)
            profile = session.profile(images, PROFILES)
            layers = module.parse_layers(session.layer_information() or "")
        explanations[str(artifact.path)] = module.explain_layers(layers, artifact.manifest.layers, profile)
    progress("explain", len(artifacts), len(artifacts))
    return explanations, module.compare(explanations)
