"""From a plan to a narrower model: choose widths, verify the budget, shrink, measure the loss, write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import to_builtins
from msgspec.structs import replace

from vitedge.core.files import resource_errors
from vitedge.core.progress import Progress, silent
from vitedge.errors import InvalidResultError, UsageError
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.model_folder import Model, write_model
from vitedge.graph.surgery import macs
from vitedge.shrinking.choose import place_name
from vitedge.shrinking.components import Component
from vitedge.shrinking.files import model_files
from vitedge.shrinking.finetune import finetuned
from vitedge.shrinking.plan import ShrinkPlan
from vitedge.shrinking.prices import Prices, prices
from vitedge.shrinking.search import Cost, Trial, meet
from vitedge.shrinking.shrinkage import SHRUNK, Removed, Shrinkage
from vitedge.shrinking.subject import Subject, subject
from vitedge.shrinking.table import Table

if TYPE_CHECKING:
    import onnx


def carry_out(plan: ShrinkPlan, progress: Progress = silent) -> Model:
    """Shrink a model as planned, and write it.

    Raises:
        InvalidResultError: the budget can't be met, or more is lost than may be.
        Others as :func:`subject`, and as :func:`vitedge.formats.model_folder.write_model`.
    """
    with resource_errors(plan.action):
        return shrink_subject(subject(plan, progress))


def shrink_subject(whole: Subject) -> Model:
    """Choose, shrink and write.

    Raises:
        InvalidResultError: the budget can't be met, or more is lost than may be.
    """
    plan, progress = whole.plan, whole.progress
    assert plan.budget is not None
    priced = prices(plan, whole.inputs.graph, whole.components, progress)
    table = priced.table
    _refuse_within(plan, table)
    trial = meet(whole.schedules(table.saved), plan.budget, table.full, priced.cost, plan.action, progress)
    graph = whole.shrunk(trial.widths).model
    if plan.options.finetune is not None:
        graph = finetuned(whole, graph)
    loss = whole.loss(graph)
    _refuse_loss(plan, loss)
    cost = trial.cost if not table.measured or priced.watch is None else priced.measured(graph)
    return write(whole, graph, shrinkage(whole, priced, trial, cost, graph, loss))


def _refuse_within(plan: ShrinkPlan, table: Table) -> None:
    """Raises: UsageError: the whole model is within the budget."""
    assert plan.budget is not None
    if plan.budget.allowed(table.full) >= table.full:
        cost = f"{table.full / 1e6:.3g} ms" if table.measured else f"{table.full:,.0f} multiply-accumulates"
        reason = f"the whole model takes {cost}, which is within the budget, {plan.budget}"
        raise UsageError(plan.action, reason, "export it as it is, or ask for less")


def _refuse_loss(plan: ShrinkPlan, loss: Fidelity) -> None:
    """Raises: InvalidResultError: more is lost than may be."""
    limit = plan.deployed.budget
    if not limit.limits_accuracy or limit.holds(loss):
        return
    drop = loss.top1_drop
    lost = "" if drop is None else f"top-1 drops by {drop.pp:.2f} pp (95 %: {drop.low:.2f} to {drop.high:.2f}), and "
    raise InvalidResultError(
        plan.action,
        f"more is lost than may be, {limit}: {lost}{loss.agreement:.2%} of {loss.pictures} pictures keep their label",
        "nothing was written; ask for less, allow more, "
        + ("train for longer: --finetune" if plan.options.finetune else "or repair it: --finetune 10"),
    )


def shrinkage(
    whole: Subject, priced: Prices, trial: Trial, cost: Cost, graph: onnx.ModelProto, loss: Fidelity
) -> Shrinkage:
    """What was done, for ``model.json``."""
    plan, table = whole.plan, priced.table
    return Shrinkage(
        model=plan.deployed.model.record.name,
        model_digest=plan.source_digest,
        classes=len(whole.plan.deployed.model.record.classes),
        budget=str(plan.budget),
        chosen_by=str(table),
        table_digest=table.digest if table.measured else None,
        unit=table.unit,
        full=cost.full,
        cost=cost.shrunk,
        verified=priced.verifies,
        macs_before=sum(macs(whole.inputs.graph).values()),
        macs_after=sum(macs(graph).values()),
        removed=tuple(_removed(whole, priced, trial)),
        pictures=len(whole.frames),
        loss=loss,
        finetuned_epochs=plan.options.finetune,
    )


def _removed(whole: Subject, priced: Prices, trial: Trial) -> Iterator[Removed]:
    """What became narrower, in the order of the graph."""
    table, merged = priced.table, next((each for each in whole.components if _merges(each, trial)), None)
    left = {} if merged is None else whole.left(merged.name, trial.widths[merged.name])
    for component in whole.components:
        width = trial.widths.get(component.name)
        if width is not None:
            share = 1.0 if component is merged else left.get(place_name(component), 1.0)
            yield Removed(
                component=component.name,
                kind=component.kind,
                before=component.width,
                after=width,
                saves=share * table.saved[component.name][width] / table.full,
                error=whole.errors[component.name][width],
            )


def _merges(component: Component, trial: Trial) -> bool:
    return component.kind == "tokens" and component.name in trial.widths


def write(whole: Subject, graph: onnx.ModelProto, done: Shrinkage) -> Model:
    """Write the shrunk model: the whole one's record, with what was done among its origin's details.

    Raises:
        UsageError, ResourceError: as :func:`vitedge.formats.model_folder.write_model`.
    """
    plan, record = whole.plan, whole.plan.deployed.model.record
    files, architecture = model_files(graph, record)
    details = {**record.origin.details, SHRUNK: to_builtins(done)}
    record = replace(
        record,
        origin=replace(record.origin, details=details, parity=None),
        architecture=architecture,
        accuracy=None,
    )
    out, overwrite = plan.deployed.out, plan.options.overwrite
    return write_model(out, record, files, overwrite=overwrite, action=plan.action)
