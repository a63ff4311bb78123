"""The source of a shrinking's costs: a table from a file, a table measured here, or multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vitedge import runtimes
from vitedge.core.cache import optional_writes
from vitedge.core.files import JSON, refuse_existing, sha256, write_atomic
from vitedge.core.paths import cache_folder
from vitedge.core.progress import Progress, named, silent
from vitedge.core.schema import encode_json
from vitedge.device.clocks import power_mode
from vitedge.errors import InputError, UsageError
from vitedge.exporting.plan import Plan
from vitedge.graph.surgery import load, macs
from vitedge.runtimes.choice import hardware_description
from vitedge.shrinking import timing
from vitedge.shrinking.adapting import at_size
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

METHOD = 3  # of measuring a table: those in the cache folder that were measured otherwise aren't read
LONGER = 3  # times as long, where an interval is wider than the tolerance of the budget, and to confirm


@dataclass(frozen=True)
class Prices:
    """A table of savings, and the means to tell the cost of a whole model."""

    table: Table  # at the size of the graph's input
    full: float  # the whole model's cost by the table, at its own size
    macs: int  # of the whole model, at its own size
    graph: onnx.ModelProto
    watch: Stopwatch | None  # with the whole model; None: nothing is measured here

    @property
    def start(self) -> Cost:
        """The graph's cost by the table while nothing is narrower, and the whole model's."""
        return Cost(self.table.full, self.full)

    @property
    def verifies(self) -> bool:
        """True where whole models are measured or counted; False where the table's entries are added up."""
        return self.watch is not None or not self.table.measured

    def cost(self, chosen: Option) -> Cost:
        """Return the cost of the model with the chosen widths, and the whole model's."""
        if self._watch is not None:
            return self._measured(chosen, self._watch)
        if self.table.measured:
            return Cost(self.table.full - chosen.saved, self.full)
        return Cost(sum(macs(truncate(self.graph, chosen.widths)).values()), self.full)

    @property
    def confirm(self) -> Callable[[Option], Cost] | None:
        """The function that measures the same for longer; None where whole models aren't measured here."""
        watch = self._watch
        return None if watch is None else lambda chosen: self._measured(chosen, watch.longer(LONGER))

    @property
    def _watch(self) -> Stopwatch | None:
        """The stopwatch where it measures whole models; None where they're counted or summed up."""
        return self.watch if self.table.measured else None

    def _measured(self, chosen: Option, watch: Stopwatch) -> Cost:
        """Measure a model of the chosen widths; for longer where the interval is too wide."""
        graphs = [truncate(self.graph, chosen.widths)]
        full, (timing,) = watch.times(graphs, silent)
        if timing.high - timing.low > 2 * TOLERANCE * timing.ratio:
            full, (timing,) = watch.longer(LONGER).times(graphs, silent)
        return Cost(timing.ns, full)


def prices(plan: ShrinkPlan, graph: onnx.ModelProto, found: Sequence[Component], progress: Progress) -> Prices:
    """Return the table to choose by: the file's, else one measured here if the target runs here, else MACs."""
    deployed = plan.deployed
    counted = plan.budget is not None and plan.budget.kind == "macs"
    elsewhere = plan.table is not None and plan.table.hardware != hardware_description(deployed.target)
    watch = None
    if plan.here and not counted and not elsewhere:
        watch = Stopwatch(deployed, graph, threads=plan.options.threads, duration_s=timing.WHOLE_S, statistic="median")
    table = plan.table or _new_table(plan, graph, found, progress, measured=watch is not None)
    return Prices(table, table.full, sum(macs(graph).values()), graph, watch)


def resized_prices(
    whole: Prices, plan: ShrinkPlan, graph: onnx.ModelProto, found: Sequence[Component], progress: Progress
) -> Prices:
    """Return the prices at another input size; whole models are still measured against the model at its own size."""
    if plan.table is None:
        table = _new_table(plan, graph, found, progress, measured=whole.watch is not None)
    else:
        table = plan.table.at(plan.deployed.model.record.preprocessing.size, str(plan.options.table), plan.action)
    return replace(whole, table=table, graph=graph)


def _new_table(
    plan: ShrinkPlan, graph: onnx.ModelProto, found: Sequence[Component], progress: Progress, *, measured: bool
) -> Table:
    if measured:
        return _cached_table(plan.deployed, plan.options, graph, found, progress)
    return macs_table(graph, found, plan.deployed)


def latency_table(deployed: Plan, out: Path, options: ShrinkOptions, action: str, progress: Progress) -> Table:
    """Measure a table on this machine, and write it.

    Raises:
        UsageError: the target doesn't run here, or ``out`` exists.
        ResourceError: it can't be written.
    """
    require_here(deployed.target, action)
    refuse_existing(out, JSON, overwrite=options.overwrite, action=action)
    graph, resized = load(deployed.model.onnx_path), []
    table = _cached_table(deployed, options, graph, components(graph), progress)
    for size in options.sizes:
        with at_size(deployed.model, size, action) as model:
            graph = load(model.onnx_path)
            plan = replace(deployed, model=model)
            at = named(progress, "×".join(map(str, model.record.preprocessing.size)))
            resized.append(_cached_table(plan, options, graph, components(graph), at))
    table = msgspec.structs.replace(table, resized=tuple(resized))
    write_atomic(out, encode_json(table), action)
    return table


def _cached_table(
    deployed: Plan, options: ShrinkOptions, graph: onnx.ModelProto, found: Sequence[Component], progress: Progress
) -> Table:
    """Return this machine's table, measured before or now."""
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
    """Return a digest of everything that times depend on."""
    target, candidate = deployed.target, deployed.candidates[0]
    identity = [deployed.model.record.files["model.onnx"], str(target), str(candidate), str(options.threads)]
    identity += [str(METHOD), runtimes.require(target.runtime, action), hardware_description(target), str(power_mode())]
    return sha256("\0".join(identity).encode())[:32]
