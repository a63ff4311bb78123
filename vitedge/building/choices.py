"""Choose the fastest of several candidates on this device: measured, checked against the budget, kept in the cache."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from vitedge.benchmarking.speeds import Speed, speeds
from vitedge.building.engines import builder_of, builds
from vitedge.core.files import new_folder, refuse_existing, require_writable
from vitedge.core.paths import cache_folder
from vitedge.core.progress import Progress, silent
from vitedge.errors import InvalidResultError, UsageError
from vitedge.formats.artifact import ARTIFACT, Artifact
from vitedge.formats.budget import Budget
from vitedge.runtimes import here
from vitedge.runtimes.choice import Timed, candidates_of, export_choice, folders, read_choice, write_choice

if TYPE_CHECKING:
    from vitedge.data.images import ImageSet
    from vitedge.formats.result import Result

#: Precisions from what changes a model least to what changes it most: the first that is given is the reference of
#: accuracy.
FIDELITY = ("fp32", "fp16", "bf16", "mixed", "fp8", "int8")


def choose(candidates: Sequence[Timed], budget: Budget, deviations: Sequence[str] = ()) -> list[Timed]:
    """Mark the fastest candidate within the budget, and give each a reason.

    Args:
        candidates: measured.
        budget: limits of top-1 drop and of p95 latency.
        deviations: how each one's golden logits differ from those exported, empty where they don't.

    Raises:
        InvalidResultError: none is within the budget.
    """
    refusals = [
        _refusal(candidate, budget, deviations[number] if deviations else "")
        for number, candidate in enumerate(candidates)
    ]
    acceptable = [number for number, refusal in enumerate(refusals) if not refusal]
    if not acceptable:
        raise InvalidResultError(
            "choose the fastest candidate",
            "; ".join(f"{each.artifact} {refusal}" for each, refusal in zip(candidates, refusals, strict=True)),
            "export further precisions, or widen the target's [budget]",
        )
    best = min(acceptable, key=lambda number: candidates[number].latency_p50_ms)
    fastest = candidates[best]
    reasons = [
        refusal or f"{each.latency_p50_ms / fastest.latency_p50_ms:.2f}× the time of {fastest.artifact}"
        for each, refusal in zip(candidates, refusals, strict=True)
    ]
    reasons[best] = "the fastest within the budget"
    return [replace(each, chosen=number == best, reason=reasons[number]) for number, each in enumerate(candidates)]


def _refusal(candidate: Timed, budget: Budget, deviation: str) -> str:
    """Return the reason why a candidate can't be chosen; empty where it can."""
    drop, latency = candidate.top1_drop_pp, budget.latency_p95_ms
    if deviation:
        return f"doesn't compute here what was exported: {deviation}"
    if drop is not None and drop > budget.max_top1_drop_pp:
        return f"has a top-1 drop of {drop:.2f} pp; the budget is {budget.max_top1_drop_pp:g} pp"
    if latency is not None and candidate.latency_p95_ms > latency:
        return f"p95 is {candidate.latency_p95_ms:.2f} ms; the budget is {latency:g} ms"
    return ""


def autotune(
    artifacts: Sequence[Artifact],
    *,
    data: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    duration_s: float | None = None,
    choices: Path | None = None,
    progress: Progress = silent,
) -> list[Timed]:
    """Measure candidates of one model interleaved on this device, and choose the fastest within the budget.

    Args:
        artifacts: one that carries candidates: the choice is kept in this device's cache, where opening the artifact
            finds it. Or several of one model, for this device, each in another precision. Engines are built first.
        data: labelled pictures; needed where one of several artifacts is quantized and the model isn't the embedded
            one. What an artifact carries was evaluated when it was exported.
        out: copy the chosen artifact there.
        overwrite: permit replacing ``out``, and measure anew what was measured here before.
        duration_s: measure each for at least so long; None: as the targets say.
        choices: folder to write the choice of an artifact that carries candidates to as well.
        progress: called with (task, done, total).

    Raises:
        UsageError: nothing to choose from, different models, or for another kind of machine.
        InvalidResultError: none is within the budget.
        Others as :func:`vitedge.benchmarking.bench.bench` and :func:`vitedge.evaluation.evaluate.evaluate`.
    """
    action = "choose the fastest candidate"
    carrier = artifacts[0] if len(artifacts) == 1 and folders(artifacts[0]) else None
    candidates = candidates_of(carrier) if carrier is not None else list(artifacts)
    _refuse_choice(candidates, action)
    if out is not None:
        refuse_existing(out, ARTIFACT, overwrite=overwrite, action=action)
    recorded = carrier is not None and data is None and duration_s is None and not overwrite
    earlier = read_choice(carrier) if carrier is not None and recorded else None
    if carrier is not None and earlier is not None:
        timed = [replace(each, artifact=str(carrier.path / each.artifact)) for each in earlier.measured]
    else:
        if carrier is not None:
            require_writable(cache_folder(), action)
        timed = _measure(candidates, carrier, data, duration_s, anew=overwrite, action=action, progress=progress)
        if carrier is not None:
            places = [".", *folders(carrier)]
            kept = (replace(each, artifact=place) for each, place in zip(timed, places, strict=True))
            write_choice(carrier, tuple(kept), action)
    if carrier is not None and choices is not None:
        export_choice(carrier, choices, action)
    if out is not None:
        chosen = next(artifact for artifact, each in zip(candidates, timed, strict=True) if each.chosen)
        with new_folder(out, ARTIFACT, overwrite=overwrite, action=action) as folder:
            shutil.copytree(chosen.path, folder, dirs_exist_ok=True)
        Artifact.open(out)
    return timed


