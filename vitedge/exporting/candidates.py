"""Lower a candidate, run it and evaluate it.

Whatever may be published comes from :func:`evaluate_candidate`. The sensitivity scan and the steps of a selection lower
and run graphs, too, on fewer pictures, to order groups and to explain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from vitedge import runtimes
from vitedge.core.deviation import deviation
from vitedge.core.progress import Progress
from vitedge.data.golden import golden_pictures, golden_views
from vitedge.data.images import open_picture
from vitedge.errors import ArtifactError, InvalidResultError
from vitedge.exporting.groups import Group, grouped
from vitedge.exporting.hold_out import HoldOut, load_hold_out
from vitedge.exporting.plan import Plan
from vitedge.exporting.runnable import opened
from vitedge.formats.architecture import uneven
from vitedge.formats.artifact import Calibration, CandidateResult, Golden, LayerPlan, Manifest
from vitedge.formats.target import QUANTIZED, Candidate
from vitedge.quantization.calibrate import calibrate, pictures
from vitedge.runtimes.base import Lowered, Request
from vitedge.runtimes.executed import mac_fractions, unmet_layers
from vitedge.runtimes.session import Session

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from vitedge.quantization.statistics import Statistics

#: Largest deviation of a runtime's logits from the interpreted arithmetic, as a fraction of the largest logit: kernels
#: round some values to the neighbouring step, which adds up to two hundredths; errors of a runtime are above a tenth.
ARITHMETIC_TOLERANCE = 0.1
FLOAT_TOLERANCE = 0.005  # of float32, where nothing is rounded to a step


@dataclass(frozen=True)
class ExportInputs:
    """The inputs from which every candidate of a plan is made and evaluated."""

    plan: Plan
    graph: onnx.ModelProto  # canonical, float32
    golden_files: dict[str, bytes]  # the golden pictures by file name
    golden_inputs: NDArray[np.uint8]  # [n, h, w, 3]
    golden_reference: NDArray[np.float32]  # [views * n, classes]: the float graph's logits of every view
    statistics: Statistics | None = None
    calibration: Calibration | None = None
    hold_out: HoldOut | None = None  # None: nothing is quantized
    #: Divergences that the sensitivity scan measured, by kernel variant and the only layers quantized.
    divergences: dict[tuple[str, frozenset[str]], float] = field(default_factory=dict)

    @cached_property
    def lowered_float(self) -> Lowered | None:
        """Lower the target's float candidate; None where it has none."""
        candidate = self.plan.target.plain
        return None if candidate is None else self.lower(candidate)

    @property
    def golden_batch(self) -> NDArray[np.uint8]:
        """The golden pictures as one batch, uint8 [batch, h, w, 3]."""
        return np.resize(self.golden_inputs, (self.plan.batch, *self.golden_inputs.shape[1:]))

    def lower(self, candidate: Candidate, quantized: frozenset[str] | None = None) -> Lowered:
        """Lower a candidate to the graph that its runtime runs.

        Args:
            candidate: precision and kernel variant.
            quantized: the layers that may be quantized; None: all that the variant quantizes.
        """
        plan, record, quantizes = self.plan, self.plan.model.record, candidate.precision in QUANTIZED
        request = Request(
            graph=self.graph,
            target=plan.target,
            candidate=candidate,
            batch=plan.batch,
            preprocessing=record.preprocessing,
            classes=record.classes,
            recipe=plan.recipe if quantizes else None,
            statistics=self.statistics if quantizes else None,
            quantized=quantized,
            pictures=self._calibration_pictures,
        )
        lowered: Lowered = runtimes.part(plan.target.runtime, "lowering").lower(request)
        return lowered

    def _calibration_pictures(self) -> Iterator[NDArray[np.uint8]]:
        """Return the calibration pictures as the model takes them, uint8 [h, w, 3], read again at each call."""
        plan = self.plan
        assert plan.images is not None and plan.recipe is not None and self.calibration is not None
        return pictures(plan.model, plan.images, plan.recipe.observe, self.calibration)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A candidate that was lowered, run and evaluated."""

    candidate: Candidate
    lowered: Lowered
    manifest: Manifest
    golden_logits: NDArray[np.float32]  # [views * n, classes]
    within_budget: bool | None  # None: there is no budget, or the candidate is float

    @property
    def acceptable(self) -> bool:
        """Whether the candidate may be published."""
        return self.within_budget is not False

    def same_graph(self, other: Evaluated) -> bool:
        """Whether both are the same graph, opened with the same options."""
        mine, its = self.lowered, other.lowered
        return mine.files == its.files and mine.runtime_options == its.runtime_options

    @property
    def quantized_layers(self) -> frozenset[str]:
        """The layers that are planned in a quantized precision."""
        return frozenset(layer.name for layer in self.manifest.layers if layer.precision in QUANTIZED)

    @property
    def quantized_groups(self) -> list[Group]:
        """The quantized layers in groups, in the order of the graph."""
        return grouped(layer.name for layer in self.manifest.layers if layer.precision in QUANTIZED)

    @property
    def result(self) -> CandidateResult:
        """The entry in the manifest's list of candidates."""
        fidelity = self.manifest.fidelity
        return CandidateResult(
            precision=self.candidate.precision,
            variant=self.candidate.variant,
            bytes=sum(len(data) for data in self.lowered.files.values()),
            deviation=self.manifest.golden.deviation,
            agreement=None if fidelity is None else fidelity.agreement,
            divergence=None if fidelity is None else fidelity.divergence,
            top1_drop_pp=None if fidelity is None or fidelity.top1_drop is None else fidelity.top1_drop.pp,
            holds=self.within_budget,
        )

    def with_layers(self, layers: tuple[LayerPlan, ...]) -> Evaluated:
        """Return the same candidate with other layer plans in its manifest."""
        return changed(self, manifest=replace(self.manifest, layers=layers))

    def with_sensitivity(self, divergences: Mapping[str, float]) -> Evaluated:
        """Return the same candidate with each group's divergence in its layers' plans."""

        def sensitivity(layer: LayerPlan) -> float | None:
            return divergences.get(layer.name.rpartition(".")[0] or layer.name, layer.sensitivity)

        return self.with_layers(tuple(replace(layer, sensitivity=sensitivity(layer)) for layer in self.manifest.layers))


