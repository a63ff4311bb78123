"""The fastest of several candidates on this device: measured, held against the budget, kept in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from vitedge.benchmarking.speeds import Speed, speeds
from vitedge.core.files import new_folder, refuse_existing
from vitedge.core.progress import Progress, silent
from vitedge.errors import InvalidResultError, UsageError
from vitedge.formats.artifact import Artifact
from vitedge.runtimes import here
from vitedge.runtimes.choice import Timed, candidates_of, folders, read_choice, write_choice

if TYPE_CHECKING:
    from vitedge.data.images import ImageSet
    from vitedge.formats.result import Result
from vitedge.building.engines import builder_of, builds

#: From what changes a model least to what changes it most: the first that is given is the reference of accuracy.
FIDELITY = ("fp32", "fp16", "bf16", "mixed", "fp8", "int8")


def choose(
    candidates: Sequence[Timed],
    *,
    max_drop_pts: float,
    latency_p95_ms: float | None = None,
    wrong: Sequence[str] = (),
) -> list[Timed]:
    """Mark the fastest candidate within the budget; each gets the reason why it's chosen or not.

    Args:
        candidates: measured.
        max_drop_pts: points of top-1 that one may lose.
        latency_p95_ms: that its p95 may take; None: any.
        wrong: what each one's golden logits have against it, empty where nothing.

    Raises:
        InvalidResultError: none is within the budget.
    """
    against: dict[int, str] = {}
    for number, one in enumerate(candidates):
        if number < len(wrong) and wrong[number]:
            against[number] = f"doesn't compute here what was exported: {wrong[number]}"
        elif one.drop_pts is not None and one.drop_pts > max_drop_pts:
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
    """Measure candidates of one model in turns on this device, and keep the fastest within the budget.

    Args:
        artifacts: one that carries candidates: the choice is kept in this device's cache, where opening the artifact
            finds it. Or several of one model, for this device, each in another precision. Engines are built first.
        data: labelled pictures; needed where one of several artifacts is quantized and the model isn't the embedded
            one. What an artifact carries was judged when it was exported.
        out: copy the chosen artifact there.
        overwrite: permit replacing ``out``, and measure anew what was measured here before.
        duration_s: measure each for at least so long; None: as the targets say.
        progress: called with (task, done, total).

    Raises:
        UsageError: nothing to choose from, different models, or for another kind of machine.
        InvalidResultError: none is within the budget.
        Others as :func:`vitedge.benchmarking.bench.bench` and :func:`vitedge.evaluation.evaluate.evaluate`.
    """
    from vitedge.evaluation.evaluate import evaluate

    action = "choose the fastest candidate"
    carrier = artifacts[0] if len(artifacts) == 1 and folders(artifacts[0]) else None
    candidates = candidates_of(carrier) if carrier is not None else list(artifacts)
    _refuse_choice(candidates, action)
    if out is not None:
        refuse_existing(out, overwrite=overwrite, action=action)
    known = read_choice(carrier) if carrier is not None and data is None and not overwrite else None
    if carrier is not None and known is not None:
        timed = [_renamed(one, str(carrier.path / one.artifact)) for one in known.measured]
    else:
        images = _labelled(candidates, data, judged=carrier is not None, action=action)
        for artifact in candidates:
            if builds(artifact.manifest.target.runtime):
                builder_of(artifact, action).build(artifact, (), {}, progress)
        measured = speeds(candidates, duration_s=duration_s, anew=overwrite, action=action, progress=progress)
        result = evaluate(candidates, images, progress=progress) if images is not None else None
        budget, held = candidates[0].manifest.target.budget, carrier is not None and result is None and _held(carrier)
        timed = choose(
            _timed(candidates, measured, result),
            max_drop_pts=float("inf") if held else budget.max_accuracy_drop_pts,
            latency_p95_ms=budget.latency_p95_ms,
            wrong=[one.wrong for one in measured],
        )
        if carrier is not None:
            places = [".", *folders(carrier)]
            write_choice(carrier, tuple(_renamed(one, place) for one, place in zip(timed, places, strict=True)), action)
    if out is not None:
        winner = next(artifact for artifact, one in zip(candidates, timed, strict=True) if one.chosen)
        with new_folder(out, overwrite=overwrite, action=action, last="manifest.sha256") as folder:
            shutil.copytree(winner.path, folder, dirs_exist_ok=True)
        Artifact.open(out)
    return timed


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
        if not builds(target.runtime) and (where := here.elsewhere(target)):
            raise UsageError(action, where, f"run on the device: vitedge build {artifact.path.name}")


def _labelled(candidates: Sequence[Artifact], data: str | None, *, judged: bool, action: str) -> ImageSet | None:
    """Pictures that judge the candidates here; None where none is quantized, or all were judged at export."""
    from vitedge.data import embedded

    if data is None and (judged or all(artifact.manifest.calibration is None for artifact in candidates)):
        return None
    if data is None and candidates[0].manifest.origin.kind != "embedded":
        raise UsageError(
            action,
            "quantized candidates lose accuracy, and how much is seen on labelled pictures alone",
            "name a folder with one sub-folder a class: --data labelled/",
        )
    return embedded.open_images(data or "held-out", action=action)


def _held(carrier: Artifact) -> bool:
    """Whether every candidate was held against a budget when it was exported."""
    return carrier.manifest.max_drop_pts is not None or carrier.manifest.min_agreement_pct is not None


def _renamed(one: Timed, artifact: str) -> Timed:
    return replace(one, artifact=artifact)


def _timed(artifacts: Sequence[Artifact], measured: Sequence[Speed], judged: Result | None) -> list[Timed]:
    """Each with its points lost: on the same pictures here, or as it was judged at export."""
    rows = judged.rows if judged is not None else ()
    hits = {row.subject.digest: float(np.mean(np.equal(row.accuracy.rank, 0))) for row in rows if row.accuracy}
    reference = min(artifacts, key=lambda artifact: FIDELITY.index(artifact.manifest.precision))
    found = []
    for artifact, speed in zip(artifacts, measured, strict=True):
        manifest = artifact.manifest
        drop = manifest.fidelity.drop.points if manifest.fidelity and manifest.fidelity.drop else None
        found.append(
            Timed(
                artifact=str(artifact.path),
                precision=manifest.precision,
                form=manifest.form,
                latency_p50_ms=speed.p50_ms,
                latency_p95_ms=speed.p95_ms,
                drop_pts=100 * (hits[reference.digest] - hits[artifact.digest]) if hits else drop,
            )
        )
    return found
