"""From a model and a wish to an artifact: observe, place, check, prove, judge, write.

Nothing is written before everything has been checked, and nothing that was asked for is replaced by something else.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from msgspec import to_builtins as encoded
from msgspec.structs import replace

from vitedge import runtimes
from vitedge.artifact import (
    GOLDEN_INPUTS,
    GOLDEN_LOGITS,
    GOLDEN_REFERENCE,
    Artifact,
    CandidateResult,
    Fidelity,
    npy,
    write_artifact,
)
from vitedge.candidates import PROFILED, Built, Materials, candidates, gather
from vitedge.catalogue import cache_folder
from vitedge.errors import InputError
from vitedge.files import resource_errors, sha256, write_atomic
from vitedge.hardware import processor
from vitedge.judging import runs_here, trial
from vitedge.planning import Plan
from vitedge.progress import Progress, silent
from vitedge.runtimes.contract import BUDGET, OpenOptions
from vitedge.runtimes.session import open_session
from vitedge.schema import Record, decode_json, encode_json
from vitedge.target import QUANTIZED, Candidate
from vitedge.tuning.explain import Explained
from vitedge.tuning.explain import explain as explained


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
    with resource_errors(plan.asked):
        materials = gather(plan, progress)
        judged = candidates(materials, progress)
        times = _measured(materials, judged, progress) if plan.autotune else {}
        fit = [built for built in judged if built.holds is not False]
        chosen = min(fit, key=lambda built: times.get(built.candidate, 0.0))  # of equals the first
        results = tuple(
            replace(built.result, chosen=built is chosen, latency_p50_ms=times.get(built.candidate)) for built in judged
        )
        return _write(materials, chosen, results, plan.out, overwrite=plan.overwrite)


def _write(
    materials: Materials, built: Built, results: tuple[CandidateResult, ...], out: Path, *, overwrite: bool
) -> Artifact:
    files = {
        **built.placed.files,
        **materials.pictures,
        GOLDEN_INPUTS: npy(materials.inputs),
        GOLDEN_LOGITS: npy(built.logits),
        GOLDEN_REFERENCE: npy(materials.reference),
    }
    manifest = replace(built.manifest, candidates=results)
    return write_artifact(out, manifest, files, overwrite=overwrite, asked=materials.plan.asked)


def _measured(materials: Materials, judged: Sequence[Built], progress: Progress) -> dict[Candidate, float]:
    """Median milliseconds of every candidate that holds the budget, measured in turns on this machine."""
    from vitedge.harness.bench import Wish, bench

    fit = [built for built in judged if built.holds is not False]
    kept = _tuning_file(materials, fit)
    with contextlib.suppress(OSError, InputError):
        known = decode_json(kept.read_bytes(), Tuning, asked=materials.plan.asked, file=kept.name).p50_ms
        if len(known) == len(fit):
            return {built.candidate: ms for built, ms in zip(fit, known, strict=True)}
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        artifacts = [
            _write(materials, built, (), Path(folder) / str(number), overwrite=False)
            for number, built in enumerate(fit)
        ]
        rows = bench(artifacts, Wish(memory_alone=False), progress=progress).rows
    found = {}
    for built, row in zip(fit, rows, strict=True):
        assert row.latency is not None
        found[built.candidate] = float(np.median(row.latency.samples.latency_ns)) / 1e6
    write_atomic(kept, encode_json(Tuning(p50_ms=tuple(found.values()))), materials.plan.asked)
    return found


def explain(plan: Plan, artifact: Artifact) -> Explained:
    """Why an artifact that this plan wrote is as fast and as exact as it is; with times where its target runs here."""
    from vitedge.graph.surgery import load

    manifest = artifact.manifest
    plain = next((each for each in plan.target.candidate if each.precision not in QUANTIZED), None)
    if plain is None or manifest.precision not in QUANTIZED or not runs_here(plan.target):
        return explained(str(artifact.path), manifest)
    inputs, reference = artifact.array(GOLDEN_INPUTS), artifact.array(GOLDEN_REFERENCE)
    placed = Materials(plan, load(plan.model.onnx_path), {}, inputs, reference).place(plain)
    frames = np.resize(inputs, (plan.batch, *inputs.shape[1:]))
    with trial(replace(manifest, layers=placed.layers), placed, plan.asked) as running:
        before = running.session.profile(frames, PROFILED) if running.session else ()
    with open_session(artifact, OpenOptions(threads=1)) as session:
        after = session.profile(frames, PROFILED)
    return explained(str(artifact.path), manifest, before, after)


class Tuning(Record):
    """What was measured, kept in the cache folder for the next export of the same."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    p50_ms: tuple[float, ...]  # of the candidates, in the target's order


def _tuning_file(materials: Materials, fit: Sequence[Built]) -> Path:
    """Keyed by all that decides on speed: the graphs, the processor and its instruction sets, the runtime's version."""
    plan, cpu = materials.plan, processor()
    graphs = [sha256(b"".join(built.placed.files.values())) for built in fit]
    version = runtimes.require(plan.target.runtime, plan.asked)
    words = [plan.target.runtime, version, str(plan.target.threads), cpu.model or "", *sorted(cpu.isa or ()), *graphs]
    return cache_folder() / "tuning" / f"{sha256(chr(0).join(words).encode())[:32]}.json"


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
        "candidates": encoded(manifest.candidates),
        "left_in_float": [layer.name for layer in manifest.layers if layer.reason == BUDGET],
        "calibration_images": manifest.calibration.count if manifest.calibration else None,
        "skipped_images": list(manifest.calibration.skipped) if manifest.calibration else [],
        "digest": artifact.digest,
    }


def _judges(found: Fidelity | None) -> str | None:
    """Which pictures said so, in words."""
    if found is None:
        return None
    return f"{found.pictures} {found.seen} pictures of {found.source}"