def load_inputs(plan: Plan, progress: Progress) -> ExportInputs:
    """Load the float graph and its golden logits; where a candidate is quantized, calibrate and load the hold-out set.

    Raises:
        InvalidResultError: the model's logits aren't finite.
        ImageError: too many calibration images can't be read.
        UsageError: the hold-out pictures can't show that the budget holds.
    """
    inputs = load_golden(plan)
    if plan.recipe is None or plan.images is None:
        return inputs
    settings = replace(plan.recipe.observe, num_samples=plan.observed)
    statistics, calibration = calibrate(
        plan.model, inputs.graph, plan.images, settings, action=plan.action, progress=progress
    )
    return with_hold_out(changed(inputs, statistics=statistics, calibration=calibration), progress)


def load_golden(plan: Plan) -> ExportInputs:
    """Load the float graph, and run the golden pictures through it.

    Raises:
        InvalidResultError: the model's logits aren't finite.
    """
    from vitedge.graph.surgery import load
    from vitedge.runtimes.interpreter import run_graph

    graph, record = load(plan.model.onnx_path), plan.model.record
    files = golden_pictures()
    frames = np.stack([record.preprocessing.apply(open_picture(data, name)) for name, data in files.items()])
    reference = run_graph(graph, golden_views(frames))
    _require_finite(plan, reference, "the float32 model's logits")
    return ExportInputs(plan, graph, files, frames, reference)


def with_hold_out(inputs: ExportInputs, progress: Progress) -> ExportInputs:
    """Return the inputs with the hold-out pictures: others than those that calibration used.

    Raises:
        UsageError: they can't show that the budget holds.
    """
    plan = inputs.plan
    assert plan.images is not None and plan.recipe is not None and inputs.calibration is not None
    pictures = load_hold_out(
        plan.model,
        inputs.graph,
        plan.images,
        inputs.calibration,
        plan.held_out,
        seed=plan.recipe.observe.seed,
        most=plan.most_held_out,
        action=plan.action,
        progress=progress,
    )
    plan.budget.require_pictures(
        len(pictures), labelled=pictures.labels is not None, source=pictures.source, action=plan.action
    )
    return changed(inputs, hold_out=pictures)


def evaluate_candidate(
    inputs: ExportInputs, candidate: Candidate, progress: Progress, quantized: frozenset[str] | None = None
) -> Evaluated:
    """Lower a candidate, check it in its runtime, run the golden pictures, and evaluate it on the hold-out pictures.

    Args:
        inputs: of the export.
        candidate: precision and kernel variant.
        progress: called with (task, done, total).
        quantized: the layers that may be quantized; None: all that the variant quantizes.

    Raises:
        ArtifactError: the target's oldest runtime can't take the graph, or the runtime here can't open it.
        InvalidResultError: logits aren't finite, or the runtime doesn't run the graph as planned.
    """
    plan = inputs.plan
    progress("lower", 0, 1)
    lowered = inputs.lower(candidate, quantized)
    progress("lower", 1, 1)
    preflight(plan, lowered)
    manifest = draft_manifest(inputs, candidate, lowered)
    fidelity = None
    progress("evaluate", 0, 1)
    with opened(manifest, lowered, plan.action) as runnable:
        logits = runnable.run(golden_views(inputs.golden_inputs))
        _require_finite(plan, logits, "the lowered graph's logits")
        if runnable.session is not None:
            _require_planned_precision(plan, manifest, runnable.session)
            allowed = FLOAT_TOLERANCE if candidate.precision == "fp32" else ARITHMETIC_TOLERANCE
            views = logits[: len(inputs.golden_inputs)]
            _require_same_arithmetic(plan, lowered, views, inputs.golden_inputs, allowed)
        if candidate.precision in QUANTIZED and inputs.hold_out is not None:
            fidelity = inputs.hold_out.evaluate(runnable)
    progress("evaluate", 1, 1)
    golden = replace(
        manifest.golden, executed_by=runnable.executed_by, deviation=deviation(logits, inputs.golden_reference)
    )
    manifest = replace(manifest, golden=golden, fidelity=fidelity)
    within_budget = None
    if plan.budget.limits_accuracy and fidelity is not None:
        within_budget = plan.budget.holds(fidelity)
    return Evaluated(candidate, lowered, manifest, logits, within_budget)


