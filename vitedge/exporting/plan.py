"""What an export would do, checked against what is true before any work."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from vitedge import runtimes
from vitedge.core.files import refuse_existing
from vitedge.data import embedded
from vitedge.data.images import ImageSet
from vitedge.errors import NotInstalledError, UsageError
from vitedge.exporting.options import ExportOptions
from vitedge.formats.budget import Budget
from vitedge.formats.model_folder import Model
from vitedge.formats.recipe import Recipe, load_recipe
from vitedge.formats.target import QUANTIZED, Candidate, Target, load_target
from vitedge.runtimes.here import runs_here, why_not_here

AUTO = "auto"


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
    budget: Budget = field(default_factory=lambda: Budget.of_export(None, None))
    autotune: bool = False  # measure all candidates that hold the budget, and take the fastest
    with_candidates: bool = False  # the others that hold the budget travel with the artifact
    explain: bool = False  # scan how sensitive each group is, also where no budget asks for it
    overwrite: bool = False

    @property
    def action(self) -> str:
        """The wish, for error texts."""
        return f"export {self.model.record.name} to {self.target.name} in {self.precision}"

    @property
    def picture(self) -> Path:
        """Where the picture of an export that explains itself goes: beside the artifact."""
        return self.out.with_name(f"{self.out.name}.selection.svg")

    @property
    def quantized(self) -> bool:
        """Whether one of the candidates needs calibration."""
        return any(candidate.precision in QUANTIZED for candidate in self.candidates)


def plan_export(
    model: Model | str | Path,
    target: Target | str | Path,
    precision: str,
    out: str | Path,
    options: ExportOptions | None = None,
) -> Plan:
    """Check a wish against what is true, before any work.

    Args:
        model: a model folder.
        target: a target, its name, or a TOML file.
        precision: one of the target's, or ``auto``: the first of its candidates that holds the budget.
        out: the artifact folder to write.
        options: how to calibrate, what accuracy to hold, and what to choose from.

    Raises:
        UsageError: unknown target, recipe or precision, existing output, missing or unfit calibration images.
        ModelError: a damaged model folder.
        NotInstalledError: the target's graphs are written by a package that isn't installed.
    """
    options = options or ExportOptions()
    model = model if isinstance(model, Model) else Model.open(model)
    target = target if isinstance(target, Target) else load_target(target)
    candidates = _tried(target, everyone=options.autotune or options.with_candidates) if precision == AUTO else None
    candidates = _makeable(target, candidates or target.candidates(precision))
    budget = Budget.of_export(options.max_drop, options.min_agreement)
    if precision == AUTO and not budget.limits_accuracy:
        budget = target.budget
    plan = Plan(
        model,
        target,
        precision,
        candidates,
        target.batch if options.batch is None else options.batch,
        Path(out),
        budget=budget,
        autotune=options.autotune,
        with_candidates=options.with_candidates,
        explain=options.explain,
        overwrite=options.overwrite,
    )
    if options.autotune and not runs_here(target):
        raise UsageError(
            f"{plan.action}, by measuring",
            why_not_here(target) or f"{target.runtime} doesn't run here",
            "let its candidates travel (--with-candidates), and choose on the device: vitedge build ARTIFACT",
        )
    if options.with_candidates and len(candidates) < 2:
        raise UsageError(
            f"{plan.action} with its candidates",
            f"{target.name} has one candidate in {precision}",
            "add those of other precisions: --precision auto",
        )
    refuse_existing(plan.out, overwrite=options.overwrite, action=plan.action)
    if options.explain:
        refuse_existing(plan.picture, overwrite=options.overwrite, action=plan.action)
    _require_writers(plan)
    if not plan.quantized:
        if budget.limits_accuracy:
            raise UsageError(plan.action, "nothing is quantized, so there is nothing to lose", "leave the budget out")
        return plan
    recipe = options.recipe if isinstance(options.recipe, Recipe) else load_recipe(options.recipe)
    if options.num_samples is not None:
        recipe = replace(recipe, observe=replace(recipe.observe, num_samples=options.num_samples))
    images = _calibration_images(plan, options.data)
    wanted = recipe.observe.num_samples
    if len(images) < wanted:
        raise UsageError(
            plan.action,
            f"recipe '{recipe.name}' observes {wanted} images; {images.source.name} has {len(images)}",
            f"name a larger --data folder, or add: --num-samples {len(images)}",
        )
    judges = None if options.held_out is None else embedded.open_images(options.held_out, action=plan.action)
    return changed(plan, recipe=recipe, images=images, held_out=judges)


def _tried(target: Target, *, everyone: bool) -> tuple[Candidate, ...]:
    """The candidates of ``auto``; a mixture of the preferred quantized variant is one more where all are tried.

    Where only the first that holds the budget is wanted, groups of its layers go back to float for it: that is one.
    """
    whole = any(candidate.precision in QUANTIZED for candidate in target.candidate)
    return (*target.candidate, *(target.candidates("mixed")[:1] if everyone and whole else ()))


def _makeable(target: Target, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """The candidates without those of another package where it isn't installed, or where they couldn't be judged.

    Raises:
        NotInstalledError, UsageError: that leaves none.
    """
    packages = {candidate: runtimes.package(target.runtime, candidate.variant) for candidate in candidates}
    absent = {package for package in packages.values() if package and importlib.util.find_spec(package) is None}
    here = runs_here(target)
    found = tuple(each for each in candidates if not packages[each] or (here and packages[each] not in absent))
    if not found:
        action, package = f"kernel variant '{candidates[0].variant}' of target '{target.name}'", packages[candidates[0]]
        if absent:
            raise NotInstalledError.for_extra(action, package, package)
        raise UsageError(
            action,
            f"its arithmetic is {package}'s, so only a machine like the target can judge it; {why_not_here(target)}",
            "export it there, or use another kernel variant",
        )
    return found


def describe(plan: Plan) -> dict[str, Any]:
    """What the plan would do, for ``--dry-run``: one flat row."""
    recipe = plan.recipe
    return {
        "model": plan.model.record.name,
        "target": plan.target.name,
        "runtime": f"{plan.target.runtime} >= {plan.target.runtime_min}",
        "precision": plan.precision,
        "form": ", or ".join(candidate.variant for candidate in plan.candidates),
        "batch": plan.batch,
        "recipe": None if recipe is None else recipe.name,
        "calibration": None if recipe is None or plan.images is None else str(plan.images.source),
        "images": None if recipe is None else recipe.observe.num_samples,
        "budget": str(plan.budget) or None,
        "carries_candidates": plan.with_candidates,
        "runs_here": runs_here(plan.target),
        "out": str(plan.out),
    }


def require_host(action: str) -> None:
    """Demand the packages that read and write graphs.

    Raises:
        NotInstalledError: one of them is missing; the extra ``host`` brings all.
    """
    for package in ("onnx", "onnxruntime", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise NotInstalledError.for_extra(action, package, "host")


def _require_writers(plan: Plan) -> None:
    """The ``host`` extra, and the runtime where its files are its own format."""
    require_host(plan.action)
    if plan.target.runtime == "openvino":  # the intermediate representation is written by OpenVINO itself
        runtimes.require("openvino", plan.action)


def _calibration_images(plan: Plan, data: str | Path | None) -> ImageSet:
    if data is not None:
        return embedded.open_images(data, action=plan.action)
    if plan.model.record.origin.kind != "embedded":
        raise UsageError(
            plan.action,
            f"{plan.precision} needs calibration images; the embedded ones serve the embedded model alone",
            "name a folder of pictures like those the model will see: --data images/",
        )
    return embedded.pictures("calibration")
