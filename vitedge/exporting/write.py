"""From a plan to an artifact: evaluate candidates, choose one, write it.

Nothing is written before everything has been checked, and nothing that was asked for is replaced by something else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import to_builtins as encoded
from msgspec.structs import replace

from vitedge import runtimes
from vitedge.benchmarking.speeds import Speed, speeds
from vitedge.core.files import resource_errors
from vitedge.core.intervals import wilson
from vitedge.core.progress import Progress, silent
from vitedge.device.hardware import processor
from vitedge.errors import InvalidResultError
from vitedge.exporting.candidates import Evaluated, ExportInputs, load_inputs
from vitedge.exporting.division import COST_OF_FEWER
from vitedge.exporting.explain import Explained
from vitedge.exporting.explain import explain as explained
from vitedge.exporting.plan import Plan
from vitedge.exporting.runnable import opened
from vitedge.exporting.select import evaluate_candidates
from vitedge.exporting.sensitivity import PROFILED
from vitedge.exporting.tolerance import with_tolerance
from vitedge.formats.artifact import (
    CANDIDATES,
    GOLDEN_INPUTS,
    GOLDEN_LOGITS,
    GOLDEN_REFERENCE,
    Artifact,
    CandidateResult,
    Manifest,
    artifact_files,
    npy,
    write_artifact,
)
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.target import QUANTIZED, Candidate
from vitedge.runtimes.base import BUDGET, NO_GAIN, PRICE, OpenOptions
from vitedge.runtimes.here import runs_here
from vitedge.runtimes.session import open_session

#: With fewer hold-out pictures than this, an export says what they can't show.
FEW = 64


def export(plan: Plan, progress: Progress = silent) -> Artifact:
    """Carry out a plan.

    Returns:
        The written artifact, opened.

    Raises:
        ImageError: too many calibration images can't be read.
        UsageError: the hold-out pictures can't show that the budget holds.
        ArtifactError: the graph has something that the target can't take (listed).
        InvalidResultError: the result isn't finite, fewer layers run quantized than planned, or no candidate stays
            within the budget.
        ResourceError: disk, memory, permission, or another export to the same folder.
    """
    with resource_errors(plan.action):
        inputs = load_inputs(plan, progress)
        evaluated, failures = evaluate_candidates(inputs, progress)
        evaluated = [with_tolerance(inputs, each) if each.acceptable else each for each in evaluated]
        measured: Mapping[Candidate, Speed] = {}
        if plan.autotune:
            measured = _measure(inputs, [each for each in evaluated if each.acceptable], progress)
            failures |= {candidate: speed.wrong for candidate, speed in measured.items() if speed.wrong}
            evaluated = [each for each in evaluated if each.candidate not in failures]
        return _write(inputs, evaluated, failures, measured)


def _measure(inputs: ExportInputs, evaluated: Sequence[Evaluated], progress: Progress) -> dict[Candidate, Speed]:
    """Measure the speed of candidates on this machine, interleaved."""
    action = inputs.plan.action
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        artifacts = [
            write_artifact(
                Path(folder) / str(number), each.manifest, _files(inputs, each), overwrite=False, action=action
            )
            for number, each in enumerate(evaluated)
        ]
        measured = speeds(artifacts, action=action, progress=progress)
    return {each.candidate: speed for each, speed in zip(evaluated, measured, strict=True)}


def _write(
    inputs: ExportInputs,
    evaluated: Sequence[Evaluated],
    failures: Mapping[Candidate, str],
    measured: Mapping[Candidate, Speed],
) -> Artifact:
    """Write the fastest acceptable candidate, or the first where none was measured, with the others that it includes.

    Raises:
        InvalidResultError: none of those that were measured is left.
    """
    plan = inputs.plan
    acceptable = [each for each in evaluated if each.acceptable]
    if not acceptable:
        raise InvalidResultError(plan.action, "; ".join(failures.values()), "nothing was published; report this graph")
    times_ms = {candidate: speed.p50_ms for candidate, speed in measured.items()}
    chosen = min(acceptable, key=lambda each: times_ms.get(each.candidate, 0.0))  # of equals the first
    carried = [each for each in acceptable if plan.with_candidates and each is not chosen]
    results = [
        replace(
            each.result,
            chosen=each is chosen,
            latency_p50_ms=times_ms.get(each.candidate),
            folder=_folder(each) if each in carried else None,
        )
        for each in evaluated
    ]
    results += [
        CandidateResult(precision=candidate.precision, variant=candidate.variant, failed=reason)
        for candidate, reason in failures.items()
    ]
    files = _files(inputs, chosen)
    for each in carried:
        manifest = replace(each.manifest, candidates=(replace(each.result, chosen=True),))
        inside = artifact_files(manifest, _files(inputs, each))
        files |= {f"{_folder(each)}/{name}": data for name, data in inside.items()}
    manifest = replace(chosen.manifest, candidates=tuple(results))
    return write_artifact(plan.out, manifest, files, overwrite=plan.overwrite, action=plan.action)


def _folder(evaluated: Evaluated) -> str:
    """Return the folder of an included candidate."""
    return f"{CANDIDATES}/{evaluated.candidate.precision}-{evaluated.candidate.variant}"


def _files(inputs: ExportInputs, evaluated: Evaluated) -> dict[str, bytes]:
    """Return the content of a candidate's artifact by file name."""
    return {
        **evaluated.lowered.files,
        **inputs.golden_files,
        GOLDEN_INPUTS: npy(inputs.golden_inputs),
        GOLDEN_LOGITS: npy(evaluated.golden_logits),
        GOLDEN_REFERENCE: npy(inputs.golden_reference),
    }


