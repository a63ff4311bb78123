"""Candidates: placed, held against their runtimes, run and judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from vitedge import runtimes
from vitedge.core.deviation import deviation
from vitedge.core.progress import Progress
from vitedge.data.golden import golden_pictures
from vitedge.data.images import open_picture
from vitedge.errors import ArtifactError, InvalidResultError, UsageError
from vitedge.exporting import evaluate
from vitedge.exporting.evaluate import Jury, summon, trial
from vitedge.exporting.plan import Plan
from vitedge.formats.artifact import Calibration, CandidateResult, Golden, Manifest
from vitedge.formats.target import QUANTIZED, Candidate
from vitedge.quantization.calibrate import calibrate, pictures
from vitedge.runtimes.base import Placed, Request
from vitedge.runtimes.executed import shares, unmet_layers
from vitedge.runtimes.session import Session

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from vitedge.quantization.statistics import Statistics

#: Inferences per profile.
PROFILED = 30
#: How far a runtime's logits may lie from the interpreted arithmetic, of the largest: kernels round a value here and
#: there to the neighbouring step, which makes up to two hundredths; what a runtime gets wrong is off by tenths.
AS_WRITTEN = 0.1


@dataclass(frozen=True)
class Materials:
    """What every candidate of a plan is made from."""

    plan: Plan
    graph: onnx.ModelProto
    pictures: dict[str, bytes]
    inputs: NDArray[np.uint8]  # of the golden pictures
    reference: NDArray[np.float32]  # the float graph's logits of them
    statistics: Statistics | None = None
    calibration: Calibration | None = None
    jury: Jury | None = None
    #: Divergence by form and the only layers quantized.
    scanned: dict[tuple[str, frozenset[str]], float] = field(default_factory=dict)

    @cached_property
    def plain(self) -> Placed | None:
        """The target's float graph, placed once; None where it has none."""
        plain = self.plan.target.plain
        return None if plain is None else self.place(plain)

    @property
    def frames(self) -> NDArray[np.uint8]:
        """The golden pictures as one batch, uint8 [batch, h, w, 3]."""
        return np.resize(self.inputs, (self.plan.batch, *self.inputs.shape[1:]))

    def request(self, candidate: Candidate, quantized: frozenset[str] | None = None) -> Request:
        """What the placement gets."""
        record = self.plan.model.record
        return Request(
            graph=self.graph,
            target=self.plan.target,
            candidate=candidate,
            batch=self.plan.batch,
            preprocessing=record.preprocessing,
            classes=record.classes,
            recipe=self.plan.recipe if candidate.precision in QUANTIZED else None,
            statistics=self.statistics if candidate.precision in QUANTIZED else None,
            quantized=quantized,
            pictures=self._pictures,
        )

    def _pictures(self) -> Iterator[NDArray[np.uint8]]:
        """The calibration pictures once more."""
        plan = self.plan
        assert plan.images is not None and plan.recipe is not None and self.calibration is not None
        return pictures(plan.model, plan.images, plan.recipe.observe, self.calibration)

    def place(self, candidate: Candidate, quantized: frozenset[str] | None = None) -> Placed:
        """The graph of a candidate."""
        placed: Placed = runtimes.part(self.plan.target.runtime, "lowering").place(self.request(candidate, quantized))
        return placed


@dataclass(frozen=True)
class Built:
    """A candidate that was placed, proven and judged."""

    candidate: Candidate
    placed: Placed
    manifest: Manifest
    logits: NDArray[np.float32]  # of the golden pictures
    holds: bool | None  # None: there's no budget, or nothing to lose

    @property
    def result(self) -> CandidateResult:
        """Its line in the manifest."""
        found = self.manifest.fidelity
        return CandidateResult(
            precision=self.candidate.precision,
            form=self.candidate.form,
            bytes=sum(len(data) for data in self.placed.files.values()),
            deviation=self.manifest.golden.deviation,
            agreement=None if found is None else found.agreement,
            divergence=None if found is None else found.divergence,
            drop_pts=None if found is None or found.drop is None else found.drop.points,
            holds=self.holds,
        )


def gather(plan: Plan, progress: Progress) -> Materials:
    """The float graph and its golden logits; statistics and judges where something will be quantized."""
    from vitedge.graph.surgery import load
    from vitedge.runtimes.interpreter import run_graph

    graph, record = load(plan.model.onnx_path), plan.model.record
    pictures = golden_pictures()
    inputs = np.stack([record.preprocessing.apply(open_picture(data, name)) for name, data in pictures.items()])
    reference = run_graph(graph, inputs)
    _finite(plan, reference, "the float32 model's logits")
    if plan.recipe is None or plan.images is None:
        return Materials(plan, graph, pictures, inputs, reference)
    settings = plan.recipe.observe
    statistics, calibration = calibrate(plan.model, graph, plan.images, settings, action=plan.action, progress=progress)
    jury = summon(
        plan.model,
        graph,
        plan.images,
        calibration,
        plan.held_out,
        seed=settings.seed,
        most=evaluate.MOST if plan.budget else evaluate.usual(record.preprocessing.size),
        action=plan.action,
        progress=progress,
    )
    if plan.budget and jury.seen == "calibration":
        raise UsageError(
            plan.action,
            f"a budget needs pictures that calibration doesn't see; {plan.images.source.name} has too few left",
            "name others: --held-out DIR",
        )
    plan.budget.require(len(jury), labelled=jury.labels is not None, source=jury.source, action=plan.action)
    return Materials(plan, graph, pictures, inputs, reference, statistics, calibration, jury)


