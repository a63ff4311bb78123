"""From a model and a wish to an artifact: observe, place, check, prove, write.

Nothing is written before everything has been checked, and nothing that was asked for is replaced by something else.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import to_builtins as encoded

from vitedge import embedded, judging, runtimes
from vitedge.artifact import (
    GOLDEN_INPUTS,
    GOLDEN_LOGITS,
    GOLDEN_REFERENCE,
    Artifact,
    Calibration,
    CandidateResult,
    Fidelity,
    Golden,
    LayerPlan,
    Manifest,
    npy,
    write_artifact,
)
from vitedge.calibrating import calibrate
from vitedge.deviation import deviation
from vitedge.errors import ArtifactError, InvalidResultError, NotInstalledError, UsageError
from vitedge.files import refuse_existing, resource_errors
from vitedge.golden import golden_pictures
from vitedge.images import ImageSet, open_picture
from vitedge.judging import Jury, Trial, runs_here, summon, trial
from vitedge.model_folder import Model
from vitedge.progress import Progress, silent
from vitedge.recipe import Recipe, load_recipe
from vitedge.runtimes.contract import BUDGET, Placed, Request
from vitedge.runtimes.executed import unmet_layers
from vitedge.runtimes.session import Session
from vitedge.target import Candidate, Target, load_target
from vitedge.tuning.budget import Budget, fewest_reverted
from vitedge.tuning.groups import Group, Scan, divergences, fastest, grouped, saved_ns

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from vitedge.quantize.statistics import Statistics

AUTO = "auto"
#: Pictures per group of the sensitivity scan, and inferences per profile.
SCANNED, PROFILED = 64, 30
#: Precisions whose scales come from calibration images.
QUANTIZED = ("int8", "fp8", "mixed")


@dataclass(frozen=True)
class Plan:
    """What an export would do; everything that can be refused without work has been."""

    model: Model
    target: Target
    precision: str  # as asked for: one of the target's, or "auto"
    candidates: tuple[Candidate, ...]  # in the order in which they are tried
    batch: int
    out: Path
    recipe: Recipe | None = None  # None: nothing is calibrated
    images: ImageSet | None = field(default=None, repr=False)
    held_out: ImageSet | None = field(default=None, repr=False)  # None: the embedded ones, or what calibration leaves
    budget: Budget = field(default_factory=Budget)
    overwrite: bool = False

    @property
    def asked(self) -> str:
        """The wish, for error texts."""
        return f"export {self.model.record.name} to {self.target.name} in {self.precision}"

    @property
    def quantized(self) -> bool:
        """Whether one of the candidates needs calibration."""
        return any(candidate.precision in QUANTIZED for candidate in self.candidates)


def plan_export(
    model: Model | str | Path,
    target: Target | str | Path,
    precision: str,
    out: str | Path,
    *,
    recipe: Recipe | str | Path = "default",
    data: str | Path | None = None,
    num_samples: int | None = None,
    held_out: str | Path | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    batch: int | None = None,
    overwrite: bool = False,
) -> Plan:
    """Check a wish against what is true, before any work.

    Args:
        model: a model folder.
        target: a target, its name, or a TOML file.
        precision: one of the target's, or ``auto``: the first of its candidates that holds the budget.
        out: the artifact folder to write.
        recipe: how to calibrate.
        data: calibration images.
        num_samples: how many, instead of the recipe's number.
        held_out: pictures that judge what was lost; by default the embedded ones for the embedded model, and what
            calibration leaves over of ``data`` for others.
        max_drop: percentage points of top-1 that may be lost against float32, at the worse end of the 95 % interval.
        min_agreement: per cent of pictures that must be called as float32 calls them, likewise.
        batch: pictures per inference, instead of the target's.
        overwrite: permit replacing ``out``.

    Raises:
        UsageError: unknown target, recipe or precision, existing output, missing or unfit calibration images.
        ModelError: a damaged model folder.
        NotInstalledError: the target's graphs are written by a package that isn't installed.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    target = target if isinstance(target, Target) else load_target(target)
    candidates = target.candidate if precision == AUTO else target.candidates(precision)
    budget = Budget(max_drop, min_agreement)
    if precision == AUTO and not budget:
        budget = Budget(max_drop=target.budget.max_accuracy_drop_pts)
    plan = Plan(
        model,
        target,
        precision,
        candidates,
        target.batch if batch is None else batch,
        Path(out),
        budget=budget,
        overwrite=overwrite,
    )
    if plan.batch < 1:
        raise UsageError(plan.asked, f"the batch is {plan.batch}", "use a batch of at least 1")
    refuse_existing(plan.out, overwrite=overwrite, asked=plan.asked)
    _require_writers(plan)
    if not plan.quantized:
        if budget:
            raise UsageError(plan.asked, "nothing is quantized, so there is nothing to lose", "leave the budget out")
        return plan
    from msgspec.structs import replace

    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if num_samples is not None:
        if num_samples < 1:
            raise UsageError(plan.asked, f"--num-samples is {num_samples}", "use at least 1")
        recipe = replace(recipe, observe=replace(recipe.observe, num_samples=num_samples))
    images = _calibration_images(plan, data)
    wanted = recipe.observe.num_samples
    if len(images) < wanted:
        raise UsageError(
            plan.asked,
            f"recipe '{recipe.name}' observes {wanted} images; {images.source.name} has {len(images)}",
            f"name a larger --data folder, or add: --num-samples {len(images)}",
        )
    judges = None if held_out is None else embedded.open_images(held_out, asked=plan.asked)
    return changed(plan, recipe=recipe, images=images, held_out=judges)


