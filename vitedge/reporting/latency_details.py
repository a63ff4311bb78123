"""Tables behind a latency: memory and energy, load over time, layers, other tools' fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitedge.benchmarking import profile, protocols, sustained
from vitedge.reporting.rows import UNKNOWN, Line
from vitedge.reporting.terminal import QUIET, megabytes, table, text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vitedge.formats.samples import Latency, ProtocolRun

CURVE_ROWS = 12  # of the curve in a terminal


def tables(lines: Sequence[Line]) -> list[RenderableType | None]:
    """Return all tables of these lines; none where nothing was measured."""
    measured = [(line, line.row.latency) for line in lines if line.row.latency is not None]
    curves = [_curve(line, latency) for line, latency in measured]
    profiled = [_profile(line) for line in lines]
    tools = [_protocol_run(line, latency, run) for line, latency in measured for run in line.row.protocol_runs]
    return [_resources(measured), _sustained(measured), *curves, *profiled, *tools]


def _number(value: float | None, digits: int = 3) -> str:
    """Format significant digits; thousands in full."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def _resources(measured: Sequence[tuple[Line, Latency]]) -> RenderableType | None:
    if not measured:
        return None

    def size(value: int | None) -> str:
        return UNKNOWN if value is None else megabytes(value)

    def row(line: Line, latency: Latency) -> tuple[object, ...]:
        memory = latency.memory
        gpu = (memory.device_before_bytes, memory.device_after_bytes)
        energy = sustained.energy_j(latency)
        return (
            line.letter,
            line.label,
            size(memory.before_bytes),
            size(memory.after_bytes),
            size(memory.peak_bytes),
            UNKNOWN if None in gpu else megabytes(max(0, (gpu[1] or 0) - (gpu[0] or 0))),
            _number(None if energy is None else energy * 1e3 / line.row.subject.batch),
            (" + ".join(latency.power_of) or "no power meter can be read")
            + (", at its power limit" if line.verdict.power_capped else ""),
        )

    return table(
        ["", "artifact", ">before MB", ">open MB", ">peak MB", ">GPU MB", ">mJ an image", "of"],
        [row(line, latency) for line, latency in measured],
        "Resident memory of the process, and energy",
    )


def _sustained(measured: Sequence[tuple[Line, Latency]]) -> RenderableType | None:
    rows = []
    for line, latency in measured:
        load = sustained.burst_and_sustained(latency, line.row.subject.batch)
        if load is not None:
            rows.append(
                (
                    line.letter,
                    line.label,
                    _number(load.burst_p50_ms),
                    _number(load.sustained_p50_ms),
                    f"{load.slowdown:+.1%}",
                    _number(load.burst_images_per_s),
                    _number(load.sustained_images_per_s),
                )
            )
    columns = [
        "",
        "artifact",
        ">burst p50 ms",
        ">sustained p50 ms",
        ">change",
        ">burst images/s",
        ">sustained images/s",
    ]
    title = f"Burst (the first {sustained.BURST_S:g} s) and sustained load (the last third)"
    return table(columns, rows, title) if rows else None


def _curve(line: Line, latency: Latency) -> RenderableType | None:
    if sustained.duration_s(latency) < sustained.LONG_S:
        return None
    return table(
        [">from s", ">p50 ms", ">p95 ms", ">images/s", ">CPU MHz", ">GPU MHz", ">°C", ">W"],
        [
            (
                f"{window.start_s:.0f}",
                *map(_number, (window.p50_ms, window.p95_ms, window.images_per_s)),
                *(_number(value, 4) for value in (window.clock_mhz, window.gpu_clock_mhz)),
                *map(_number, (window.temperature_c, window.power_w)),
            )
            for window in sustained.curve(latency, line.row.subject.batch, CURVE_ROWS)
        ],
        f"{line.letter} over time",
    )


def _profile(line: Line) -> RenderableType | None:
    """Return percentages by component of the model, and of the blocks together."""
    profiled = line.row.profile
    if profiled is None:
        return None
    sums = profile.by_part(profiled)
    total = sum(sums.values()) or 1.0
    blocks = profile.by_block(profiled)
    inside = [number for number in blocks if number is not None]
    rows = [(part, f"{ns / 1e6:.3f}", f"{ns / total:.1%}") for part, ns in sums.items()]
    each = [sum(blocks[number].values()) / 1e6 for number in inside]
    if each:
        several = f"the {len(each)} block{'' if len(each) == 1 else 's'}"
        rows.append((several, f"{min(each):.3f} … {max(each):.3f}", f"{sum(each) * 1e6 / total:.1%}"))
    return table(["component", ">ms", ">%"], rows, f"{line.letter} layer by layer, by its runtime's profiler")


def _protocol_run(line: Line, latency: Latency, run: ProtocolRun) -> RenderableType:
    from rich.console import Group

    tool = protocols.TOOLS[run.tool]
    fields = protocols.fields(run, latency, line.row.subject.batch)
    compared = table(
        [tool.title, ">tool", ">vitedge", "unit"],
        [(field.name, _number(field.tool, 4), _number(field.vitedge, 4), field.unit) for field in fields],
        f"{line.letter} as {run.tool} measures it",
    )
    duration = f"{run.min_duration_s:g} s instead of the tool's {tool.min_duration_s:g} s"
    return Group(compared, text(f"{tool.why} Measured for {duration}." if run.shortened else tool.why, QUIET))
