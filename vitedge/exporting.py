"""From a model and a wish to an artifact: observe, place, check, prove, write.

Nothing is written before everything has been checked, and nothing that was asked for is replaced by something else.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge import embedded, runtimes
from vitedge.artifact import (
    GOLDEN_INPUTS,
    GOLDEN_LOGITS,
    GOLDEN_REFERENCE,
    Artifact,
    Calibration,
    CandidateResult,
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
from vitedge.model_folder import Model
from vitedge.progress import Progress, silent
from vitedge.recipe import Recipe, load_recipe
from vitedge.runtimes.contract import OpenOptions, Placed, Request
from vitedge.runtimes.executed import unmet_layers
from vitedge.runtimes.session import Session
from vitedge.target import Candidate, Target, load_target

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from vitedge.quantize.statistics import Statistics

#: Precisions whose scales come from calibration images.
QUANTIZED = ("int8", "fp8", "mixed")


@dataclass(frozen=True)
class Plan:
    """What an export would do; everything that can be refused without work has been."""

    model: Model
    target: Target
    candidate: Candidate
    batch: int
    out: Path
    recipe: Recipe | None = None  # None: nothing is calibrated
    images: ImageSet | None = field(default=None, repr=False)
    overwrite: bool = False

    @property
    def name(self) -> str:
        """Name of the artifact: model, target, precision."""
        return f"{self.model.record.name}-{self.target.name}-{self.candidate.precision}"

    @property
    def asked(self) -> str:
        """The wish, for error texts."""
        return f"export {self.model.record.name} to {self.target.name} in {self.candidate.precision}"


def plan_export(
    model: Model | str | Path,
    target: Target | str | Path,
    precision: str,
    out: str | Path,
    *,
    recipe: Recipe | str | Path = "default",
    data: str | Path | None = None,
    num_samples: int | None = None,
    batch: int | None = None,
    overwrite: bool = False,
) -> Plan:
    """Check a wish against what is true, before any work.

    Raises:
        UsageError: unknown target, recipe or precision, existing output, missing or unfit calibration images.
        ModelError: a damaged model folder.
        NotInstalledError: the target's graphs are written by a package that isn't installed.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    target = target if isinstance(target, Target) else load_target(target)
    candidate = target.candidates(precision)[0]
    plan = Plan(model, target, candidate, target.batch if batch is None else batch, Path(out), overwrite=overwrite)
    if plan.batch < 1:
        raise UsageError(plan.asked, f"the batch is {plan.batch}", "use a batch of at least 1")
    refuse_existing(plan.out, overwrite=overwrite, asked=plan.asked)
    _require_writers(plan)
    if precision not in QUANTIZED:
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
    return Plan(model, target, candidate, plan.batch, plan.out, recipe, images, overwrite)


def describe(plan: Plan) -> dict[str, Any]:
    """What the plan would do, for ``--dry-run``: one flat row."""
    recipe = plan.recipe
    return {
        "model": plan.model.record.name,
        "target": plan.target.name,
        "runtime": f"{plan.target.runtime} >= {plan.target.runtime_min}",
        "precision": plan.candidate.precision,
        "form": plan.candidate.form,
        "batch": plan.batch,
        "recipe": None if recipe is None else recipe.name,
        "calibration": None if recipe is None or plan.images is None else str(plan.images.source),
        "images": None if recipe is None else recipe.observe.num_samples,
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
        "calibration_images": manifest.calibration.count if manifest.calibration else None,
        "skipped_images": list(manifest.calibration.skipped) if manifest.calibration else [],
        "digest": artifact.digest,
    }


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
            f"{plan.candidate.precision} needs calibration images; the embedded ones serve the embedded model alone",
            "name a folder of pictures like those the model will see: --data images/",
        )
    return embedded.pictures("calibration")


def export(plan: Plan, progress: Progress = silent) -> Artifact:
    """Carry out a plan.

    Returns:
        The written artifact, opened.

    Raises:
        ImageError: too many calibration images can't be read.
        ArtifactError: the graph has something that the target can't take (listed).
        InvalidResultError: the result isn't finite, or fewer layers run quantized than planned.
        ResourceError: disk, memory, permission, or another export to the same folder.
    """
    with resource_errors(plan.asked):
        return _export(plan, progress)


