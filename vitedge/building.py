"""``vitedge build``: engines in the cache, or in a folder that travels; the fastest of several candidates; why.

A runtime that builds has a module ``build`` in its folder; the others open their files as they are.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge import runtimes
from vitedge.artifact import GOLDEN_INPUTS, Artifact
from vitedge.errors import InvalidResultError, UsageError
from vitedge.files import new_folder, refuse_existing
from vitedge.progress import Progress, silent
from vitedge.runtimes.contract import OpenOptions
from vitedge.runtimes.session import open_session
from vitedge.schema import Record
from vitedge.target import Option

if TYPE_CHECKING:
    from vitedge.result import Result

#: From what changes a model least to what changes it most: the first that is given is the reference of accuracy.
FIDELITY = ("fp32", "fp16", "bf16", "mixed", "fp8", "int8")
PROFILES = 20


class Timed(Record):
    """One candidate, built and measured on this device."""

    artifact: str
    precision: str
    latency_p50_ms: float
    latency_p95_ms: float
    drop_pts: float | None  # percentage points of top-1 against the reference; None: not measured
    chosen: bool = False
    reason: str = ""


def builder_of(artifact: Artifact, asked: str) -> ModuleType:
    """The runtime's module that builds.

    Raises:
        UsageError: this runtime opens its files as they are.
        NotInstalledError: it isn't installed.
    """
    runtime = artifact.manifest.target.runtime
    if importlib.util.find_spec(f"vitedge.runtimes.{runtime}.build") is None:
        raise UsageError(asked, f"{runtime} opens its files as they are: there is no engine to build", "open it")
    runtimes.require(runtime, asked)
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
        out: write them as a folder, too, to travel beside the artifact.
        options: build options over the manifest's.
        overwrite: permit replacing ``out``.
        progress: called with (task, done, total).

    Raises:
        UsageError, ArtifactError, ResourceError, NotInstalledError: as the runtime's ``build``.
    """
    asked = f"build the engines of {artifact.path}"
    module = builder_of(artifact, asked)
    if out is not None:
        refuse_existing(out, overwrite=overwrite, asked=asked)
    found = module.build(artifact, sms, options or {}, progress)
    if out is not None:
        module.export_engines(artifact, found, out, overwrite=overwrite, asked=asked)
    return [
        {
            "artifact": str(artifact.path),
            "runtime": f"{one.passport.package} {one.passport.version}",
            "gpu": one.passport.gpu,
            "sm": one.passport.sm,
            "bytes": len(one.plan),
            "built": one.built,
            "seconds": one.passport.seconds,
            "because": one.rebuilt_because,
            "folder": str(one.folder if out is None else out),
        }
        for one in found
    ]


def explain(
    artifacts: Sequence[Artifact], options: OpenOptions | None = None, progress: Progress = silent
) -> tuple[dict[str, Any], list[str]]:
    """Say what each artifact's engine does, and why one is slower than another.

    Returns:
        An explanation by artifact, and sentences that compare them.

    Raises:
        as :func:`vitedge.runtimes.session.open_session`: it takes a GPU to read an engine.
    """
    found: dict[str, Any] = {}
    module = builder_of(artifacts[0], "explain an engine")
    for number, artifact in enumerate(artifacts):
        progress("explain", number, len(artifacts))
        builder_of(artifact, f"explain the engine of {artifact.path}")
        with open_session(artifact, options) as session:
            frames = artifact.array(GOLDEN_INPUTS)
            images = np.resize(frames, session.input_shape) if len(frames) else np.zeros(session.input_shape, np.uint8)
            profile = session.profile(images, PROFILES)
            layers = module.parse_layers(session.layer_information() or "")
        found[str(artifact.path)] = module.explain_layers(layers, artifact.manifest.layers, profile)
    progress("explain", len(artifacts), len(artifacts))
    return found, module.compare(found)


