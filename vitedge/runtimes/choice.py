"""The candidate of an artifact that runs on this machine: ``vitedge build`` measures here and keeps the choice.

An artifact may carry candidates, each an artifact of its own in the folder ``candidates/``. The artifact itself is the
target's stated preference, and runs until a choice was made for this machine and this version of the runtime.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from msgspec import field

from vitedge import runtimes
from vitedge.core.files import write_atomic
from vitedge.core.schema import Record, decode_json, encode_json
from vitedge.device import hardware
from vitedge.errors import InputError, printable
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import Target

CHOICE, CHOICES = "choice.json", ".choices"  # in the cache; the ending of a folder beside the artifact


class Timed(Record):
    """One candidate, built and measured on this device."""

    artifact: str
    precision: str
    latency_p50_ms: float
    latency_p95_ms: float
    top1_drop_pp: float | None = field(name="drop_pts")  # against the reference; None: not measured
    chosen: bool = False
    reason: str = ""
    variant: str = field(default="", name="form")


class Choice(Record):
    """The contents of ``choice.json`` in the artifact's cache folder."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    runtime: str  # with its version
    hardware: str  # processor, its instruction sets, NVIDIA GPUs
    measured: tuple[Timed, ...]  # ``artifact`` is the folder within the artifact, "." for itself


def candidates_of(artifact: Artifact) -> list[Artifact]:
    """Return the artifact itself, and the candidates that travel with it.

    Raises:
        ArtifactError: one of them is damaged.
    """
    return [artifact, *(Artifact.open(artifact.path / folder) for folder in folders(artifact))]


def folders(artifact: Artifact) -> list[str]:
    """Return the folders of the candidates that travel with an artifact; most artifacts have none."""
    return [candidate.folder for candidate in artifact.manifest.candidates if candidate.folder is not None]


def hardware_description(target: Target) -> str:
    """Return the hardware that a choice is valid for: processor and instruction sets, and the GPUs of a GPU target."""
    cpu = hardware.processor()
    names = [cpu.model or "unknown processor", *sorted(cpu.isa or ())]
    if target.device.startswith("cuda"):
        names += [f"{gpu.name} {gpu.compute_capability}" for gpu in hardware.gpus()]
    return " ".join(names)


def read_choice(artifact: Artifact) -> Choice | None:
    """Return the choice that was made here, or on an equal machine, with this version of the runtime; else None."""
    path = _path(artifact)
    if path is None:
        return None
    beside = artifact.path.with_name(artifact.path.name + CHOICES)
    for place in (path, beside / _name(path)):
        with contextlib.suppress(OSError, InputError):
            choice = decode_json(place.read_bytes(), Choice, action=f"open the artifact {artifact.path}", file=CHOICE)
            travelling = {".", *folders(artifact)}
            if sum(timed.chosen for timed in choice.measured) == 1 and travelling.issuperset(
                timed.artifact for timed in choice.measured
            ):
                return choice
    return None


def write_choice(artifact: Artifact, measured: tuple[Timed, ...], action: str) -> Path:
    """Write a choice to the cache; return its file.

    Raises:
        ResourceError: the cache can't be written.
    """
    target, path = artifact.manifest.target, _path(artifact)
    assert path is not None, "what was measured is installed"
    version = runtimes.require(target.runtime, action)
    choice = Choice(runtime=f"{target.runtime} {version}", hardware=hardware_description(target), measured=measured)
    write_atomic(path, encode_json(choice), action)
    return path


def export_choice(artifact: Artifact, folder: Path, action: str) -> None:
    """Write the choice for this machine into a folder that travels, and keep the choices of other machines there.

    Called ``ARTIFACT.choices``, the folder is found beside the artifact. A choice is bound to the processor, its
    instruction sets, the GPU and the runtime's version, so on another kind of machine it isn't taken.

    Raises:
        ResourceError: it can't be written.
    """
    choice, path = read_choice(artifact), _path(artifact)
    if choice is not None and path is not None:
        write_atomic(folder / _name(path), encode_json(choice), action)


def _name(path: Path) -> str:
    """Return the name of a choice in a folder of several, from its place in the cache."""
    return f"{path.parent.name}.json"


def open_artifact(path: str | Path) -> Artifact:
    """Open the artifact at ``path``, or the one of its candidates that was chosen for this machine.

    :attr:`vitedge.formats.artifact.Artifact.because` says which it is and why, and so does a line on a terminal's
    stderr.

    Raises:
        UsageError: there is no such folder.
        ArtifactError: it's damaged.
    """
    artifact = Artifact.open(path)
    others = folders(artifact)
    if not others:
        return artifact
    choice = read_choice(artifact)
    if choice is None:
        opened, runtime = artifact, artifact.manifest.target.runtime
        because = f"the target's preference; {len(others)} more candidates weren't measured here with this {runtime}"
        say = f"to choose by measuring: vitedge build {path}"
    else:
        timed = next(timed for timed in choice.measured if timed.chosen)
        opened = artifact if timed.artifact == "." else Artifact.open(artifact.path / timed.artifact)
        because = f"chosen of {len(choice.measured)} candidates on this machine, {choice.runtime}: {timed.reason}"
        say = f"to measure again: vitedge build {path} --overwrite"
    if sys.stderr.isatty():
        sys.stderr.write(f"{printable(f'{path} runs {opened.manifest.variant}: {because} ({say})')}\n")
    return replace(opened, because=because)


def _path(artifact: Artifact) -> Path | None:
    """Return the path of the choice for this machine; None where the runtime isn't installed."""
    target = artifact.manifest.target
    version = runtimes.installed(target.runtime)
    return None if version is None else artifact.cache(version, hardware_description(target)) / CHOICE
