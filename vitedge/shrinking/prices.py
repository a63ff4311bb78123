"""Where a shrinking takes its costs from: a file's table, one that is measured here, or multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitedge import runtimes
from vitedge.core.cache import optional_writes
from vitedge.core.files import JSON, refuse_existing, sha256, write_atomic
from vitedge.core.paths import cache_folder
from vitedge.core.progress import Progress, silent
from vitedge.core.schema import encode_json
from vitedge.device.clocks import power_mode
from vitedge.errors import InputError, UsageError
from vitedge.exporting.plan import Plan
from vitedge.graph.surgery import load, macs
from vitedge.runtimes.choice import hardware_description
from vitedge.shrinking import timing
from vitedge.shrinking.choose import Option
from vitedge.shrinking.components import components, truncate
from vitedge.shrinking.options import ShrinkOptions
from vitedge.shrinking.plan import ShrinkPlan, require_here
from vitedge.shrinking.search import TOLERANCE, Cost
from vitedge.shrinking.table import Table, macs_table, measure_table, read_table
from vitedge.shrinking.timing import Stopwatch

if TYPE_CHECKING:
    import onnx

    from vitedge.shrinking.components import Component

LONGER = 3.0  # times as long, where an interval is wider than the tolerance of the budget


@dataclass(frozen=True)
class Prices:
    """A table, and what tells the cost of a whole model."""

    table: Table
    graph: onnx.ModelProto
    watch: Stopwatch | None  # None: nothing is measured here

    @property
    def verifies(self) -> bool:
        """Whether whole models are measured or counted, and not the table's entries added up."""
        return self.watch is not None or not self.table.measured

    def cost(self, chosen: Option) -> Cost:
        """What the model of the chosen widths takes, and the whole one beside it."""
        if self.watch is not None and self.table.measured:
            return self.measured(truncate(self.graph, chosen.widths))
        if self.table.measured:
            return Cost(self.table.full - chosen.saved, self.table.full)
        return Cost(sum(macs(truncate(self.graph, chosen.widths)).values()), self.table.full)

    def measured(self, graph: onnx.ModelProto) -> Cost:
        """What a graph takes here, against the whole one; measured for longer where the interval is too wide."""
        assert self.watch is not None
        full, (timing,) = self.watch.times([graph], silent)
        if timing.high - timing.low > 2 * TOLERANCE * timing.ratio:
            full, (timing,) = self.watch.longer(LONGER).times([graph], silent)
        return Cost(timing.ns, full)


def prices(plan: ShrinkPlan, graph: onnx.ModelProto, found: Sequence[Component], progress: Progress) -> Prices:
    """The table to choose by: the file's, else measured where the target runs here, else multiply-accumulates.

    Raises:
        UsageError, ArtifactError: as :func:`vitedge.shrinking.table.read_table`; or a table of another precision.
    """
    deployed, options = plan.deployed, plan.options
    counted = plan.budget is not None and plan.budget.kind == "macs"
    watch = None
    if plan.here and not counted:
        watch = Stopwatch(deployed, graph, threads=options.threads, duration_s=timing.WHOLE_S)
    if options.table is not None:
        table = read_table(Path(options.table), found, plan.action)
        _refuse_other(table, deployed, options.table, plan.action)
        here = watch if watch is not None and table.hardware == hardware_description(deployed.target) else None
        return Prices(table, graph, here)
    if watch is None:
        return Prices(macs_table(graph, found, deployed), graph, None)
    return Prices(_cached_table(deployed, options, graph, found, progress), graph, watch)


def _refuse_other(table: Table, deployed: Plan, path: str, action: str) -> None:
    """Raises: UsageError: the table is of another target or precision."""
    theirs, ours = (table.target, table.precision), (deployed.target.name, deployed.candidates[0].precision)
    if theirs != ours:
        reason = f"{path} was measured for {' in '.join(theirs)}, not for {' in '.join(ours)}"
        raise UsageError(action, reason, f"use: --target {theirs[0]} --precision {theirs[1]}, or measure another table")


def latency_table(deployed: Plan, out: Path, options: ShrinkOptions, action: str, progress: Progress) -> Table:
    """Measure a table on this machine, and write it.

    Raises:
        UsageError: the target doesn't run here, or ``out`` exists.
        ResourceError: it can't be written.
    """
    require_here(deployed.target, action)
    refuse_existing(out, JSON, overwrite=options.overwrite, action=action)
    graph = load(deployed.model.onnx_path)
    table = _cached_table(deployed, options, graph, components(graph), progress)
    write_atomic(out, encode_json(table), action)
    return table


def _cached_table(
    deployed: Plan, options: ShrinkOptions, graph: onnx.ModelProto, found: Sequence[Component], progress: Progress
) -> Table:
    """The table of this machine: measured before, or now."""
    action = deployed.action
    file = cache_folder() / "shrinking" / f"{_key(deployed, options, action)}.json"
    if file.is_file():
        try:
            table = read_table(file, found, action)
            if all(each.name in table.saved for each in found):
                return table
        except (InputError, UsageError):
            pass  # damaged, or of another version: it's measured again
    table = measure_table(
        Stopwatch(deployed, graph, threads=options.threads, duration_s=timing.ENTRY_S), found, progress
    )
    with optional_writes():
        write_atomic(file, encode_json(table), action)
    return table


def _key(deployed: Plan, options: ShrinkOptions, action: str) -> str:
    """Of what decides on times."""
    target, candidate = deployed.target, deployed.candidates[0]
    identity = [deployed.model.record.files["model.onnx"], str(target), str(candidate), str(options.threads)]
    identity += [runtimes.require(target.runtime, action), hardware_description(target), str(power_mode())]
    return sha256("\0".join(identity).encode())[:32]