def choose(candidates: Sequence[Timed], *, max_drop_pts: float, latency_p95_ms: float | None = None) -> list[Timed]:
    """Mark the fastest candidate within the budget; each gets the reason why it's chosen or not.

    Raises:
        InvalidResultError: none is within the budget.
    """
    from msgspec.structs import replace

    against: dict[int, str] = {}
    for number, one in enumerate(candidates):
        if one.drop_pts is not None and one.drop_pts > max_drop_pts:
            against[number] = f"loses {one.drop_pts:.2f} points of top-1; the budget is {max_drop_pts:g}"
        elif latency_p95_ms is not None and one.latency_p95_ms > latency_p95_ms:
            against[number] = f"p95 is {one.latency_p95_ms:.2f} ms; the budget is {latency_p95_ms:g} ms"
    left = [number for number in range(len(candidates)) if number not in against]
    if not left:
        raise InvalidResultError(
            "choose the fastest candidate",
            "; ".join(f"{one.artifact} {against[number]}" for number, one in enumerate(candidates)),
            "export further precisions, or widen the target's [budget]",
        )
    best = min(left, key=lambda number: candidates[number].latency_p50_ms)
    fastest = candidates[best]
    reasons = {
        number: f"{one.latency_p50_ms / fastest.latency_p50_ms:.2f}× the time of {fastest.artifact}"
        for number, one in enumerate(candidates)
    }
    reasons[best] = "the fastest within the budget"
    return [
        replace(one, chosen=number == best, reason=against.get(number, reasons[number]))
        for number, one in enumerate(candidates)
    ]


def autotune(
    artifacts: Sequence[Artifact],
    *,
    data: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    duration_s: float | None = None,
    progress: Progress = silent,
) -> list[Timed]:
    """Build candidates of one model, measure them in turns on this device, and keep the fastest within the budget.

    Args:
        artifacts: of one model, for this device, each in another precision.
        data: labelled pictures; needed where a candidate is quantized and the model isn't the embedded one.
        out: copy the chosen artifact there.
        overwrite: permit replacing ``out``.
        duration_s: measure each for at least so long; None: as the targets say.
        progress: called with (task, done, total).

    Raises:
        UsageError: fewer than two, or of different models.
        InvalidResultError: none is within the budget.
        Others as :func:`vitedge.harness.bench.bench` and :func:`vitedge.accuracy.evaluate.evaluate`.
    """
    from vitedge import embedded
    from vitedge.accuracy.evaluate import evaluate
    from vitedge.harness.bench import Wish, bench

    asked = "choose the fastest candidate"
    if len(artifacts) < 2 or len({artifact.manifest.model_digest for artifact in artifacts}) > 1:
        raise UsageError(
            asked,
            "it takes two or more artifacts of one model, each in another precision",
            "export them: vitedge export MODEL -t TARGET -p fp16 --out fp16/, then -p int8 --out int8/",
        )
    if out is not None:
        refuse_existing(out, overwrite=overwrite, asked=asked)
    images = None
    if any(artifact.manifest.calibration is not None for artifact in artifacts):
        if data is None and artifacts[0].manifest.origin.kind != "embedded":
            raise UsageError(
                asked,
                "quantized candidates lose accuracy, and how much is seen on labelled pictures alone",
                "name a folder with one sub-folder a class: --data labelled/",
            )
        images = embedded.open_images(data or "held-out", asked=asked)
    for artifact in artifacts:
        builder_of(artifact, asked).build(artifact, (), {}, progress)
    measured = bench(artifacts, Wish(duration_s=duration_s, memory_alone=False), progress=progress)
    judged: Result | None = None
    if images is not None:
        judged = evaluate(artifacts, images, progress=progress)
    budget = artifacts[0].manifest.target.budget
    timed = choose(
        _timed(artifacts, measured, judged),
        max_drop_pts=budget.max_accuracy_drop_pts,
        latency_p95_ms=budget.latency_p95_ms,
    )
    if out is not None:
        winner = next(artifact for artifact, one in zip(artifacts, timed, strict=True) if one.chosen)
        with new_folder(out, overwrite=overwrite, asked=asked, last="manifest.sha256") as folder:
            shutil.copytree(winner.path, folder, dirs_exist_ok=True)
        Artifact.open(out)
    return timed


def _timed(artifacts: Sequence[Artifact], measured: Result, judged: Result | None) -> list[Timed]:
    rows = judged.rows if judged is not None else ()
    hits = {row.subject.digest: float(np.mean(np.equal(row.accuracy.rank, 0))) for row in rows if row.accuracy}
    reference = min(artifacts, key=lambda artifact: FIDELITY.index(artifact.manifest.precision))
    found = []
    for artifact, row in zip(artifacts, measured.rows, strict=True):
        assert row.latency is not None
        times = np.asarray(row.latency.samples.latency_ns) / 1e6
        drop = 100 * (hits[reference.digest] - hits[artifact.digest]) if hits else None
        found.append(
            Timed(
                artifact=str(artifact.path),
                precision=artifact.manifest.precision,
                latency_p50_ms=float(np.percentile(times, 50)),
                latency_p95_ms=float(np.percentile(times, 95)),
                drop_pts=drop,
            )
        )
    return found
