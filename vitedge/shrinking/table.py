"""The latency table: the time that each component saves at each width, measured on the device and kept in a file.

Components of equal shape are measured together, all of them at one width at a time (where they go, all but the last),
and the difference to the whole model is shared out among them. So threads, caches and fusions are those of a whole
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vitedge import runtimes
from vitedge._version import __version__
from vitedge.core.files import read_whole, sha256
from vitedge.core.progress import Progress
from vitedge.core.schema import Record, decode_json, encode_json
from vitedge.errors import ArtifactError, UsageError
from vitedge.graph.surgery import macs
from vitedge.runtimes.choice import hardware_description
from vitedge.shrinking.choose import SCHEDULED, place_name
from vitedge.shrinking.components import truncate
from vitedge.shrinking.timing import Stopwatch

if TYPE_CHECKING:
    import onnx

    from vitedge.exporting.plan import Plan
    from vitedge.shrinking.components import Component

#: Narrower widths that are measured of each shape: their steps are below a percent of a model of six blocks.
MOST_WIDTHS = 8
FILE = "the latency table"


class Width(Record):
    """One width of all components of one shape."""

    width: int
    saved: float  # by each of them: nanoseconds, or multiply-accumulates
    low: float  # of the 95 % interval
    high: float


class Shape(Record):
    """Components of one shape."""

    kind: str
    width: int  # the whole one
    components: tuple[str, ...]
    widths: tuple[Width, ...]  # narrower ones

    @property
    def gaining(self) -> tuple[Width, ...]:
        """The widths that may be chosen; of tokens, those whose whole interval is above zero."""
        return self.widths if self.kind != "tokens" else tuple(each for each in self.widths if each.low > 0)


class Table(Record):
    """The contents of ``table.json``: the savings of narrower components on one device, or in multiply-accumulates."""

    SCHEMA_VERSION: ClassVar[int] = 1
    schema_version: int = 1
    vitedge_version: str = __version__
    unit: str  # "ns" or "multiply-accumulates"
    full: float  # the whole model's
    shapes: tuple[Shape, ...]
    model: str = ""  # name
    target: str = ""
    precision: str = ""
    variant: str = ""
    runtime: str = ""  # with its version
    hardware: str = ""
    threads: int | None = None  # None: the target's
    batch: int = 1
    size: tuple[int, int] | None = None  # (height, width) of the input, pixels
    resized: tuple[Table, ...] = ()  # the same at other sizes

    @property
    def measured(self) -> bool:
        """Whether it holds times rather than multiply-accumulates."""
        return self.unit == "ns"

    @property
    def saved(self) -> dict[str, dict[int, float]]:
        """The saving by component and width, as measured, raised so that narrower components never save less.

        Tokens are merged where that is sure to save anything: of other widths nothing is said.
        """
        return {name: increasing(shape.gaining) for shape in self.shapes for name in shape.components}

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the file's content."""
        return sha256(encode_json(self))

    def __str__(self) -> str:
        if not self.measured:
            return "multiply-accumulates; nothing was measured"
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{self.target} in {self.precision}, measured with {self.runtime} on {self.hardware}{threads}"

    def at(self, size: tuple[int, int], path: str | Path, action: str) -> Table:
        """Return the table of the same model at another input size.

        Raises:
            UsageError: there is none.
        """
        found = next((table for table in self.resized if table.size == size), None)
        if found is None:
            sides = "x".join(map(str, size))
            command = f"vitedge shrink MODEL --target {self.target} --resolutions {sides} --table OTHER.json"
            raise UsageError(
                action, f"{path} has no times for inputs of {sides} pixels", f"measure that size too: {command}"
            )
        return found


def increasing(widths: Sequence[Width]) -> dict[int, float]:
    """Make savings increase as widths fall: neighbours that contradict this get their mean.

    Isotonic regression by pooling adjacent violators: noise of single entries is averaged, and a width that kernels
    run slowly isn't worth more than the next one that they do.
    """
    pools: list[tuple[float, list[int]]] = []  # (mean, widths), from the widest on
    for each in sorted(widths, key=lambda each: -each.width):
        mean, members = max(0.0, each.saved), [each.width]
        while pools and pools[-1][0] > mean:
            wider, others = pools.pop()
            mean = (mean * len(members) + wider * len(others)) / (len(members) + len(others))
            members = [*others, *members]
        pools.append((mean, members))
    return {width: mean for mean, members in pools for width in members}


def read_table(path: Path, components: Sequence[Component], action: str) -> Table:
    """Read a table from a file, for a model with these components.

    Raises:
        UsageError: it can't be read, or it's another model's.
        ArtifactError: it isn't a table.
    """
    try:
        data = read_whole(path, follow_links=True)
    except OSError as error:
        hint = f"measure it on the device: vitedge shrink MODEL --target TARGET --table {path}"
        raise UsageError(action, f"{path} can't be read: {error.strerror}", hint) from error
    table = decode_json(data, Table, action=action, file=str(path), error_type=ArtifactError)
    whole = {name: shape.width for shape in table.shapes for name in shape.components}
    differing = [each.name for each in components if whole.get(each.name, _absent(each)) != each.width]
    others = whole.keys() - {each.name for each in components}
    if differing or others:
        name = next(iter(differing), "") or next(iter(others))
        raise UsageError(
            action,
            f"{path} was measured with a model of another shape ({table.model}): {name} differs",
            f"measure this model: vitedge shrink MODEL --target {table.target} --table OTHER.json",
        )
    return table


