"""From a model and a wish to an artifact: observe, place, check, prove, judge, write.

Nothing is written before everything has been checked, and nothing that was asked for is replaced by something else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import to_builtins as encoded
from msgspec.structs import replace

from vitedge.benchmarking.speeds import Speed, speeds
from vitedge.core.files import resource_errors
from vitedge.core.progress import Progress, silent
from vitedge.device.hardware import processor
from vitedge.errors import InvalidResultError
from vitedge.exporting.candidates import PROFILED, Built, Materials, gather
from vitedge.exporting.evaluate import trial
from vitedge.exporting.explain import Explained
from vitedge.exporting.explain import explain as explained
from vitedge.exporting.plan import Plan
from vitedge.exporting.select import candidates
from vitedge.formats.artifact import (
    CANDIDATES,
    GOLDEN_INPUTS,
    GOLDEN_LOGITS,
    GOLDEN_REFERENCE,
    Artifact,
    CandidateResult,
    artifact_files,
    npy,
    write_artifact,
)
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.target import QUANTIZED, Candidate
from vitedge.runtimes.base import BUDGET, NO_GAIN, PRICE, OpenOptions
from vitedge.runtimes.here import runs_here
from vitedge.runtimes.session import open_session


def export(plan: Plan, progress: Progress = silent) -> Artifact:
    """Carry out a plan.

    Returns:
        The written artifact, opened.

    Raises:
        ImageError: too many calibration images can't be read.
        UsageError: the held-out pictures can't show that the budget holds.
        ArtifactError: the graph has something that the target can't take (listed).
        InvalidResultError: the result isn't finite, fewer layers run quantized than planned, or no candidate holds the
            budget.
        ResourceError: disk, memory, permission, or another export to the same folder.
    """
    with resource_errors(plan.action):
        materials = gather(plan, progress)
        judged, failed = candidates(materials, progress)
        fit = [built for built in judged if built.holds is not False]
        measured = _measured(materials, fit, progress) if plan.autotune else {}
        times = {candidate: speed.p50_ms for candidate, speed in measured.items()}
        failed |= {candidate: speed.wrong for candidate, speed in measured.items() if speed.wrong}
        judged = [built for built in judged if built.candidate not in failed]
        fit = [built for built in fit if built.candidate not in failed]
        if not fit:
            raise InvalidResultError(
                plan.action, "; ".join(failed.values()), "nothing was published; report this graph"
            )
        chosen = min(fit, key=lambda built: times.get(built.candidate, 0.0))  # of equals the first
        carried = {built.candidate: _folder(built) for built in fit if plan.with_candidates and built is not chosen}
        results = tuple(
            replace(
                built.result,
                chosen=built is chosen,
                latency_p50_ms=times.get(built.candidate),
                folder=carried.get(built.candidate),
            )
            for built in judged
        )
        results += tuple(
            CandidateResult(precision=one.precision, form=one.form, failed=why) for one, why in failed.items()
        )
        files = _files(materials, chosen)
        for built in fit:
            if built.candidate in carried:
                alone = replace(built.manifest, candidates=(replace(built.result, chosen=True),))
                inside = artifact_files(alone, _files(materials, built))
                files |= {f"{_folder(built)}/{name}": data for name, data in inside.items()}
        manifest = replace(chosen.manifest, candidates=results)
        return write_artifact(plan.out, manifest, files, overwrite=plan.overwrite, action=plan.action)


def _folder(built: Built) -> str:
    """Where a candidate lies that travels with the artifact."""
    return f"{CANDIDATES}/{built.candidate.precision}-{built.candidate.form}"


def _files(materials: Materials, built: Built) -> dict[str, bytes]:
    return {
        **built.placed.files,
        **materials.pictures,
        GOLDEN_INPUTS: npy(materials.inputs),
        GOLDEN_LOGITS: npy(built.logits),
        GOLDEN_REFERENCE: npy(materials.reference),
    }


def _measured(materials: Materials, fit: Sequence[Built], progress: Progress) -> dict[Candidate, Speed]:
    """Every candidate that holds the budget, measured in turns on this machine."""
    action = materials.plan.action
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        artifacts = [
            write_artifact(
                Path(folder) / str(number), built.manifest, _files(materials, built), overwrite=False, action=action
            )
            for number, built in enumerate(fit)
        ]
        found = speeds(artifacts, action=action, progress=progress)
    return {built.candidate: speed for built, speed in zip(fit, found, strict=True)}


def explain(plan: Plan, artifact: Artifact) -> Explained:
    """Why an artifact that this plan wrote is as fast and as exact as it is; with times where its target runs here."""
    from vitedge.graph.surgery import load

    manifest = artifact.manifest
    if plan.target.plain is None or manifest.precision not in QUANTIZED or not runs_here(plan.target):
        return explained(str(artifact.path), manifest)
    inputs, reference = artifact.array(GOLDEN_INPUTS), artifact.array(GOLDEN_REFERENCE)
    materials = Materials(plan, load(plan.model.onnx_path), {}, inputs, reference)
    placed, frames = materials.plain, materials.frames
    assert placed is not None
    with trial(replace(manifest, layers=placed.layers), placed, plan.action) as running:
        before = running.session.profile(frames, PROFILED) if running.session else ()
    with open_session(artifact, OpenOptions(threads=1)) as session:
        after = session.profile(frames, PROFILED)
    isa = None if plan.target.device.startswith("cuda") else processor().isa
    return explained(str(artifact.path), manifest, before, after, isa)


def summary(artifact: Artifact) -> dict[str, Any]:
    """What an export wrote: one flat row."""
    manifest = artifact.manifest
    return {
        "artifact": str(artifact.path),
        "target": manifest.target.name,
        "precision": manifest.precision,
        "form": manifest.form,
        "obtained": manifest.precision_obtained,
        "bytes": artifact.bytes,
        "deviation": manifest.golden.deviation,
        "executed_by": manifest.golden.executed_by,
        "divergence": manifest.fidelity.divergence if manifest.fidelity else None,
        "agreement": manifest.fidelity.agreement if manifest.fidelity else None,
        "drop": encoded(manifest.fidelity.drop) if manifest.fidelity else None,
        "judged_on": _judges(manifest.fidelity),
        "max_drop_pts": manifest.max_drop_pts,
        "min_agreement_pct": manifest.min_agreement_pct,
        "candidates": encoded(manifest.candidates),
        "left_in_float": [layer.name for layer in manifest.layers if layer.reason in (BUDGET, NO_GAIN, PRICE)],
        "calibration_images": manifest.calibration.count if manifest.calibration else None,
        "skipped_images": list(manifest.calibration.skipped) if manifest.calibration else [],
        "digest": artifact.digest,
    }


def _judges(found: Fidelity | None) -> str | None:
    """Which pictures said so, in words."""
    if found is None:
        return None
    return f"{found.pictures} {found.seen} pictures of {found.source}"
