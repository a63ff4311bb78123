"""Engines of TensorRT: see :mod:`vitedge.runtimes._nvidia.building`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitedge.core.progress import Progress
from vitedge.formats.artifact import Artifact
from vitedge.formats.target import Option
from vitedge.runtimes._nvidia import building, engines, explain, layers
from vitedge.runtimes._nvidia.engines import ObtainedEngine, Outlook
from vitedge.runtimes.tensorrt.detect import PACKAGE, installed

parse_layers, explain_layers, compare = layers.parse, explain.explain, explain.compare
export_engines, carry = engines.export_engines, engines.carry


def build(
    artifact: Artifact, sms: Sequence[str], options: Mapping[str, Option], progress: Progress
) -> list[ObtainedEngine]:
    """Return the engines of one artifact, in the cache."""
    return building.build(PACKAGE, installed() or "", artifact, sms, options, progress)


def plan(artifact: Artifact, sms: Sequence[str], options: Mapping[str, Option]) -> list[Outlook]:
    """Return the engines that :func:`build` would build or reuse with the same arguments."""
    return building.plan(PACKAGE, installed() or "", artifact, sms, options)