def _measure(
    candidates: Sequence[Artifact],
    carrier: Artifact | None,
    data: str | None,
    duration_s: float | None,
    *,
    anew: bool,
    action: str,
    progress: Progress,
) -> list[Timed]:
    """Build the candidates' engines, measure speed and, with pictures, accuracy, and choose."""
    from vitedge.evaluation.evaluate import evaluate

    images = _labelled(candidates, data, evaluated=carrier is not None, action=action)
    for artifact in candidates:
        if builds(artifact.manifest.target.runtime):
            builder_of(artifact, action).build(artifact, (), {}, progress)
    measured = speeds(candidates, duration_s=duration_s, anew=anew, action=action, progress=progress)
    result = evaluate(candidates, images, progress=progress) if images is not None else None
    budget = candidates[0].manifest.target.budget
    if carrier is not None and result is None and _kept_a_budget(carrier):
        budget = replace(budget, max_top1_drop_pp=math.inf)  # the export's own budget was checked instead
    return choose(_timed(candidates, measured, result), budget, [speed.wrong for speed in measured])


def _refuse_choice(candidates: Sequence[Artifact], action: str) -> None:
    """Raises: UsageError: fewer than two, of different models, or their processor isn't here."""
    if len(candidates) < 2 or len({artifact.manifest.model_digest for artifact in candidates}) > 1:
        raise UsageError(
            action,
            "it takes two or more artifacts of one model, each in another precision, or one that carries candidates",
            "export it so: vitedge export MODEL -t TARGET -p auto --with-candidates --out ARTIFACT",
        )
    for artifact in candidates:
        target = artifact.manifest.target
        if not builds(target.runtime) and (where := here.why_not_here(target)):
            raise UsageError(action, where, f"run on the device: vitedge build {artifact.path.name}")


def _labelled(candidates: Sequence[Artifact], data: str | None, *, evaluated: bool, action: str) -> ImageSet | None:
    """Return labelled pictures to evaluate on; None where no candidate is quantized, or all were evaluated before."""
    from vitedge.data import embedded

    if data is None and (evaluated or all(artifact.manifest.calibration is None for artifact in candidates)):
        return None
    if data is None and candidates[0].manifest.origin.kind != "embedded":
        raise UsageError(
            action,
            "measuring the accuracy loss of quantized candidates needs labelled pictures",
            "name a folder with one sub-folder a class: --data labelled/",
        )
    return embedded.open_images(data or "held-out", action=action)


def _kept_a_budget(carrier: Artifact) -> bool:
    """Whether every candidate was checked against a budget when it was exported."""
    manifest = carrier.manifest
    return manifest.max_top1_drop_pp is not None or manifest.min_top1_agreement_pct is not None


def _timed(artifacts: Sequence[Artifact], measured: Sequence[Speed], evaluated: Result | None) -> list[Timed]:
    """Return each artifact with its speed and its top-1 drop: on the same pictures here, or as evaluated at export."""
    rows = evaluated.rows if evaluated is not None else ()
    top1 = {row.subject.digest: float(np.mean(np.equal(row.accuracy.rank, 0))) for row in rows if row.accuracy}
    reference = min(artifacts, key=lambda artifact: FIDELITY.index(artifact.manifest.precision))
    timed = []
    for artifact, speed in zip(artifacts, measured, strict=True):
        fidelity = artifact.manifest.fidelity
        drop_pp = fidelity.top1_drop.pp if fidelity and fidelity.top1_drop else None
        timed.append(
            Timed(
                artifact=str(artifact.path),
                precision=artifact.manifest.precision,
                variant=artifact.manifest.variant,
                latency_p50_ms=speed.p50_ms,
                latency_p95_ms=speed.p95_ms,
                top1_drop_pp=100 * (top1[reference.digest] - top1[artifact.digest]) if top1 else drop_pp,
            )
        )
    return timed
