"""The plan of a shrinking: every request that can be refused without work is refused here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

from msgspec.structs import replace

from vitedge import runtimes
from vitedge.core.files import JSON, SVG, refuse_existing
from vitedge.data import embedded
from vitedge.data.images import ImageSet
from vitedge.errors import NotInstalledError, UsageError
from vitedge.exporting.division import observed_count, require_samples
from vitedge.exporting.hold_out import class_ids
from vitedge.exporting.plan import Plan, require_host
from vitedge.formats.budget import Budget as LossBudget
from vitedge.formats.model_folder import MODEL_FOLDER, Model
from vitedge.formats.recipe import load_recipe
from vitedge.formats.target import Target, load_target
from vitedge.graph.surgery import load
from vitedge.runtimes.here import runs_here, why_not_here
from vitedge.shrinking.adapting import sized
from vitedge.shrinking.beside import check_beside
from vitedge.shrinking.components import components
from vitedge.shrinking.options import FEWEST_PICTURES, MOST_PICTURES, ShrinkOptions
from vitedge.shrinking.search import Budget
from vitedge.shrinking.table import Table, read_table, refuse_other


@dataclass(frozen=True)
class ShrinkPlan:
    """A model, a target, a budget and pictures, checked."""

    deployed: Plan  # what will be exported: model, target, candidate, calibration and hold-out pictures
    options: ShrinkOptions
    budget: Budget | None  # None: a table or a frontier alone
    source_digest: str = ""  # of the model before classes were left out
    table: Table | None = None  # the file's

    @property
    def action(self) -> str:
        """The action, for error texts."""
        return self.deployed.action

    @property
    def here(self) -> bool:
        """Whether models can be measured on this machine."""
        return runs_here(self.deployed.target)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The smaller input sizes that may be chosen, (height, width) in pixels, the largest first."""
        return [size for size in self.options.sizes if size != self.deployed.model.record.preprocessing.size]

    def beside(self, ending: str) -> Path:
        """Return the path of a file beside the model folder: ``OUT.frontier.svg``."""
        out = self.deployed.out
        return out.with_name(f"{out.name}.{ending}")


def plan_shrink(
    model: Model | str | Path,
    target: Target | str | Path,
    out: str | Path,
    options: ShrinkOptions,
    *,
    source_digest: str = "",
) -> ShrinkPlan:
    """Check the request before any work.

    Args:
        model: a model folder.
        target: a target, its name, or a TOML file.
        out: the model folder to write.
        options: the budget, the pictures, and what may be lost.
        source_digest: of the model before classes were left out; empty: ``model`` is whole.

    Raises:
        UsageError: unknown target or precision, no or several budgets, an existing output, unfit pictures, a latency
            that can't be measured, or a resolution that isn't smaller.
        ModelError: a damaged model folder, or one that can't take a resolution.
        NotInstalledError: the target's graphs are written by a package that isn't installed, or torch is missing.
    """
    deployed = plan_deployment(model, target, options, Path(out))
    action = deployed.action
    if not options.frontier or options.budgets:
        options.require_one_budget(action)
    budget = next((Budget(*given) for given in options.budgets.items()), None)
    plan = ShrinkPlan(deployed, options, budget, source_digest or deployed.model.digest)
    _refuse_unmeasurable(plan)
    check_sizes(deployed.model, options, action)
    check_beside(options.beside, deployed.model.record, action)
    if options.beside and not options.frontier:
        reason = "--beside adds models to the picture of --frontier, which is missing"
        raise UsageError(action, reason, "add --frontier, or leave out --beside")
    plan = changed(plan, table=_table(plan))
    if plan.budget is not None:
        refuse_existing(deployed.out, MODEL_FOLDER, overwrite=options.overwrite, action=action)
    if options.frontier:
        for ending, kind in (("frontier.svg", SVG), ("frontier.json", JSON)):
            refuse_existing(plan.beside(ending), kind, overwrite=options.overwrite, action=action)
    if options.finetune is not None and importlib.util.find_spec("torch") is None:
        raise NotInstalledError.for_extra(f"{action} and fine-tune it", "torch", "train")
    if options.labelled is not None and options.finetune is None:
        reason = "--labelled names pictures for --finetune, which is missing"
        raise UsageError(action, reason, "add --finetune EPOCHS, or leave out --labelled")
    return changed(plan, deployed=_with_pictures(deployed, options, action))


