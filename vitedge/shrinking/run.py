"""From a plan to a narrower model: choose widths, verify the budget, shrink, measure the loss, write."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec import to_builtins
from msgspec.structs import replace as replaced

from vitedge.core.files import resource_errors
from vitedge.core.progress import Progress, named, silent
from vitedge.errors import InvalidResultError, UsageError
from vitedge.formats.fidelity import Fidelity
from vitedge.formats.model_folder import Model, write_model
from vitedge.graph.surgery import macs
from vitedge.shrinking.adapting import at_size
from vitedge.shrinking.choose import SCHEDULED, Option, Places, leading, place_name, together
from vitedge.shrinking.embedding import NAME as EMBEDDING
from vitedge.shrinking.files import model_files
from vitedge.shrinking.finetune import finetuned
from vitedge.shrinking.plan import ShrinkPlan
from vitedge.shrinking.prices import Prices, prices, resized_prices
from vitedge.shrinking.search import Cost, Trial, meet
from vitedge.shrinking.shrinkage import SHRUNK, Removed, Resolution, Shrinkage
from vitedge.shrinking.subject import Subject, subject
from vitedge.shrinking.table import Table

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

EMBEDDINGS = 3  # widths of the embedding, each tried with the widths of all else that suit it


@dataclass(frozen=True)
class Attempt:
    """A model within the budget."""

    subject: Subject
    priced: Prices
    trial: Trial
    graph: onnx.ModelProto
    loss: Fidelity


def carry_out(plan: ShrinkPlan, progress: Progress = silent) -> Model:
    """Shrink a model as planned, and write it.

    Raises:
        InvalidResultError: the budget can't be met, or more is lost than may be.
        Others as :func:`subject`, and as :func:`vitedge.formats.model_folder.write_model`.
    """
    with resource_errors(plan.action), contextlib.ExitStack() as stack:
        whole = subject(plan, progress)
        priced = prices(plan, whole.inputs.graph, whole.components, progress)
        _refuse_within(plan, priced.table)
        choices = [(whole, priced)]
        for size in plan.sizes:
            smaller = whole.of(stack.enter_context(at_size(plan.deployed.model, size, plan.action)))
            found, graph = smaller.components, smaller.inputs.graph
            choices.append((smaller, resized_prices(priced, smaller.plan, graph, found, smaller.progress)))
        attempts = _attempts(choices)
        chosen = min(attempts, key=_rank)
        tried = [_resolution(each, attempts) for each, _ in choices] if plan.sizes else []
        if plan.options.finetune is not None:
            graph = finetuned(whole, chosen.subject, chosen.graph)
            chosen = replace(chosen, graph=graph, loss=chosen.subject.loss(graph))
        _refuse_loss(plan, chosen.loss)
        return write(chosen, shrinkage(chosen, tried))


def _attempts(choices: Sequence[tuple[Subject, Prices]]) -> list[Attempt]:
    """Return an attempt for every size that meets the budget.

    Raises:
        InvalidResultError: none does; what the smallest one reached is said.
    """
    attempts = list[Attempt]()
    for each, priced in choices:
        try:
            attempts.append(_attempt(each, priced))
        except InvalidResultError:
            if each is choices[-1][0] and not attempts:
                raise
    return attempts


def _attempt(subject: Subject, priced: Prices) -> Attempt:
    """Return the best attempt with those widths of the embedding that promise most.

    A narrower embedding changes what everything else saves and costs, of which the table and the errors know little.
    So of each such width a model that meets the budget is fitted to half of the pictures. The best width is measured
    for longer, its model fitted to all pictures, and its branches are adjusted.

    Raises:
        InvalidResultError: the budget can't be met.
    """
    budget = subject.plan.budget
    assert budget is not None
    schedules = subject.schedules(priced.table.saved)
    needed = priced.start.shrunk - budget.allowed(priced.start.full)
    groups = leading(schedules, needed, EMBEDDING, EMBEDDINGS)
    for group, like in _ranked(groups, subject, priced):
        with contextlib.suppress(InvalidResultError):
            trial = _trial(group, subject, priced, subject.progress, like, confirm=priced.confirm)
            break
    else:
        trial = _trial(schedules, subject, priced, subject.progress, confirm=priced.confirm)
    return _fitted(subject, priced, trial, subject.frames, subject.progress, adjust=True)


def _ranked(
    groups: Sequence[Sequence[Places]], subject: Subject, priced: Prices
) -> list[tuple[Sequence[Places], Trial]]:
    """Return those of several groups of schedules that meet the budget, each with its trial; the best comes first."""
    found, trial = list[tuple[Sequence[Places], Trial]](), None
    for number, group in enumerate(groups if len(groups) > 1 else (), 1):
        with contextlib.suppress(InvalidResultError):
            trial = _trial(group, subject, priced, named(subject.progress, number), trial)
            found.append((group, trial))
    if len(found) < 2:
        return found
    attempts = [
        (_fitted(subject, priced, each, subject.frames[::2], named(subject.progress, number)), group)
        for number, (group, each) in enumerate(found, 1)
    ]
    return [(group, each.trial) for each, group in sorted(attempts, key=lambda pair: _rank(pair[0]))]


def _trial(
    among: Sequence[Places],
    subject: Subject,
    priced: Prices,
    progress: Progress,
    like: Trial | None = None,
    *,
    confirm: Callable[[Option], Cost] | None = None,
) -> Trial:
    """Return the widths of least error that meet the budget; the search begins with what a similar one found."""
    plan = subject.plan
    assert plan.budget is not None
    guess = together(like.options).saved if like is not None else None
    return meet(among, plan.budget, priced.start, priced.cost, plan.action, progress, confirm=confirm, guess=guess)


def _fitted(
    subject: Subject,
    priced: Prices,
    trial: Trial,
    frames: NDArray[np.uint8],
    progress: Progress,
    *,
    adjust: bool = False,
) -> Attempt:
    """Return the model of a trial, fitted to some of the pictures, or all."""
    graph = subject.shrunk(trial.widths, frames, progress, adjust=adjust).model
    return Attempt(subject, priced, trial, graph, subject.loss(graph))


def _rank(attempt: Attempt) -> tuple[bool, float]:
    """Return the key to sort attempts by: those within the limit go first, of them the one that loses least."""
    return not _holds(attempt.subject.plan, attempt.loss), attempt.loss.divergence


def _resolution(tried: Subject, attempts: Sequence[Attempt]) -> Resolution:
    """Return the outcome for one input size."""
    attempt = next((each for each in attempts if each.subject is tried), None)
    if attempt is None:
        return Resolution(size=tried.size, cost=None, loss=None)
    return Resolution(size=tried.size, cost=attempt.trial.cost.shrunk, loss=attempt.loss)


def _holds(plan: ShrinkPlan, loss: Fidelity) -> bool:
    """Whether the loss is within the limit."""
    limit = plan.deployed.budget
    return not limit.limits_accuracy or limit.holds(loss)


def _refuse_within(plan: ShrinkPlan, table: Table) -> None:
    """Raises: UsageError: the whole model is within the budget."""
    assert plan.budget is not None
    if plan.budget.allowed(table.full) >= table.full:
        cost = f"{table.full / 1e6:.3g} ms" if table.measured else f"{table.full:,.0f} multiply-accumulates"
        reason = f"the whole model takes {cost}, which is within the budget, {plan.budget}"
        raise UsageError(plan.action, reason, "export it as it is, or ask for a smaller budget")


def _refuse_loss(plan: ShrinkPlan, loss: Fidelity) -> None:
    """Raises: InvalidResultError: the loss exceeds the limit."""
    if _holds(plan, loss):
        return
    lost = "" if loss.top1_drop is None else f"top-1 drops by {loss.top1_drop}, and "
    kept = f"{loss.agreement:.2%} of {loss.pictures} pictures keep their label"
    raise InvalidResultError(
        plan.action,
        f"the loss exceeds the limit, {plan.deployed.budget}: {lost}{kept}",
        "nothing was written; relax the budget, allow a larger --max-drop, "
        + ("or fine-tune for longer: --finetune EPOCHS" if plan.options.finetune else "or fine-tune: --finetune 10"),
    )


def shrinkage(chosen: Attempt, tried: Sequence[Resolution]) -> Shrinkage:
    """Return the record of the shrinking, for ``model.json``."""
    whole, priced, cost = chosen.subject, chosen.priced, chosen.trial.cost
    plan, table = whole.plan, priced.table
    return Shrinkage(
        model=plan.deployed.model.record.name,
        model_digest=plan.source_digest,
        classes=len(plan.deployed.model.record.classes),
        budget=str(plan.budget),
        chosen_by=str(table),
        table_digest=table.digest if table.measured else None,
        unit=table.unit,
        full=cost.full,
        cost=cost.shrunk,
        verified=priced.verifies,
        macs_before=priced.macs,
        macs_after=sum(macs(chosen.graph).values()),
        removed=tuple(_removed(chosen)),
        pictures=len(whole.frames),
        loss=chosen.loss,
        finetuned_epochs=plan.options.finetune,
        size=whole.size,
        resolutions=tuple(tried),
    )


def _removed(chosen: Attempt) -> Iterator[Removed]:
    """Yield what became narrower, in the order of the graph."""
    whole, priced, widths = chosen.subject, chosen.priced, chosen.trial.widths
    scheduled = [each.name for each in whole.components if each.kind in SCHEDULED and each.name in widths]
    left = [whole.left(name, widths[name]) for name in scheduled]
    for component in whole.components:
        width = widths.get(component.name)
        if width is not None:
            place = component.name if component.name in scheduled else place_name(component)
            share = math.prod(each.get(place, 1.0) for each in left)
            yield Removed(
                component=component.name,
                kind=component.kind,
                before=component.width,
                after=width,
                saves=share * priced.table.saved[component.name][width] / priced.full,
                error=whole.errors[component.name][width],
            )


def write(chosen: Attempt, done: Shrinkage) -> Model:
    """Write the shrunk model: the whole model's record, with the shrinking among its origin's details.

    Raises:
        UsageError, ResourceError: as :func:`vitedge.formats.model_folder.write_model`.
    """
    plan, record = chosen.subject.plan, chosen.subject.plan.deployed.model.record
    files, architecture = model_files(chosen.graph, record)
    details = {**record.origin.details, SHRUNK: to_builtins(done)}
    record = replaced(
        record,
        origin=replaced(record.origin, details=details, parity=None),
        architecture=architecture,
        accuracy=None,
    )
    out, overwrite = plan.deployed.out, plan.options.overwrite
    return write_model(out, record, files, overwrite=overwrite, action=plan.action)