def preflight(plan: Plan, lowered: Lowered) -> None:
    """Check the graph against the oldest runtime that the target allows.

    Raises:
        ArtifactError: operators, types, opset or IR version that the target can't take, listed.
    """
    findings = runtimes.part(plan.target.runtime, "preflight").check(lowered.files[lowered.graph], plan.target)
    if findings:
        raise ArtifactError(
            plan.action,
            f"{plan.target.runtime} {plan.target.runtime_min} can't take this graph: {'; '.join(findings[:8])}",
            "export with another --precision, or simplify the model's graph",
        )


def draft_manifest(inputs: ExportInputs, candidate: Candidate, lowered: Lowered) -> Manifest:
    """Write the candidate's manifest without the facts that running it gives."""
    plan, record = inputs.plan, inputs.plan.model.record
    quantizes = candidate.precision in QUANTIZED
    return Manifest(
        name=f"{record.name}-{plan.target.name}-{candidate.precision}",
        target=plan.target,
        precision=candidate.precision,
        variant=candidate.variant,
        batch=plan.batch,
        graph=lowered.graph,
        classes=record.classes,
        preprocessing=record.preprocessing,
        layers=lowered.layers,
        precision_obtained=mac_fractions(lowered.layers, {layer.name: layer.precision for layer in lowered.layers}),
        runtime_options=dict(lowered.runtime_options),
        built_with=dict(lowered.built_with),
        model_digest=plan.model.digest,
        origin=record.origin,
        golden=Golden(pictures=tuple(inputs.golden_files), executed_by="", deviation=0.0),
        candidates=(),
        licence=record.licence,
        recipe=plan.recipe if quantizes else None,
        calibration=inputs.calibration if quantizes else None,
        max_top1_drop_pp=plan.budget.drop_limit,
        min_top1_agreement_pct=plan.budget.agreement_limit,
        architecture=uneven(record.architecture),
    )


def _require_planned_precision(plan: Plan, manifest: Manifest, session: Session) -> None:
    """Check that the runtime executes every layer in the precision that was planned.

    Raises:
        InvalidResultError: some layers run in another type; they're named.
    """
    unmet = unmet_layers(manifest.layers, session.executed())
    if unmet:
        what = f"{len(unmet)} layers don't run as planned in {plan.target.runtime}: {', '.join(unmet[:4])}"
        raise _not_as_planned(plan, what)


def _require_same_arithmetic(
    plan: Plan, lowered: Lowered, logits: NDArray[np.float32], frames: NDArray[np.uint8], allowed: float
) -> None:
    """Check that the runtime computes what its graph says: fusing has been seen to change it.

    Raises:
        InvalidResultError: logits differ from the interpreted ones by more than ``allowed`` of the largest.
    """
    from vitedge.runtimes.interpreter import run_graph

    if lowered.interpretable is None:
        return
    difference = deviation(logits, run_graph(lowered.interpretable, frames))
    if difference > allowed:
        raise _not_as_planned(
            plan,
            f"{plan.target.runtime} computes something else than the graph says: its logits are off by "
            f"{difference:.1%} of the largest",
        )


def _not_as_planned(plan: Plan, what: str) -> InvalidResultError:
    """Return the error for a graph that its runtime doesn't execute as planned, with a too new runtime as a reason."""
    reason, hint = runtimes.fuses_otherwise(plan.target.runtime)
    hint = f"{hint}, or " if hint else ""
    return InvalidResultError(
        plan.action,
        f"{what}. {reason}" if reason else what,
        f"nothing was published; {hint}export another --precision, or report this graph",
    )


def _require_finite(plan: Plan, logits: NDArray[np.float32], what: str) -> None:
    """Raises: InvalidResultError: ``what`` isn't finite."""
    if not np.isfinite(logits).all():
        raise InvalidResultError(
            plan.action,
            f"{what} aren't finite on the golden pictures",
            "nothing was published; check the model's weights",
        )