def build(
    materials: Materials, candidate: Candidate, progress: Progress, quantized: frozenset[str] | None = None
) -> Built:
    """Place a candidate, hold it against its runtime, run the golden pictures, and judge it."""
    plan, record = materials.plan, materials.plan.model.record
    progress("place", 0, 1)
    placed = materials.place(candidate, quantized)
    progress("place", 1, 1)
    preflight(plan, placed)
    lossy = candidate.precision in QUANTIZED
    manifest = Manifest(
        name=f"{record.name}-{plan.target.name}-{candidate.precision}",
        target=plan.target,
        precision=candidate.precision,
        form=candidate.form,
        batch=plan.batch,
        graph=placed.graph,
        classes=record.classes,
        preprocessing=record.preprocessing,
        layers=placed.layers,
        precision_obtained=shares(placed.layers, {layer.name: layer.precision for layer in placed.layers}),
        runtime_options=dict(placed.runtime_options),
        built_with=dict(placed.built_with),
        model_digest=plan.model.digest,
        origin=record.origin,
        golden=Golden(pictures=tuple(materials.pictures), executed_by="", deviation=0.0),
        candidates=(),
        licence=record.licence,
        recipe=plan.recipe if lossy else None,
        calibration=materials.calibration if lossy else None,
        max_drop_pts=plan.budget.max_drop,
        min_agreement_pct=plan.budget.min_agreement,
    )
    progress("prove", 0, 1)
    with trial(manifest, placed, plan.action) as running:
        logits = running.run(materials.inputs)
        _finite(plan, logits, "the placed graph's logits")
        if running.session is not None:
            _prove(plan, manifest, running.session)
            _as_written(plan, placed, logits, materials.inputs)
        found = materials.jury.judge(running) if lossy and materials.jury is not None else None
    progress("prove", 1, 1)
    golden = replace(manifest.golden, executed_by=running.executed_by, deviation=deviation(logits, materials.reference))
    manifest = replace(manifest, golden=golden, fidelity=found)
    holds = plan.budget.holds(found) if plan.budget and found is not None else None
    return Built(candidate, placed, manifest, logits, holds)


def preflight(plan: Plan, placed: Placed) -> None:
    """Hold the placed graph against the oldest runtime that the target allows.

    Raises:
        ArtifactError: operators, types, opset or IR version that the target can't take, listed.
    """
    findings = runtimes.part(plan.target.runtime, "preflight").check(placed.files[placed.graph], plan.target)
    if findings:
        raise ArtifactError(
            plan.action,
            f"{plan.target.runtime} {plan.target.runtime_min} can't take this graph: {'; '.join(findings[:8])}",
            "export with another --precision, or simplify the model's graph",
        )


def _prove(plan: Plan, manifest: Manifest, session: Session) -> None:
    """Fewer layers executed in the planned precision than planned is a failure, not a footnote.

    Raises:
        InvalidResultError: some planned layers run in another type; they're named.
    """
    unmet = unmet_layers(manifest.layers, session.executed())
    if unmet:
        what = f"{len(unmet)} layers don't run as planned in {plan.target.runtime}: {', '.join(unmet[:4])}"
        raise _not_as_planned(plan, what)


def _not_as_planned(plan: Plan, what: str) -> InvalidResultError:
    """The error for a graph that its runtime executes in another way; one that is newer than tested is a reason."""
    why, hint = runtimes.fuses_otherwise(plan.target.runtime)
    hint = f"{hint}, or " if hint else ""
    return InvalidResultError(
        plan.action,
        f"{what}. {why}" if why else what,
        f"nothing was published; {hint}export another --precision, or report this graph",
    )


def _as_written(plan: Plan, placed: Placed, logits: NDArray[np.float32], inputs: NDArray[np.uint8]) -> None:
    """What the runtime computes has to be what its graph says: fusing has been seen to change it.

    Raises:
        InvalidResultError: it's further from the arithmetic, interpreted, than :data:`AS_WRITTEN`.
    """
    from vitedge.runtimes.interpreter import run_graph

    if placed.interpretable is None:
        return
    found = deviation(logits, run_graph(placed.interpretable, inputs))
    if found > AS_WRITTEN:
        raise _not_as_planned(
            plan,
            f"{plan.target.runtime} computes something else than the graph says: its logits are off by {found:.1%} of "
            "the largest",
        )


def _finite(plan: Plan, logits: NDArray[np.float32], what: str) -> None:
    if not np.isfinite(logits).all():
        raise InvalidResultError(
            plan.action,
            f"{what} aren't finite on the golden pictures",
            "nothing was published; check the model's weights",
        )