def _export(plan: Plan, progress: Progress) -> Artifact:
    from vitedge.graph.surgery import load

    graph = load(plan.model.onnx_path)
    statistics: Statistics | None = None
    calibration: Calibration | None = None
    if plan.recipe is not None and plan.images is not None:
        statistics, calibration = calibrate(
            plan.model, graph, plan.images, plan.recipe.observe, asked=plan.asked, progress=progress
        )
    progress("place", 0, 1)
    placement = runtimes.part(plan.target.runtime, "placement")
    placed: Placed = placement.place(
        Request(
            graph=graph,
            target=plan.target,
            candidate=plan.candidate,
            batch=plan.batch,
            preprocessing=plan.model.record.preprocessing,
            classes=plan.model.record.classes,
            recipe=plan.recipe,
            statistics=statistics,
        )
    )
    progress("place", 1, 1)
    preflight(plan, placed)
    return _publish(plan, graph, placed, calibration, progress)


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


# --- publishing ------------------------------------------------------------------------------------------------------


def _publish(
    plan: Plan, graph: onnx.ModelProto, placed: Placed, calibration: Calibration | None, progress: Progress
) -> Artifact:
    """Run the golden pictures, prove the plan against the executed graph, and write the folder."""
    from vitedge.runtimes.onnxruntime.interpret import run_graph

    record = plan.model.record
    pictures = golden_pictures()
    inputs = np.stack([record.preprocessing.apply(open_picture(data, name)) for name, data in pictures.items()])
    progress("prove", 0, 2)
    reference = run_graph(graph, inputs)
    _finite(plan, reference, "the float32 model's logits")
    progress("prove", 1, 2)
    manifest = Manifest(
        name=plan.name,
        target=plan.target,
        precision=plan.candidate.precision,
        form=plan.candidate.form,
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
        golden=Golden(pictures=tuple(pictures), executed_by="", deviation=0.0),
        candidates=(),
        licence=record.licence,
        recipe=plan.recipe,
        calibration=calibration,
    )
    logits, executed_by = _golden_logits(plan, manifest, placed, inputs)
    _finite(plan, logits, "the placed graph's logits")
    lost = deviation(logits, reference)
    from msgspec.structs import replace

    size = sum(len(data) for data in placed.files.values())
    manifest = replace(
        manifest,
        golden=Golden(pictures=tuple(pictures), executed_by=executed_by, deviation=lost),
        candidates=(
            CandidateResult(precision=manifest.precision, form=manifest.form, bytes=size, deviation=lost, chosen=True),
        ),
    )
    progress("prove", 2, 2)
    files = {
        **placed.files,
        **pictures,
        GOLDEN_INPUTS: npy(inputs),
        GOLDEN_LOGITS: npy(logits),
        GOLDEN_REFERENCE: npy(reference),
    }
    return write_artifact(plan.out, manifest, files, overwrite=plan.overwrite, asked=plan.asked)


def shares(layers: tuple[LayerPlan, ...]) -> dict[str, float]:
    """Share of the multiply-accumulates planned in each precision; sums to 1."""
    total = sum(layer.macs for layer in layers)
    found: dict[str, int] = {}
    for layer in layers:
        found[layer.precision] = found.get(layer.precision, 0) + layer.macs
    return {precision: macs / total for precision, macs in sorted(found.items())} if total else {}


def runs_here(target: Target) -> bool:
    """Whether this machine's processor is the target's and its runtime is installed and can open graphs here.

    Without the instructions that a target promises, its graphs would run and answer wrongly: 8-bit weights saturate.
    """
    if runtimes.elsewhere(target):
        return False
    facts = runtimes.part(target.runtime, "facts")
    return facts.installed() is not None and facts.runs_here(target.device)


def _golden_logits(
    plan: Plan, manifest: Manifest, placed: Placed, inputs: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], str]:
    """Logits of the golden inputs, by the target's runtime where it runs here, else by interpreting the arithmetic."""
    from vitedge.runtimes.onnxruntime.interpret import run_graph

    if not runs_here(plan.target) and placed.interpretable is not None:
        version = runtimes.require("onnxruntime", plan.asked)
        return run_graph(placed.interpretable, inputs), f"interpreted by onnxruntime {version}"
    version = runtimes.require(plan.target.runtime, plan.asked)
    with tempfile.TemporaryDirectory(prefix="vitedge-") as folder:
        for name, data in placed.files.items():
            (Path(folder) / name).write_bytes(data)
        trial = Artifact(Path(folder), manifest)
        backend = runtimes.part(plan.target.runtime, "session").open_backend(trial, OpenOptions(threads=1))
        with Session(trial, backend) as session:
            logits = np.stack(list(session.map_batches(inputs)))
            _prove(plan, manifest, session)
    return logits, f"{plan.target.runtime} {version}"


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
