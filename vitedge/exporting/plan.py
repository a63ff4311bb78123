"""The plan of an export: everything that can be refused without work is refused here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from vitedge import runtimes
from vitedge.core.files import SVG, refuse_existing
from vitedge.data import embedded
from vitedge.data.images import ImageSet
from vitedge.errors import NotInstalledError, UsageError
from vitedge.exporting import hold_out
from vitedge.exporting.division import observed_count, require_samples
from vitedge.exporting.options import ExportOptions
from vitedge.formats.artifact import ARTIFACT
from vitedge.formats.budget import Budget
from vitedge.formats.model_folder import Model
from vitedge.formats.recipe import Recipe, load_recipe
from vitedge.formats.target import QUANTIZED, Candidate, Target, load_target
from vitedge.quantization.calibrate import digests_of
from vitedge.runtimes.here import runs_here, why_not_here

AUTO = "auto"


@dataclass(frozen=True)
class Plan:
    """A checked export: everything that can be refused without work has been."""

    model: Model
    target: Target
    precision: str  # as asked for: one of the target's, or "auto"
    candidates: tuple[Candidate, ...]  # in order of preference
    batch: int
    out: Path
    recipe: Recipe | None = None  # None: nothing is calibrated
    images: ImageSet | None = field(default=None, repr=False)
    observed: int = 0  # calibration images
    held_out: ImageSet | None = field(default=None, repr=False)  # None: those of ``images`` that calibration leaves
    budget: Budget = field(default_factory=lambda: Budget.of_export(None, None))
    autotune: bool = False  # measure all candidates that hold the budget, and take the fastest
    with_candidates: bool = False  # include the others that hold the budget
    explain: bool = False  # scan how sensitive each group is, also where no budget asks for it
    overwrite: bool = False
    part_of: str = ""  # what is done, for error texts, where the export is a part of something else

    @property
    def action(self) -> str:
        """The action, for error texts."""
        return self.part_of or f"export {self.model.record.name} to {self.target.name} in {self.precision}"

    @property
    def picture(self) -> Path:
        """The path of the picture that ``--explain`` writes, beside the artifact."""
        return self.out.with_name(f"{self.out.name}.selection.svg")

    @property
    def most_held_out(self) -> int:
        """The largest number of hold-out pictures: a budget needs many."""
        return hold_out.MOST if self.budget.limits_accuracy else hold_out.usual(self.model.record.preprocessing.size)

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
    """Check the request before any work.

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
    budget = Budget.of_export(options.max_drop, options.min_agreement)
    if precision == AUTO and not budget.limits_accuracy:
        budget = target.budget
    plan = Plan(
        model,
        target,
        precision,
        _candidates(target, precision, options),
        target.batch if options.batch is None else options.batch,
        Path(out),
        budget=budget,
        autotune=options.autotune,
        with_candidates=options.with_candidates,
        explain=options.explain,
        overwrite=options.overwrite,
    )
    _refuse_choice(plan)
    refuse_existing(plan.out, ARTIFACT, overwrite=plan.overwrite, action=plan.action)
    if plan.explain:
        refuse_existing(plan.picture, SVG, overwrite=plan.overwrite, action=plan.action)
    _require_writers(plan)
    if plan.quantized:
        return _with_pictures(plan, options)
    if budget.limits_accuracy:
        reason = "nothing is quantized, so a budget of accuracy has no effect"
        raise UsageError(plan.action, reason, "leave out --max-drop and --min-agreement")
    return plan


def _candidates(target: Target, precision: str, options: ExportOptions) -> tuple[Candidate, ...]:
    """Return the target's candidates of a precision that can be written here.

    Raises:
        UsageError, NotInstalledError: there are none.
    """
    if precision != AUTO:
        return _available(target, target.candidates(precision))
    return _available(target, _auto_candidates(target, all_wanted=options.autotune or options.with_candidates))


def _refuse_choice(plan: Plan) -> None:
    """Raises: UsageError: candidates can't be measured here, or there is only one to include."""
    if plan.autotune and not runs_here(plan.target):
        raise UsageError(
            f"{plan.action}, by measuring",
            why_not_here(plan.target) or f"{plan.target.runtime} doesn't run here",
            "include its candidates (--with-candidates), and choose on the device: vitedge build ARTIFACT",
        )
    if plan.with_candidates and len(plan.candidates) < 2:
        raise UsageError(
            f"{plan.action} with its candidates",
            f"{plan.target.name} has one candidate in {plan.precision}",
            "add those of other precisions: --precision auto",
        )