def explain(plan: Plan, artifact: Artifact) -> Explained:
    """Explain speed and accuracy of an artifact that this plan wrote; with times where its target runs here.

    Where a runtime has rules for what it fuses, what its graph makes of them is said, too, without that runtime.
    """
    from vitedge.graph.surgery import load

    explanation = _explained(plan, artifact)
    preflight = runtimes.part(plan.target.runtime, "preflight")
    if not hasattr(preflight, "sentences"):
        return explanation
    fusing = preflight.sentences(load(artifact.graph_path))
    return replace(explanation, sentences=(*explanation.sentences, *fusing))


def _explained(plan: Plan, artifact: Artifact) -> Explained:
    """Return the layers and, where its target runs here, the times."""
    from vitedge.graph.surgery import load

    manifest = artifact.manifest
    if plan.target.plain is None or manifest.precision not in QUANTIZED or not runs_here(plan.target):
        return explained(str(artifact.path), manifest)
    golden = artifact.array(GOLDEN_INPUTS), artifact.array(GOLDEN_REFERENCE)
    inputs = ExportInputs(plan, load(plan.model.onnx_path), {}, *golden)
    lowered, frames = inputs.lowered_float, inputs.golden_batch
    assert lowered is not None
    with opened(replace(manifest, layers=lowered.layers), lowered, plan.action) as runnable:
        before = runnable.session.profile(frames, PROFILED) if runnable.session else ()
    with open_session(artifact, OpenOptions(threads=1)) as session:
        after = session.profile(frames, PROFILED)
    isa = None if plan.target.device.startswith("cuda") else processor().isa
    return explained(str(artifact.path), manifest, before, after, isa)


def summary(artifact: Artifact) -> dict[str, Any]:
    """Return the summary of an export as one flat row."""
    manifest = artifact.manifest
    return {
        "artifact": str(artifact.path),
        "target": manifest.target.name,
        "precision": manifest.precision,
        "form": manifest.variant,
        "obtained": manifest.precision_obtained,
        "bytes": artifact.bytes,
        "deviation": manifest.golden.deviation,
        "executed_by": manifest.golden.executed_by,
        "divergence": manifest.fidelity.divergence if manifest.fidelity else None,
        "agreement": manifest.fidelity.agreement if manifest.fidelity else None,
        "drop": encoded(manifest.fidelity.top1_drop) if manifest.fidelity else None,
        "judged_on": _pictures(manifest.fidelity),
        "max_drop_pts": manifest.max_top1_drop_pp,
        "min_agreement_pct": manifest.min_top1_agreement_pct,
        "candidates": encoded(manifest.candidates),
        "left_in_float": [layer.name for layer in manifest.layers if layer.reason in (BUDGET, NO_GAIN, PRICE)],
        "calibration_images": manifest.calibration.count if manifest.calibration else None,
        "skipped_images": list(manifest.calibration.skipped) if manifest.calibration else [],
        "notes": list(_notes(manifest)),
        "digest": artifact.digest,
    }


def _notes(manifest: Manifest) -> Iterator[str]:
    """Yield remarks on what so few pictures can't show."""
    recipe, calibration, fidelity = manifest.recipe, manifest.calibration, manifest.fidelity
    if recipe and calibration and calibration.count < recipe.observe.num_samples:
        yield (
            f"{calibration.count} images of {calibration.source} were observed, where the recipe asks for "
            f"{recipe.observe.num_samples}: {COST_OF_FEWER}"
        )
    if fidelity and fidelity.pictures < FEW:
        yield (
            f"{fidelity.pictures} hold-out pictures can't show a top-1 agreement above "
            f"{100 * wilson(fidelity.pictures, fidelity.pictures).low:.0f} % with 95 % confidence"
        )


def _pictures(fidelity: Fidelity | None) -> str | None:
    """Describe the pictures that fidelity was measured on."""
    return None if fidelity is None else f"{fidelity.pictures} {fidelity.split} pictures of {fidelity.source}"