def describe(plan: Plan) -> dict[str, Any]:
    """What the plan would do, for ``--dry-run``: one flat row."""
    recipe = plan.recipe
    return {
        "model": plan.model.record.name,
        "target": plan.target.name,
        "runtime": f"{plan.target.runtime} >= {plan.target.runtime_min}",
        "precision": plan.precision,
        "form": ", or ".join(candidate.form for candidate in plan.candidates),
        "batch": plan.batch,
        "recipe": None if recipe is None else recipe.name,
        "calibration": None if recipe is None or plan.images is None else str(plan.images.source),
        "images": None if recipe is None else recipe.observe.num_samples,
        "budget": str(plan.budget) or None,
        "runs_here": runs_here(plan.target),
        "out": str(plan.out),
    }


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


def require_host(asked: str) -> None:
    """Demand the packages that read and write graphs.

    Raises:
        NotInstalledError: one of them is missing; the extra ``host`` brings all.
    """
    for package in ("onnx", "onnxruntime", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise NotInstalledError.for_extra(asked, package, "host")


def _require_writers(plan: Plan) -> None:
    """The ``host`` extra, and the runtime where its files are its own format."""
    require_host(plan.asked)
    if plan.target.runtime == "openvino":  # the intermediate representation is written by OpenVINO itself
        runtimes.require("openvino", plan.asked)


def _calibration_images(plan: Plan, data: str | Path | None) -> ImageSet:
    if data is not None:
        return embedded.open_images(data, asked=plan.asked)
    if plan.model.record.origin.kind != "embedded":
        raise UsageError(
            plan.asked,
            f"{plan.precision} needs calibration images; the embedded ones serve the embedded model alone",
            "name a folder of pictures like those the model will see: --data images/",
        )
    return embedded.pictures("calibration")


@dataclass(frozen=True)
class _Materials:
    """What every candidate of a plan is made from."""

    plan: Plan
    graph: onnx.ModelProto
    pictures: dict[str, bytes]
    inputs: NDArray[np.uint8]  # of the golden pictures
    reference: NDArray[np.float32]  # the float graph's logits of them
    statistics: Statistics | None = None
    calibration: Calibration | None = None
    jury: Jury | None = None

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
        )

    def place(self, candidate: Candidate, quantized: frozenset[str] | None = None) -> Placed:
        """The graph of a candidate."""
        placed: Placed = runtimes.part(self.plan.target.runtime, "placement").place(self.request(candidate, quantized))
        return placed


@dataclass(frozen=True)
class _Built:
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
        materials = _gather(plan, progress)
        chosen, judged = _choose(materials, progress)
        from msgspec.structs import replace

        results = tuple(replace(built.result, chosen=built is chosen) for built in judged)
        files = {
            **chosen.placed.files,
            **materials.pictures,
            GOLDEN_INPUTS: npy(materials.inputs),
            GOLDEN_LOGITS: npy(chosen.logits),
            GOLDEN_REFERENCE: npy(materials.reference),
        }
        manifest = replace(chosen.manifest, candidates=results)
        return write_artifact(plan.out, manifest, files, overwrite=plan.overwrite, asked=plan.asked)