def plan_deployment(model: Model | str | Path, target: Target | str | Path, options: ShrinkOptions, out: Path) -> Plan:
    """Plan the model's deployment: target, candidate and batch, without pictures.

    Raises:
        UsageError, ModelError, NotInstalledError: as :func:`plan_shrink`.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    target = target if isinstance(target, Target) else load_target(target)
    precision = options.precision or target.candidate[0].precision
    candidate = target.candidates(precision)[0]
    action = f"shrink {model.record.name} for {target.name}"
    require_host(action)
    runtimes.require_writer(target.runtime, action)
    recipe = load_recipe("default")
    return Plan(model, target, precision, (candidate,), target.batch, out, recipe=recipe, part_of=action)


def require_here(target: Target, action: str) -> None:
    """Refuse to measure where the target doesn't run.

    Raises:
        UsageError: it doesn't, and why.
    """
    if not runs_here(target):
        why = why_not_here(target) or f"{target.runtime} doesn't run here"
        command = f"vitedge shrink MODEL --target {target.name} --table table.json"
        hint = f"run on the device: {command}; then copy the file here, and give it with --table table.json"
        raise UsageError(action, f"nothing can be measured: {why}", hint)


def _refuse_unmeasurable(plan: ShrinkPlan) -> None:
    """Raises: UsageError: a latency can't be measured and no table gives it, or the table would be ignored."""
    options, target = plan.options, plan.deployed.target
    if plan.budget is not None and plan.budget.kind == "macs" and options.table is not None:
        reason = "--macs counts multiply-accumulates and uses no latency table"
        raise UsageError(plan.action, reason, "leave out --macs or --table")
    if options.frontier or (options.latency is not None and options.table is None):
        require_here(target, plan.action)


def check_sizes(model: Model, options: ShrinkOptions, action: str) -> None:
    """Refuse resolutions that the model can't take, or that aren't smaller than its own.

    Raises:
        UsageError: it's larger, or it's asked for beside a frontier.
        ModelError: as :func:`vitedge.shrinking.adapting.sized`.
    """
    own, record = model.record.preprocessing.size, model.record
    for size in options.sizes:
        sized(record, size, action)
        if size[0] > own[0] or size[1] > own[1]:
            text = "×".join(map(str, size))
            reason = f"{text} pixels are more than the {own[0]}×{own[1]} that the model takes"
            raise UsageError(action, reason, "name smaller sizes: --resolutions")
    if options.sizes and options.frontier:
        reason = "a frontier is drawn for one input size"
        raise UsageError(action, reason, "leave out --resolutions, or ask for a budget")


def _table(plan: ShrinkPlan) -> Table | None:
    """Read the latency table that a file holds.

    Raises:
        UsageError, ArtifactError: as :func:`vitedge.shrinking.table.read_table`; or it's of another precision, or has
            none of the resolutions.
    """
    path, deployed = plan.options.table, plan.deployed
    if path is None:
        return None
    table = read_table(Path(path), components(load(deployed.model.onnx_path)), plan.action)
    refuse_other(table, deployed, path, plan.action)
    for size in plan.sizes:
        table.at(size, path, plan.action)
    return table


def _with_pictures(deployed: Plan, options: ShrinkOptions, action: str) -> Plan:
    """Return the plan with the pictures to shrink with, the hold-out pictures, and the limit of the loss.

    Raises:
        UsageError: too few pictures.
    """
    is_embedded, recipe = deployed.model.record.origin.kind == "embedded", deployed.recipe
    if options.data is None and not is_embedded:
        reason = "shrinking needs pictures; the embedded pictures suit the embedded model only"
        raise UsageError(action, reason, "name a folder of pictures like those the model will see: --data images/")
    images = embedded.open_images(options.data or "calibration", action=action)
    held_out = embedded.open_images(options.held_out, action=action) if options.held_out else None
    if held_out is None and is_embedded:
        held_out = embedded.pictures("held-out")
    data = "the embedded set" if options.data is None else f"--data {options.data}"
    elsewhere = held_out is not None
    if options.num_samples is None:
        wanted = _pictures_wanted(deployed.model.record.preprocessing.size)
        count = observed_count(images, wanted, data=data, held_out_elsewhere=elsewhere, action=action)
    else:
        count = options.num_samples
        require_samples(images, count, data=data, held_out_elsewhere=elsewhere, action=action)
    assert recipe is not None
    recipe = replace(recipe, observe=replace(recipe.observe, num_samples=count))
    limit = _limit(deployed.model, held_out or images, options, action)
    return changed(deployed, recipe=recipe, images=images, observed=count, held_out=held_out, budget=limit)


def _pictures_wanted(size: tuple[int, int]) -> int:
    """Return how many pictures of (height, width) pixels give as much to fit layers to as 300 of 224 × 224."""
    alike = FEWEST_PICTURES * 224 * 224 // (size[0] * size[1])
    return min(MOST_PICTURES, max(FEWEST_PICTURES, alike))


def _limit(model: Model, images: ImageSet, options: ShrinkOptions, action: str) -> LossBudget:
    """Return the allowed loss: of top-1 where hold-out pictures have labels, else of agreement with the whole model."""
    if options.max_drop is None or class_ids(model, images, required=False, action=action) is not None:
        return LossBudget.of_export(options.max_drop, None)
    return LossBudget.of_export(None, max(0.0, 100 - options.max_drop))