def _with_pictures(plan: Plan, options: ExportOptions) -> Plan:
    """Return the plan with its recipe, calibration images and hold-out pictures.

    Raises:
        UsageError: an unknown recipe, or too few pictures.
    """
    recipe = options.recipe if isinstance(options.recipe, Recipe) else load_recipe(options.recipe)
    images, held_out = _calibration_images(plan, options.data), _own_hold_out(plan, options.held_out)
    source: dict[str, Any] = {
        "data": "the embedded set" if options.data is None else f"--data {options.data}",
        "held_out_elsewhere": held_out is not None,
        "action": plan.action,
    }
    if options.num_samples is None:
        observed = observed_count(images, recipe.observe.num_samples, **source)
    else:
        observed = options.num_samples
        require_samples(images, observed, **source)
        recipe = replace(recipe, observe=replace(recipe.observe, num_samples=observed))
    plan = changed(plan, recipe=recipe, images=images, observed=observed, held_out=held_out)
    _check_hold_out(plan, named=options.held_out is not None)
    return plan


def _own_hold_out(plan: Plan, named: str | None) -> ImageSet | None:
    """Return the hold-out pictures that don't come from the calibration images' set."""
    if named is not None:
        return embedded.open_images(named, action=plan.action)
    return embedded.pictures("held-out") if plan.model.record.origin.kind == "embedded" else None


def _check_hold_out(plan: Plan, *, named: bool) -> None:
    """Check what is known of the hold-out pictures before work; those that the user named by their contents.

    Raises:
        UsageError: too few for the budget, without labels that it needs, calibrated on, or for display alone.
    """
    assert plan.images is not None and plan.recipe is not None
    images, seed, most = plan.held_out or plan.images, plan.recipe.observe.seed, plan.most_held_out
    if named:
        calibrated = digests_of(plan.images, plan.images.order(seed)[: plan.observed])
        hold_out.refuse_unfit(plan.model, images, images.order(seed)[:most], calibrated, plan.action)
    count = len(images) if plan.held_out is not None else len(images) - plan.observed
    labels = hold_out.class_ids(plan.model, images, required=named and bool(images.classes), action=plan.action)
    plan.budget.require_pictures(
        min(count, most), labelled=labels is not None, source=images.source.name, action=plan.action
    )


def _auto_candidates(target: Target, *, all_wanted: bool) -> tuple[Candidate, ...]:
    """Return the candidates of ``auto``, with a mixture of the preferred quantized variant where all are wanted.

    Where only the first within the budget is wanted, groups of its layers go back to float, which makes it a mixture.
    """
    quantizes = any(candidate.precision in QUANTIZED for candidate in target.candidate)
    return (*target.candidate, *(target.candidates("mixed")[:1] if all_wanted and quantizes else ()))


def _available(target: Target, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Leave out candidates of another package where it isn't installed, or where they can't be evaluated.

    Raises:
        NotInstalledError, UsageError: that leaves none.
    """
    packages = {candidate: runtimes.package(target.runtime, candidate.variant) for candidate in candidates}
    absent = {package for package in packages.values() if package and importlib.util.find_spec(package) is None}
    here = runs_here(target)
    available = tuple(each for each in candidates if not packages[each] or (here and packages[each] not in absent))
    if not available:
        action, package = f"kernel variant '{candidates[0].variant}' of target '{target.name}'", packages[candidates[0]]
        if absent:
            raise NotInstalledError.for_extra(action, package, package)
        raise UsageError(
            action,
            f"{package} quantizes it, so it can be evaluated on the target's kind of machine alone, and "
            f"{why_not_here(target)}",
            "export it there, or use another kernel variant",
        )
    return available


def describe(plan: Plan) -> dict[str, Any]:
    """Return the plan as one flat row, for ``--dry-run``."""
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
        "images": None if recipe is None else plan.observed,
        "budget": str(plan.budget) or None,
        "carries_candidates": plan.with_candidates,
        "runs_here": runs_here(plan.target),
        "out": str(plan.out),
    }


def require_host(action: str, *more: str, extra: str = "host") -> None:
    """Demand the packages that read and write graphs, and ``more``.

    Raises:
        NotInstalledError: one of them is missing; ``extra`` brings all.
    """
    for package in ("onnx", "onnxruntime", "safetensors", *more):
        if importlib.util.find_spec(package) is None:
            raise NotInstalledError.for_extra(action, package, extra)


def _require_writers(plan: Plan) -> None:
    """Demand the ``host`` extra, and the runtime where its files are in its own format."""
    require_host(plan.action)
    runtimes.require_writer(plan.target.runtime, plan.action)


def _calibration_images(plan: Plan, data: str | Path | None) -> ImageSet:
    if data is not None:
        return embedded.open_images(data, action=plan.action)
    if plan.model.record.origin.kind != "embedded":
        raise UsageError(
            plan.action,
            f"{plan.precision} needs calibration images; the embedded pictures suit the embedded model only",
            "name a folder of pictures like those the model will see: --data images/",
        )
    return embedded.pictures("calibration")