def _gather(plan: Plan, progress: Progress) -> _Materials:
    """The float graph and its golden logits; statistics and judges where something will be quantized."""
    from vitedge.graph.surgery import load
    from vitedge.runtimes.onnxruntime.interpret import run_graph

    graph, record = load(plan.model.onnx_path), plan.model.record
    pictures = golden_pictures()
    inputs = np.stack([record.preprocessing.apply(open_picture(data, name)) for name, data in pictures.items()])
    reference = run_graph(graph, inputs)
    _finite(plan, reference, "the float32 model's logits")
    if plan.recipe is None or plan.images is None:
        return _Materials(plan, graph, pictures, inputs, reference)
    settings = plan.recipe.observe
    statistics, calibration = calibrate(plan.model, graph, plan.images, settings, asked=plan.asked, progress=progress)
    jury = summon(
        plan.model,
        graph,
        plan.images,
        calibration,
        plan.held_out,
        seed=settings.seed,
        most=judging.MOST if plan.budget else judging.usual(record.preprocessing.size),
        asked=plan.asked,
        progress=progress,
    )
    if plan.budget and jury.seen == "calibration":
        raise UsageError(
            plan.asked,
            f"a budget needs pictures that calibration doesn't see; {plan.images.source.name} has too few left",
            "name others: --held-out DIR",
        )
    plan.budget.require(len(jury), labelled=jury.labels is not None, source=jury.source, asked=plan.asked)
    return _Materials(plan, graph, pictures, inputs, reference, statistics, calibration, jury)


def _choose(materials: _Materials, progress: Progress) -> tuple[_Built, list[_Built]]:
    """The first candidate that holds the budget, and all that were judged on the way to it.

    Raises:
        InvalidResultError: none holds it.
    """
    plan, judged = materials.plan, list[_Built]()
    for candidate in plan.candidates:
        built = _build(materials, candidate, progress)
        if built.holds is False:
            built = _within_budget(materials, built, progress) or built
        judged.append(built)
        if built.holds is not False:
            return built, judged
    lost = "; ".join(_loss(built) for built in judged)
    raise InvalidResultError(
        plan.asked,
        f"the budget is {plan.budget}, and no candidate holds it: {lost}",
        "nothing was published; allow more, hold out more pictures (a narrower interval), or use another --precision",
    )


def _loss(built: _Built) -> str:
    found = built.manifest.fidelity
    assert found is not None
    drop = "" if found.drop is None else f", {found.drop.points:.2f} points lost (up to {found.drop.high:.2f})"
    return f"{built.candidate.form} {100 * found.agreement:.2f} % alike{drop}"


def _build(
    materials: _Materials, candidate: Candidate, progress: Progress, quantized: frozenset[str] | None = None
) -> _Built:
    """Place a candidate, hold it against its runtime, run the golden pictures, and judge it."""
    from msgspec.structs import replace

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
        precision_obtained=shares(placed.layers),
        runtime_options=dict(placed.runtime_options),
        built_with=dict(placed.built_with),
        model_digest=plan.model.digest,
        origin=record.origin,
        golden=Golden(pictures=tuple(materials.pictures), executed_by="", deviation=0.0),
        candidates=(),
        licence=record.licence,
        recipe=plan.recipe if lossy else None,
        calibration=materials.calibration if lossy else None,
    )
    progress("prove", 0, 1)
    with trial(manifest, placed, plan.asked) as running:
        logits = running.run(materials.inputs)
        _finite(plan, logits, "the placed graph's logits")
        if running.session is not None:
            _prove(plan, manifest, running.session)
        found = materials.jury.judge(running) if lossy and materials.jury is not None else None
    progress("prove", 1, 1)
    golden = replace(manifest.golden, executed_by=running.executed_by, deviation=deviation(logits, materials.reference))
    manifest = replace(manifest, golden=golden, fidelity=found)
    holds = plan.budget.holds(found) if plan.budget and found is not None else None
    return _Built(candidate, placed, manifest, logits, holds)


def _within_budget(materials: _Materials, built: _Built, progress: Progress) -> _Built | None:
    """The candidate with as few groups back in float as the budget allows; None where it allows none."""
    candidate = built.candidate
    groups = grouped(layer.name for layer in built.manifest.layers if layer.precision in QUANTIZED)
    scan = _scan(materials, built, groups, progress)
    tried: dict[frozenset[str], _Built] = {}

    def judge(reverted: Sequence[Group]) -> Fidelity:
        left = frozenset(name for group in groups if group not in reverted for name in group.layers)
        tried[left] = _build(materials, candidate, progress, left)
        found = tried[left].manifest.fidelity
        assert found is not None
        return found

    best = fewest_reverted(scan.worst_first(groups), judge, materials.plan.budget)
    if best is None:
        return None
    kept = frozenset(name for group in groups if group not in best[0] for name in group.layers)
    return _explained(tried[kept], scan)