def _absent(component: Component) -> int | None:
    """Return the width of a component that a table doesn't name: of later kinds the present one, for older tables."""
    return component.width if component.kind in SCHEDULED else None


def refuse_other(table: Table, plan: Plan, path: str | Path, action: str) -> None:
    """Raises: UsageError: the table is of another target or precision."""
    theirs, ours = (table.target, table.precision), (plan.target.name, plan.candidates[0].precision)
    if theirs != ours:
        reason = f"{path} was measured for {' in '.join(theirs)}, not for {' in '.join(ours)}"
        raise UsageError(action, reason, f"use: --target {theirs[0]} --precision {theirs[1]}, or measure another table")


def measure_table(watch: Stopwatch, components: Sequence[Component], progress: Progress) -> Table:
    """Measure the savings of narrower components on this machine."""
    plan, shapes = watch.plan, shapes_of(watch.original, components)
    asked = [(_together(members, width), width) for members in shapes for width in sampled(members)]
    graphs = [truncate(watch.original, {each.name: width for each in members}) for members, width in asked]
    full, timings = watch.times(graphs, progress)
    by_shape: dict[str, list[Width]] = {members[0].name: [] for members in shapes}
    for (members, width), timing in zip(asked, timings, strict=True):
        saved, low, high = (full * (1 - end) / len(members) for end in (timing.ratio, timing.high, timing.low))
        by_shape[members[0].name].append(Width(width=width, saved=saved, low=low, high=high))
    candidate = plan.candidates[0]
    return Table(
        unit="ns",
        full=full,
        shapes=tuple(_shape(members, by_shape[members[0].name]) for members in shapes),
        model=plan.model.record.name,
        target=plan.target.name,
        precision=candidate.precision,
        variant=candidate.variant,
        runtime=f"{plan.target.runtime} {runtimes.require(plan.target.runtime, plan.action)}",
        hardware=hardware_description(plan.target),
        threads=watch.threads,
        batch=plan.batch,
        size=plan.model.record.preprocessing.size,
    )


def _together(members: Sequence[Component], width: int) -> Sequence[Component]:
    """Return the components of one shape that are measured together.

    Of branches that go, the last one stays: without any attention, nobody would read the tokens of a picture, and all
    their work would be left out.
    """
    return members[:-1] if width == 0 and len(members) > 1 else members


def macs_table(graph: onnx.ModelProto, components: Sequence[Component], plan: Plan) -> Table:
    """Return a table in multiply-accumulates: savings are proportional to what is removed from each component."""
    full, shapes = sum(macs(graph).values()), shapes_of(graph, components)

    def width(members: Sequence[Component], width: int) -> Width:
        first = members[0]
        lowest = width if first.kind == "tokens" else min(first.offered)  # with their square, not in proportion
        whole = full - sum(macs(truncate(graph, {first.name: lowest})).values())
        saved = whole * (first.width - width) / (first.width - lowest)
        return Width(width=width, saved=saved, low=saved, high=saved)

    rows = (_shape(members, [width(members, each) for each in sampled(members)]) for members in shapes)
    return Table(
        unit="multiply-accumulates", full=full, shapes=tuple(rows), model=plan.model.record.name, batch=plan.batch
    )


def shapes_of(graph: onnx.ModelProto, components: Sequence[Component]) -> list[list[Component]]:
    """Group components of the same kind, width, offered widths and amount of work.

    Tokens that are merged behind different blocks aren't: what comes after them is all that gets less.
    """
    counts = work(graph)
    alike: dict[object, list[Component]] = {}
    for component in components:
        alone = component.name if component.kind == "tokens" else counts.get(place_name(component))
        key = component.kind, component.width, component.offered, alone
        alike.setdefault(key, []).append(component)
    return list(alike.values())


def work(graph: onnx.ModelProto) -> dict[str, int]:
    """Add up multiply-accumulates by the layers' names without their last part."""
    counts: dict[str, int] = {}
    for name, count in macs(graph).items():
        group = name.rpartition(".")[0] or name
        counts[group] = counts.get(group, 0) + count
    return counts


def sampled(members: Sequence[Component]) -> list[int]:
    """Return the narrower widths to measure for components of one shape, evenly spread over those on offer."""
    offered = [width for width in members[0].offered if width < members[0].width]
    if len(offered) <= MOST_WIDTHS:
        return offered
    return [offered[round(number * (len(offered) - 1) / (MOST_WIDTHS - 1))] for number in range(MOST_WIDTHS)]


def _shape(members: Sequence[Component], widths: Sequence[Width]) -> Shape:
    return Shape(
        kind=members[0].kind,
        width=members[0].width,
        components=tuple(each.name for each in members),
        widths=tuple(widths),
    )
