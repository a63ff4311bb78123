"""Describe a shrinking: the components, the savings and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import convert, to_builtins

from vitedge.errors import UsageError
from vitedge.formats.model_folder import Model
from vitedge.reporting import provenance, terminal
from vitedge.reporting.rows import points
from vitedge.shrinking.frontier import Frontier
from vitedge.shrinking.shrinkage import SHRUNK, Shrinkage
from vitedge.shrinking.table import Table

if TYPE_CHECKING:
    from rich.console import RenderableType


def no_out(action: str) -> UsageError:
    """Return the error for a missing output path."""
    hint = "add: --out MODEL; or, to measure a latency table alone, --table FILE without a budget"
    return UsageError(action, "no model folder to write was named", hint)


def summary(model: Model | None, curve: Frontier | None) -> dict[str, Any]:
    """Return one row for ``--json``: the shrunk model, and the curve where one was drawn.

    Returns:
        "model": the folder, "digest"; "shrunk": the fields of :class:`vitedge.shrinking.shrinkage.Shrinkage`;
        "frontier": those of :class:`vitedge.shrinking.frontier.Frontier`.
    """
    row: dict[str, Any] = {}
    if model is not None:
        row = {
            "model": str(model.path),
            "digest": model.digest,
            "shrunk": model.record.origin.details[SHRUNK],
        }
    return row if curve is None else {**row, "frontier": to_builtins(curve)}


def show(row: Mapping[str, Any]) -> None:
    """Print a row of :func:`summary`."""
    terminal.show(
        *(_shrunk(row) if "shrunk" in row else ()), *(_frontier(row["frontier"]) if "frontier" in row else ())
    )


def removed(done: Shrinkage) -> RenderableType:
    """Return the table of narrower components, their savings and errors."""
    return terminal.table(
        ["component", "what", ">before", ">after", ">saves (%)", ">error"],
        [
            (
                each.component,
                each.kind.replace("_", "/"),
                each.before,
                each.after,
                f"{100 * each.saves:.1f}",
                f"{each.error:.2g}",
            )
            for each in done.removed
        ],
        title="what was removed, what it saves of the whole model's cost, and the squared error of the logits it adds",
    )


def resolutions(done: Shrinkage) -> RenderableType:
    """Return the table of input sizes, with cost and loss of each within the budget."""
    measured = done.unit == "ns"
    return terminal.table(
        ["pixels", ">ms" if measured else ">MMACs", ">top-1 drop (pp)", ">agreement (%)", ">KL"],
        [
            (
                "×".join(map(str, each.size)),
                "not within the budget" if each.cost is None else f"{each.cost / 1e6:.3g}",
                "" if each.loss is None or each.loss.top1_drop is None else points(each.loss.top1_drop.pp),
                "" if each.loss is None else f"{100 * each.loss.agreement:.2f}",
                "" if each.loss is None else f"{each.loss.divergence:.2g}",
            )
            for each in done.resolutions
        ],
        title="the budget at each input size, against the whole model at its own; the least KL is chosen",
    )


def _shrunk(row: Mapping[str, Any]) -> Iterator[RenderableType]:
    done = convert(row["shrunk"], Shrinkage)
    yield terminal.facts({"model": row["model"], **provenance.facts(done)}.items())
    if done.resolutions:
        yield resolutions(done)
    if done.removed:
        yield removed(done)


def _frontier(curve: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield terminal.table(
        ["!precision", "!budget or model", ">ms", ">times as fast", ">MMACs", ">top-1 (%)", ">agreement (%)", ">KL"],
        [
            (
                point["precision"],
                point["model"] or point["budget"],
                f"{point['latency_ms']:.3f}",
                f"{point['speedup']:.2f}",
                f"{point['macs'] / 1e6:.1f}",
                "" if point["top1"] is None else f"{100 * point['top1']:.2f}",
                "" if point["loss"] is None else f"{100 * point['loss']['agreement']:.2f}",
                "" if point["loss"] is None else f"{point['loss']['divergence']:.2g}",
            )
            for point in curve["points"]
        ],
        title=f"{curve['model']} shrunk for {curve['target']}, chosen by: {curve['chosen_by']}",
    )
    yield terminal.text(f"written: {', '.join(curve['files'])}")
    if len(curve["files"]) == 1:
        yield terminal.text("no picture: matplotlib isn't installed", terminal.UNSURE)


def show_table(path: str | Path) -> Callable[[Table], None]:
    """Return a function that prints a latency table."""

    def show(table: Table) -> None:
        rows = [
            (
                "" if each_size.size is None else "×".join(map(str, each_size.size)),
                shape.kind.replace("_", "/"),
                len(shape.components),
                shape.width,
                each.width,
                f"{each.saved / 1e3:.1f}",
            )
            for each_size in (table, *table.resized)
            for shape in each_size.shapes
            for each in shape.widths
        ]
        whole = [f"{each.full / 1e6:.3g} ms" for each in (table, *table.resized)]
        terminal.show(
            terminal.facts(
                [
                    ("table", path),
                    ("model", table.model),
                    ("measured", str(table)),
                    ("whole model", ", ".join(whole)),
                ]
            ),
            terminal.table(["pixels", "what", ">components", ">width", ">narrower", ">each saves (µs)"], rows),
        )

    return show