def _scan(materials: _Materials, built: _Built, groups: Sequence[Group], progress: Progress) -> Scan:
    """Sensitivity and gain of every group."""
    from vitedge.runtimes.onnxruntime.interpret import run_graph

    jury, candidate = materials.jury, built.candidate
    assert jury is not None

    def divergence(layers: frozenset[str]) -> float:
        placed = materials.place(candidate, layers)
        assert placed.interpretable is not None
        graph = placed.interpretable
        alone = Trial(lambda frames: run_graph(graph, frames), "", None)
        return jury.judge(alone, SCANNED).divergence

    found = divergences(groups, divergence, progress)
    saved = _saved(materials, built, groups)
    macs = {layer.name: layer.macs for layer in built.manifest.layers}
    work = {group.name: float(sum(macs[name] for name in group.layers)) for group in groups}
    return Scan(found, saved or work, measured=saved is not None)


def _saved(materials: _Materials, built: _Built, groups: Sequence[Group]) -> dict[str, float] | None:
    """Nanoseconds saved by each group, from profiles of the float and the quantized graph; None where neither runs."""
    plain = next((each for each in materials.plan.target.candidate if each.precision not in QUANTIZED), None)
    if plain is None or not runs_here(materials.plan.target):
        return None
    profiles = []
    batch = materials.plan.batch
    frames = np.resize(materials.inputs, (batch, *materials.inputs.shape[1:]))
    for placed in (materials.place(plain), built.placed):
        with trial(built.manifest, placed, materials.plan.asked) as running:
            if running.session is None:
                return None
            profiles.append(fastest(running.session.profile(frames, PROFILED)))
    return saved_ns(groups, *profiles)


def _explained(built: _Built, scan: Scan) -> _Built:
    """With the sensitivity that decided noted at every layer."""
    from msgspec.structs import replace

    def known(name: str) -> float | None:
        return scan.divergence.get(name.rpartition(".")[0] or name)

    layers = tuple(replace(layer, sensitivity=known(layer.name)) for layer in built.manifest.layers)
    return changed(built, manifest=replace(built.manifest, layers=layers))


def preflight(plan: Plan, placed: Placed) -> None:
    """Hold the placed graph against the oldest runtime that the target allows.

    Raises:
        ArtifactError: operators, types, opset or IR version that the target can't take, listed.
    """
    findings = runtimes.part(plan.target.runtime, "preflight").check(placed.files[placed.graph], plan.target)
    if findings:
        raise ArtifactError(
            plan.asked,
            f"{plan.target.runtime} {plan.target.runtime_min} can't take this graph: {'; '.join(findings[:8])}",
            "export with another --precision, or simplify the model's graph",
        )


# --- proving ---------------------------------------------------------------------------------------------------------


def shares(layers: tuple[LayerPlan, ...]) -> dict[str, float]:
    """Share of the multiply-accumulates planned in each precision; sums to 1."""
    total = sum(layer.macs for layer in layers)
    found: dict[str, int] = {}
    for layer in layers:
        found[layer.precision] = found.get(layer.precision, 0) + layer.macs
    return {precision: macs / total for precision, macs in sorted(found.items())} if total else {}


def _prove(plan: Plan, manifest: Manifest, session: Session) -> None:
    """Fewer layers executed in the planned precision than planned is a failure, not a footnote.

    Raises:
        InvalidResultError: some planned layers run in another type; they're named.
    """
    unmet = unmet_layers(manifest.layers, session.executed())
    if unmet:
        raise InvalidResultError(
            plan.asked,
            f"{len(unmet)} layers don't run as planned in {plan.target.runtime}: {', '.join(unmet[:4])}",
            "nothing was published; export another --precision, or report this graph",
        )


def _finite(plan: Plan, logits: NDArray[np.float32], what: str) -> None:
    if not np.isfinite(logits).all():
        raise InvalidResultError(
            plan.asked,
            f"{what} aren't finite on the golden pictures",
            "nothing was published; check the model's weights",
        )
